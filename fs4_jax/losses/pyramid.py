"""PGG: cells of an image pyramid belong to global, label-free groups, and these are learnt.

The paper (arXiv 2202.11981) says that pseudo labels at image and patch level come from grouping
unsupervised features; the equations are our reconstruction (methods.md 1.3). Two uses of the
groups: heads that predict them (`pyramid_loss`), and classes that they expect in a cell
(`pooled_assignment_loss`). They guide the fit of the first clusters too (`clustering.guided`).
"""

import jax
import jax.numpy as jnp
import numpy as np

from fs4_jax.clustering import sinkhorn
from fs4_jax.clustering.kmeans import squared_distances, unit_length

_HARD, _BALANCING = 0.05, 10     # temperature and iterations of the labels' Sinkhorn
_TINY = 1e-6                     # a share of nothing


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


def nearest_cell(side, level):
    """The cell that each of `side` tokens in a row lies in: int [side], in 0 .. level - 1."""
    return np.arange(side) * level // side


def cell_labels(cells, centroids, *, balanced=False, smoothing=0.0):
    """Pseudo labels: how much each cell belongs to each group.

    Args:
      cells: float [b, l, l, d], unit length. centroids: float [k, d].
      balanced: groups get equal numbers of the batch's cells (Sinkhorn), not the nearest ones.
      smoothing: 0 for one group a cell; above, groups share it by exp(-distance^2 / smoothing);
        squared distances of unit vectors are in [0, 4].

    Returns:
      float32 [b, l, l, k], rows sum to 1.
    """
    scores = -squared_distances(cells.reshape(-1, cells.shape[-1]), centroids)
    labels = sinkhorn(scores, smoothing or _HARD, _BALANCING if balanced else 0)
    if not smoothing:
        labels = jax.nn.one_hot(jnp.argmax(labels, axis=-1), len(centroids))
    return labels.reshape(*cells.shape[:-1], len(centroids))


def pyramid_loss(logits, labels):
    """Mean cross entropy of each level's cells, averaged over the levels (w_l = 1 / levels).

    Args:
      logits: {level: float [b, l, l, k_l]}. labels: {level: float [b, l, l, k_l]}.

    Returns:
      float32 scalar.
    """
    return _mean_over_levels({level: _cross_entropy(labels[level], jax.nn.log_softmax(
        logits[level].astype(jnp.float32))) for level in logits})


def pooled_assignment_loss(assignment, labels, shares):
    r"""Each cell's mean assignment is drawn to the classes that its group holds.

    .. math:: L = \frac{1}{|l|} \sum_l \mathrm{mean}_{cells}\;
              CE(\sum_g y_g \pi_{gk},\; \mathrm{mean}_{p \in cell}\, a_{pk})

    The second reading of methods.md 1.3: it acts on the very classes, without heads of its own.

    Args:
      assignment: float [b, h, w, k], rows sum to 1. labels: {level: float [b, l, l, g]}.
      shares: {level: float [g, k]}, how a group's pixels divide among the classes.

    Returns:
      float32 scalar.
    """
    return _mean_over_levels({level: _cross_entropy(
        _expected(labels[level], shares[level]),
        jnp.log(pool_cells(assignment, int(level)) + _TINY)) for level in labels})


def _expected(labels, shares):
    """Class shares that cells [b, l, l, g] expect of their groups' [g, k]; none is 0."""
    return jnp.matmul(labels, shares, precision="highest") + _TINY


def _cross_entropy(labels, log_probabilities):
    return -jnp.mean(jnp.sum(jax.lax.stop_gradient(labels) * log_probabilities, axis=-1))


def _mean_over_levels(terms):
    return sum(terms.values()) / len(terms)


def _pooling(side, cells):
    """float32 [cells, side], rows sum to 1; cell i covers floor(i s / c) .. ceil((i+1) s / c)."""
    weights = np.zeros((cells, side), np.float32)
    for i in range(cells):
        start, stop = i * side // cells, -(-(i + 1) * side // cells)
        weights[i, start:stop] = 1.0 / (stop - start)
    return weights
