"""Watches a run: metrics one step late, the first number that is none, skipped images."""

import math
import sys
import time

import jax
import numpy as np

from fs4_jax.metrics import ProgressLine
from fs4_jax.optimizer import make_schedule


class NonFinite(RuntimeError):
    """A loss or a gradient stopped being a number."""


class Watch:
    """Reads each step's metrics one step late, so that the device never waits for the host."""

    def __init__(self, config, source, writer, first):
        self.config, self.source, self.writer = config, source, writer
        self.schedule = make_schedule(config.optimizer, config.total_steps)
        self.progress = ProgressLine(config.total_steps, first)
        self.pending, self.window, self.skipped = None, [], set()
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
        config = self.config
        if (step + 1) % config.log_every == 0 or step + 1 == config.total_steps:
            seconds, waits = np.sum(self.window, axis=0)
            row = metrics | {
                "learning_rate": float(self.schedule(step)),
                "images_per_second": config.batch_size * len(self.window) / seconds,
                "step_seconds": seconds / len(self.window),
                "data_wait_share": min(1.0, waits / seconds)}
            self.window = []
            self.writer.write(step + 1, row)
            self.progress.update(step + 1, row)

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


def local_values(array):
    """This process's part of a sharded vector, as numpy."""
    return np.concatenate([np.asarray(s.data) for s in array.addressable_shards])
