"""Tests of fs4_jax.losses.pyramid."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.losses.pyramid import (
    cell_features,
    cell_labels,
    pool_cells,
    pooled_assignment_loss,
    pyramid_loss,
)


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


class CellLabelsTest(absltest.TestCase):

    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(0)
        self.cells = np.float32(rng.normal(size=(3, 2, 2, 5)))
        self.cells /= np.linalg.norm(self.cells, axis=-1, keepdims=True)
        self.centroids = np.float32(rng.normal(size=(4, 5)))
        self.squared = ((self.cells[..., None, :] - self.centroids) ** 2).sum(-1)

    def test_the_nearest(self):
        got = cell_labels(self.cells, self.centroids)
        np.testing.assert_array_equal(got, np.eye(4)[self.squared.argmin(-1)])

    def test_smoothed_by_distance(self):
        want = np.exp(-self.squared / 0.7)
        np.testing.assert_allclose(cell_labels(self.cells, self.centroids, smoothing=0.7),
                                   want / want.sum(-1, keepdims=True), rtol=1e-4)

    def test_balanced_groups_have_equal_shares(self):
        """Also where one centroid is the nearest of all cells."""
        centroids = np.concatenate([self.cells.mean(axis=(0, 1, 2))[None], self.centroids[1:]])
        nearest = cell_labels(self.cells, centroids)
        self.assertEqual(np.sum(nearest, axis=(0, 1, 2))[0], 12)
        soft = cell_labels(self.cells, centroids, balanced=True, smoothing=0.5)
        # Ten iterations, that end with the rows: the columns are not exact yet.
        np.testing.assert_allclose(np.sum(soft, axis=(0, 1, 2)), np.full(4, 3.0), rtol=0.05)
        hard = cell_labels(self.cells, centroids, balanced=True)
        self.assertEqual(set(np.unique(hard)), {0.0, 1.0})
        self.assertTrue(np.all(np.sum(hard, axis=(0, 1, 2)) > 0))


class ClassesOfGroupsTest(parameterized.TestCase):

    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(0)
        self.labels = {level: np.float32(rng.dirichlet(np.ones(3), (2, int(level), int(level))))
                       for level in ("1", "2")}
        self.shares = {level: np.float32(rng.dirichlet(np.ones(4), 3)) for level in ("1", "2")}
        self.assignment = np.float32(rng.dirichlet(np.ones(4), (2, 6, 5)))

    def test_pooled_assignment_is_the_loop(self):
        terms = []
        for level, labels in self.labels.items():
            cells = loop_pool(self.assignment, int(level))
            terms.append(-np.mean(np.sum((labels @ self.shares[level]) * np.log(cells), axis=-1)))
        got = pooled_assignment_loss(self.assignment, self.labels, self.shares)
        np.testing.assert_allclose(got, np.mean(terms), rtol=1e-4)

    def test_pooled_assignment_is_least_where_cells_hold_what_is_expected(self):
        labels = {"2": self.labels["2"]}
        expected = labels["2"] @ self.shares["2"]
        as_expected = np.repeat(np.repeat(expected, 3, axis=1), 3, axis=2)
        least = pooled_assignment_loss(as_expected, labels, self.shares)
        np.testing.assert_allclose(least, -np.mean(np.sum(expected * np.log(expected), axis=-1)),
                                   rtol=1e-4)
        self.assertGreater(pooled_assignment_loss(self.assignment, labels, self.shares), least)

    def test_a_share_of_nothing_is_no_infinity(self):
        shares = {"1": np.float32([[1, 0, 0, 0]] * 3)}
        labels = {"1": self.labels["1"]}
        grad = jax.grad(pooled_assignment_loss)(jnp.zeros((2, 6, 5, 4)), labels, shares)
        self.assertTrue(np.all(np.isfinite(grad)))


class PyramidLossTest(absltest.TestCase):

    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(0)
        self.logits = {level: rng.normal(size=(3, level, level, 5)).astype(np.float32)
                       for level in (1, 2, 4)}
        self.labels = {level: np.float32(rng.dirichlet(np.ones(5), (3, level, level)))
                       for level in (1, 2, 4)}

    def test_value(self):
        """Each level counts alike, whatever its number of cells."""
        terms = []
        for level, logits in self.logits.items():
            losses = [np.log(np.sum(np.exp(row))) - row @ label for row, label in
                      zip(np.float64(logits).reshape(-1, 5), self.labels[level].reshape(-1, 5))]
            terms.append(np.mean(losses))
        np.testing.assert_allclose(pyramid_loss(self.logits, self.labels), np.mean(terms),
                                   rtol=1e-6)

    def test_written_out(self):
        even = {1: jnp.zeros((1, 1, 1, 4))}
        np.testing.assert_allclose(pyramid_loss(even, {1: jnp.eye(4)[:1, None, None]}),
                                   np.log(4), rtol=1e-6)

    def test_the_order_of_cells_does_not_matter(self):
        flipped = [{k: v[:, ::-1, ::-1] for k, v in x.items()} for x in (self.logits, self.labels)]
        np.testing.assert_allclose(pyramid_loss(*flipped),
                                   pyramid_loss(self.logits, self.labels), rtol=1e-6)

    def test_gradient(self):
        grads = jax.jit(jax.grad(pyramid_loss))(self.logits, self.labels)
        for level, grad in grads.items():
            labels = self.labels[level]
            want = (jax.nn.softmax(self.logits[level]) - labels) / labels[..., 0].size / 3
            np.testing.assert_allclose(grad, want, atol=1e-7)


if __name__ == "__main__":
    absltest.main()
