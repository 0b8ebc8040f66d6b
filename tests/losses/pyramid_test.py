"""Tests of fs4_jax.losses.pyramid."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.losses.pyramid import cell_features, nearest_centroid, pool_cells, pyramid_loss


def loop_pool(maps, level):
    """Mean of each cell, cell i from floor(i s / l) to ceil((i + 1) s / l)."""
    b, h, w, d = maps.shape
    cells = np.zeros((b, level, level, d))
    for i in range(level):
        for j in range(level):
            top, bottom = int(np.floor(i * h / level)), int(np.ceil((i + 1) * h / level))
            left, right = int(np.floor(j * w / level)), int(np.ceil((j + 1) * w / level))
            cells[:, i, j] = maps[:, top:bottom, left:right].astype(np.float64).mean(axis=(1, 2))
    return cells


class PoolCellsTest(parameterized.TestCase):

    @parameterized.parameters((8, 8, 4), (12, 12, 1), (7, 5, 2), (7, 5, 4), (5, 9, 5), (3, 4, 3))
    def test_is_the_loop(self, h, w, level):
        maps = np.random.default_rng(0).normal(size=(2, h, w, 3)).astype(np.float32)
        # float32 sums of at most 144 numbers near 1.
        np.testing.assert_allclose(pool_cells(maps, level), loop_pool(maps, level), atol=1e-6)

    def test_a_level_of_every_token_is_the_map(self):
        maps = np.random.default_rng(0).normal(size=(1, 4, 4, 2)).astype(np.float32)
        np.testing.assert_array_equal(pool_cells(maps, 4), maps)

    def test_too_fine_a_level(self):
        with self.assertRaisesRegex(ValueError, "a 3 x 6 token grid has no 4 x 4 cells: lower "
                                    "fs4.pgg.levels or raise data.image_size"):
            pool_cells(jnp.zeros((1, 3, 6, 2)), 4)


class CellFeaturesTest(absltest.TestCase):

    def test_the_class_token_joins_at_level_1_only(self):
        rng = np.random.default_rng(0)
        tokens, cls = rng.normal(size=(2, 4, 4, 6)), rng.normal(size=(2, 6))
        unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
        got = cell_features(jnp.float32(tokens), jnp.float32(cls), 1)
        want = unit(unit(tokens.mean(axis=(1, 2))) + unit(cls))
        np.testing.assert_allclose(got[:, 0, 0], want, rtol=1e-5, atol=1e-6)
        got = cell_features(jnp.bfloat16(tokens), jnp.bfloat16(cls), 2)
        self.assertEqual(got.dtype, jnp.float32)
        np.testing.assert_allclose(got, unit(loop_pool(np.float32(jnp.bfloat16(tokens)), 2)),
                                   rtol=1e-5, atol=1e-6)


class NearestCentroidTest(absltest.TestCase):

    def test_is_the_argmin(self):
        rng = np.random.default_rng(0)
        cells, centroids = rng.normal(size=(3, 2, 2, 5)), rng.normal(size=(7, 5))
        want = ((cells[..., None, :] - centroids) ** 2).sum(-1).argmin(-1)
        got = nearest_centroid(jnp.float32(cells), jnp.float32(centroids))
        self.assertEqual(got.dtype, jnp.int32)
        np.testing.assert_array_equal(got, want)


class PyramidLossTest(absltest.TestCase):

    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(0)
        self.logits = {level: rng.normal(size=(3, level, level, 5)).astype(np.float32)
                       for level in (1, 2, 4)}
        self.labels = {level: rng.integers(0, 5, (3, level, level)) for level in (1, 2, 4)}

    def test_value(self):
        """Each level counts alike, whatever its number of cells."""
        terms = []
        for level, logits in self.logits.items():
            losses = [np.log(np.sum(np.exp(row))) - row[label] for row, label in
                      zip(np.float64(logits).reshape(-1, 5), self.labels[level].reshape(-1))]
            terms.append(np.mean(losses))
        np.testing.assert_allclose(pyramid_loss(self.logits, self.labels), np.mean(terms),
                                   rtol=1e-6)

    def test_written_out(self):
        even = {1: jnp.zeros((1, 1, 1, 4))}
        np.testing.assert_allclose(pyramid_loss(even, {1: jnp.zeros((1, 1, 1), int)}), np.log(4),
                                   rtol=1e-6)

    def test_the_order_of_cells_does_not_matter(self):
        flipped = [{k: v[:, ::-1, ::-1] for k, v in x.items()} for x in (self.logits, self.labels)]
        np.testing.assert_allclose(pyramid_loss(*flipped),
                                   pyramid_loss(self.logits, self.labels), rtol=1e-6)

    def test_gradient(self):
        grads = jax.jit(jax.grad(pyramid_loss))(self.logits, self.labels)
        for level, grad in grads.items():
            hot = jax.nn.one_hot(self.labels[level], 5)
            want = (jax.nn.softmax(self.logits[level]) - hot) / hot[..., 0].size / 3
            np.testing.assert_allclose(grad, want, atol=1e-7)


if __name__ == "__main__":
    absltest.main()
