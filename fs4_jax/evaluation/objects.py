"""Scores of object masks without classes: FG-ARI and mBO (MOVi and its like)."""

import numpy as np

from fs4_jax.evaluation.confusion import IGNORE_LABEL


def foreground_ari(prediction, truth, *, background=0):
    """Adjusted Rand index over the pixels of the true foreground, in percent.

    Hubert and Arabie 1985, as object-centric learning reports it (methods.md 2; MOVi).

    Args:
      prediction: int [h, w], segment ids.
      truth: int [h, w], object ids of the same shape; `background` and 255 do not take part.
      background: the id that is no object.

    Returns:
      float, 100 for the same partition, about 0 for chance; NaN without a foreground pixel.
    """
    prediction, truth = _foreground(prediction, truth, background)
    return ari(_table(prediction, truth)) if truth.size else float("nan")


def ari(table):
    """Adjusted Rand index in percent of shared pixels int [segments, objects], at least one."""
    table = np.asarray(table, float)
    pairs, rows, columns = (np.sum(x * (x - 1)) / 2 for x in (table, table.sum(1), table.sum(0)))
    total = table.sum() * (table.sum() - 1) / 2
    expected = rows * columns / total if total else 0.0
    most = (rows + columns) / 2
    # One object in one segment, or single pixels all apart: the same partition.
    return 100.0 if most == expected else float(100.0 * (pairs - expected) / (most - expected))


def mean_best_overlap(prediction, truth, *, background=0):
    """Mean over the true objects of the best IoU any segment has with one, in percent.

    Args:
      prediction: int [h, w], segment ids. truth: int [h, w], object ids; 255 does not take part.
      background: the id of `truth` that is no object (segments may still spill over it).

    Returns:
      float in 0..100; NaN without an object.
    """
    _check(prediction, truth)
    votes = truth != IGNORE_LABEL
    prediction, truth = prediction[votes], truth[votes]
    objects = np.unique(truth[truth != background])
    if not objects.size:
        return float("nan")
    best = np.max(overlaps(_table(prediction, truth)), axis=0)
    return float(100.0 * np.mean(best[np.isin(np.unique(truth), objects)]))


def overlaps(table):
    """IoU [segments, objects] in 0..1 of shared pixels int [segments, objects]."""
    union = table.sum(1, keepdims=True) + table.sum(0, keepdims=True) - table
    return table / np.maximum(union, 1)


def _foreground(prediction, truth, background):
    _check(prediction, truth)
    votes = (truth != background) & (truth != IGNORE_LABEL)
    return prediction[votes], truth[votes]


def _check(prediction, truth):
    if np.shape(prediction) != np.shape(truth):
        raise ValueError(f"prediction {np.shape(prediction)} and truth {np.shape(truth)} differ "
                         "in shape")


def _table(prediction, truth):
    """int64 [segments, objects], shared pixels; ids in ascending order."""
    _, a = np.unique(prediction, return_inverse=True)
    _, b = np.unique(truth, return_inverse=True)
    size = (a.max() + 1, b.max() + 1)
    return np.bincount(a * size[1] + b, minlength=size[0] * size[1]).reshape(size)
