"""Prototypes: one unit vector for each cluster; a pixel's logits are its cosines to them."""

import flax.linen as nn
import jax.numpy as jnp

from fs4_jax.clustering.kmeans import unit_length


class Prototypes(nn.Module):
    """embedding [..., c] -> cosines float32 [..., num_clusters], in [-1, 1]."""
    num_clusters: int

    @nn.compact
    def __call__(self, embedding):
        shape = (self.num_clusters, embedding.shape[-1])
        prototypes = self.param("prototypes", nn.initializers.normal(1.0), shape)
        # Float32 on accelerators too: the teacher's cosines are divided by a small epsilon.
        return jnp.matmul(unit_length(embedding.astype(jnp.float32)), unit_length(prototypes).T,
                          precision="highest")
