"""What the watch over a run tells of collapsing clusters, and how often."""

import contextlib
import io
import pathlib
import tempfile

import jax.numpy as jnp
from absl.testing import absltest

from fs4_jax.config import default_config
from fs4_jax.metrics import MetricsWriter, read_metrics
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


if __name__ == "__main__":
    absltest.main()
