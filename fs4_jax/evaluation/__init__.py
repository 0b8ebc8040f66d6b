"""Scores without label leakage: exact confusion counts, named matches and protocols."""

from fs4_jax.evaluation.confusion import IGNORE_LABEL, Confusion, confusion_matrix
from fs4_jax.evaluation.matching import Scores, match_clusters, score_matching
from fs4_jax.evaluation.objects import foreground_ari, mean_best_overlap
from fs4_jax.evaluation.protocols import PROTOCOLS, evaluate_counts

__all__ = ["IGNORE_LABEL", "PROTOCOLS", "Confusion", "Scores", "confusion_matrix",
           "evaluate_counts", "foreground_ari", "match_clusters", "mean_best_overlap",
           "score_matching"]
