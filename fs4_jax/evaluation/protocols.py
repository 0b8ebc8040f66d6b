"""The named evaluation protocols. A score means nothing without the name of one.

Rules and names are those of the field's own evaluation code; each says what it was read from.
`python -m fs4_jax.evaluation.protocols` prints them as a table.
"""

import dataclasses

import numpy as np

from fs4_jax.evaluation.matching import MATCHINGS, score_matching
from fs4_jax.evaluation.per_image import PER_IMAGE

BUGS = ("stego-extra-clusters",)
# What protocols measure, in percent, as people write it.
MEASURES = {"miou": "mIoU", "accuracy": "accuracy", "mbo": "mBO", "fg_ari": "FG-ARI"}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How predictions are turned into a score.

    name: of the protocol. used_by: whose numbers it makes comparable. labels: the data set and
      label map it is meant for, "any" for every one.
    size: pixels; 0: data.eval_size, the whole image. geometry: "whole", "short" (the short side
      becomes `size`, the long one int(size long / short), then a centre crop of size x size) or
      "square" (the whole image squeezed to size x size).
    image_filter: how the image is resized: "nearest" or "bilinear". Labels: always nearest.
    scored_at: side of the square label map pixels are counted on; 0: the (cropped) label's own.
    clusters: "model" (its own), "kmeans" (on its tokens, fitted on the scored images) or "probe"
      (a linear layer, trained with labels on the training split).
    num_clusters: K of k-means; 0: config.num_clusters.
    matching: hungarian | many-to-one | identity | per-image-m2o | per-image-hungarian | objects.
    runs: k-means runs (seeds); the score is their mean.
    flip_averaging: embeddings of the image and its mirror are averaged.
    crf: the dense CRF with STEGO's settings refines the class probabilities.
    logit_scale: of the cosines, where the CRF needs probabilities (STEGO's alpha).
    """
    name: str
    used_by: str
    labels: str = "any"
    size: int = 0
    geometry: str = "whole"
    image_filter: str = "bilinear"
    scored_at: int = 0
    clusters: str = "model"
    num_clusters: int = 0
    matching: str = "hungarian"
    runs: int = 1
    flip_averaging: bool = False
    crf: bool = False
    logit_scale: float = 2.0

    @property
    def per_image(self):
        return self.matching in PER_IMAGE

    @property
    def measures(self):
        """The two keys of MEASURES that its scores have."""
        return measures(self.matching)


_STEGO = dict(size=320, geometry="short", image_filter="nearest", flip_averaging=True, crf=True)

PROTOCOLS = {protocol.name: protocol for protocol in (
    Protocol("hungarian", "this library's default: nothing cropped, nothing refined"),
    Protocol("kmeans", "this library, for encoders: k-means on tokens, K clusters",
             clusters="kmeans", runs=3),
    Protocol("identity", "supervised models, scribbles: classes are known, ids are theirs (VOC's "
             "mIoU)", matching="identity"),
    Protocol("stego27", "STEGO, HP, DepthG, EAGLE, SmooSeg, PPAP, CAUSE, PriMaPs",
             labels="COCO-Stuff-27, curated val", **_STEGO),
    Protocol("picie27", "PiCIE, FS^4 (it compares to PiCIE)", labels="COCO-Stuff-27, curated val",
             size=320, geometry="short"),
    Protocol("cityscapes27", "STEGO and its successors",
             labels="Cityscapes-27, val (500 images; half of each is cropped away)", **_STEGO),
    Protocol("potsdam3", "STEGO and its successors", labels="Potsdam-3, labelled_test", **_STEGO),
    Protocol("stego-linear", "STEGO's second number: a probe with labels", clusters="probe",
             matching="identity", **_STEGO),
    Protocol("linear-probe", "Leopart, NeCo: a probe on frozen tokens", size=448,
             geometry="square", scored_at=100, clusters="probe", matching="identity"),
    Protocol("overcluster", "Leopart, NeCo, CrOC", size=448, geometry="square", scored_at=100,
             clusters="kmeans", num_clusters=500, matching="many-to-one", runs=5),
    Protocol("voc-kmeans21", "MaskContrast", labels="VOC 2012 val", size=448, geometry="square",
             clusters="kmeans", num_clusters=21, runs=5),
    Protocol("per-image-m2o", "AlignSeg: every image has a match of its own", size=448,
             geometry="square", scored_at=100, matching="per-image-m2o"),
    Protocol("per-image-m2o-whole", "this library: the same of whole images at their own size, for "
             "small ones", matching="per-image-m2o"),
    Protocol("per-image-hungarian", "DiffSeg, DiffCut, Falcon", size=512, geometry="square",
             scored_at=128, matching="per-image-hungarian"),
    Protocol("objects", "AlignSeg on MOVi, slot attention: mBO and FG-ARI, no classes",
             labels="objects of each image, 0 the background (scenes: label_set=objects)",
             matching="objects"),
)}


def measures(matching):
    """The two keys of MEASURES that a match has: mIoU and accuracy, or mBO and FG-ARI."""
    return ("mbo", "fg_ari") if matching == "objects" else ("miou", "accuracy")


def find_protocol(name):
    """The Protocol of a name; ValueError that lists the names."""
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}; there are: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def evaluate_counts(counts, protocol="hungarian", *, matching=None, bug_compatible=""):
    """Scores of a data set's confusion counts int [num_clusters, num_classes].

    Args:
      counts: int.
      protocol: a name of PROTOCOLS, or of MATCHINGS.
      matching: int [num_clusters] found before, on another split; None: found here.
      bug_compatible: "" or "stego-extra-clusters" (`drop_extra_clusters`).

    Raises:
      ValueError: an unknown name; a protocol whose matches are the images'.
    """
    rule = protocol if protocol in MATCHINGS else find_protocol(protocol).matching
    if rule in PER_IMAGE:
        raise ValueError(f"protocol {protocol!r} matches every image by itself: counts of a whole "
                         "data set can not be scored by it")
    if bug_compatible not in ("", *BUGS):
        raise ValueError(f"bug_compatible={bug_compatible!r} is unknown; there is: "
                         f"{', '.join(BUGS)}")
    if bug_compatible:
        counts = drop_extra_clusters(counts)
        matching = None if matching is None else matching[:len(counts)]
    return score_matching(counts, MATCHINGS[rule](counts) if matching is None else matching)


def drop_extra_clusters(counts):
    """STEGO's `extra_clusters` bug: pixels of clusters beyond the number of classes vanish.

    Published code (EAGLE's extra_clusters: 5) counts only predictions below the number of
    classes, so a model is not charged for what it put elsewhere. To compare, never to report.
    """
    return np.asarray(counts)[:np.shape(counts)[1]]


def table():
    """The protocols as a Markdown table."""
    heads = ("protocol", "for", "image", "counted at", "clusters", "matching", "flip", "CRF",
             "used by")
    rows = [heads, ("---",) * len(heads)]
    for p in PROTOCOLS.values():
        image = {"whole": "whole, bilinear to data.eval_size",
                 "short": f"short side {p.size} ({p.image_filter}), centre crop {p.size}",
                 "square": f"{p.size} x {p.size} ({p.image_filter})"}[p.geometry]
        at = f"{p.scored_at} x {p.scored_at}" if p.scored_at else (
            "label size" if p.geometry != "short" else "the cropped label")
        clusters = {"model": "the model's", "probe": "linear probe (labels)",
                    "kmeans": f"k-means of its tokens, K = {p.num_clusters or 'num_clusters'}, "
                              f"mean of {p.runs}"}
        rows.append((f"`{p.name}`", p.labels, image, at, clusters[p.clusters], p.matching,
                     "yes" if p.flip_averaging else "no", "yes" if p.crf else "no", p.used_by))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    print(table())
