"""k-means as one pure function: Lloyd's iterations with k-means++ and repair of empty clusters."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class KMeansResult(NamedTuple):
    """centroids [k, d], labels int32 [n] (-1 where not valid), inertia scalar, counts [k]."""
    centroids: jax.Array
    labels: jax.Array
    inertia: jax.Array
    counts: jax.Array


def squared_distances(x, centroids):
    """Squared Euclidean distances [n, k] of x [n, d] to centroids [k, d], never negative."""
    x2 = jnp.sum(x * x, axis=1)[:, None]
    c2 = jnp.sum(centroids * centroids, axis=1)[None, :]
    # An accelerator's default would round to bfloat16 or TF32: wrong labels far from the origin.
    product = jnp.matmul(x, centroids.T, precision="highest")
    return jnp.maximum(x2 - 2.0 * product + c2, 0.0)


def unit_length(x, axis=-1):
    """x with length 1 along an axis; a zero vector stays zero, with a finite gradient."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=axis, keepdims=True), 1e-16))


def kmeans(x, num_clusters, *, key, num_iters=20, init="k-means++", spherical=False, valid=None):
    """Clusters points by Lloyd's algorithm; everything stays on the device(s) of x.

    Args:
      x: float [n, d]; sharded over rows, its sums become global under jit.
      num_clusters: k, at most n.
      key: a jax random key, for the start.
      num_iters: Lloyd iterations (static).
      init: "k-means++" (Arthur and Vassilvitskii 2007), "random" (distinct points), or an
        array [k, d] of centroids to start from (cluster j of the result continues row j).
      spherical: unit-length points and centroids (cosine k-means).
      valid: bool [n]; other points have no vote and get label -1.

    Returns:
      KMeansResult; a cluster left empty is given the point farthest from its own centroid.

    Raises:
      ValueError: fewer points than clusters, an unknown `init` or one of another shape.
    """
    n = x.shape[0]
    if x.ndim != 2 or n < num_clusters:
        raise ValueError(f"{num_clusters} clusters need x [n, d] with n >= {num_clusters}, "
                         f"got {x.shape}")
    weight = jnp.ones((n,), jnp.float32) if valid is None else valid.astype(jnp.float32)
    x = jnp.where(weight[:, None] > 0, x, 0.0).astype(jnp.float32)   # whatever stands there
    if spherical:
        x = unit_length(x)
    if isinstance(init, str):
        starts = {"k-means++": _plus_plus, "random": _random}
        if init not in starts:
            raise ValueError(f"init must be one of {sorted(starts)} or an array, got {init!r}")
        centroids = starts[init](x, num_clusters, key, weight)
    else:
        centroids = jnp.asarray(init, jnp.float32)
        if centroids.shape != (num_clusters, x.shape[1]):
            raise ValueError(f"init must be [{num_clusters}, {x.shape[1]}], got {centroids.shape}")
        if spherical:
            centroids = unit_length(centroids)

    def lloyd(_, centroids):
        labels, distance = _assign(x, centroids)
        sums, counts = _sums(x, labels, weight, num_clusters)
        mean = sums / jnp.maximum(counts, 1.0)[:, None]
        mean = _repair(mean, counts, x, jnp.where(weight > 0, distance, -1.0))
        return unit_length(mean) if spherical else mean

    centroids = jax.lax.fori_loop(0, num_iters, lloyd, centroids)
    labels, distance = _assign(x, centroids)
    _, counts = _sums(x, labels, weight, num_clusters)
    return KMeansResult(centroids, jnp.where(weight > 0, labels, -1),
                        jnp.sum(distance * weight), counts)


def _assign(x, centroids):
    distances = squared_distances(x, centroids)
    return jnp.argmin(distances, axis=1).astype(jnp.int32), jnp.min(distances, axis=1)


def _sums(x, labels, weight, num_clusters):
    sums = jax.ops.segment_sum(x * weight[:, None], labels, num_clusters)
    return sums, jax.ops.segment_sum(weight, labels, num_clusters)


def _repair(centroids, counts, x, distance):
    """The j-th empty cluster moves to the j-th farthest point."""
    empty = counts == 0
    _, farthest = jax.lax.top_k(distance, centroids.shape[0])
    rank = jnp.clip(jnp.cumsum(empty) - 1, 0)
    return jnp.where(empty[:, None], x[farthest[rank]], centroids)


def _random(x, num_clusters, key, weight):
    chance = weight / jnp.sum(weight)
    chosen = jax.random.choice(key, x.shape[0], (num_clusters,), replace=False, p=chance)
    return x[chosen]


def _plus_plus(x, num_clusters, key, weight):
    """Each next centroid is a point drawn with chance proportional to its squared distance."""
    def draw(key, chance):
        # Where all that is left lies on a centroid, any valid point will do.
        chance = jnp.where(weight > 0, jnp.maximum(chance, 1e-30), 0.0)
        return x[jax.random.categorical(key, jnp.log(chance))]

    keys = jax.random.split(key, num_clusters)
    first = draw(keys[0], weight)
    centroids = jnp.zeros((num_clusters, x.shape[1]), x.dtype).at[0].set(first)

    def add(j, carry):
        centroids, nearest = carry
        new = draw(keys[j], nearest * weight)
        nearest = jnp.minimum(nearest, jnp.sum((x - new) ** 2, axis=1))
        return centroids.at[j].set(new), nearest

    start = (centroids, jnp.sum((x - first) ** 2, axis=1))
    return jax.lax.fori_loop(1, num_clusters, add, start)[0]
