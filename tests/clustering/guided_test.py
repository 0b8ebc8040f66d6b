"""Tests of fs4_jax.clustering.guided."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.clustering import guided_clusters


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def loop(points, groups, centroids, num_groups, guides, temperature, num_iters):
    """The equations of the docstring, point by point, in float64."""
    points, centroids, k = unit(np.float64(points)), unit(np.float64(centroids)), len(centroids)
    shares = {level: np.full((number, k), 1 / k) for level, number in num_groups}
    share = np.full(k, 1 / k)
    for _ in range(num_iters):
        posterior = np.zeros((len(points), k))
        for i, x in enumerate(points):
            weight = np.prod([shares[level][groups[level][i]] for level in guides], axis=0)
            weight = weight ** (1 / len(guides)) if guides else share + 1e-6
            row = np.exp(centroids @ x / temperature) * weight
            posterior[i] = row / row.sum()
        for level, number in num_groups:
            for g in range(number):
                counts = 10 / k + posterior[groups[level] == g].sum(axis=0)
                shares[level][g] = counts / counts.sum()
        centroids, share = unit(posterior.T @ points), posterior.mean(axis=0)
    return centroids, shares, share


class GuidedClustersTest(parameterized.TestCase):

    @parameterized.parameters(((),), (("1",),), (("1", "2"),))
    def test_is_the_loop(self, guides):
        rng = np.random.default_rng(0)
        points, start = rng.normal(size=(60, 5)), rng.normal(size=(4, 5))
        groups = {"1": rng.integers(0, 3, 60), "2": rng.integers(0, 6, 60)}
        num_groups = (("1", 3), ("2", 6))
        got = guided_clusters(jnp.float32(points), groups, jnp.float32(start), guides=guides,
                              num_groups=num_groups, temperature=0.2, num_iters=4)
        want = loop(points, groups, start, num_groups, guides, 0.2, 4)
        # float32 against float64, four iterations of sums of 60 terms
        np.testing.assert_allclose(got.centroids, want[0], atol=2e-5)
        np.testing.assert_allclose(got.share, want[2], atol=2e-5)
        for level in ("1", "2"):
            np.testing.assert_allclose(got.shares[level], want[1][level], atol=2e-5)

    def mixed(self, spread=0.2):
        """Two directions that overlap; images of group 0 show the first alone, of group 1 both."""
        rng = np.random.default_rng(1)
        group = rng.integers(0, 2, 6000)
        kind = np.where(group == 0, 0, rng.random(6000) < 0.5).astype(int)
        centres = unit(np.array([[1.0, 0.3, 0], [1.0, -0.3, 0]]))
        return centres[kind] + spread * rng.normal(size=(6000, 3)), group, kind, centres

    def test_groups_tell_what_looks_alike(self):
        points, group, kind, centres = self.mixed()
        found = {guides: guided_clusters(
            jnp.float32(points), {"1": group}, jnp.float32(centres), num_groups=(("1", 2),),
            guides=guides, temperature=0.05) for guides in ((), ("1",))}
        # Of group 0 the guided mixture knows that the second class is absent.
        self.assertLess(found["1",].shares["1"][0, 1], 0.5 * found[()].shares["1"][0, 1])
        errors = [np.abs(float(result.share[1]) - kind.mean()) for result in found.values()]
        self.assertLess(errors[1], errors[0])

    def test_sizes_are_found_without_groups(self):
        rng = np.random.default_rng(2)
        kind = (rng.random(4000) < 0.05).astype(int)
        centres = unit(np.array([[1.0, 0.5], [1.0, -0.5]]))
        points = unit(centres[kind]) + 0.1 * rng.normal(size=(4000, 2))
        got = guided_clusters(jnp.float32(points), {}, jnp.float32(centres), num_groups=(),
                              guides=(), temperature=0.05)
        np.testing.assert_allclose(got.share, [0.95, 0.05], atol=0.02)

    def test_a_group_that_no_point_has_expects_all_alike(self):
        points = np.random.default_rng(3).normal(size=(30, 3))
        got = guided_clusters(jnp.float32(points), {"2": np.zeros(30, int)},
                              jnp.float32(points[:5]), num_groups=(("2", 2),), guides=("2",),
                              temperature=0.1)
        np.testing.assert_allclose(got.shares["2"][1], np.full(5, 0.2), rtol=1e-6)
        np.testing.assert_allclose(np.sum(got.shares["2"], axis=1), 1, rtol=1e-5)


if __name__ == "__main__":
    absltest.main()
