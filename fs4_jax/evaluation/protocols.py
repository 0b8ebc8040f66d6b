"""The named evaluation protocols. A score means nothing without the name of one."""

import dataclasses

from fs4_jax.evaluation.matching import match_clusters, score_matching


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How predictions are turned into a score.

    geometry: what the model sees and at which size pixels are counted. matching: from clusters
    to classes. Counts are exact integers over the whole set; ignored pixels do not vote.
    """
    name: str
    geometry: str
    matching: str
    flip_averaging: bool = False
    crf: bool = False


PROTOCOLS = {
    "hungarian": Protocol(
        name="hungarian",
        geometry="whole image, resized (bilinear) to the evaluation size; logits upsampled "
                 "bilinearly; counted at the label's own resolution, nothing cropped",
        matching="one Hungarian match over the data set, maximising matched pixels"),
}


def evaluate_counts(counts, protocol="hungarian"):
    """Scores of a data set's confusion counts int [num_clusters, num_classes]."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; there is: {', '.join(PROTOCOLS)}")
    return score_matching(counts, match_clusters(counts))
