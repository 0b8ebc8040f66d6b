"""From confusion counts to scores: clusters matched to classes, exact integers."""

import dataclasses
import json
import pathlib

import numpy as np


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of one match, in percent.

    matching: int [num_clusters], class of each cluster, -1 unmatched; None where every image has
    a match of its own. per_class_iou: float [num_classes], NaN for a class absent from truth and
    prediction.
    """
    miou: float
    accuracy: float
    per_class_iou: np.ndarray
    matching: np.ndarray | None


def match_clusters(counts):
    """One-to-one match of clusters to classes that maximises the matched pixels.

    protocols.md 2d: scipy's linear_sum_assignment on pixel counts, not on IoU.

    Args:
      counts: int [num_clusters, num_classes].

    Returns:
      int [num_clusters]: the class of each cluster, -1 where none is left.
    """
    import scipy.optimize           # slow to import, and a command that names MATCHINGS needs none
    rows, columns = scipy.optimize.linear_sum_assignment(np.asarray(counts), maximize=True)
    matching = np.full(counts.shape[0], -1, np.int64)
    matching[rows] = columns
    return matching


def match_many_to_one(counts):
    """Every cluster to the class most of its pixels have (greedy by precision).

    The rule of over-clustering scores (Leopart, NeCo) and of AlignSeg. A tie goes to the lower
    id; a cluster without pixels is unmatched.

    Args:
      counts: int [num_clusters, num_classes].

    Returns:
      int [num_clusters]: the class of each cluster, or -1.
    """
    counts = np.asarray(counts)
    return np.where(counts.sum(1) > 0, np.argmax(counts, axis=1), -1).astype(np.int64)


def match_identity(counts):
    """Cluster k is class k, as for a model that was told the classes; -1 beyond the classes."""
    ids = np.arange(counts.shape[0])
    return np.where(ids < counts.shape[1], ids, -1)


MATCHINGS = {"hungarian": match_clusters, "many-to-one": match_many_to_one,
             "identity": match_identity}


def merge_clusters(counts, matching):
    """Counts int64 [num_classes, num_classes] of predicted and true class under a match."""
    counts, matching = np.asarray(counts, np.int64), np.asarray(matching)
    merged = np.zeros((counts.shape[1],) * 2, np.int64)
    np.add.at(merged, matching[matching >= 0], counts[matching >= 0])
    return merged


def class_iou(merged, truth):
    """IoU of each class in percent, NaN where union is empty: float [num_classes].

    Args:
      merged: int [num_classes, num_classes], predicted x true; truth: int [num_classes], all
        labelled pixels of a class, those of unmatched clusters among them.
    """
    hit = np.diag(merged)
    union = truth + merged.sum(1) - hit
    return np.where(union > 0, 100.0 * hit / np.maximum(union, 1), np.nan)


def mean_of(values):
    """The mean without NaN; NaN where nothing is left."""
    values = np.asarray(values, float)
    return float(values[~np.isnan(values)].mean()) if (~np.isnan(values)).any() else float("nan")


def score_matching(counts, matching):
    """mIoU, accuracy and per-class IoU under a match, on exact integer counts.

    A class absent from truth and prediction is left out of the mean (0/0); absent from the
    truth but predicted it counts 0; pixels of an unmatched cluster count as errors.

    Args:
      counts: int [num_clusters, num_classes].
      matching: int [num_clusters], class or -1; several clusters may share a class.

    Returns:
      Scores; mIoU and accuracy are NaN when no pixel is labelled.

    Raises:
      ValueError: a match of another number of clusters, or to classes that there are not.
    """
    counts, matching = np.asarray(counts, np.int64), np.asarray(matching)
    if matching.shape != counts.shape[:1] or matching.max(initial=-1) >= counts.shape[1]:
        raise ValueError(f"a matching of {len(matching)} clusters to classes up to "
                         f"{matching.max(initial=-1)} does not fit counts of {counts.shape[0]} "
                         f"clusters and {counts.shape[1]} classes")
    merged, total = merge_clusters(counts, matching), counts.sum()
    iou = class_iou(merged, counts.sum(0))
    accuracy = float(100.0 * np.trace(merged) / total) if total else float("nan")
    return Scores(mean_of(iou), accuracy, iou, matching)


def read_matching(path):
    """The `matching` int [num_clusters] of a JSON file, such as an eval.json.

    Raises ValueError naming a file that holds none; OSError for one that is not there.
    """
    try:
        matching = json.loads(pathlib.Path(path).read_text())["matching"]
        return np.array(matching, np.int64).reshape(-1)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no `matching`: give an eval.json, or what the score "
                         "command wrote with --json (not of a per-image protocol)") from error


def mean_over_runs(values):
    """Mean of arrays [c] without NaN; NaN where every run has it."""
    values = np.array(values)
    there = ~np.isnan(values)
    total = np.where(there, values, 0.0).sum(0)
    return np.where(there.any(0), total / np.maximum(there.sum(0), 1), np.nan)
