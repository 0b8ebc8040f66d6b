"""Tests of fs4_jax.clustering.validity."""

import itertools

import numpy as np
from absl.testing import absltest

from fs4_jax.clustering.validity import adjusted_rand, silhouette


def silhouette_loop(x, labels):
    """The definition, point by point."""
    total = 0.0
    for i in range(len(x)):
        mean = {}
        for j in set(labels):
            others = [m for m in range(len(x)) if labels[m] == j and m != i]
            if others:
                mean[j] = np.mean([np.linalg.norm(x[i] - x[m]) for m in others])
        if labels[i] in mean:
            a = mean.pop(labels[i])
            b = min(mean.values())
            total += (b - a) / max(a, b)
    return total / len(x)


def rand_loop(first, second):
    """The share of pairs on which both agree, against that of chance, from pairs alone."""
    pairs = list(itertools.combinations(range(len(first)), 2))
    same1 = np.array([first[i] == first[j] for i, j in pairs])
    same2 = np.array([second[i] == second[j] for i, j in pairs])
    chance = same1.sum() * same2.sum() / len(pairs)
    return ((same1 & same2).sum() - chance) / ((same1.sum() + same2.sum()) / 2 - chance)


class ValidityTest(absltest.TestCase):

    def test_silhouette_is_its_definition(self):
        rng = np.random.default_rng(0)
        x, labels = rng.normal(size=(40, 3)), rng.integers(0, 4, 40)
        labels[7] = 9                                        # alone in its cluster
        np.testing.assert_allclose(silhouette(x, labels), silhouette_loop(x, labels), rtol=1e-9)

    def test_silhouette_of_extremes(self):
        x = np.array([[0.0], [0.0], [5.0], [5.0]])
        np.testing.assert_allclose(silhouette(x, [0, 0, 1, 1]), 1.0, atol=1e-6)
        self.assertLess(silhouette(x, [0, 1, 0, 1]), -0.4)
        self.assertTrue(np.isnan(silhouette(x, [3, 3, 3, 3])))
        self.assertEqual(silhouette(np.zeros((4, 2)), [0, 0, 1, 1]), 0.0)

    def test_adjusted_rand_is_its_definition(self):
        rng = np.random.default_rng(1)
        first = rng.integers(0, 4, 60)
        second = np.where(rng.random(60) < 0.6, first, rng.integers(0, 6, 60))
        np.testing.assert_allclose(adjusted_rand(first, second), rand_loop(first, second))

    def test_adjusted_rand_knows_no_names_and_no_chance(self):
        rng = np.random.default_rng(2)
        labels = rng.integers(0, 5, 4000)
        self.assertEqual(adjusted_rand(labels, np.array([30, 4, 11, 2, 7])[labels]), 1.0)
        self.assertLess(abs(adjusted_rand(labels, rng.integers(0, 5, 4000))), 0.01)
        self.assertEqual(adjusted_rand([0, 0, 0], [1, 1, 1]), 1.0)


if __name__ == "__main__":
    absltest.main()
