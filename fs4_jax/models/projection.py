"""DINO's head: an MLP, a bottleneck at unit length, and prototypes of unit length."""

import flax.linen as nn
import jax.numpy as jnp

from fs4_jax.models.prototypes import Prototypes
from fs4_jax.models.block_ops import gelu
from fs4_jax.models.transformer import weight_init


class ProjectionHead(nn.Module):
    """Tokens [..., d] -> cosines float32 [..., num_prototypes] (Caron et al. 2021, appendix C).

    The last layer is weight-normed with its gain held at 1, which makes its outputs cosines.

    Attributes:
      num_prototypes: outputs. hidden: width of the MLP. bottleneck: width before the last layer.
      num_layers: of the MLP, the one into the bottleneck included.
      dtype: what the MLP is computed in.
    """
    num_prototypes: int
    hidden: int = 2048
    bottleneck: int = 256
    num_layers: int = 3
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, tokens):
        x = tokens.astype(self.dtype)
        for i in range(self.num_layers):
            last = i + 1 == self.num_layers
            x = nn.Dense(self.bottleneck if last else self.hidden, dtype=self.dtype,
                         kernel_init=weight_init, name=f"mlp_{i}")(x)
            x = x if last else gelu(x)
        return Prototypes(self.num_prototypes, name="last_layer")(x)
