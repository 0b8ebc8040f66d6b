"""Clustering on the device: Sinkhorn assignment, k-means, mixtures; pure, sharded through jit.

`fs4_jax.clustering.stream` is k-means over batches; see docs/clustering.md. A name is imported when
it is asked for: commands in this package answer --help without jax.
"""

import importlib
import sys
import types

_HOMES = {"GuidedClusters": "guided", "guided_clusters": "guided", "KMeansResult": "kmeans",
          "kmeans": "kmeans", "sinkhorn": "sinkhorn"}
__all__ = sorted(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__():
    return sorted([*globals(), *_HOMES])


class _Package(types.ModuleType):
    """Two functions have the names of their files: the import of such a file leaves them theirs."""

    def __setattr__(self, name, value):
        if not (name in _HOMES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
