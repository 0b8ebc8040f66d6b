"""Scores without label leakage: exact confusion counts, named matches and protocols.

A name is imported when it is asked for: commands in this package answer --help without jax.
"""

import importlib

_HOMES = {
    "IGNORE_LABEL": "confusion", "Confusion": "confusion", "confusion_matrix": "confusion",
    "Scores": "matching", "match_clusters": "matching", "score_matching": "matching",
    "foreground_ari": "objects", "mean_best_overlap": "objects",
    "PROTOCOLS": "protocols", "evaluate_counts": "protocols"}
__all__ = sorted(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__():
    return sorted([*globals(), *_HOMES])
