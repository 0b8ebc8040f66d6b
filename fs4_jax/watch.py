"""Watches a run: metrics one step late, the first number that is none, skipped images, collapse."""

import collections
import math
import sys
import time

import jax
import numpy as np

from fs4_jax.evaluation.collapse import WARNING, advice, collapse_signs
from fs4_jax.metrics import ProgressLine
from fs4_jax.optimizer import make_schedule


_WARN_AGAIN = 50         # rows of the log after which a sign of collapse is told again
_SMOOTHED = 10           # steps at least, so that one odd batch does not warn


class NonFinite(RuntimeError):
    """A loss or a gradient stopped being a number."""


class Watch:
    """Reads each step's metrics one step late, so that the device never waits for the host."""

    def __init__(self, config, source, writer, first):
        self.config, self.source, self.writer = config, source, writer
        self.schedule = make_schedule(config.optimizer, config.total_steps)
        self.progress = ProgressLine(config.total_steps, first)
        self.pending, self.window, self.skipped = None, [], set()
        self.collapse = _CollapseWatch(config)
        self.clock = time.time()

    def after(self, step, metrics, batch, waited):
        """Takes note of a step just begun; looks at the one before."""
        self.flush()
        self.pending = (step, metrics, batch["index"], batch["skipped"], waited)

    def flush(self):
        """Waits for the pending step and looks at it; raises NonFinite."""
        if self.pending is None:
            return
        step, metrics, index, skipped, waited = self.pending
        self.pending = None
        metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
        now = time.time()
        self.window.append((now - self.clock, waited))
        self.clock = now
        self._name_skipped(skipped)
        self._check(step, metrics, index)
        self.collapse.add(metrics)
        config = self.config
        if (step + 1) % config.log_every == 0 or step + 1 == config.total_steps:
            seconds, waits = np.sum(self.window, axis=0)
            row = metrics | {
                "learning_rate": float(self.schedule(step)),
                "images_per_second": config.batch_size * len(self.window) / seconds,
                "step_seconds": seconds / len(self.window),
                "data_wait_share": min(1.0, waits / seconds)}
            self.window = []
            warnings, text = self.collapse.look()
            self.writer.write(step + 1, row | warnings)
            self.progress.update(step + 1, row)
            if text:
                self.progress.note(f"WARNING at step {step + 1}: {text}")

    def _check(self, step, metrics, index):
        bad = [name for name in metrics if not math.isfinite(metrics[name])]
        if not bad:
            return
        terms = [name for name in bad if name.startswith("loss_")] or bad
        names = [self.source.example_name(int(i)) for i in local_values(index)]
        raise NonFinite(
            f"{', '.join(f'{n} is {metrics[n]}' for n in terms)} at step {step}, on images "
            f"{', '.join(names)}. Nothing of it was saved: the newest checkpoint is good. Lower "
            "config.optimizer.learning_rate, or look at these images.")

    def _name_skipped(self, skipped):
        for index in set(local_values(skipped).tolist()) - self.skipped - {-1}:
            self.skipped.add(index)
            print(f"\nskipped {self.source.example_name(index)}: unreadable "
                  f"({len(self.skipped)} so far)", file=sys.stderr)


class _CollapseWatch:
    """Means over the last steps of what a method says of its clusters, and their warnings."""

    def __init__(self, config):
        self._config, self._rows, self._warned = config, 0, {}
        steps = max(_SMOOTHED, config.log_every)
        self._seen = {name: collections.deque(maxlen=steps)
                      for name in ("clusters_used", "largest_cluster_share")}

    def add(self, metrics):
        """Takes note of a step's metrics."""
        for name, values in self._seen.items():
            if name in metrics:
                values.append(metrics[name])

    def look(self):
        """({"warning_*": the mean that warns}, text to print), once a row; empty where all is
        well or was told of late."""
        self._rows += 1
        used, largest = (np.mean(v) if len(v) >= _SMOOTHED else math.nan
                         for v in self._seen.values())
        signs = collapse_signs(used, largest, self._config.num_clusters)
        due = [name for name in signs
               if self._rows - self._warned.get(name, -_WARN_AGAIN) >= _WARN_AGAIN]
        self._warned |= dict.fromkeys(due, self._rows)
        if not due:
            return {}, ""
        values = {"few_clusters": used, "large_cluster": largest}
        steps = len(self._seen["clusters_used"])
        return ({WARNING + name: float(values[name]) for name in due},
                f"{'; '.join(signs[name] for name in due)} (mean of {steps} steps). "
                f"{advice(self._config)}")


def local_values(array):
    """This process's part of a sharded vector, as numpy."""
    return np.concatenate([np.asarray(s.data) for s in array.addressable_shards])
