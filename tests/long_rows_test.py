"""Rows of many lengths against NumPy; ties, infinities and NaN."""

import jax
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax import long_rows


class LongRowsTest(parameterized.TestCase):

    @parameterized.parameters(1, 2, 31, 32, 33, 63, 64, 65, 197, 500)
    def test_as_numpy_has_them(self, k):
        rng = np.random.default_rng(k)
        x = rng.integers(-9, 9, (4, 5, k)).astype(np.float32)          # with ties
        x[0, 0] = -np.inf
        np.testing.assert_array_equal(jax.jit(long_rows.highest)(x), x.max(-1, keepdims=True))
        np.testing.assert_array_equal(jax.jit(long_rows.first_highest)(x), x.argmax(-1))
        x = rng.standard_normal((4, 5, k), np.float32)
        # In another order: a few steps of float32 for sums of up to 500 numbers of size one.
        np.testing.assert_allclose(jax.jit(long_rows.total)(x),
                                   x.sum(-1, keepdims=True, dtype=float), atol=1e-4)

    def test_nan(self):
        x = np.ones((3, 40), np.float32)
        x[1, 7] = np.nan
        np.testing.assert_array_equal(np.isnan(long_rows.highest(x))[:, 0], [False, True, False])
        np.testing.assert_array_equal(long_rows.first_highest(x), [0, 0, 0])

    @parameterized.parameters("cuda", "tpu")
    def test_elsewhere_they_are_jaxs_own(self, platform):
        x = jax.ShapeDtypeStruct((2, 197), np.float32)
        for function in (long_rows.highest, long_rows.first_highest, long_rows.total):
            text = jax.jit(function).trace(x).lower(lowering_platforms=(platform,)).as_text()
            self.assertEqual(text.count("stablehlo.reduce("), 1, text)
            self.assertNotRegex(text, "stablehlo.(slice|dot_general)")


if __name__ == "__main__":
    absltest.main()
