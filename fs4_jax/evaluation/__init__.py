"""Scores without label leakage: exact confusion counts, named matches and protocols.

A name is imported when it is asked for: commands in this package answer --help without jax.
"""

from fs4_jax.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, {
    "IGNORE_LABEL": "confusion", "Confusion": "confusion", "confusion_matrix": "confusion",
    "Scores": "matching", "match_clusters": "matching", "score_matching": "matching",
    "foreground_ari": "objects", "mean_best_overlap": "objects",
    "PROTOCOLS": "protocols", "evaluate_counts": "protocols"})
