"""Confusion counts: exact integers, from one batch on a device to a whole data set on the host."""

import numpy as np

# jax is imported where it is used: who reads IGNORE_LABEL alone, as data sources do, goes without.

IGNORE_LABEL = 255

_PARTS = 4


def confusion_matrix(prediction, label, *, num_clusters, num_classes):
    """Counts how often each cluster meets each class.

    Args:
      prediction: int [...], cluster ids; ids outside 0..num_clusters-1 do not vote.
      label: int [...], class ids of the same shape; 255 and every id outside
        0..num_classes-1 do not vote (padding is 255).
      num_clusters: number of rows.
      num_classes: number of columns.

    Returns:
      int32 [num_clusters, num_classes] counts, exact up to 2^31-1 pixels a call. Sum calls on
      the host in int64 (`Confusion`): a data set can hold more pixels than int32 does.
    """
    import jax
    import jax.numpy as jnp
    if prediction.shape != label.shape:
        raise ValueError(f"prediction {prediction.shape} and label {label.shape} differ in shape")
    prediction = prediction.astype(jnp.int32).reshape(-1)
    label = label.astype(jnp.int32).reshape(-1)
    votes = (label >= 0) & (label < num_classes) & (label != IGNORE_LABEL)
    votes &= (prediction >= 0) & (prediction < num_clusters)
    cell = jnp.where(votes, prediction * num_classes + label, num_clusters * num_classes)
    # Parts that wait for nothing of each other are counted at once, one on a core.
    parts = [cell[cell.size * i // _PARTS:cell.size * (i + 1) // _PARTS] for i in range(_PARTS)]
    parts = jax.lax.optimization_barrier(parts)
    zeros = jnp.zeros(num_clusters * num_classes + 1, jnp.int32)
    # In bounds: `votes` has seen to it.
    counts = jax.lax.optimization_barrier(
        [zeros.at[part].add(1, mode="promise_in_bounds") for part in parts])
    return sum(counts)[:-1].reshape(num_clusters, num_classes)


class Confusion:
    """The running sum over a data set, int64 on the host."""

    def __init__(self, num_clusters, num_classes):
        self.state = {"counts": np.zeros((num_clusters, num_classes), np.int64)}

    @property
    def counts(self):
        """int64 [num_clusters, num_classes]."""
        return self.state["counts"]

    def add(self, counts):
        """Adds one batch's counts, int [num_clusters, num_classes]."""
        import jax
        self.state["counts"] += np.asarray(jax.device_get(counts)).astype(np.int64)
