"""Tests of fs4_jax.metrics."""

import io
import json
import math
import pathlib
import sys
import tempfile
import types
from unittest import mock

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax import metrics


class MetricsWriterTest(absltest.TestCase):

    def setUp(self):
        super().setUp()
        self.workdir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "run"
        self.path = self.workdir / "metrics.jsonl"

    def steps(self):
        return [row["step"] for row in metrics.read_metrics(self.path)]

    def write(self, *steps):
        with metrics.MetricsWriter(self.workdir, tensorboard=False) as writer:
            for step in steps:
                writer.write(step, {"loss": step / 2})

    def test_rows_are_on_disk_at_once_and_keep_their_types(self):
        writer = metrics.MetricsWriter(self.workdir, tensorboard=False)
        writer.write(np.int64(3), {"loss": jnp.float32(1.5), "used": np.int32(9), "x": [2.5],
                                   "half": jnp.bfloat16(0.5)})
        row, = metrics.read_metrics(self.path)
        self.assertGreater(row.pop("time"), 1.6e9)
        self.assertEqual(row, {"step": 3, "loss": 1.5, "used": 9, "x": 2.5, "half": 0.5})
        self.assertIsInstance(row["used"], int)
        writer.close()

    def test_numbers_json_does_not_know_are_strings(self):
        with metrics.MetricsWriter(self.workdir, tensorboard=False) as writer:
            writer.write(1, {"a": float("nan"), "b": jnp.inf, "c": -np.inf})

        def no_constants(name):
            self.fail(f"{name} is not JSON")
        row = json.loads(self.path.read_text(), parse_constant=no_constants)
        self.assertEqual([row[k] for k in "abc"], ["nan", "inf", "-inf"])

    def test_what_is_not_one_number_is_refused_by_name(self):
        with metrics.MetricsWriter(self.workdir, tensorboard=False) as writer:
            for value in (np.zeros(2), "text", None):
                with self.assertRaisesRegex(ValueError, "'grad' must be one number"):
                    writer.write(1, {"grad": value})
            with self.assertRaisesRegex(ValueError, "can not be named 'time'"):
                writer.write(1, {"time": 3})
        self.assertEqual(self.steps(), [])

    def test_resume_drops_later_rows_and_goes_on(self):
        self.write(1, 2, 3, 4)
        with metrics.MetricsWriter(self.workdir, tensorboard=False) as writer:
            writer.truncate_after(2)
            writer.write(3, {"loss": 7.0})
        self.assertEqual(self.steps(), [1, 2, 3])
        self.assertEqual(metrics.read_metrics(self.path)[-1]["loss"], 7.0)
        self.assertEqual([p.name for p in self.workdir.iterdir()], ["metrics.jsonl"])

    def test_half_a_line_is_dropped(self):
        self.write(1, 2)
        whole = self.path.read_bytes()
        for cut in range(len(whole) // 2 + 1, len(whole) - 1):
            self.path.write_bytes(whole[:cut])
            self.assertEqual(self.steps(), [1], msg=cut)
        self.write(2)   # a run started again on the cut file
        self.assertEqual(self.steps(), [1, 2])

    def test_a_whole_last_line_without_its_newline_is_kept(self):
        self.write(1, 2)
        self.path.write_bytes(self.path.read_bytes().rstrip(b"\n"))
        self.write(3)
        self.assertEqual(self.steps(), [1, 2, 3])

    def test_damage_elsewhere_is_named(self):
        self.write(1, 2)
        self.path.write_text("not json\n" + self.path.read_text())
        with self.assertRaisesRegex(ValueError, r"metrics\.jsonl, line 1: "):
            metrics.read_metrics(self.path)

    def test_tensorboard_gets_finite_numbers_and_hides_what_it_will_see_again(self):
        summary_writer = mock.Mock()
        module = types.SimpleNamespace(SummaryWriter=summary_writer)
        with mock.patch.dict(sys.modules, {"tensorboardX": module}):
            with metrics.MetricsWriter(self.workdir) as writer:
                writer.write(5, {"loss": 1.0, "bad": math.nan})
        self.assertEqual(summary_writer.call_args.kwargs, {"purge_step": 5})
        scalar, = summary_writer().add_scalar.call_args_list
        self.assertEqual(scalar.args, ("loss", 1.0, 5))
        summary_writer().close.assert_called_once()

    def test_works_without_tensorboard(self):
        absent = {"tensorboardX": None, "torch": None, "torch.utils.tensorboard": None}
        with mock.patch.dict(sys.modules, absent):
            with metrics.MetricsWriter(self.workdir) as writer:
                writer.write(1, {"loss": 1.0})
        self.assertEqual(self.steps(), [1])
        self.assertNotIn("tensorflow", sys.modules)


class HistoryTest(absltest.TestCase):

    def test_column(self):
        rows = [{"step": 1, "a": 2}, {"step": 2}, {"step": 3, "a": "nan"}, {"step": 4, "a": None}]
        steps, values = metrics.column(rows, "a", 10)
        np.testing.assert_array_equal(steps, [1, 3, 4])
        np.testing.assert_array_equal(values, [20, np.nan, np.nan])
        self.assertEqual(metrics.last(values), 20)
        self.assertTrue(math.isnan(metrics.last([])))


class Terminal(io.StringIO):

    def isatty(self):
        return True


class ProgressLineTest(parameterized.TestCase):

    def line(self, stream, **kwargs):
        self.now = 0.0
        return metrics.ProgressLine(600, stream=stream, clock=lambda: self.now, **kwargs)

    def test_format(self):
        progress = self.line(io.StringIO())
        progress.update(1, {})
        self.now = 119.0
        text = progress.format(120, {"step": 120, "loss": 2.3451, "loss_pixel": 1.9,
                                     "loss_pgg": "nan", "images_per_second": 38.2,
                                     "data_wait_share": 0.03, "grad_norm": 5.0,
                                     "clusters_used": 9, "largest_cluster_share": 0.43})
        self.assertEqual(text, "step 120/600  loss 2.345  pixel 1.9 pgg nan  9 clusters, largest "
                               "43 %  38.2 img/s  data 3 %  ETA 8:00")

    def test_counts_what_it_is_told(self):
        stream = io.StringIO()
        self.line(stream, unit="image").update(600, {"images_per_second": 2})
        self.assertEqual(stream.getvalue(), "image 600/600  2.0 img/s  ETA 0:00\n")

    def test_a_log_gets_a_line_now_and_then_and_the_last(self):
        stream = io.StringIO()
        progress = self.line(stream, every_seconds=10)
        for step, self.now in ((1, 0.0), (2, 5.0), (3, 10.0), (4, 12.0), (600, 13.0)):
            progress.update(step, {})
        progress.close()
        steps = [line.split()[1] for line in stream.getvalue().splitlines()]
        self.assertEqual(steps, ["1/600", "3/600", "600/600"])
        self.assertNotIn("\r", stream.getvalue())

    def test_resumed_run_counts_its_own_steps_only(self):
        stream = io.StringIO()
        progress = self.line(stream, first_step=500)
        self.now = 40.0                                # 30 of them to compile
        progress.update(510, {})
        self.assertIn("ETA 6:00", stream.getvalue())
        self.now = 50.0
        self.assertIn("ETA 1:20", progress.format(520, {}))

    def test_a_terminal_rewrites_one_line(self):
        stream = Terminal()
        progress = self.line(stream)
        progress.update(1, {"loss": 1.23456789})
        progress.update(2, {})
        progress.note("saved step 2")
        progress.update(3, {})
        progress.close()
        screen = []
        for line in stream.getvalue().split("\n"):   # what \r leaves on the screen
            cells = ""
            for piece in line.split("\r"):
                cells = piece + cells[len(piece):]
            screen.append(cells.rstrip())
        self.assertEqual([" ".join(line.split()[:2]) for line in screen],
                         ["saved step", "step 3/600", ""])

    def test_a_terminal_line_never_wraps(self):
        stream = Terminal()
        with mock.patch.object(metrics.shutil, "get_terminal_size",
                               return_value=types.SimpleNamespace(columns=20)):
            self.line(stream).update(1, {f"loss_{i}": 1.0 for i in range(50)})
        self.assertLen(stream.getvalue(), 1 + 19)

    @parameterized.parameters((0, "0:00"), (7.4, "0:07"), (754, "12:34"), (3723, "1:02:03"))
    def test_seconds(self, seconds, text):
        self.assertEqual(metrics.format_seconds(seconds), text)


if __name__ == "__main__":
    absltest.main()
