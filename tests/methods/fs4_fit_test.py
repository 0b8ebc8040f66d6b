"""FS^4's first centroids and clusters, and what a round keeps of them."""

import jax
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.methods import fs4_fit


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def cells_of(kinds, n=40, d=6, seed=0):
    """({level: [n, l, l, d]} near one of `kinds` directions, {level: which})."""
    rng = np.random.default_rng(seed)
    which = {level: rng.integers(0, len(kinds), (n, int(level), int(level))) for level in "12"}
    return {level: np.float32(unit(kinds[kind] + 0.01 * rng.normal(size=(*kind.shape, d))))
            for level, kind in which.items()}, which


class FitCentroidsTest(parameterized.TestCase):

    def setUp(self):
        super().setUp()
        self.kinds = np.eye(6)[:4]
        self.cells, self.which = cells_of(self.kinds)
        self.levels = {"1": 4, "2": 4}

    def fit(self, **kwargs):
        return fs4_fit.fit_centroids(self.cells, self.levels, jax.random.key(0), **kwargs)

    def test_each_level_has_its_own_groups(self):
        for level, centroids in self.fit().items():
            nearest = np.asarray(centroids @ self.kinds.T[:6].astype(np.float32)).argmax(-1)
            self.assertEqual(set(nearest), {0, 1, 2, 3}, level)

    def test_shared_groups_are_one_set(self):
        centroids = self.fit(shared=True)
        np.testing.assert_array_equal(centroids["1"], centroids["2"])

    @parameterized.parameters(False, True)
    def test_a_round_keeps_the_numbers(self, shared):
        """From where the groups were, and from nothing: group i stays group i."""
        before = self.fit(shared=shared)
        moved = {level: np.float32(unit(np.asarray(c) + 0.2)) for level, c in before.items()}
        for fresh in (False, True):
            after = fs4_fit.fit_centroids(self.cells, self.levels, jax.random.key(5),
                                          start=moved, fresh=fresh, shared=shared)
            for level in self.levels:
                np.testing.assert_allclose(after[level], before[level], atol=1e-5)

    def test_a_fresh_round_without_matching_would_lose_them(self):
        before, other = (fs4_fit.fit_centroids(self.cells, self.levels, jax.random.key(seed))
                         for seed in (0, 5))
        self.assertGreater(np.abs(np.asarray(before["2"]) - other["2"]).max(), 0.5)
        np.testing.assert_allclose(fs4_fit.matched(other["2"], before["2"]), before["2"],
                                   atol=1e-5)

    def test_few_cells_make_few_groups(self):
        """Groups that are left over are no cell's nearest."""
        cells = {"1": self.cells["1"][:9]}
        centroids = fs4_fit.fit_centroids(cells, {"1": 7}, jax.random.key(0))
        self.assertEqual(centroids["1"].shape, (7, 6))
        groups = fs4_fit.token_groups(cells, centroids, (2, 2))
        self.assertLess(groups["1"].max(), 2)


class TokenGroupsTest(absltest.TestCase):

    def test_tokens_have_the_group_of_their_cell(self):
        kinds = np.eye(6)[:4]
        cells, which = cells_of(kinds, n=3)
        got = fs4_fit.token_groups(cells, {level: np.float32(kinds) for level in "12"}, (4, 6))
        for level in (1, 2):
            want = [which[str(level)][n, r * level // 4, c * level // 6]
                    for n in range(3) for r in range(4) for c in range(6)]
            np.testing.assert_array_equal(got[str(level)], want)


class AttentionTest(absltest.TestCase):

    def test_a_cluster_has_the_mean_of_its_tokens(self):
        rng = np.random.default_rng(0)
        kinds, which = np.eye(4), rng.integers(0, 3, (5, 2, 3))
        attention = rng.random((5, 2, 3)) * np.array([1, 5, 2, 0.1, 7])[:, None, None]
        embedding = np.float32(kinds[which] + 0.01 * rng.normal(size=(5, 2, 3, 4)))
        got = fs4_fit.attention_of(embedding.reshape(30, 4), attention, kinds)
        want = np.zeros((4, 2))
        for image, kind in zip(attention, which):       # an image's own mean is 1
            for value, k in zip(image.ravel() / image.mean(), kind.ravel()):
                want[k] += value, 1
        np.testing.assert_allclose(got[:3], want[:3, 0] / want[:3, 1], rtol=1e-12)
        self.assertEqual(got[3], 0)


class FitClustersTest(absltest.TestCase):

    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(0)
        self.kind = rng.choice(3, 2000, p=[0.8, 0.15, 0.05])
        self.points = np.float32(np.eye(5)[self.kind] + 0.05 * rng.normal(size=(2000, 5)))
        self.groups = {"1": rng.integers(0, 2, 2000)}

    def fit(self, **kwargs):
        return fs4_fit.fit_clusters(self.points, self.groups, 3, jax.random.key(0),
                                    num_groups=(("1", 2),), guides=("1",), temperature=0.1,
                                    **kwargs)

    def test_sizes_are_fitted(self):
        fitted = self.fit()
        np.testing.assert_allclose(np.sort(fitted.share), np.sort(np.bincount(self.kind) / 2000),
                                   atol=0.01)

    def test_without_the_mixture_clusters_are_equal(self):
        fitted = self.fit(mixture=False, num_iters=1)
        np.testing.assert_allclose(fitted.share, 1 / 3)
        self.assertEqual(fitted.shares["1"].shape, (2, 3))

    def test_a_start_keeps_its_numbers(self):
        order = np.array([2, 0, 1])
        fitted = self.fit(start=np.eye(5, dtype=np.float32)[order])
        np.testing.assert_array_equal(np.asarray(fitted.centroids).argmax(-1), order)

    def test_too_few_tokens(self):
        self.points = self.points[:2]
        with self.assertRaisesRegex(ValueError, "2 tokens can not form 3 clusters .*num_clusters"):
            self.fit()


if __name__ == "__main__":
    absltest.main()
