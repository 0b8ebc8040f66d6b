"""Prototypes: one unit vector for each cluster; a pixel's logits are its cosines to them."""

import flax.linen as nn
import jax
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


def class_scores(cosines, groups, num_classes, temperature, prior):
    r"""Scores of classes that consist of several prototypes each: a soft maximum.

    .. math:: s_c = \tau \log \sum_{j: g_j = c} m\, \pi_j e^{\cos_j / \tau}

    Args:
      cosines: float [..., m]. groups: int [m], each prototype's class; every class has one.
      num_classes: of them. temperature: > 0. prior: [m], each prototype's share, sums to 1.

    Returns:
      float32 [..., num_classes]; the cosines themselves where each class has one prototype, all of
      them with equal shares.
    """
    member = groups[:, None] == jnp.arange(num_classes)
    scores = cosines.astype(jnp.float32) / temperature + jnp.log(len(prior) * prior)
    scores = jnp.where(member, scores[..., None], -jnp.inf)
    return temperature * jax.nn.logsumexp(scores, axis=-2)
