"""The kernel regularizer: neighbours alike in colour and in features should share a cluster."""

import jax
import jax.numpy as jnp

from fs4_jax.affinity import windowed_kernel_energy
from fs4_jax.clustering.kmeans import unit_length


def kernel_loss(assignment, colour, features, *, radius, position_sigma, colour_sigma,
                feature_sigma):
    """Mean windowed Potts energy, kernel from position, colour and deep features.

    The features change as training goes (DFR's idea, arXiv 2108.01296) but get no gradient here.

    Args:
      assignment: float [b, h, w, k], rows sum to 1.
      colour: float [b, h, w, 3], mean colour of each token, ImageNet-normalised.
      features: float [b, h, w, d]; compared at unit length.
      radius: window, in tokens. position_sigma: in tokens. colour_sigma: in normalised colour.
      feature_sigma: distance of unit vectors (0 to 2).

    Returns:
      float32 scalar in [0, 1].
    """
    features = unit_length(features.astype(jnp.float32)) / feature_sigma
    cues = jnp.concatenate([colour.astype(jnp.float32) / colour_sigma, features], axis=-1)
    energy = windowed_kernel_energy(assignment, jax.lax.stop_gradient(cues), radius=radius,
                                    position_sigma=position_sigma)
    return jnp.mean(energy)
