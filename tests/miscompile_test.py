"""jax's compiled CPU code agrees with its uncompiled one where jaxlib (0.10.2, 0.12.0.1) did not.

Without the XLA flag that `import fs4_jax` sets, the compiled answers here are NaN or off by 0.9.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import fs4_jax  # noqa: F401  sets the flag
from fs4_jax.clustering.kmeans import unit_length

_SHAPE = (16, 16, 16)


class MiscompileTest(parameterized.TestCase):

    @parameterized.named_parameters(("gelu", nn.gelu), ("relu", nn.relu))
    def test_product_then_norm(self, activation):
        rng = np.random.default_rng(0)
        tokens = rng.normal(size=(*_SHAPE, 384)).astype(np.float32)
        residual = rng.normal(size=(*_SHAPE, 16)).astype(np.float32)
        project = rng.normal(size=(384, 16)).astype(np.float32) * 0.1
        fuse = rng.normal(size=(32, 256)).astype(np.float32) * 0.1
        out = np.zeros((256, 16), np.float32)

        def embed(tokens):
            joined = jnp.concatenate([tokens @ project, residual], axis=-1)
            return unit_length(residual + activation(joined @ fuse) @ out)

        # Both are float32; they differ by the order of sums alone: 1e-5 is 100 roundings of 1.
        np.testing.assert_allclose(jax.jit(embed)(tokens), embed(jnp.asarray(tokens)), atol=1e-5)

    def test_row_norms_of_a_product(self):
        index = jnp.arange(32_769, dtype=jnp.float32)
        rows = jnp.stack([index, jnp.zeros_like(index), jnp.zeros_like(index)], axis=1)
        norms = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)
        np.testing.assert_allclose(norms[-1], 32_768.0 ** 2, rtol=1e-6)


if __name__ == "__main__":
    absltest.main()
