"""Scores without label leakage: exact confusion counts, one match, named protocols."""

from fs4_jax.evaluation.confusion import IGNORE_LABEL, Confusion, confusion_matrix
from fs4_jax.evaluation.matching import Scores, match_clusters, score_matching

__all__ = ["IGNORE_LABEL", "Confusion", "Scores", "confusion_matrix", "match_clusters",
           "score_matching"]
