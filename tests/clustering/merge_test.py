"""Merging fine clusters, against a loop over all pairs of points."""

import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.clustering.merge import merge_clusters, merge_with_background


def naive(centroids, counts, num_groups):
    """Every pair of groups compared point by point, the definition word for word."""
    unit = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    groups = [[i] for i in range(len(unit))]

    def alike(a, b):
        pairs = [(counts[i] * counts[j], unit[i] @ unit[j]) for i in a for j in b]
        return sum(n * s for n, s in pairs) / sum(n for n, _ in pairs)

    while len(groups) > num_groups:
        pairs = [(alike(a, b), i, j) for i, a in enumerate(groups)
                 for j, b in enumerate(groups) if i < j]
        _, i, j = max(pairs)
        groups[i] += groups.pop(j)
    return {frozenset(group) for group in groups}


class MergeTest(parameterized.TestCase):

    @parameterized.parameters(1, 2, 5, 12)
    def test_against_the_loop(self, num_groups):
        for seed in range(5):
            rng = np.random.default_rng(seed)
            centroids, counts = rng.normal(size=(12, 4)), rng.integers(1, 50, 12)
            groups = merge_clusters(centroids, counts, num_groups)
            got = {frozenset(np.flatnonzero(groups == g).tolist()) for g in range(num_groups)}
            self.assertEqual(got, naive(centroids, counts, num_groups))
            sizes = np.bincount(groups, counts)
            self.assertTrue(np.all(np.diff(sizes) <= 0), "the largest group comes first")

    def test_the_background_is_what_nobody_looks_at(self):
        """Two things in three parts each, and four backgrounds that are as apart as can be."""
        rng = np.random.default_rng(0)
        basis = np.eye(8)
        things = np.repeat(basis[:2], 3, axis=0) + 0.05 * rng.normal(size=(6, 8))
        centroids, counts = np.concatenate([things, basis[2:6]]), rng.integers(5, 50, 10)
        looked_at = np.array([1.4, 2.0, 1.1, 3.0, 1.2, 1.6, 0.3, 0.99, 0.5, 0.1])
        groups = merge_with_background(centroids, counts, looked_at, 3)
        self.assertEqual(groups[6:].tolist(), [0, 0, 0, 0])
        self.assertEqual(sorted({tuple(groups[:3]), tuple(groups[3:6])}), [(1,) * 3, (2,) * 3])
        with self.subTest("things are merged as they would be alone"):
            np.testing.assert_array_equal(groups[:6], 1 + merge_clusters(things, counts[:6], 2))
        with self.subTest("one background at least, and a cluster for every other class"):
            for seen, number, left in ((looked_at + 1, 3, 9), (looked_at / 9, 3, 2),
                                       (looked_at / 9, 10, 9), (np.ones(10), 2, 9)):
                groups = merge_with_background(centroids, counts, seen, number)
                self.assertEqual((np.sum(groups > 0), len(set(groups.tolist()))), (left, number))

    def test_a_large_class_stays_whole_beside_small_ones(self):
        rng = np.random.default_rng(0)
        axes = np.eye(3)
        large = axes[0] + 0.2 * rng.normal(size=(20, 3))
        small = np.concatenate([axes[1] + 0.05 * rng.normal(size=(2, 3)),
                                axes[2] + 0.05 * rng.normal(size=(2, 3))])
        groups = merge_clusters(np.concatenate([large, small]), [100] * 20 + [5] * 4, 3)
        self.assertEqual(groups.tolist(), [0] * 20 + [groups[20]] * 2 + [groups[22]] * 2)
        self.assertNotEqual(groups[20], groups[22])

    def test_empty_clusters_join_and_never_lead(self):
        centroids = np.array([[1, 0], [0, 1], [0.1, 1], [1, 0.1]], float)
        groups = merge_clusters(centroids, [3, 5, 0, 0], 2)
        self.assertEqual(groups.tolist(), [1, 0, 0, 1])
        with self.assertRaisesRegex(ValueError, "2 clusters with points can not form 3 groups"):
            merge_clusters(centroids, [3, 5, 0, 0], 3)


if __name__ == "__main__":
    absltest.main()
