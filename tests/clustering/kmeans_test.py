"""Tests of fs4_jax.clustering.kmeans."""

import functools
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.clustering import kmeans
from fs4_jax.clustering.kmeans import nearest, squared_distances, unit_length
from fs4_jax.sharding import batch_sharding, make_mesh

_KEY = jax.random.key(0)
kmeans_module = sys.modules["fs4_jax.clustering.kmeans"]   # the package has a function of the name


def blobs(num_blobs=6, each=30, d=4, spread=0.1, seed=0):
    """(points [n, d], blob of each, centres): blobs on a sphere of radius 10, shuffled."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(num_blobs, d))
    centres *= 10 / np.linalg.norm(centres, axis=1, keepdims=True)
    blob = rng.permutation(np.repeat(np.arange(num_blobs), each))
    x = centres[blob] + spread * rng.normal(size=(len(blob), d))
    return x.astype(np.float32), blob, centres.astype(np.float32)


def lloyd(x, centroids, num_iters, spherical=False):
    """Lloyd's loop in float64, point by point; no cluster may become empty."""
    def unit(v):
        return v / np.linalg.norm(v, axis=-1, keepdims=True) if spherical else v

    x, centroids = unit(np.asarray(x, np.float64)), unit(np.asarray(centroids, np.float64))
    for step in range(num_iters + 1):
        distances = np.array([[np.sum((p - c) ** 2) for c in centroids] for p in x])
        labels = distances.argmin(axis=1)
        if step < num_iters:
            centroids = unit(np.stack([x[labels == j].mean(axis=0)
                                       for j in range(len(centroids))]))
    return centroids, labels, distances.min(axis=1).sum()


class KMeansTest(parameterized.TestCase):

    @parameterized.parameters(False, True)
    def test_is_lloyds(self, spherical):
        x = np.random.default_rng(1).normal(size=(150, 3)).astype(np.float32)
        init = 2 * x[:5] if spherical else x[:5]       # any length will do
        want, labels, inertia = lloyd(x, init, 8, spherical)
        result = kmeans(x, 5, key=_KEY, num_iters=8, init=init, spherical=spherical)
        # float32 distances; no point lies so near a border that it changes sides.
        np.testing.assert_allclose(result.centroids, want, atol=1e-4)
        np.testing.assert_array_equal(result.labels, labels)
        np.testing.assert_allclose(result.inertia, inertia, rtol=1e-4)
        np.testing.assert_array_equal(result.counts, np.bincount(labels, minlength=5))
        self.assertEqual(result.labels.dtype, jnp.int32)

    def test_no_iterations_only_assigns(self):
        x, blob, centres = blobs()
        result = kmeans(x, 6, key=_KEY, num_iters=0, init=centres)
        np.testing.assert_array_equal(result.centroids, centres)
        np.testing.assert_array_equal(result.labels, blob)

    def test_an_array_keeps_the_identity_of_clusters(self):
        x, blob, centres = blobs()
        order = np.array([3, 0, 5, 1, 4, 2])
        result = kmeans(x, 6, key=_KEY, init=centres[order] + 0.5)
        np.testing.assert_array_equal(order[result.labels], blob)
        np.testing.assert_allclose(result.centroids, centres[order], atol=0.1)

    def test_plus_plus_finds_well_separated_blobs(self):
        centres = 10 * np.eye(8)
        blob = np.arange(200) % 8
        x = centres[blob] + 0.01 * np.random.default_rng(0).normal(size=(200, 8))
        run = jax.jit(lambda key: kmeans(x, 8, key=key, num_iters=5))
        for seed in range(10):
            labels = np.asarray(run(jax.random.key(seed)).labels)
            self.assertLen(set(zip(blob, labels)), 8, f"seed {seed}")

    def test_random_starts_from_distinct_points(self):
        x = np.arange(6.0)[:, None]
        result = kmeans(x, 6, key=_KEY, init="random")
        np.testing.assert_array_equal(np.sort(np.ravel(result.centroids)), np.arange(6))

    @parameterized.parameters(False, True)
    def test_an_empty_cluster_is_repaired(self, spherical):
        x, blob, centres = blobs()
        nobodys = -np.sum(centres, axis=0)
        init = np.concatenate([centres[:5], nobodys[None] * (1 if spherical else 100)])
        np.testing.assert_array_equal(
            kmeans(x, 6, key=_KEY, num_iters=0, init=init, spherical=spherical).counts[5], 0)
        result = kmeans(x, 6, key=_KEY, init=init, spherical=spherical)
        self.assertLen(set(zip(blob, np.asarray(result.labels))), 6)
        np.testing.assert_array_equal(result.counts, 30)

    def test_several_empty_clusters_go_to_different_points(self):
        x = np.arange(10.0)[:, None]
        result = kmeans(x, 3, key=_KEY, num_iters=1, init=np.array([[0.0], [-90], [-99]]))
        np.testing.assert_allclose(result.centroids, [[4.5], [9], [8]])

    def test_more_clusters_than_distinct_points_is_finite(self):
        x = np.repeat(np.array([[0.0, 1], [5, 5]], np.float32), 10, axis=0)
        result = kmeans(x, 4, key=_KEY)
        self.assertTrue(np.isfinite(result.centroids).all())
        self.assertLessEqual(float(result.inertia), 1e-6)
        self.assertEqual(int(np.sum(result.counts)), 20)

    @parameterized.parameters("k-means++", "random", "array")
    def test_an_invalid_point_has_no_vote(self, init):
        x, blob, centres = blobs()
        init = centres if init == "array" else init
        valid = np.arange(len(x)) % 4 != 0
        run = jax.jit(lambda x: kmeans(x, 6, key=_KEY, init=init, valid=valid))
        for junk in (1e3, np.nan):
            spoilt = np.where(valid[:, None], x, junk)
            result = run(spoilt)
            want = kmeans(x[valid], 6, key=_KEY, num_iters=5, init=np.asarray(result.centroids))
            np.testing.assert_allclose(result.centroids, want.centroids, atol=1e-4)
            np.testing.assert_array_equal(np.asarray(result.labels)[valid], want.labels)
            np.testing.assert_array_equal(np.asarray(result.labels)[~valid], -1)
            np.testing.assert_allclose(result.inertia, want.inertia, rtol=1e-4)
            self.assertEqual(int(np.sum(result.counts)), valid.sum())

    def test_an_invalid_point_never_becomes_a_centroid(self):
        x = np.concatenate([np.zeros((20, 2)), np.ones((20, 2)), np.full((20, 2), 9.0)])
        valid = np.arange(60) < 40
        for init in ("k-means++", "random"):
            run = jax.jit(functools.partial(kmeans, x, 5, init=init, valid=valid))
            for seed in range(5):
                self.assertLessEqual(np.max(run(key=jax.random.key(seed)).centroids), 1.0)

    @parameterized.parameters(1, 2, 4, 8)
    def test_is_the_same_on_any_number_of_devices(self, num_devices):
        x, _, _ = blobs(num_blobs=8, each=16)
        mesh = make_mesh({"data": -1, "fsdp": 1}, jax.devices()[:num_devices])
        run = jax.jit(lambda x: kmeans(x, 8, key=_KEY, num_iters=5))
        sharded, single = run(jax.device_put(x, batch_sharding(mesh))), run(x)
        # The sums are added in another order: float32 roundings of numbers near 10.
        np.testing.assert_allclose(sharded.centroids, single.centroids, atol=1e-4)
        np.testing.assert_array_equal(sharded.labels, single.labels)

    @parameterized.product(n=(96, 104, 101), num_devices=(1, 8))
    def test_blocks_change_nothing(self, n, num_devices):
        """[n, k] would be larger than a block: parts of it, some of them done twice."""
        if n % num_devices:
            self.skipTest("such points are not split evenly")
        rng = np.random.default_rng(2)
        x, c = rng.normal(size=(n, 3)).astype(np.float32), rng.normal(size=(7, 3))
        mesh = make_mesh({"data": -1, "fsdp": 1}, jax.devices()[:num_devices])
        x = jax.device_put(x, batch_sharding(mesh))
        want = np.argmin(((np.asarray(x)[:, None] - c[None]) ** 2).sum(-1), axis=1)
        for block in (1, 7, 20, 60):
            with mock.patch.object(kmeans_module, "BLOCK", block):
                program = jax.jit(lambda x, c: nearest(x, c)).lower(x, jnp.float32(c)).compile()
            np.testing.assert_array_equal(program(x, jnp.float32(c)), want)
            # No point goes to another device.
            self.assertNotRegex(program.as_text(), "all-gather|all-to-all|collective-permute")

    @parameterized.product(k=(1, 2, 7, 32, 33, 65, 500), d=(1, 3, 40))
    def test_the_nearest_is_the_first_of_equally_near_ones(self, k, d):
        """Long rows are folded on CPU; whole numbers, so that NumPy's distances are exact."""
        rng = np.random.default_rng(k)
        x, c = (rng.integers(-3, 4, (n, d)).astype(np.float32) for n in (300, k))
        want = np.argmin(((x[:, None] - c[None]) ** 2).sum(-1), axis=1)
        x[0] = np.nan
        np.testing.assert_array_equal(nearest(x, jnp.asarray(c))[1:], want[1:])
        self.assertBetween(nearest(x, jnp.asarray(c))[0], 0, k - 1)
        # Numbers of all sizes: whatever a row's highest is found by, it is found again.
        x, c = rng.standard_normal((300, d), np.float32), rng.standard_normal((k, d), np.float32)
        near = np.take_along_axis(distances := ((x[:, None] - c[None]) ** 2).sum(-1),
                                  np.asarray(nearest(x, c))[:, None], axis=1)[:, 0]
        np.testing.assert_allclose(near, distances.min(1), atol=1e-4)

    def test_restarts_return_the_best(self):
        x, _, _ = blobs(spread=3.0)
        runs = [kmeans(x, 6, key=key, num_iters=3, init="random")
                for key in jax.random.split(_KEY, 4)]
        result = kmeans(x, 6, key=_KEY, num_iters=3, init="random", restarts=4)
        best = min(runs, key=lambda r: float(r.inertia))
        np.testing.assert_allclose(result.inertia, best.inertia, rtol=1e-5)
        np.testing.assert_array_equal(result.labels, best.labels)
        self.assertGreater(max(float(r.inertia) for r in runs), 1.01 * float(best.inertia))

    def test_errors(self):
        x = jnp.zeros((4, 2))
        with self.assertRaisesRegex(ValueError, r"5 clusters need x \[n, d\] with n >= 5"):
            kmeans(x, 5, key=_KEY)
        with self.assertRaisesRegex(ValueError, r"got \(4,\)"):
            kmeans(x[:, 0], 2, key=_KEY)
        with self.assertRaisesRegex(ValueError, "init must be one of .*k-means.*got 'best'"):
            kmeans(x, 2, key=_KEY, init="best")
        with self.assertRaisesRegex(ValueError, r"init must be \[2, 2\], got \(3, 2\)"):
            kmeans(x, 2, key=_KEY, init=jnp.zeros((3, 2)))
        with self.assertRaisesRegex(ValueError, "restarts must be >= 1, and 1 where init is an"):
            kmeans(x, 2, key=_KEY, init=x[:2], restarts=2)


class HelpersTest(absltest.TestCase):

    def test_squared_distances(self):
        rng = np.random.default_rng(0)
        x, c = 255 * rng.random((40, 3)), 255 * rng.random((6, 3))
        want = ((x[:, None] - c[None]) ** 2).sum(-1)
        got = squared_distances(jnp.float32(x), jnp.float32(c))
        # x2 - 2 xc + c2 cancels: 2e5 x 2^-24 x a few roundings.
        np.testing.assert_allclose(got, want, atol=0.1)
        self.assertGreaterEqual(float(jnp.min(squared_distances(jnp.float32(x), jnp.float32(x)))),
                                0.0)

    def test_unit_length_of_zero_is_zero_with_a_finite_gradient(self):
        x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
        np.testing.assert_allclose(unit_length(x), [[0.6, 0.8], [0, 0]], rtol=1e-6)
        grad = jax.grad(lambda x: jnp.sum(unit_length(x)[:, 0]))(x)
        self.assertTrue(np.isfinite(grad).all())
        np.testing.assert_allclose(grad[0], [0.64 / 5, -0.48 / 5], rtol=1e-5)


if __name__ == "__main__":
    absltest.main()
