"""What the watch over a run tells of collapsing clusters, and how often."""

import contextlib
import io
import pathlib
import tempfile
import time
from unittest import mock

import jax.numpy as jnp
from absl.testing import absltest

from fs4_jax.config import default_config
from fs4_jax.metrics import MetricsWriter, ProgressLine, read_metrics
from fs4_jax.watch import Watch


class CollapseWarningTest(absltest.TestCase):

    def rows(self, used, largest, log_every=5):
        """(rows of metrics.jsonl, what is printed) of a run whose K = 8 clusters do this."""
        config = default_config()
        config.num_clusters, config.log_every, config.total_steps = 8, log_every, len(used)
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        nothing = {"index": jnp.zeros(1, int), "skipped": -jnp.ones(1, int)}
        with contextlib.redirect_stderr(io.StringIO()) as printed, \
                MetricsWriter(folder, tensorboard=False) as writer:
            watch = Watch(config, None, writer, 0)
            for step, (u, share) in enumerate(zip(used, largest)):
                watch.after(step, {"loss": jnp.float32(1), "clusters_used": jnp.int32(u),
                                   "largest_cluster_share": jnp.float32(share)}, nothing, 0.0)
            watch.flush()
        return read_metrics(folder / "metrics.jsonl"), printed.getvalue()

    def warned(self, rows, name):
        return [row["step"] for row in rows if f"warning_{name}" in row]

    def test_a_healthy_run(self):
        rows, printed = self.rows([8] * 30, [0.3] * 30)
        self.assertEqual(self.warned(rows, "few_clusters") + self.warned(rows, "large_cluster"), [])
        self.assertNotIn("WARNING", printed)
        self.assertIn("8 clusters, largest 30 %", printed)

    def test_told_once_with_what_to_change(self):
        rows, printed = self.rows([8] * 20 + [2] * 30, [0.3] * 50)
        self.assertEqual(self.warned(rows, "few_clusters"), [30])     # the mean is 5 at 25, then 2
        self.assertEqual(self.warned(rows, "large_cluster"), [])
        self.assertEqual(printed.count("WARNING"), 1)
        self.assertRegex(printed, "WARNING at step 30: 2 of 8 clusters are in use .mean of 10 "
                                  "steps.*fs4.sinkhorn.*optimizer.learning_rate")
        row, = [row for row in rows if row["step"] == 30]
        self.assertEqual(row["warning_few_clusters"], 2.0)

    def test_one_odd_batch_does_not_warn(self):
        used, largest = [8] * 40, [0.3] * 40
        used[24], largest[24] = 1, 1.0
        for log_every in (1, 5):
            self.assertNotIn("WARNING", self.rows(used, largest, log_every)[1])

    def test_each_sign_by_itself_and_again_after_fifty_rows(self):
        rows, printed = self.rows([8] * 30 + [3] * 90, [0.9] * 120, log_every=1)
        self.assertEqual(self.warned(rows, "large_cluster"), [10, 60, 110])
        self.assertEqual(self.warned(rows, "few_clusters"), [39, 89])
        self.assertEqual(printed.count("WARNING"), 5)

    def test_a_method_that_says_nothing_of_clusters(self):
        config = default_config()
        watch = Watch(config, None, None, 0)
        watch.collapse.add({"loss": 1.0})
        self.assertEqual(watch.collapse.look(), ({}, ""))


class SpeedTest(absltest.TestCase):

    def test_what_came_before_the_first_step_is_left_out(self):
        """Compiling it, say: neither the first row's speed nor the first ETA counts that."""
        config = default_config()
        config.log_every, config.total_steps, config.batch_size = 5, 20, 8
        nothing = {"index": jnp.zeros(1, int), "skipped": -jnp.ones(1, int)}
        clock = mock.Mock(return_value=0.0)
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        with contextlib.redirect_stderr(io.StringIO()) as printed, \
                MetricsWriter(folder, tensorboard=False) as writer, \
                mock.patch.object(time, "time", clock):
            watch = Watch(config, None, writer, 0)
            watch.progress = ProgressLine(20, clock=clock)
            for step in range(6):
                clock.return_value = 1000.0 + 2 * step
                watch.after(step, {"loss": jnp.float32(1)}, nothing, 0.0)
        row, = read_metrics(folder / "metrics.jsonl")
        self.assertEqual((row["step_seconds"], row["images_per_second"]), (2.0, 4.0))
        self.assertIn("step 5/20  loss 1  4.0 img/s  data 0 %  ETA 0:30", printed.getvalue())


if __name__ == "__main__":
    absltest.main()
