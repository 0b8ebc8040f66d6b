"""Confusion counts: ours against NumPy's bincount and torchmetrics, in one run.

    python -m benchmarks.confusion

Sixteen 320 x 320 predictions with labels, each in the types its users have (int32 ids and uint8
labels here, int64 in torch); the counts must be the same integers. Medians over --repeats runs.
torchmetrics (extra `bench`) is left out, saying so, where it is not installed.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.timing import median
from fs4_jax.evaluation import confusion_matrix

_REPEATS = flags.DEFINE_integer("repeats", 20, "Timed runs of each.", lower_bound=1)

CASES = (("27 classes, 27 clusters", 27, 27), ("21 classes, 21 clusters", 21, 21),
         ("171 classes, 500 clusters", 171, 500))


def main(_):
    for title, num_classes, num_clusters in CASES:
        rng = np.random.default_rng(0)
        prediction = rng.integers(0, num_clusters, (16, 320, 320)).astype(np.int32)
        label = rng.integers(0, num_classes, prediction.shape).astype(np.int32)
        label[rng.random(label.shape) < 0.1] = 255
        count = functools.partial(with_bincount, prediction, label, num_clusters, num_classes)
        ours = jax.jit(functools.partial(confusion_matrix, num_clusters=num_clusters,
                                         num_classes=num_classes))
        on_device = jnp.asarray(prediction), jnp.asarray(label.astype(np.uint8))
        np.testing.assert_array_equal(ours(*on_device), count())
        base = median(lambda: jax.block_until_ready(ours(*on_device)), _REPEATS.value)
        print(f"{title}: fs4_jax {1000 * base:.2f} ms")
        peers = {"numpy.bincount": count}
        if num_classes == num_clusters:          # torchmetrics knows square matrices only
            peers |= torchmetrics_counter(prediction, label, num_classes, count())
        for name, function in peers.items():
            seconds = median(function, _REPEATS.value)
            print(f"  {name:16s} {1000 * seconds:8.2f} ms   {seconds / base:6.1f} x ours")


def with_bincount(prediction, label, num_clusters, num_classes):
    votes = (label >= 0) & (label < num_classes)
    cells = prediction[votes] * num_classes + label[votes]
    return np.bincount(cells, minlength=num_clusters * num_classes).reshape(
        num_clusters, num_classes)


def torchmetrics_counter(prediction, label, num_classes, expected):
    """{name: function}, empty where torchmetrics is not installed."""
    try:
        import torch
        from torchmetrics.classification import MulticlassConfusionMatrix
    except ImportError:
        print("  torchmetrics is not installed (pip install '.[bench]'): left out")
        return {}
    prediction, label = torch.from_numpy(prediction).long(), torch.from_numpy(label).long()

    def count():
        metric = MulticlassConfusionMatrix(num_classes, ignore_index=255)
        metric.update(prediction, label)
        return metric.compute()

    np.testing.assert_array_equal(count().numpy().T, expected)
    return {"torchmetrics": count}


if __name__ == "__main__":
    app.run(main)
