"""The k-means floors every score is read against: no training, the same number of clusters."""

import jax
import jax.numpy as jnp
import numpy as np

from fs4_jax.clustering import kmeans
from fs4_jax.clustering.kmeans import squared_distances

_MAX_POINTS = 100_000
_RESTARTS = 3


def fit_floor(points, num_clusters, seed, *, spherical):
    """Centroids [k, d] of points [n, d]: the best of a few k-means++ restarts, by inertia.

    Args:
      points: float; at most 100,000 of them are used, drawn by the seed.
      num_clusters: k.
      seed: int.
      spherical: cosine k-means (for tokens) rather than Euclidean (for colours).
    """
    if len(points) > _MAX_POINTS:
        rng = np.random.default_rng(seed)
        points = points[rng.choice(len(points), _MAX_POINTS, replace=False)]
    run = jax.jit(kmeans, static_argnames=("num_clusters", "num_iters", "spherical"))
    results = [run(jnp.asarray(points), num_clusters, key=key, num_iters=30, spherical=spherical)
               for key in jax.random.split(jax.random.key(seed), _RESTARTS)]
    return np.asarray(min(results, key=lambda r: float(r.inertia)).centroids)


def closeness(x, centroids):
    """Minus the squared distances [..., k] of x [..., d] to centroids [k, d]: k-means' logits."""
    flat = squared_distances(x.reshape(-1, x.shape[-1]), centroids)
    return -flat.reshape(*x.shape[:-1], -1)
