"""From a confusion matrix to scores: one Hungarian match over the data set, exact integers."""

import dataclasses

import numpy as np
import scipy.optimize


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of one match, in percent.

    matching: int [num_clusters], class of each cluster, -1 unmatched.
    per_class_iou: float [num_classes], NaN for a class absent from truth and prediction.
    """
    miou: float
    accuracy: float
    per_class_iou: np.ndarray
    matching: np.ndarray


def match_clusters(counts):
    """One-to-one match of clusters to classes that maximises the matched pixels.

    protocols.md 2d: scipy's linear_sum_assignment on pixel counts, not on IoU.

    Args:
      counts: int [num_clusters, num_classes].

    Returns:
      int [num_clusters]: the class of each cluster, -1 where none is left.
    """
    rows, columns = scipy.optimize.linear_sum_assignment(np.asarray(counts), maximize=True)
    matching = np.full(counts.shape[0], -1, np.int64)
    matching[rows] = columns
    return matching


def score_matching(counts, matching):
    """mIoU, accuracy and per-class IoU under a match, on exact integer counts.

    A class absent from truth and prediction is left out of the mean (0/0); absent from the
    truth but predicted it counts 0; pixels of an unmatched cluster count as errors.

    Args:
      counts: int [num_clusters, num_classes].
      matching: int [num_clusters], class or -1; several clusters may share a class.

    Returns:
      Scores; mIoU and accuracy are NaN when no pixel is labelled.
    """
    counts = np.asarray(counts, np.int64)
    num_classes = counts.shape[1]
    merged = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(merged, matching[matching >= 0], counts[matching >= 0])
    hit, truth, predicted = np.diag(merged), counts.sum(0), merged.sum(1)
    union = truth + predicted - hit
    with np.errstate(invalid="ignore"):
        iou = np.where(union > 0, 100.0 * hit / np.maximum(union, 1), np.nan)
    total = counts.sum()
    miou = float(np.mean(iou[union > 0])) if (union > 0).any() else float("nan")
    accuracy = float(100.0 * hit.sum() / total) if total else float("nan")
    return Scores(miou, accuracy, iou, matching)
