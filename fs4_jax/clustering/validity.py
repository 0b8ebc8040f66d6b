"""How good a clustering is without labels: silhouette, and agreement of two clusterings."""

import numpy as np


def silhouette(x, labels):
    r"""Mean silhouette of points (Rousseeuw 1987): near 1 apart, 0 touching, negative mixed up.

    .. math:: s_i = (b_i - a_i) / \max(a_i, b_i)

    a is the mean Euclidean distance to the other points of one's own cluster, b the least mean
    distance to the points of another one; a point alone in its cluster has 0. Exact, on all
    pairs: give a sample, memory is n^2.

    Args:
      x: float [n, d]. labels: int [n].

    Returns:
      float in [-1, 1]; NaN when there are fewer than two clusters.
    """
    x = np.asarray(x, np.float64)
    _, labels = np.unique(labels, return_inverse=True)
    counts = np.bincount(labels)
    if len(counts) < 2:
        return float("nan")
    square = np.sum(x * x, axis=1)
    distance = np.sqrt(np.maximum(square[:, None] + square - 2 * x @ x.T, 0.0))
    np.fill_diagonal(distance, 0.0)                     # a rounding's root is no small number
    to_cluster = distance @ np.eye(len(counts))[labels]                     # sums, [n, clusters]
    rows, own = np.arange(len(x)), counts[labels]
    a = to_cluster[rows, labels] / np.maximum(own - 1, 1)
    to_cluster /= counts
    to_cluster[rows, labels] = np.inf
    b = to_cluster.min(axis=1)
    longer = np.maximum(a, b)
    return float(np.mean(np.where((own > 1) & (longer > 0), (b - a) / np.maximum(longer, 1e-300),
                                  0.0)))


def adjusted_rand(labels1, labels2):
    """Adjusted Rand index (Hubert and Arabie 1985) of two clusterings [n] of the same points.

    1: the same but for names; about 0: no more than chance.
    """
    _, first = np.unique(labels1, return_inverse=True)
    _, second = np.unique(labels2, return_inverse=True)
    table = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(table, (first, second), 1)

    def pairs(counts):
        return np.sum(counts * (counts - 1)) / 2

    together, one, other = pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    chance = one * other / pairs(np.array([len(first)]))
    most = (one + other) / 2
    return 1.0 if most == chance else float((together - chance) / (most - chance))
