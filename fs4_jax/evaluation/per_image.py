"""Scores with a match of clusters to classes for every image: they use each image's truth.

Never to be put into one column with scores of one match over the data set: an image's own truth
tells its clusters apart, so these are higher by construction.
"""

import dataclasses

import numpy as np

from fs4_jax.evaluation.matching import (Scores, class_iou, match_clusters, match_many_to_one,
                                         mean_of, merge_clusters)
from fs4_jax.evaluation.objects import ari, overlaps


class PerImageManyToOne:
    """AlignSeg's score (its evaluate/sup_overcluster.py; methods.md 2, protocols.md 2g).

    In each image every cluster takes the class most of its pixels have; IoU of the classes that
    are present in the image is averaged over them, and the images' means over the images.
    per_class_iou averages a class over the images it is present in; accuracy is the mean of the
    images' pixel accuracies. Images without a labelled pixel do not take part.
    """

    def __init__(self, num_classes):
        self.state = {"iou": np.zeros(num_classes), "present": np.zeros(num_classes, np.int64),
                      "miou": np.zeros(()), "accuracy": np.zeros(()),
                      "images": np.zeros((), np.int64)}

    def add(self, counts, unassigned=0):
        """Adds one image: counts int [num_clusters, num_classes]; unassigned int [num_classes],
        pixels without a cluster."""
        counts = np.asarray(counts, np.int64)
        truth = counts.sum(0) + unassigned
        if not truth.sum():
            return
        merged = merge_clusters(counts, match_many_to_one(counts))
        iou, present = class_iou(merged, truth), truth > 0
        self.state["iou"] += np.where(present, iou, 0.0)
        self.state["present"] += present
        self.state["miou"] += iou[present].mean()
        self.state["accuracy"] += 100.0 * np.trace(merged) / truth.sum()
        self.state["images"] += 1

    def scores(self):
        """Scores, NaN before the first image."""
        state, images = self.state, int(self.state["images"])
        if not images:
            nothing = np.full(len(state["iou"]), np.nan)
            return Scores(float("nan"), float("nan"), nothing, None)
        per_class = np.where(state["present"] > 0,
                             state["iou"] / np.maximum(state["present"], 1), np.nan)
        return Scores(float(state["miou"] / images), float(state["accuracy"] / images),
                      per_class, None)


class PerImageHungarian:
    """DiffSeg's and DiffCut's score (protocols.md 2g): a Hungarian match an image.

    Hits, misses and false alarms are summed over the data set, and IoU is of the sums. Pixels of
    clusters that find no class are misses.
    """

    def __init__(self, num_classes):
        self.state = {"merged": np.zeros((num_classes, num_classes), np.int64),
                      "truth": np.zeros(num_classes, np.int64)}

    def add(self, counts, unassigned=0):
        """Adds one image, as `PerImageManyToOne.add`."""
        counts = np.asarray(counts, np.int64)
        matching = match_clusters(counts)
        # A match that shares no pixel is none: an empty cluster takes no class, and a cluster is
        # not made to be a class that is not there.
        matching[counts[np.arange(len(counts)), matching] == 0] = -1
        self.state["merged"] += merge_clusters(counts, matching)
        self.state["truth"] += counts.sum(0) + unassigned

    def scores(self):
        """Scores, NaN before the first labelled pixel."""
        merged, truth = self.state["merged"], self.state["truth"]
        iou = class_iou(merged, truth)
        accuracy = 100.0 * np.trace(merged) / truth.sum() if truth.sum() else float("nan")
        return Scores(mean_of(iou), float(accuracy), iou, None)


@dataclasses.dataclass(frozen=True)
class ObjectScores:
    """Scores of objects without classes, in percent: means over images."""
    mbo: float
    fg_ari: float
    per_class_iou: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    matching: None = None


class PerImageObjects:
    """mBO and FG-ARI of images whose labels are their objects' ids, 0 the background.

    As `objects.mean_best_overlap` and `objects.foreground_ari`; pixels without a cluster are one
    more group to the index and no segment to the overlap. Images without an object do not take
    part.
    """

    def __init__(self, num_classes):
        self.state = {"mbo": np.zeros(()), "fg_ari": np.zeros(()), "images": np.zeros((), np.int64)}

    def add(self, counts, unassigned=0):
        """Adds one image, as `PerImageManyToOne.add`; column 0 is the background."""
        counts = np.asarray(counts, np.int64)
        lost = np.broadcast_to(np.asarray(unassigned, np.int64), (1, counts.shape[1]))
        table = np.concatenate([counts, lost])
        there = table[:, 1:].any(axis=0)
        if not there.any():
            return
        best = np.max(overlaps(table)[:-1, 1:], axis=0, initial=0.0)
        self.state["mbo"] += 100.0 * best[there].mean()
        self.state["fg_ari"] += ari(table[:, 1:])
        self.state["images"] += 1

    def scores(self):
        """ObjectScores, NaN before the first object."""
        images = self.state["images"] or np.nan
        return ObjectScores(*(float(self.state[name] / images) for name in ("mbo", "fg_ari")))


PER_IMAGE = {"per-image-m2o": PerImageManyToOne, "per-image-hungarian": PerImageHungarian,
             "objects": PerImageObjects}
