"""Tests of fs4_jax.methods.alignseg_fit: the measure of tokens, draws by weight, the start."""

import jax
import numpy as np
from absl.testing import absltest

from fs4_jax.config import ConfigError
from fs4_jax.methods import alignseg_fit


class AlignSegFitTest(absltest.TestCase):

    def test_whitening(self):
        rng = np.random.default_rng(0)
        tokens = (rng.normal(size=(4000, 5)) * [4, 2, 1, 0.5, 0.25]) @ rng.normal(size=(5, 5)) + 3
        tokens = tokens.astype(np.float32)

        def measured(power):
            space = alignseg_fit.whitening(tokens, power)
            return tokens @ space["kernel"] + space["bias"]

        largest = np.linalg.eigvalsh(np.cov(tokens.T))[-1]
        with self.subTest("0.5 makes all directions alike"):
            np.testing.assert_allclose(np.cov(measured(0.5).T) / largest, np.eye(5), atol=2e-3)
        with self.subTest("0 keeps distances"):
            for power, same in ((0, True), (0.25, False)):
                there, here = (np.linalg.norm(x[:50, None] - x[None, 50:100], axis=-1)
                               for x in (tokens, measured(power)))
                self.assertEqual(np.allclose(there, here, rtol=1e-3), same)
        np.testing.assert_allclose(measured(0.25).mean(0), 0, atol=1e-3)

    def test_a_direction_without_spread_stays_finite(self):
        tokens = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
        tokens[:, 3] = tokens[:, 0]
        space = alignseg_fit.whitening(tokens, 0.5)
        self.assertLess(np.abs(space["kernel"]).max(), 101)     # (1e-4) ** -0.5 at most

    def test_tokens_are_drawn_by_weight(self):
        tokens = np.arange(6, dtype=np.float32).repeat(500)[:, None]
        weight = np.array([0, 1, 1, 2, 0, 4], np.float32).repeat(500)
        found = alignseg_fit.drawn(tokens, weight, 0)[:, 0]
        self.assertLen(found, 3000)
        share = np.bincount(found.astype(int), minlength=6) / 3000
        np.testing.assert_allclose(share, np.array([0, 1, 1, 2, 0, 4]) / 8, atol=0.03)
        np.testing.assert_array_equal(found, alignseg_fit.drawn(tokens, weight, 0)[:, 0])

    def test_prototypes_start_in_the_middle_of_tokens(self):
        rng = np.random.default_rng(0)
        kinds = np.eye(4, 16, dtype=np.float32)
        tokens = kinds[rng.integers(4, size=400)] + 0.05 * rng.normal(size=(400, 16))
        start = alignseg_fit.starting_prototypes(tokens.astype(np.float32), 4, jax.random.key(0))
        np.testing.assert_allclose(np.linalg.norm(start, axis=-1), 4, rtol=1e-5)
        self.assertEqual(set(np.argmax(start, -1)), {0, 1, 2, 3})
        with self.assertRaisesRegex(ConfigError, "3 tokens are fewer than .*num_prototypes=4"):
            alignseg_fit.starting_prototypes(tokens[:3], 4, jax.random.key(0))


if __name__ == "__main__":
    absltest.main()
