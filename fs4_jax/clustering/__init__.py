"""Clustering on the device: Sinkhorn assignment, k-means, mixtures; pure, sharded through jit.

`fs4_jax.clustering.stream` is k-means over batches; see docs/clustering.md.
"""

from fs4_jax.clustering.guided import GuidedClusters, guided_clusters
from fs4_jax.clustering.kmeans import KMeansResult, kmeans
from fs4_jax.clustering.sinkhorn import sinkhorn

__all__ = ["GuidedClusters", "KMeansResult", "guided_clusters", "kmeans", "sinkhorn"]
