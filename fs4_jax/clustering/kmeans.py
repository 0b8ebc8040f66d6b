"""k-means as one pure function: Lloyd's iterations with k-means++ and repair of empty clusters."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fs4_jax.long_rows import first_highest

BLOCK = 1 << 20     # numbers of a block of an intermediate matrix, on one device: 4 MiB


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


def kmeans(x, num_clusters, *, key, num_iters=20, init="k-means++", spherical=False, valid=None,
           restarts=1):
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
      restarts: starts (static), of which the one with the lowest inertia is returned; start i is
        that of `jax.random.split(key, restarts)[i]`, and of key itself if there is but one.

    Returns:
      KMeansResult; a cluster left empty is given the point farthest from its own centroid.

    Raises:
      ValueError: fewer points than clusters, an unknown `init` or one of another shape, restarts
        from an array.
    """
    if x.ndim != 2 or x.shape[0] < num_clusters:
        raise ValueError(f"{num_clusters} clusters need x [n, d] with n >= {num_clusters}, "
                         f"got {x.shape}")
    if restarts < 1 or restarts > 1 and not isinstance(init, str):
        raise ValueError(f"restarts must be >= 1, and 1 where init is an array, got {restarts}")
    named = isinstance(init, str)
    return _best_of(x, key, None if named else init, valid, init=init if named else None,
                    num_clusters=num_clusters, num_iters=num_iters, spherical=spherical,
                    restarts=restarts)


@functools.partial(jax.jit, inline=True, static_argnames=(
    "init", "num_clusters", "num_iters", "spherical", "restarts"))
def _best_of(x, key, centroids, valid, *, init, num_clusters, num_iters, spherical, restarts):
    """`kmeans`, compiled once for all calls of a shape; the start is `init` or centroids."""
    x, weight = prepare_points(x, spherical, valid)

    def run(key):
        start = start_centroids(x, num_clusters, key, centroids if init is None else init,
                                spherical, weight)
        return _lloyd(x, start, num_iters, spherical, weight)

    if restarts == 1:
        return run(key)

    def better(best, key):
        result = run(key)
        return jax.tree.map(lambda a, b: jnp.where(result.inertia < best.inertia, a, b),
                            result, best), None

    keys = jax.random.split(key, restarts)
    return jax.lax.scan(better, run(keys[0]), keys[1:])[0]


def prepare_points(x, spherical, valid):
    """(x float32 [n, d], 0 where not valid, of unit length if spherical; weight [n], 0 or 1)."""
    weight = jnp.ones(x.shape[:1]) if valid is None else valid.astype(jnp.float32)
    x = jnp.asarray(x, jnp.float32)
    if valid is not None:
        x = jnp.where(weight[:, None] > 0, x, 0.0)      # whatever stands there, NaN too
    return unit_length(x) if spherical else x, weight


def start_centroids(x, num_clusters, key, init, spherical, weight):
    """Centroids [k, d] by `init` of `kmeans`; x and weight are those of `prepare_points`."""
    if isinstance(init, str):
        starts = {"k-means++": _plus_plus, "random": _random}
        if init not in starts:
            raise ValueError(f"init must be one of {sorted(starts)} or an array, got {init!r}")
        return starts[init](x, num_clusters, key, weight)
    centroids = jnp.asarray(init, jnp.float32)
    if centroids.shape != (num_clusters, x.shape[1]):
        raise ValueError(f"init must be [{num_clusters}, {x.shape[1]}], got {centroids.shape}")
    return unit_length(centroids) if spherical else centroids


def _lloyd(x, centroids, num_iters, spherical, weight):
    num_clusters = centroids.shape[0]

    def iteration(_, centroids):
        labels = nearest(x, centroids)
        sums, counts = sums_and_counts(x, labels, weight, num_clusters)
        mean = sums / jnp.maximum(counts, 1.0)[:, None]

        def repair():
            # Whoever is not valid lies nearer than anyone.
            distance = jnp.where(weight > 0, distances_to(x, centroids, labels), -1.0)
            return fill_empty(mean, counts, x[_highest(distance, num_clusters)])

        mean = jax.lax.cond(jnp.min(counts) == 0, repair, lambda: mean)
        return unit_length(mean) if spherical else mean

    centroids = jax.lax.fori_loop(0, num_iters, iteration, centroids)
    labels = nearest(x, centroids)
    counts = jax.ops.segment_sum(weight, labels, num_clusters)
    return KMeansResult(centroids, jnp.where(weight > 0, labels, -1),
                        jnp.sum(distances_to(x, centroids, labels) * weight), counts)


def nearest(x, centroids):
    """The nearest centroid of each point, int32 [n]; the first of equally near ones."""
    half = 0.5 * jnp.sum(centroids * centroids, axis=1)
    transposed = centroids.T        # once for all blocks: a CPU's product takes it faster so

    def assign(points):
        # |x - c|^2 / 2 without |x|^2 / 2. An accelerator's default precision would round to
        # bfloat16 or TF32: wrong labels far from the origin.
        return first_highest(jnp.matmul(points, transposed, precision="highest") - half)

    return _by_blocks(assign, jnp.int32, len(centroids), x)


def distances_to(x, centroids, labels):
    """Squared distance [n] of each point to the centroid of its label."""
    ones = jnp.ones(x.shape[1])

    def measure(points, labels):
        square = jnp.square(points - centroids[labels])
        return jnp.matmul(square, ones, precision="highest")    # a CPU's sum is slower

    return _by_blocks(measure, jnp.float32, x.shape[1], x, labels)


def _by_blocks(function, dtype, width, *arrays):
    """function(*arrays), [n] from arrays [n, ...], on a part of each device's rows at a time.

    So a large matrix [n, width] inside function never stands in memory whole: a device holds at
    most 8 BLOCK numbers of it, where the rows are split over all devices.
    """
    n = len(arrays[0])
    # Each run of rows lies on one device, whichever of them hold the rows, and a block takes the
    # same part of each run: no row travels.
    runs = math.gcd(n, jax.device_count())
    length = n // runs
    size = max(1, BLOCK // max(width, arrays[0].shape[1]))
    if length * width <= 8 * BLOCK or size >= length:
        return function(*arrays)            # a few blocks at once cost less than to cut them out
    arrays = [a.reshape(runs, length, *a.shape[1:]) for a in arrays]

    def block(i, out):
        # The last start is moved back to fit; those rows are computed twice.
        parts = [jax.lax.dynamic_slice_in_dim(a, i * size, size, axis=1) for a in arrays]
        part = function(*(a.reshape(runs * size, *a.shape[2:]) for a in parts))
        return jax.lax.dynamic_update_slice_in_dim(out, part.reshape(runs, size), i * size, axis=1)

    out = jnp.zeros((runs, length), dtype)
    return jax.lax.fori_loop(0, -(-length // size), block, out).reshape(n)


def _highest(values, number):
    """Indices of the highest of values [n], the first of equal ones first: `jax.lax.top_k`'s.

    Found among those of each device's rows, so that only these travel.
    """
    runs = math.gcd(len(values), jax.device_count())
    length = len(values) // runs
    if runs == 1 or length <= number:
        return jax.lax.top_k(values, number)[1]
    # Sorted, for XLA gathers all rows of a top_k on every device, and those of a sort it leaves.
    place = jnp.arange(len(values)).reshape(runs, length)
    low, place = (part[:, :number].reshape(-1) for part in jax.lax.sort(
        (-values.reshape(runs, length), place), dimension=1, num_keys=1))
    return place[jax.lax.top_k(-low, number)[1]]


def sums_and_counts(x, labels, weight, num_clusters):
    """Sum [k, d] and number [k] of each cluster's points; x is 0 where weight is."""
    return (jax.ops.segment_sum(x, labels, num_clusters),
            jax.ops.segment_sum(weight, labels, num_clusters))


def fill_empty(centroids, counts, farthest):
    """The j-th empty cluster moves to the j-th of the farthest points [k, d]."""
    empty = counts == 0
    rank = jnp.clip(jnp.cumsum(empty) - 1, 0)
    return jnp.where(empty[:, None], farthest[rank], centroids)


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
