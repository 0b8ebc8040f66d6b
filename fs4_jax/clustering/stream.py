"""k-means over points that do not fit in memory: a state, and what a batch of points does to it.

    state = stream.start(first_batch, 27, key=key)
    for x in batches:
        state = stream.add(state, x)            # once over the data with fixed centroids, then
    state = stream.move(state)                  # one Lloyd iteration: `kmeans`, but for rounding

    state = stream.add_and_move(state, x)       # or after every batch: mini-batch k-means

The state is a pytree of arrays and all there is: saved after batch i and loaded again, it goes on
with batch i + 1 to the same bits. `run` is that loop.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fs4_jax.clustering.kmeans import (distances_to, fill_empty, nearest, prepare_points,
                                       start_centroids, sums_and_counts, unit_length)


class StreamState(NamedTuple):
    """Where a stream stands.

    centroids [k, d]: what points are assigned to.
    means [k, d], counts [k]: of each cluster's points since its pass began (mini-batch: all).
    inertia: sum over the pass of each point's squared distance when it came.
    farthest [k, d], distance [k]: the points farthest from their centroids, falling; -1: none.
    batches, passes: int32, how many batches of this pass and how many passes are done.
    """
    centroids: jax.Array
    means: jax.Array
    counts: jax.Array
    inertia: jax.Array
    farthest: jax.Array
    distance: jax.Array
    batches: jax.Array
    passes: jax.Array


def start(x, num_clusters, *, key, init="k-means++", spherical=False, valid=None):
    """The state before the first batch; x, of which a start is made, may be any sample [n, d].

    The arguments are those of `kmeans`. For a better start, give the centroids of a `kmeans` of
    the sample as `init`.
    """
    if isinstance(init, str) and (x.ndim != 2 or x.shape[0] < num_clusters):
        raise ValueError(f"{num_clusters} clusters need a sample [n, d] with n >= "
                         f"{num_clusters}, got {x.shape}")
    x, weight = prepare_points(x, spherical, valid)
    return _fresh(start_centroids(x, num_clusters, key, init, spherical, weight), jnp.int32(0))


@functools.partial(jax.jit, static_argnames="spherical", inline=True)
def add(state, x, *, spherical=False, valid=None):
    """The state after points x [n, d] too; the centroids stay. valid: bool [n], who votes."""
    num_clusters = state.centroids.shape[0]
    x, weight = prepare_points(x, spherical, valid)
    labels = nearest(x, state.centroids)
    sums, new = sums_and_counts(x, labels, weight, num_clusters)
    counts = state.counts + new
    step = (sums - new[:, None] * state.means) / jnp.maximum(counts, 1.0)[:, None]
    distance = jnp.where(weight > 0, distances_to(x, state.centroids, labels), -1.0)
    top, rows = jax.lax.top_k(distance, min(num_clusters, x.shape[0]))
    far, which = jax.lax.top_k(jnp.concatenate([state.distance, top]), num_clusters)
    return state._replace(
        means=state.means + step, counts=counts,
        inertia=state.inertia + jnp.sum(jnp.maximum(distance, 0.0)),
        farthest=jnp.concatenate([state.farthest, x[rows]])[which], distance=far,
        batches=state.batches + 1)


@functools.partial(jax.jit, static_argnames="spherical", inline=True)
def move(state, *, spherical=False):
    """Ends a pass: the centroids become the means, and a new pass begins.

    A cluster that got no point moves to the farthest point of the pass (the j-th to the j-th); if
    there was no such point, it stays.
    """
    return _fresh(_moved(state, spherical), state.passes + 1)


@functools.partial(jax.jit, static_argnames="spherical", inline=True)
def add_and_move(state, x, *, spherical=False, valid=None):
    """Mini-batch k-means (Sculley 2010): a batch moves the centroids at once.

    A centroid is the mean of all points that were assigned to it, each when it came.
    """
    state = add(state, x, spherical=spherical, valid=valid)
    # A cluster that was filled counts nothing yet: its first points alone say where it goes.
    return state._replace(centroids=_moved(state, spherical),
                          distance=jnp.full_like(state.distance, -1.0))


def run(state, batches_from, *, num_passes, mini_batch=False, spherical=False):
    """Yields the state after every batch, and after every pass, to the end of `num_passes`.

    Args:
      state: of `start`, or one that `run` yielded before and that was saved: it goes on from there.
      batches_from: function of an int i: iterator of the pass's batches from the i-th on, each x
        or (x, valid), always in the same order.
      num_passes: over the data, those of `state` included.
      mini_batch: centroids move with every batch (`add_and_move`); otherwise once a pass (`add`).
      spherical: as for `start`.
    """
    step = add_and_move if mini_batch else add
    while state.passes < num_passes:
        for batch in batches_from(int(state.batches)):
            x, valid = batch if isinstance(batch, tuple) else (batch, None)
            state = step(state, x, valid=valid, spherical=spherical)
            yield state
        state = _next_pass(state) if mini_batch else move(state, spherical=spherical)
        yield state


def _fresh(centroids, passes):
    k = centroids.shape[0]
    return StreamState(centroids, jnp.zeros_like(centroids), jnp.zeros(k), jnp.float32(0),
                       jnp.zeros_like(centroids), jnp.full(k, -1.0), jnp.int32(0), passes)


def _next_pass(state):
    """Mini-batch: the means go on, only the pass's own numbers begin again."""
    return state._replace(inertia=jnp.float32(0), batches=jnp.int32(0), passes=state.passes + 1)


def _moved(state, spherical):
    """The centroids that the points since the pass began ask for."""
    seen = (state.counts > 0)[:, None]
    there = jnp.where(seen, state.means, state.centroids)
    filled = fill_empty(there, state.counts, state.farthest)
    # The j-th farthest point of fewer than j points is none.
    rank = jnp.clip(jnp.cumsum(state.counts == 0) - 1, 0)
    centroids = jnp.where((state.distance[rank] >= 0)[:, None], filled, there)
    return unit_length(centroids) if spherical else centroids
