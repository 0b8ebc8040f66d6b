"""Watches a run: metrics one step late, the first number that is none, skipped images, collapse."""

import collections
import math
import sys
import time

import jax
import numpy as np

from fs4_jax.batch_log import HASH
from fs4_jax.distributed import local_rows
from fs4_jax.evaluation.collapse import WARNING, advice, collapse_signs
from fs4_jax.metrics import ProgressLine
from fs4_jax.nonfinite import FIRST
from fs4_jax.optimizer import make_schedule


_WARN_AGAIN = 50         # rows of the log after which a sign of collapse is told again
_SMOOTHED = 10           # steps at least, so that one odd batch does not warn


class NonFinite(RuntimeError):
    """A loss or a gradient stopped being a number. step: which; data_state: of the training data's
    iterator behind that step's batch."""

    def __init__(self, message, step, data_state):
        super().__init__(message)
        self.step, self.data_state = step, data_state


class Watch:
    """Reads each step's metrics one step late, so that the device never waits for the host.

    Args:
      config: ConfigDict. source: of the training images. writer: MetricsWriter. first: step.
      tensor_names: (batch, metrics) -> what "first_nonfinite" counts; see `Run.tensor_names`.
      batches: BatchLog, or None.
    """

    def __init__(self, config, source, writer, first, tensor_names=None, batches=None):
        self.config, self.source, self.writer = config, source, writer
        self.tensor_names, self.batches = tensor_names, batches
        self.skipped_steps = writer.last("skipped_steps") if writer else 0
        self.skipped_in_a_row = 0
        self.schedule = make_schedule(config.optimizer, config.total_steps)
        self.progress = ProgressLine(config.total_steps, first)
        self.pending, self.window, self.skipped = None, [], set()
        self.collapse = _CollapseWatch(config)
        self.clock = None             # from the first step on, which was compiled before

    def after(self, step, metrics, batch, waited, data_state=None):
        """Takes note of a step just begun; looks at the one before.

        data_state: of the iterator that gave the batch.
        """
        self.flush()
        if self.clock is None:
            self.clock = time.time()
            self.progress.begin()
        shapes = {key: jax.ShapeDtypeStruct(x.shape, x.dtype) for key, x in batch.items()}
        self.pending = (step, metrics, shapes, batch["index"], batch["skipped"], waited, data_state)

    def flush(self):
        """Waits for the pending step and looks at it; raises NonFinite."""
        if self.pending is None:
            return
        step, arrays, batch, index, skipped, waited, data_state = self.pending
        self.pending = None
        arrays = jax.device_get(arrays)
        first_bad = int(arrays.pop(FIRST, -1))
        code = arrays.pop(HASH, None)
        metrics = {k: float(v) for k, v in arrays.items()}
        if self.batches:
            self.batches.write(step + 1, code)
        now = time.time()
        self.window.append((now - self.clock, waited))
        self.clock = now
        self._name_skipped(skipped)
        bad = [name for name in metrics if not math.isfinite(metrics[name])]
        if first_bad >= 0 or bad:
            names = self.tensor_names(batch, arrays) if self.tensor_names else ()
            tensor = names[first_bad] if 0 <= first_bad < len(names) else ""
            self._nonfinite(step, metrics, bad, tensor, index, data_state)
        else:
            self.skipped_in_a_row = 0
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

    def _nonfinite(self, step, metrics, bad, tensor, index, data_state):
        """Counts a step that was skipped; raises NonFinite where it was not, or too many were."""
        terms = [name for name in bad if name.startswith("loss_")] or bad
        seen = ", ".join(f"{name} is {metrics[name]}" for name in terms) or \
            f"{tensor} is no number"
        images = ", ".join(self.source.example_name(int(i)) for i in local_rows(index))
        text = f"{seen} at step {step}, on images {images}."
        text += f" The first tensor that is no number: {tensor}." if tensor and bad else ""
        if self.config.nonfinite.policy == "skip":
            self.skipped_steps += 1
            self.skipped_in_a_row += 1
            self.writer.write(step + 1, {"skipped_steps": self.skipped_steps})
            self.progress.note(f"WARNING: skipped step {step} ({self.skipped_steps} so far): "
                               f"{text}")
            if self.skipped_in_a_row < self.config.nonfinite.most:
                return
            text += (f" That makes {self.skipped_in_a_row} steps in a row that were skipped "
                     "(config.nonfinite.most).")
        text += (" Nothing of it was saved: the newest checkpoint is good. Lower "
                 "config.optimizer.learning_rate, or look at these images")
        text += ("; config.nonfinite.policy=skip or rollback goes on without such steps."
                 if self.config.nonfinite.policy == "stop" else ".")
        raise NonFinite(text, step, data_state)

    def _name_skipped(self, skipped):
        for index in set(local_rows(skipped).tolist()) - self.skipped - {-1}:
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

