"""PGG: cells of an image pyramid are told apart by global, label-free groups (pseudo labels).

The paper (arXiv 2202.11981) says that pseudo labels at image and patch level come from grouping
unsupervised features; the equations are our reconstruction (methods.md 1.3).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fs4_jax.clustering.kmeans import squared_distances, unit_length


def pool_cells(maps, level):
    """Mean of each cell of a level x level grid: [b, h, w, d] -> [b, level, level, d].

    Cells overlap by a token where the side is no multiple of the level (adaptive pooling).
    Raises ValueError when a side has fewer tokens than the level has cells.
    """
    _, h, w, _ = maps.shape
    if level > min(h, w):
        raise ValueError(f"a {h} x {w} token grid has no {level} x {level} cells: lower "
                         "fs4.pgg.levels or raise data.image_size")
    return jnp.einsum("lh,mw,bhwd->blmd", _pooling(h, level), _pooling(w, level), maps)


def cell_features(patch_tokens, cls, level):
    """What a cell is grouped by: its unit-length mean token; at level 1 with the class token.

    Args:
      patch_tokens: float [b, h, w, d]. cls: float [b, d]. level: cells on a side.

    Returns:
      float32 [b, level, level, d], unit length.
    """
    cells = unit_length(pool_cells(patch_tokens.astype(jnp.float32), level))
    if level == 1:
        cells = unit_length(cells + unit_length(cls.astype(jnp.float32))[:, None, None])
    return cells


def nearest_centroid(cells, centroids):
    """Pseudo labels: int32 [b, l, l] of cells [b, l, l, d], for centroids [k, d]."""
    distances = squared_distances(cells.reshape(-1, cells.shape[-1]), centroids)
    return jnp.argmin(distances, axis=-1).astype(jnp.int32).reshape(cells.shape[:-1])


def pyramid_loss(logits, labels):
    """Mean cross entropy of each level's cells, averaged over the levels (w_l = 1 / levels).

    Args:
      logits: {level: float [b, l, l, k_l]}. labels: {level: int [b, l, l]}.

    Returns:
      float32 scalar.
    """
    terms = [jnp.mean(optax.softmax_cross_entropy_with_integer_labels(
        logits[level].astype(jnp.float32), jax.lax.stop_gradient(labels[level])))
        for level in logits]
    return sum(terms) / len(terms)


def _pooling(side, cells):
    """float32 [cells, side], rows sum to 1; cell i covers floor(i s / c) .. ceil((i+1) s / c)."""
    weights = np.zeros((cells, side), np.float32)
    for i in range(cells):
        start, stop = i * side // cells, -(-(i + 1) * side // cells)
        weights[i, start:stop] = 1.0 / (stop - start)
    return weights
