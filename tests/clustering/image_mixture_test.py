"""Tests of fs4_jax.clustering.image_mixture: against a loop, and what is guaranteed."""

import numpy as np
from absl.testing import absltest

from fs4_jax.clustering.image_mixture import settle
from fs4_jax.losses.alignment import mixture_loss

_TEMPERATURE = 0.2


def drawn(seed=0, b=2, n=40, k=3, d=6):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(b, n, d)).astype(np.float32),
            rng.normal(size=(b, k, d)).astype(np.float32), rng.random((b, n), np.float32) + 0.1)


def unit(x):
    return x / np.linalg.norm(x)


def settled_by_hand(tokens, prototypes, weight, num_rounds):
    """The same in float64, image by image and token by token."""
    answer = []
    for f, q, w in zip(*(x.astype(np.float64) for x in (tokens, prototypes, weight))):
        f, q = [unit(x) for x in f], [unit(x) for x in q]
        for _ in range(num_rounds):
            pulled = np.zeros((len(q), len(f[0])))
            for token, share in zip(f, w):
                member = np.exp([token @ x / _TEMPERATURE for x in q])
                pulled += np.outer(member / member.sum(), share * token)
            q = [unit(x) for x in pulled]
        answer.append(q)
    return np.array(answer)


class ImageMixtureTest(absltest.TestCase):

    def settle(self, *args, rounds=4):
        return settle(*args, num_rounds=rounds, temperature=_TEMPERATURE)

    def test_against_a_loop(self):
        # Float32 beside float64; four rounds do not amplify the rounding beyond 1e-5.
        np.testing.assert_allclose(self.settle(*drawn()), settled_by_hand(*drawn(), 4), atol=1e-5)

    def test_no_round_gives_the_prototypes_back(self):
        tokens, prototypes, weight = drawn()
        self.assertIs(self.settle(tokens, prototypes, weight, rounds=0), prototypes)

    def test_each_round_makes_the_tokens_likelier(self):
        tokens, prototypes, weight = drawn(n=200)
        losses = [float(mixture_loss(tokens, self.settle(tokens, prototypes, weight, rounds=i),
                                     weight, _TEMPERATURE)) for i in range(8)]
        self.assertEqual(losses, sorted(losses, reverse=True))
        self.assertGreater(losses[0] - losses[-1], 0.05)

    def test_a_token_without_weight_is_not_there(self):
        tokens, prototypes, weight = drawn()
        weight[:, 30:] = 0
        there = self.settle(tokens, prototypes, weight)
        np.testing.assert_allclose(
            there, self.settle(tokens[:, :30], prototypes, weight[:, :30]), atol=1e-6)
        np.testing.assert_allclose(
            mixture_loss(tokens, there, weight, _TEMPERATURE),
            mixture_loss(tokens[:, :30], there, 7 * weight[:, :30], _TEMPERATURE), rtol=1e-5)

    def test_a_prototype_that_no_token_belongs_to_stays(self):
        tokens, prototypes, weight = drawn(d=3, k=2)
        tokens[..., 2] = 0                          # all in a plane, the second far outside of it
        tokens[..., 0] = np.abs(tokens[..., 0])
        prototypes[:] = [[1, 0, 0], [-1, 0, 0.0]]
        found = settle(tokens, prototypes, weight, num_rounds=5, temperature=0.005)
        self.assertTrue(np.isfinite(found).all())
        np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, rtol=1e-5)


if __name__ == "__main__":
    absltest.main()
