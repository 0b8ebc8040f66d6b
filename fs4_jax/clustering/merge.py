"""Fine clusters merged into classes of their natural sizes: average linkage, weighted by size."""

import numpy as np

from fs4_jax.clustering.kmeans import unit_length


def merge_with_background(centroids, counts, looked_at, num_groups):
    """As `merge_clusters`, but group 0 is the background: clusters that nobody looks at.

    Average linkage can not find it: sky, grass and walls have nothing in common but that.

    Args:
      centroids: float [k, d]. counts: [k], none of them 0.
      looked_at: float [k], the attention that a cluster's points have, over what they would have if
        an image's had it alike. Below 1 a cluster is background; at least the one with the least,
        and never so many that fewer than num_groups - 1 clusters are left.
      num_groups: 2 to k.

    Returns:
      int32 [k]; the other groups are numbered from the largest, 1.
    """
    order = np.argsort(looked_at, kind="stable")
    below = int(np.sum(np.asarray(looked_at) < 1))
    things = np.sort(order[np.clip(below, 1, len(order) - num_groups + 1):])
    groups = np.zeros(len(order), np.int32)
    groups[things] = 1 + merge_clusters(np.asarray(centroids)[things], np.asarray(counts)[things],
                                        num_groups - 1)
    return groups


def merge_clusters(centroids, counts, num_groups):
    r"""Merges clusters, the two most alike at a time, until `num_groups` are left.

    .. math:: s(A, B) = \frac{1}{n_A n_B} \sum_{a \in A} \sum_{b \in B} n_a n_b \cos(c_a, c_b)

    Average linkage over the points that the clusters stand for (UPGMA, Sokal and Michener 1958,
    with each cluster's points at its centroid). k-means cuts a large class into parts of equal
    spread rather than find a small one; fine clusters, merged, keep what is large whole. On the
    host: k^2 num_merges operations of a few hundred clusters are milliseconds.

    Args:
      centroids: float [k, d], compared by their cosine.
      counts: [k], points of each; an empty cluster joins the group most like it, at the end.
      num_groups: 1 to the number of clusters that are not empty.

    Returns:
      int32 [k], the group of each cluster; groups are numbered from the largest, 0.

    Raises:
      ValueError: more groups than clusters that are not empty.
    """
    centroids = np.asarray(unit_length(np.asarray(centroids, np.float32)), np.float64)
    counts = np.asarray(counts, np.float64)
    filled = np.flatnonzero(counts > 0)
    if not 1 <= num_groups <= len(filled):
        raise ValueError(f"{len(filled)} clusters with points can not form {num_groups} groups")
    members = [[i] for i in filled]
    sizes, means = counts[filled].copy(), centroids[filled].copy()
    alike = means @ means.T
    np.fill_diagonal(alike, -np.inf)
    for _ in range(len(filled) - num_groups):
        a, b = np.unravel_index(np.argmax(alike), alike.shape)
        share = sizes[b] / (sizes[a] + sizes[b])
        means[a] += share * (means[b] - means[a])      # not unit length: its products average
        sizes[a] += sizes[b]
        members[a] += members[b]
        alike[b] = alike[:, b] = -np.inf
        sizes[b] = 0.0
        others = (sizes > 0) & (np.arange(len(sizes)) != a)
        alike[a, others] = alike[others, a] = means[others] @ means[a]
    left = np.flatnonzero(sizes > 0)
    left = left[np.argsort(-sizes[left], kind="stable")]
    groups = np.argmax(centroids @ means[left].T, axis=1).astype(np.int32)
    for number, i in enumerate(left):
        groups[members[i]] = number
    return groups
