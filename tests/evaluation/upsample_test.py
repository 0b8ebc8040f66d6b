"""Tests of fs4_jax.evaluation.upsample."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.evaluation.upsample import upsample_argmax, upsample_nearest


def bilinear(maps, height, width):
    """torch's interpolate(mode="bilinear", align_corners=False) of [h, w, k], in float64."""
    h, w, k = maps.shape
    out = np.zeros((height, width, k))
    for y in range(height):
        row = max(0.0, (y + 0.5) * h / height - 0.5)
        top, bottom = int(row), min(int(row) + 1, h - 1)
        for x in range(width):
            column = max(0.0, (x + 0.5) * w / width - 0.5)
            left, right = int(column), min(int(column) + 1, w - 1)
            dy, dx = row - top, column - left
            out[y, x] = ((1 - dy) * ((1 - dx) * maps[top, left] + dx * maps[top, right])
                         + dy * ((1 - dx) * maps[bottom, left] + dx * maps[bottom, right]))
    return out


def ids_and_margin(full):
    ordered = np.sort(full, axis=-1)
    return full.argmax(-1), ordered[..., -1] - ordered[..., -2]


class UpsampleArgmaxTest(parameterized.TestCase):

    @parameterized.parameters(4, 16, 64, 7)
    def test_is_bilinear_then_argmax_for_several_sizes_in_a_batch(self, block_rows):
        """H = 30 is no multiple of the blocks; up, down, and not at all."""
        sizes = np.array([[30, 41], [17, 9], [5, 6], [3, 41], [1, 1]])
        logits = np.random.default_rng(0).normal(size=(5, 5, 6, 4)).astype(np.float32)
        got = np.asarray(upsample_argmax(logits, jnp.asarray(sizes), (30, 41),
                                         block_rows=block_rows))
        self.assertEqual((got.shape, got.dtype), ((5, 30, 41), np.int32))
        for i, (h, w) in enumerate(sizes):
            want, margin = ids_and_margin(bilinear(logits[i].astype(np.float64), h, w))
            clear = margin > 1e-5          # float32 rounding decides the others
            self.assertGreater(clear.mean(), 0.99)
            np.testing.assert_array_equal(got[i, :h, :w][clear], want[clear])
            outside = got[i].copy()
            outside[:h, :w] = -1
            np.testing.assert_array_equal(outside, -1)

    def test_tiles_make_the_whole(self):
        """One compilation; the last tiles reach over the edge, where ids are -1."""
        logits = np.random.default_rng(1).normal(size=(1, 5, 6, 4)).astype(np.float32)
        size = jnp.array([[50, 41]])
        whole = upsample_argmax(logits, size, (50, 41))
        run = jax.jit(lambda origin: upsample_argmax(logits, size, (32, 16), origin=origin))
        tiles = [[run((row, column))[0] for column in (0, 16, 32)] for row in (0, 32)]
        got = np.block(tiles)
        np.testing.assert_array_equal(got[:50, :41], whole[0])
        self.assertEqual((got != -1).sum(), 50 * 41)

    def test_written_out(self):
        """Two tokens on four pixels: the first weighs 1, 3/4, 1/4, 0; then 0.75 > 0.625."""
        logits = jnp.array([[[[1.0, 0.0], [0.0, 2.5]]]])
        got = upsample_argmax(logits, jnp.array([[1, 4]]), (1, 4))
        np.testing.assert_array_equal(got, [[[0, 0, 1, 1]]])

    def test_the_logits_at_full_size_never_exist(self):
        shapes = set()

        def visit(jaxpr):
            for equation in jaxpr.eqns:
                shapes.update(getattr(v.aval, "size", 0) for v in equation.outvars)
                for value in equation.params.values():
                    inner = getattr(value, "jaxpr", None)
                    if inner is not None:
                        visit(getattr(inner, "jaxpr", inner))

        trace = jax.make_jaxpr(lambda x, s: upsample_argmax(x, s, (512, 512)))(
            jnp.zeros((1, 8, 8, 27)), jnp.full((1, 2), 512))
        visit(trace.jaxpr)
        self.assertGreaterEqual(max(shapes), 64 * 512 * 27)
        self.assertLess(max(shapes), 512 * 512 * 27)


class UpsampleNearestTest(absltest.TestCase):

    def test_is_exact_at_every_size(self):
        """floor((i + 1/2) h / H) in integers, for all small sizes: boundaries included."""
        side = 48
        ids = np.arange(7 * 10).reshape(1, 7, 10)
        run = jax.jit(lambda size: upsample_nearest(ids, size, (side, side)))
        for height in range(1, side + 1):
            width = side + 1 - height
            got = np.asarray(run(jnp.array([[height, width]])))[0]
            rows = [(2 * i + 1) * 7 // (2 * height) for i in range(height)]
            columns = [(2 * i + 1) * 10 // (2 * width) for i in range(width)]
            np.testing.assert_array_equal(got[:height, :width], ids[0][np.ix_(rows, columns)])
            self.assertEqual((got != -1).sum(), height * width)

    def test_sizes_differ_in_a_batch(self):
        ids = jnp.array([[[1, 2]], [[3, 4]]], jnp.uint8)
        got = upsample_nearest(ids, jnp.array([[1, 4], [2, 2]]), (2, 4))
        np.testing.assert_array_equal(got, [[[1, 1, 2, 2], [-1] * 4],
                                            [[3, 4, -1, -1], [3, 4, -1, -1]]])


if __name__ == "__main__":
    absltest.main()
