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


class StrongFloorTest(absltest.TestCase):

    def test_features_are_the_written_out_ones(self):
        """Unit length, whitened by an SVD, unit length, (x, y)."""
        rng = np.random.default_rng(0)
        tokens = rng.normal(size=(400, 20)) * np.linspace(3, 0.3, 20) + 1
        tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
        places = rng.uniform(-0.5, 0.5, (400, 2))
        fitted = floors.fit_strong(np.float32(tokens), np.float32(places), 5, 0)
        self.assertEqual(fitted["centroids"].shape, (5, 14))
        got = np.asarray(floors.strong_features(np.float32(tokens), np.float32(places), fitted))

        u, _, _ = np.linalg.svd(tokens - tokens.mean(0), full_matrices=False)
        white = u[:, :12] * np.sqrt(400)                     # unit variance along each axis
        want = white / np.linalg.norm(white, axis=1, keepdims=True)
        sign = np.sign(np.sum(got[:, :12] * want, axis=0))   # an axis has two directions
        np.testing.assert_allclose(got[:, :12], want * sign, atol=2e-4)
        np.testing.assert_allclose(got[:, 12:], places, atol=1e-6)

    def test_places(self):
        places = floors.token_places(2, 4)
        self.assertEqual(places.shape, (2, 4, 2))
        np.testing.assert_allclose(places[0, :, 0], [-0.375, -0.125, 0.125, 0.375])   # x: right
        np.testing.assert_allclose(places[:, 0, 1], [-0.25, 0.25])                    # y: down

    def test_tells_by_place_what_tokens_do_not_tell(self):
        """Two kinds of token, each on both sides: four groups, of which tokens tell two."""
        kind, right = np.arange(400) % 2, np.arange(400) // 2 % 2
        tokens = np.eye(2)[kind]
        places = np.stack([right - 0.5, np.zeros(400)], 1)
        fitted = floors.fit_strong(np.float32(tokens), np.float32(places), 4, 0)
        features = floors.strong_features(np.float32(tokens), np.float32(places), fitted)
        ids = np.asarray(floors.closeness(features, fitted["centroids"])).argmax(-1)
        self.assertLen(set(zip(kind, right, ids)), 4)
        self.assertLen(set(ids), 4)

    def test_a_direction_without_spread_counts_nothing(self):
        tokens = np.zeros((60, 16), np.float32)
        tokens[np.arange(60), np.arange(60) % 3] = 1
        fitted = floors.fit_strong(tokens, np.zeros((60, 2), np.float32), 3, 0)
        self.assertTrue(all(np.isfinite(x).all() for x in fitted.values()))
        self.assertLess(np.abs(fitted["whiten"]).max(), 10)
        np.testing.assert_array_equal(fitted["whiten"][:, 2:], 0)     # 3 points span a plane

    def test_tokens_and_places_are_drawn_together(self):
        rng = np.random.default_rng(0)
        tokens, places = rng.normal(size=(90, 3)), rng.normal(size=(90, 2))
        with mock.patch.object(floors, "_MAX_POINTS", 20):
            a, b = floors._drawn(4, tokens, places)
        self.assertLen(a, 20)
        rows = [int(np.flatnonzero((tokens == x).all(1))[0]) for x in a]
        np.testing.assert_array_equal(b, places[rows])


class ImageFloorsTest(absltest.TestCase):

    def test_each_image_has_segments_of_its_own(self):
        """Three kinds of tokens an image, of other directions in the other image."""
        rng = np.random.default_rng(0)
        which = rng.integers(0, 3, (2, 6, 6))
        kinds = rng.normal(size=(2, 3, 8))
        tokens = np.stack([k[w] for k, w in zip(kinds, which)])
        tokens += 0.05 * rng.normal(size=tokens.shape)
        tokens /= np.linalg.norm(tokens, axis=-1, keepdims=True)
        size = jnp.full((2, 2), 6)
        ids = floors.floor_ids({"kmeans_image": np.arange(3), "one_segment": np.arange(1)},
                               jnp.float32(tokens), np.zeros((2, 24, 24, 3), np.uint8), size,
                               (6, 6))
        for mine, true in zip(np.asarray(ids["kmeans_image"]), which):
            self.assertLen(set(zip(mine.ravel(), true.ravel())), 3)
        np.testing.assert_array_equal(ids["one_segment"], np.zeros((2, 6, 6)))


class ClosenessTest(absltest.TestCase):

    def test_is_minus_the_squared_distance(self):
        rng = np.random.default_rng(0)
        x, centroids = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(6, 5))
        want = -((x[..., None, :] - centroids) ** 2).sum(-1)
        got = floors.closeness(jnp.float32(x), jnp.float32(centroids))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)      # x2 - 2 xc + c2 cancels


if __name__ == "__main__":
    absltest.main()
