"""Clusters of pixels whose shares depend on the image's global group."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fs4_jax.clustering.kmeans import unit_length

_PSEUDO_COUNT = 10.0      # points that a group starts with, spread over the clusters


class GuidedClusters(NamedTuple):
    """centroids float32 [k, c], unit length. shares {level: float32 [g, k]}: of each group's
    points, rows sum to 1. share float32 [k]: of all points, sums to 1."""
    centroids: jax.Array
    shares: dict
    share: jax.Array


@functools.partial(jax.jit, static_argnames=("num_groups", "guides", "num_iters"))
def guided_clusters(points, groups, centroids, *, num_groups, guides, temperature, num_iters=15):
    r"""Expectation maximisation of a mixture on the sphere whose weights a group decides.

    .. math:: p_{ik} \propto e^{\cos(x_i, c_k) / \tau}
                  \prod_{l \in guides} \pi^l_{g_l(i), k}{}^{1 / |guides|}, \qquad
              c_k \propto \sum_i p_{ik} x_i, \qquad
              \pi^l_{gk} \propto \tfrac{10}{K} + \sum_{i: g_l(i) = g} p_{ik}

    k-means knows of a point its embedding alone, and prefers clusters of one size. Here a kind of
    image (a group of whole images, or of cells) has classes of its own and in its own amounts, as
    topics have words (Hofmann 1999, probabilistic latent semantic analysis, with groups in the
    place of documents): what can not be told by its looks is told by where it is found. Without
    guides it is a mixture with learned weights. Our reading of "global-guided" pixel clustering.

    Args:
      points: float [n, c], any length; compared by their cosine.
      groups: {level: int [n]}, the group that a point's cell belongs to.
      centroids: float [k, c], the start.
      num_groups: ((level, number), ...). guides: levels that decide the weights; may be empty.
      temperature: tau, of cosines; > 0. num_iters: iterations.

    Returns:
      GuidedClusters; `shares` of every level, guide or not.
    """
    points = unit_length(points.astype(jnp.float32))
    num_groups, num_clusters = dict(num_groups), len(centroids)

    def scores(carry):
        centroids, shares, share = carry
        cosines = jnp.matmul(points, centroids.T, precision="highest") / temperature
        weights = [jnp.log(shares[level])[groups[level]] for level in guides]
        return cosines + (sum(weights) / len(weights) if weights else jnp.log(share + 1e-6))

    def iteration(_, carry):
        posterior = jax.nn.softmax(scores(carry))
        sums = jnp.matmul(posterior.T, points, precision="highest")
        shares = {level: _shares(posterior, groups[level], number)
                  for level, number in num_groups.items()}
        return unit_length(sums), shares, jnp.mean(posterior, axis=0)

    equal = jnp.full((num_clusters,), 1 / num_clusters)
    start = (unit_length(centroids.astype(jnp.float32)),
             {level: jnp.tile(equal, (number, 1)) for level, number in num_groups.items()}, equal)
    return GuidedClusters(*jax.lax.fori_loop(0, num_iters, iteration, start))


def _shares(posterior, groups, number):
    counts = jax.ops.segment_sum(posterior, groups, number) + _PSEUDO_COUNT / posterior.shape[1]
    return counts / jnp.sum(counts, axis=1, keepdims=True)
