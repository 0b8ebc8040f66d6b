"""Tests of fs4_jax.losses.assignment."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from absl.testing import absltest, parameterized

from fs4_jax.losses.assignment import sample_at, swapped_prediction

_SETTINGS = dict(epsilon=0.05, num_iters=3)


def grid(h, w):
    return np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), axis=-1)


class SampleAtTest(parameterized.TestCase):

    def setUp(self):
        super().setUp()
        self.maps = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)

    def read(self, *positions):
        position = np.broadcast_to(np.float32(positions), (2, len(positions), 2))
        return np.asarray(sample_at(self.maps, position))

    def test_the_identity_gives_the_map_itself(self):
        """Borders and corners included."""
        position = np.broadcast_to(np.float32(grid(3, 4)), (2, 3, 4, 2))
        np.testing.assert_array_equal(sample_at(self.maps, position), self.maps)

    def test_halves_are_means(self):
        got, maps = self.read((0.5, 1), (1, 2.5), (1.5, 0.5)), self.maps
        np.testing.assert_allclose(got[:, 0], (maps[:, 0, 1] + maps[:, 1, 1]) / 2, rtol=1e-6)
        np.testing.assert_allclose(got[:, 1], (maps[:, 1, 2] + maps[:, 1, 3]) / 2, rtol=1e-6)
        np.testing.assert_allclose(got[:, 2], maps[:, 1:3, :2].mean(axis=(1, 2)), rtol=1e-6,
                                   atol=1e-7)

    def test_outside_is_the_border(self):
        got = self.read((-0.5, -0.5), (2.5, 3.5), (-9, 1), (1, 99))
        for i, (r, c) in enumerate(((0, 0), (2, 3), (0, 1), (1, 3))):
            np.testing.assert_array_equal(got[:, i], self.maps[:, r, c])

    def test_is_scipys_map_coordinates(self):
        position = np.random.default_rng(1).uniform(-1, 4.5, (2, 50, 2)).astype(np.float32)
        got = sample_at(self.maps, position)
        for n in range(2):
            for d in range(5):
                want = scipy.ndimage.map_coordinates(
                    self.maps[n, ..., d].astype(np.float64), position[n].T, order=1, mode="nearest")
                # float32 weights of numbers near 1.
                np.testing.assert_allclose(got[n, :, d], want, atol=1e-6)

    def test_weights_sum_to_one_everywhere(self):
        position = np.random.default_rng(2).uniform(-1, 5, (1, 500, 2)).astype(np.float32)
        np.testing.assert_allclose(sample_at(np.ones((1, 3, 4, 1), np.float32), position), 1,
                                   rtol=1e-6)

    def test_each_image_is_read_at_its_own_places(self):
        position = np.float32([[[0, 0]], [[2, 1]]])
        np.testing.assert_array_equal(sample_at(self.maps, position)[:, 0],
                                      [self.maps[0, 0, 0], self.maps[1, 2, 1]])

    def test_gradient(self):
        """To the map: its bilinear weights. To the position: finite, borders included."""
        def f(maps, position):
            return jnp.sum(sample_at(maps, position))

        maps, position = jnp.zeros((1, 2, 3, 1)), jnp.array([[[0.25, 1.5]]])
        got = jax.jit(jax.grad(f))(maps, position)[0, ..., 0]
        to_position = jax.jit(jax.grad(f, argnums=1))
        np.testing.assert_allclose(got, [[0, 0.375, 0.375], [0, 0.125, 0.125]], rtol=1e-6)
        for place in ((0, 0), (2, 3), (-5, 9), (1, 1)):
            grad = to_position(self.maps[:1], jnp.float32([[place]]))
            self.assertTrue(np.isfinite(grad).all())


def places(n=40, k=5, seed=0):
    """(student1, student2, teacher1, teacher2, valid), float32."""
    rng = np.random.default_rng(seed)
    cosines = [rng.uniform(-1, 1, (n, k)).astype(np.float32) for _ in range(4)]
    return (10 * cosines[0], 10 * cosines[1], *cosines[2:], rng.random(n) < 0.7)


def reference(s1, s2, t1, t2, valid, epsilon=0.05, num_iters=3):
    """The loss of each valid place, place by place in float64."""
    s1, s2, t1, t2 = (np.asarray(x, np.float64) for x in (s1, s2, t1, t2))
    scores = np.concatenate([t1[valid], t2[valid]])
    q = np.exp(scores / epsilon)
    for _ in range(num_iters):
        q /= q.sum(axis=0)
        q /= q.sum(axis=1, keepdims=True)
    if num_iters == 0:
        q /= q.sum(axis=1, keepdims=True)
    losses, number = np.zeros(len(valid)), valid.sum()
    for i, place in enumerate(np.flatnonzero(valid)):
        for target, logits in ((q[i], s2[place]), (q[number + i], s1[place])):
            log_p = logits - np.log(np.sum(np.exp(logits)))
            losses[place] -= 0.5 * np.sum(target * log_p)
    return losses, q


class SwappedPredictionTest(parameterized.TestCase):

    @parameterized.parameters(True, False)
    def test_value(self, balanced):
        batch = places()
        losses, q = swapped_prediction(*batch, balanced=balanced, **_SETTINGS)
        want, want_q = reference(*batch, num_iters=3 if balanced else 0)
        # float32: exp(40) apart inside Sinkhorn, cross entropies of order 10.
        np.testing.assert_allclose(losses, want, rtol=1e-4, atol=1e-5)
        valid = batch[-1]
        np.testing.assert_allclose(np.concatenate([q[0][valid], q[1][valid]]), want_q, rtol=1e-4,
                                   atol=1e-6)
        np.testing.assert_array_equal(losses[~valid], 0)

    def test_invalid_places_do_not_matter(self):
        *scores, valid = places()

        def run(*scores):
            losses, _ = swapped_prediction(*scores, valid, **_SETTINGS)
            return jnp.sum(losses)

        value, grads = jax.value_and_grad(run, argnums=(0, 1))(*scores)
        spoilt = [np.where(valid[:, None], s, 1e3 * (i + 1)) for i, s in enumerate(scores)]
        again, grads_again = jax.value_and_grad(run, argnums=(0, 1))(*spoilt)
        np.testing.assert_allclose(again, value, rtol=1e-6)
        for grad, other in zip(grads, grads_again, strict=True):
            np.testing.assert_allclose(grad, other, atol=1e-6)
            np.testing.assert_array_equal(other[~valid], 0)

    def test_a_batch_without_a_valid_place_is_zero_with_zero_gradient(self):
        *scores, valid = places()
        nowhere = np.zeros_like(valid)

        def run(s1):
            return jnp.sum(swapped_prediction(s1, *scores[1:], nowhere, **_SETTINGS)[0])

        value, grad = jax.jit(jax.value_and_grad(run))(scores[0])
        self.assertEqual(float(value), 0.0)
        np.testing.assert_array_equal(grad, 0)

    def test_the_views_may_be_swapped(self):
        s1, s2, t1, t2, valid = places()
        losses, q = swapped_prediction(s1, s2, t1, t2, valid, **_SETTINGS)
        other, other_q = swapped_prediction(s2, s1, t2, t1, valid, **_SETTINGS)
        np.testing.assert_allclose(other, losses, rtol=1e-5)
        np.testing.assert_allclose(other_q[::-1], q, rtol=1e-5, atol=1e-7)

    def test_no_gradient_reaches_the_teacher(self):
        *scores, valid = places()
        def run(*scores):
            return jnp.sum(swapped_prediction(*scores, valid, **_SETTINGS)[0])

        grads = jax.jit(jax.grad(run, argnums=(0, 1, 2, 3)))(*scores)
        self.assertGreater(float(jnp.max(jnp.abs(grads[0]))), 0.01)
        for grad in grads[2:]:
            np.testing.assert_array_equal(grad, 0)

    def test_gradient_is_prediction_minus_target(self):
        s1, *others, valid = places()
        def run(s1):
            losses, q = swapped_prediction(s1, *others, valid, **_SETTINGS)
            return jnp.sum(losses), q

        grad, q = jax.grad(run, has_aux=True)(s1)
        want = 0.5 * (jax.nn.softmax(s1) - q[1]) * valid[:, None]
        np.testing.assert_allclose(grad, want, atol=1e-6)


if __name__ == "__main__":
    absltest.main()
