"""Clustering on the device: Sinkhorn assignment and k-means, pure and sharded through jit.

`fs4_jax.clustering.stream` is k-means over batches; see docs/clustering.md.
"""

from fs4_jax.clustering.kmeans import KMeansResult, kmeans
from fs4_jax.clustering.sinkhorn import sinkhorn

__all__ = ["KMeansResult", "kmeans", "sinkhorn"]
