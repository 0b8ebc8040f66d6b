"""Where FS^4 starts from: k-means groups and prototypes, from tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from fs4_jax.clustering import guided_clusters, kmeans
from fs4_jax.clustering.kmeans import squared_distances
from fs4_jax.losses.pyramid import nearest_cell

_RESTARTS = 3
_CELLS = 4                # a group has at least, on average
_MAX_POINTS = 60_000      # of a fit: what k-means gains from more is far below its seed's spread


def fit_centroids(cells, levels, key, *, start=None, shared=False, fresh=False):
    """k-means groups of each pyramid level.

    Args:
      cells: {level: float [n, l, l, d]}. levels: {level: number of groups}.
      key: random key. start: {level: [k, d]} of the round before, or None.
      shared: one k-means over the cells of all levels, the same groups for each.
      fresh: begin without `start`, then number each group as the one of `start` that it is
        matched with (Hungarian, squared distances), so that a head keeps its meaning.

    Returns:
      {level: float32 [k, d]}. Where cells are few (below `_CELLS` for a group) the groups are
      fewer; the last one stands for those that are left over, and no cell is ever theirs.
    """
    points = {level: cells[level].reshape(-1, cells[level].shape[-1]) for level in levels}
    if shared and levels:
        points = {"all": np.concatenate(list(points.values()))}
        numbers = {"all": next(iter(levels.values()))}
        start = None if start is None else {"all": next(iter(start.values()))}
    else:
        numbers = levels
    centroids = {}
    for i, (level, number) in enumerate(numbers.items()):
        few = min(number, max(1, len(points[level]) // _CELLS))
        before = None if start is None else start[level][:few]
        init = "k-means++" if start is None or fresh else before
        found = _best(points[level], few, jax.random.fold_in(key, i), init).centroids
        found = found if before is None else matched(found, before)
        centroids[level] = jnp.concatenate([found, jnp.tile(found[-1:], (number - few, 1))])
    return {level: centroids["all" if shared else level] for level in levels}


def matched(centroids, before):
    """centroids [k, d], reordered to be the nearest to `before` [k, d] one by one (Hungarian)."""
    _, order = scipy.optimize.linear_sum_assignment(squared_distances(before, centroids))
    return centroids[order]


def embed(step, head_params, gathered, batch=32):
    """step(head_params, tokens, appearance), jitted, of all gathered tokens: [n h w, c]."""
    tokens, appearance = gathered["patch_tokens"], gathered["appearance"]
    parts = [np.asarray(step(head_params, tokens[i:i + batch], appearance[i:i + batch]))
             for i in range(0, len(tokens), batch)]
    return np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])


def token_groups(cells, centroids, grid):
    """{level: int32 [n h w]}: the group of each token's cell, of cells {level: [n, l, l, d]}."""
    groups = {}
    for level, features in cells.items():
        distances = squared_distances(features.reshape(-1, features.shape[-1]), centroids[level])
        nearest = np.asarray(jnp.argmin(distances, axis=-1), np.int32)
        rows, columns = (nearest_cell(side, int(level)) for side in grid)
        groups[level] = nearest.reshape(features.shape[:3])[:, rows][:, :, columns].reshape(-1)
    return groups


def fit_clusters(embedding, groups, num_clusters, key, *, start=None, mixture=True, **settings):
    """Clusters of embeddings [n, c], a sample of at most `_MAX_POINTS`: GuidedClusters.

    Args:
      groups: {level: int [n]}. key: random key. start: centroids [k, c] of the round before; None:
        the best of a few spherical k-means. mixture: False leaves the start as it is, its clusters
        equal. settings: as for `guided_clusters`.

    Raises:
      ValueError: fewer embeddings than clusters; names the config key.
    """
    if len(embedding) < num_clusters:
        raise ValueError(f"{len(embedding)} tokens can not form {num_clusters} clusters "
                         "(config.num_clusters, config.fs4.overcluster): use more or larger images")
    key = jax.random.fold_in(key, 1000)
    chosen = _sample(len(embedding), key)
    points = jnp.asarray(embedding[chosen])
    groups = {level: group[chosen] for level, group in groups.items()}
    if start is None:
        start = kmeans(points, num_clusters, key=key, spherical=True,
                       restarts=_RESTARTS).centroids
    fitted = guided_clusters(points, groups, start, **settings)
    if mixture:
        return fitted
    return fitted._replace(centroids=start, share=jnp.full((num_clusters,), 1 / num_clusters))


def attention_of(embedding, attention, centroids):
    """How much the class token looks at each cluster, float [k]: 1 is as much as at all places.

    Args:
      embedding: float [n h w, c]. attention: float [n, h, w]. centroids: float [k, c], of unit
        length; a cluster that no embedding is nearest to has 0.
    """
    relative = np.asarray(attention, np.float64)
    relative = (relative / relative.mean((1, 2), keepdims=True)).reshape(-1)
    nearest = np.argmax(embedding @ np.asarray(centroids).T, axis=1)
    number, looked = (np.bincount(nearest, weight, len(centroids)) for weight in (None, relative))
    return looked / np.maximum(number, 1)


def _best(points, num_clusters, key, init):
    """The best of a few restarts, by inertia; one run when a start is given."""
    points = jnp.asarray(points[_sample(len(points), key)])
    return kmeans(points, num_clusters, key=key, init=init,
                  restarts=_RESTARTS if isinstance(init, str) else 1)


def _sample(number, key):
    """Which of many points a fit reads: a slice of all, or `_MAX_POINTS` indices."""
    if number <= _MAX_POINTS:
        return slice(None)
    return np.asarray(jax.random.choice(jax.random.fold_in(key, 99), number, (_MAX_POINTS,),
                                        replace=False))
