"""Tests of fs4_jax.losses.alignment: against the equations written out, bounds, known answers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.losses.alignment import (
    mixture_loss,
    paired_crops,
    prototype_contrast,
    prototype_image_loss,
    soft_assignment,
)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def reference(tokens, prototypes, masks, pressure):
    """The sum over foreground pairs, line by line, in double precision: methods.md 2.4 (1)."""
    fg, fi, qg, qi = (unit(x.astype(np.float64)) for x in (*tokens, *prototypes))
    c = np.einsum("bnd,bmd->bnm", fg, fi)
    centred = c - c.mean(2, keepdims=True)
    centred = centred - centred.mean() + c.mean()
    ag, ai = (softmax(np.maximum(np.einsum("bnd,bkd->bnk", f, q), 0)) for f, q in
              ((fg, qg), (fi, qi)))
    s = np.einsum("bnk,bmk->bnm", ag, ai)
    pairs = masks[0][:, :, None] & masks[1][:, None, :]
    return (-s * (centred - pressure) * pairs).sum(), pairs.sum(), s


def example(seed=0, b=3, n=20, m=16, d=12, k=5):
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(b, 1, d))
    tokens = tuple((rng.normal(size=(b, x, d)) + shared).astype(np.float32) for x in (n, m))
    prototypes = tuple(rng.normal(size=(b, k, d)).astype(np.float32) for _ in range(2))
    return tokens, prototypes, tuple(rng.random((b, x)) < 0.4 for x in (n, m))


class PrototypeImageTest(parameterized.TestCase):

    @parameterized.parameters(0, 1, 2)
    def test_it_is_the_equation(self, seed):
        tokens, prototypes, masks = example(seed)
        want, pairs, s = reference(tokens, prototypes, masks, 0.11)
        got = prototype_image_loss(tokens, prototypes, masks, pressure=0.11, reduction="sum")
        np.testing.assert_allclose(got, want, rtol=1e-5)
        mean = prototype_image_loss(tokens, prototypes, masks, pressure=0.11)
        np.testing.assert_allclose(mean, want / pairs, rtol=1e-5)
        self.assertTrue((s > 0.1).all())

    def test_bounds_of_an_assignment(self):
        """methods.md 2.4: entries in [0.149, 0.405], S in about [0.187, 0.252], for K = 5 that
        differ. (Four alike and one apart from them leave that one 0.084: what the clamp allows.)"""
        most, apart, least = math.e / (math.e + 4), 1 / (math.e + 4), 1 / (1 + 4 * math.e)
        one_each = np.eye(5, 6, dtype=np.float32)[None]
        x = np.asarray(soft_assignment(one_each, one_each))[0]
        np.testing.assert_allclose(x, apart + (most - apart) * np.eye(5), rtol=1e-6)
        self.assertEqual((round(apart, 3), round(most, 3)), (0.149, 0.405))
        s = x @ x.T
        self.assertEqual((round(float(s.min()), 3), round(float(s.max()), 3)), (0.187, 0.252))
        opposite = np.asarray(soft_assignment(-np.ones((1, 1, 4), np.float32),
                                              np.ones((1, 5, 4), np.float32)))
        np.testing.assert_allclose(opposite, 0.2, rtol=1e-6)                    # the clamp
        rng = np.random.default_rng(0)
        for d in (1, 2, 8):
            x = np.asarray(soft_assignment(rng.normal(size=(8, 99, d)).astype(np.float32),
                                           rng.normal(size=(8, 5, d)).astype(np.float32)))
            self.assertBetween(x.min(), least - 1e-6, 0.2)
            self.assertBetween(x.max(), 0.2, most + 1e-6)
            np.testing.assert_allclose(x.sum(-1), 1, rtol=1e-5)

    def test_the_sum_grows_with_the_batch_and_the_mean_does_not(self):
        tokens, prototypes, masks = example()
        twice = [tuple(np.concatenate([x, x]) for x in pair)
                 for pair in (tokens, prototypes, masks)]
        for reduction, factor in (("sum", 2.0), ("mean", 1.0)):
            one, two = (prototype_image_loss(*arrays, pressure=0.1, reduction=reduction)
                        for arrays in ((tokens, prototypes, masks), twice))
            np.testing.assert_allclose(two, factor * one, rtol=1e-5)

    def test_background_has_no_say(self):
        tokens, prototypes, masks = example()
        grad = jax.grad(lambda q: prototype_image_loss(tokens, q, masks, pressure=0.1))
        none = grad(prototypes)
        self.assertTrue(any(np.abs(g).max() > 0 for g in none))
        empty = (masks[0], np.zeros_like(masks[1]))
        self.assertEqual(prototype_image_loss(tokens, prototypes, empty, pressure=0.1), 0.0)
        for g in jax.grad(lambda q: prototype_image_loss(tokens, q, empty, pressure=0.1))(
                prototypes):
            np.testing.assert_array_equal(g, np.zeros_like(g))

    def test_tokens_get_a_gradient_through_the_assignment_alone(self):
        """What they correlate to is a target: turning all tokens' gradient off changes nothing
        but the assignment's part, which is that of held correlations."""
        tokens, prototypes, masks = example()

        def loss(t):
            return prototype_image_loss(t, prototypes, masks, pressure=0.1, reduction="sum")

        def held(t):
            fg, fi = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in tokens)
            c = jnp.einsum("bnd,bmd->bnm", fg, fi)
            c = c - c.mean(2, keepdims=True) + c.mean() - 0.1
            s = jnp.einsum("bnk,bmk->bnm", *(soft_assignment(x, q) for x, q in
                                             zip(t, prototypes)))
            return -jnp.sum(s * c * (masks[0][:, :, None] & masks[1][:, None, :]))

        for got, want in zip(jax.grad(loss)(tokens), jax.grad(held)(tokens)):
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)

    def test_learning_lowers_it(self):
        """Two kinds of tokens: prototypes that descend tell them apart."""
        rng = np.random.default_rng(0)
        kinds = unit(rng.normal(size=(2, 16))).astype(np.float32)
        which = rng.integers(0, 2, (2, 3, 30))
        tokens = tuple(kinds[x] + 0.05 * rng.normal(size=(3, 30, 16)).astype(np.float32)
                       for x in which)
        masks = (np.ones((3, 30), bool),) * 2
        loss = jax.jit(jax.value_and_grad(lambda q: prototype_image_loss(
            tokens, (jnp.tile(q[None], (3, 1, 1)),) * 2, masks, pressure=0.5)))
        # Near their mean: a prototype that no token is near is clamped, and learns nothing.
        q = jnp.asarray(kinds.mean(0) + 0.1 * rng.normal(size=(2, 16)).astype(np.float32))
        first, _ = loss(q)
        for _ in range(100):
            value, grad = loss(q)
            q = q - 5 * grad
        self.assertLess(value, first)
        ids = np.argmax(soft_assignment(tokens[0], jnp.tile(q[None], (3, 1, 1))), axis=-1)
        agreement = (ids == which[0]).mean()
        self.assertGreater(max(agreement, 1 - agreement), 0.95)


class ContrastTest(parameterized.TestCase):

    @parameterized.parameters(1, 2, 5, 18)
    def test_alike_prototypes(self, k):
        q = np.ones((2, k, 8), np.float32)
        np.testing.assert_allclose(prototype_contrast(q, 3 * q), math.log(2 * k - 1), atol=1e-5)

    def test_orthogonal_prototypes(self):
        q = np.eye(5, 8, dtype=np.float32)[None]
        np.testing.assert_allclose(prototype_contrast(q, q), math.log(math.e + 8) - 1, rtol=1e-6)

    @parameterized.parameters(1.0, 0.5)
    def test_it_is_cross_entropy_row_by_row(self, temperature):
        rng = np.random.default_rng(0)
        first, second = rng.normal(size=(2, 3, 4, 6)).astype(np.float32)
        losses = []
        for a, b in zip(first, second):
            z = unit(np.concatenate([a, b]).astype(np.float64))
            for row in range(8):
                scores = z @ z[row] / temperature
                others = [s for i, s in enumerate(scores) if i != row]
                losses.append(np.log(np.exp(others).sum()) - scores[(row + 4) % 8])
        np.testing.assert_allclose(prototype_contrast(first, second, temperature),
                                   np.mean(losses), rtol=1e-5)

    def test_gradients_are_finite(self):
        for q in (np.ones((1, 5, 4)), np.zeros((1, 5, 4))):
            grad = jax.grad(lambda q: prototype_contrast(q, q))(q.astype(np.float32))
            self.assertTrue(np.isfinite(grad).all())


class PairingTest(parameterized.TestCase):

    def test_each_crop_stays_with_its_image(self):
        crops = np.arange(12).reshape(6, 2)            # image i has crops 2i, 2i + 1
        np.testing.assert_array_equal(paired_crops(crops), crops)

    @parameterized.parameters((32, 2), (6, 2), (4, 3))
    def test_the_released_pairing(self, b, v):
        crops = np.stack(np.meshgrid(np.arange(b), np.arange(v), indexing="ij"), -1)   # (image, v)
        flat = [crops[i, j] for j in range(v) for i in range(b)]      # as they ran: crop-major
        want = np.stack(flat).reshape(b, v, 2)                        # as they are read
        got = np.asarray(paired_crops(crops, released=True))
        np.testing.assert_array_equal(got, want)
        right = (got == crops).all(-1).sum()
        self.assertLess(right, b * v)
        if (b, v) == (32, 2):
            self.assertEqual(right, 2)                 # of 64: methods.md 2.9.1


class MixtureTest(absltest.TestCase):

    def test_by_hand_and_its_gradient(self):
        (tokens, _), (prototypes, _), _ = example()
        weight = np.random.default_rng(1).random(tokens.shape[:2], np.float32) + 0.1
        by_hand = 0.0
        for f, q, w in zip(unit(tokens), unit(prototypes), weight):
            for token, share in zip(f, w / w.sum()):
                by_hand -= share * 0.2 * np.log(np.exp((q @ token).astype(np.float64) / 0.2).mean())
        np.testing.assert_allclose(mixture_loss(tokens, prototypes, weight, 0.2),
                                   by_hand / len(tokens), rtol=1e-5)
        to_tokens, to_prototypes = jax.grad(mixture_loss, argnums=(0, 1))(
            jnp.asarray(tokens), jnp.asarray(prototypes), weight, 0.2)
        self.assertFalse(np.any(to_tokens))
        self.assertTrue(np.all(np.linalg.norm(to_prototypes, axis=-1) > 1e-3))


if __name__ == "__main__":
    absltest.main()
