"""Where AlignSeg's mixture starts from: a measure of tokens, and prototypes, from tokens."""

import jax.numpy as jnp
import numpy as np

from fs4_jax.clustering import kmeans
from fs4_jax.config import ConfigError

_MAX_POINTS = 60_000
_LEAST = 1e-4             # of the largest variance: directions below are noise


def whitening(tokens, power):
    """A measure by the covariance V diag(l) V': x -> (x - mean) V diag(l / max l)^-power.

    Args:
      tokens: float [n, d]. power: 0.5 whitens, 0 centres and turns.

    Returns:
      {"kernel" float32 [d, d], "bias" float32 [d]}.
    """
    mean = tokens.mean(0, dtype=np.float64)
    variance, axes = np.linalg.eigh(np.cov(tokens.astype(np.float64).T, bias=True))
    relative = np.maximum(variance / variance[-1], _LEAST)
    kernel = axes * relative ** -power
    return {"kernel": kernel.astype(np.float32), "bias": (-mean @ kernel).astype(np.float32)}


def drawn(tokens, weight, seed):
    """At most `_MAX_POINTS` of tokens [n, d], drawn in proportion to weight [n], with repeats."""
    rng = np.random.default_rng(seed)
    p = weight.astype(np.float64) / weight.sum(dtype=np.float64)
    return tokens[rng.choice(len(tokens), min(len(tokens), _MAX_POINTS), p=p)]


def starting_prototypes(tokens, num_prototypes, key):
    """Centroids float32 [num_prototypes, d] of tokens [n, d], as long as normalised tokens are."""
    if len(tokens) < num_prototypes:
        raise ConfigError(f"{len(tokens)} tokens are fewer than config.alignseg.num_prototypes="
                          f"{num_prototypes}: raise config.alignseg.fit_images")
    return directions(tokens, num_prototypes, key) * np.sqrt(tokens.shape[1], dtype=np.float32)


def directions(points, number, key, valid=None):
    """Centroids float32 [number, d], of unit length, of points [n, d]; valid: bool [n] or None."""
    return np.asarray(kmeans(jnp.asarray(points, jnp.float32), number, key=key, num_iters=30,
                             spherical=True, valid=valid, restarts=3).centroids)
