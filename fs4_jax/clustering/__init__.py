"""Clustering on the device: Sinkhorn assignment and k-means, pure functions that shard through jit."""

from fs4_jax.clustering.kmeans import KMeansResult, kmeans
from fs4_jax.clustering.sinkhorn import sinkhorn

__all__ = ["KMeansResult", "kmeans", "sinkhorn"]
