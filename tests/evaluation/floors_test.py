"""Tests of fs4_jax.evaluation.floors."""

from unittest import mock

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from fs4_jax.evaluation import floors


def points(num=240, seed=0):
    """(points around 6 corners of a cube of side 200, the corner of each)."""
    rng = np.random.default_rng(seed)
    corner = np.arange(num) % 6
    centres = np.array([[0, 0, 0], [200, 0, 0], [0, 200, 0], [0, 0, 200], [200, 200, 0],
                        [200, 200, 200]])
    return (centres[corner] + rng.normal(size=(num, 3))).astype(np.float32), corner


class FitFloorTest(absltest.TestCase):

    def test_finds_separate_groups(self):
        x, corner = points()
        for seed in range(3):
            centroids = floors.fit_floor(x, 6, seed, spherical=False)
            self.assertIsInstance(centroids, np.ndarray)
            labels = np.asarray(floors.closeness(jnp.asarray(x), centroids)).argmax(-1)
            self.assertLen(set(zip(corner, labels)), 6)

    def test_is_decided_by_the_seed(self):
        x = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
        first, again, other = (floors.fit_floor(x, 7, seed, spherical=True) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        self.assertFalse(np.array_equal(first, other))
        np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, rtol=1e-5)

    def test_takes_a_sample_of_many_points(self):
        x, _ = points()
        with mock.patch.object(floors, "_MAX_POINTS", 60):
            centroids = floors.fit_floor(x, 6, 0, spherical=False)
        self.assertEqual(centroids.shape, (6, 3))
        self.assertLess(np.abs(centroids / 200 - np.round(centroids / 200)).max(), 0.02)

    def test_keeps_the_best_restart(self):
        result = mock.Mock(side_effect=[mock.Mock(inertia=3.0, centroids=np.full((1, 1), 3)),
                                        mock.Mock(inertia=1.0, centroids=np.full((1, 1), 1)),
                                        mock.Mock(inertia=2.0, centroids=np.full((1, 1), 2))])
        with mock.patch.object(floors.jax, "jit", return_value=result):
            best = floors.fit_floor(np.zeros((5, 1), np.float32), 1, 0, spherical=False)
        np.testing.assert_array_equal(best, [[1]])


class ClosenessTest(absltest.TestCase):

    def test_is_minus_the_squared_distance(self):
        rng = np.random.default_rng(0)
        x, centroids = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(6, 5))
        want = -((x[..., None, :] - centroids) ** 2).sum(-1)
        got = floors.closeness(jnp.float32(x), jnp.float32(centroids))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)      # x2 - 2 xc + c2 cancels


if __name__ == "__main__":
    absltest.main()
