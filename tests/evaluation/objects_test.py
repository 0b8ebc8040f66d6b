"""FG-ARI and mBO against counts of pairs and loops over objects."""

import itertools

import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.evaluation.objects import foreground_ari, mean_best_overlap


def pair_ari(prediction, truth):
    """The adjusted Rand index from all pairs of pixels."""
    pairs = list(itertools.combinations(range(truth.size), 2))
    same_p = np.array([prediction[i] == prediction[j] for i, j in pairs])
    same_t = np.array([truth[i] == truth[j] for i, j in pairs])
    expected = same_p.sum() * same_t.sum() / len(pairs)
    most = (same_p.sum() + same_t.sum()) / 2
    return 100 * ((same_p & same_t).sum() - expected) / (most - expected)


class ObjectsTest(parameterized.TestCase):

    @parameterized.parameters(range(5))
    def test_ari_of_pairs(self, seed):
        rng = np.random.default_rng(seed)
        truth, prediction = rng.integers(0, 4, (6, 7)), rng.integers(0, 5, (6, 7))
        truth[0, :2] = 255
        inside = (truth != 0) & (truth != 255)
        self.assertAlmostEqual(foreground_ari(prediction, truth),
                               pair_ari(prediction[inside], truth[inside]), places=9)

    def test_names_do_not_matter_and_the_background_is_free(self):
        truth = np.array([[0, 0, 1, 1], [2, 2, 3, 3]])
        prediction = np.array([[7, 8, 5, 5], [9, 9, 0, 0]])
        self.assertEqual(foreground_ari(prediction, truth), 100.0)
        self.assertEqual(mean_best_overlap(prediction, truth), 100.0)
        self.assertEqual(foreground_ari(truth * 0, truth), 0.0)

    @parameterized.parameters(range(5))
    def test_best_overlap_of_loops(self, seed):
        rng = np.random.default_rng(seed)
        truth, prediction = rng.integers(0, 4, (6, 7)), rng.integers(0, 5, (6, 7))
        truth[0] = 255
        votes, best = truth != 255, []
        for item in range(1, 4):
            ious = [((prediction == s) & (truth == item)).sum()
                    / (((prediction == s) & votes) | (truth == item)).sum() for s in range(5)]
            best.append(max(ious))
        self.assertAlmostEqual(mean_best_overlap(prediction, truth), 100 * np.mean(best), places=9)

    def test_what_is_not_there(self):
        empty = np.zeros((2, 2), int)
        self.assertTrue(np.isnan(foreground_ari(empty, empty)))
        self.assertTrue(np.isnan(mean_best_overlap(empty, empty)))
        with self.assertRaisesRegex(ValueError, "differ in shape"):
            foreground_ari(empty, np.zeros((2, 3)))


if __name__ == "__main__":
    absltest.main()
