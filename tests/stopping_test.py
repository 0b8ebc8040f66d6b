"""Signals and hangs: how a run leaves, whatever it does, and that it goes on as if it had not."""

import contextlib
import dataclasses
import io
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax import run as run_lib
from fs4_jax import train
from fs4_jax.checkpoint import Checkpoints
from fs4_jax.metrics import read_metrics
from fs4_jax.stopping import EXIT_HUNG, EXIT_INTERRUPTED, StopSignals
from tests.tiny_method import TinyMethod, in_place, tiny_run

# C code that runs for minutes and looks at no signal, as XLA's compiler does.
_UNSTOPPABLE = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
_STOP = f"""
import hashlib, os, signal, threading
from fs4_jax.stopping import StopSignals
with StopSignals(patience=0.5) as stop:
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    {_UNSTOPPABLE}
"""
_LEAVE = """
import atexit, jax
from fs4_jax import errors
atexit.register(print, "left")
product = jax.jit(lambda x: jax.lax.fori_loop(0, 10**6, lambda i, x: x @ x, x))
product(jax.numpy.ones((1000, 1000)))
print("under way")
errors.leave(75)
"""
_HANG = f"""
import hashlib, sys
from fs4_jax.stopping import HangWatch
with HangWatch(sys.argv[1], 0.5) as hang:
    hang.expect()
    {_UNSTOPPABLE}
"""


def asked_to_stop(*_, **__):
    """Long work in which SIGTERM comes."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


class ProcessTest(absltest.TestCase):

    def child(self, code, *arguments):
        root = pathlib.Path(__file__).resolve().parents[1]
        return subprocess.run([sys.executable, "-c", code, *arguments], cwd=root, timeout=120,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def test_a_computation_under_way_is_not_waited_for(self):
        child = self.child(_LEAVE)
        self.assertEqual(child.returncode, EXIT_INTERRUPTED, child.stderr)
        self.assertEqual(child.stdout, "under way\nleft\n")

    def test_a_call_that_can_not_be_cut_short(self):
        child = self.child(_STOP)
        self.assertEqual(child.returncode, EXIT_INTERRUPTED, child.stderr)
        self.assertIn("stopped by SIGTERM in a call that can not be cut short", child.stderr)

    def test_a_hang_says_where(self):
        with tempfile.TemporaryDirectory() as folder:
            child = self.child(_HANG, folder)
            self.assertEqual(child.returncode, EXIT_HUNG, child.stderr)
            for text in (child.stderr, pathlib.Path(folder, "hang.txt").read_text()):
                self.assertIn("no step for 0.5 seconds (config.hang_seconds)", text)
                self.assertIn('File "<string>", line 6 in <module>', text)


class StopSignalsTest(absltest.TestCase):

    def test_outside_of_what_may_be_cut_short_it_is_a_request(self):
        before = signal.getsignal(signal.SIGTERM)
        with StopSignals() as stop:
            self.assertEqual(stop.cut_short(max, 3, 4), 4)
            os.kill(os.getpid(), signal.SIGTERM)
            self.assertEqual(stop.requested, "SIGTERM")
            self.assertIsNone(stop.cut_short(max, 3, 4))
            with self.assertRaises(KeyboardInterrupt):        # the second one
                os.kill(os.getpid(), signal.SIGINT)
        self.assertEqual(signal.getsignal(signal.SIGTERM), before)

    def test_inside_it_ends_at_once(self):
        began = time.monotonic()
        with StopSignals() as stop:
            self.assertIsNone(stop.cut_short(asked_to_stop))
        self.assertLess(time.monotonic() - began, 30)
        self.assertEqual(stop.requested, "SIGTERM")


class LoopTest(parameterized.TestCase):
    """SIGTERM in each part of a run; the same command then ends with the undisturbed run's bits."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.enterClassContext(in_place())
        cls.enterClassContext(mock.patch.object(TinyMethod, "refit", None, create=True))
        cls.enterClassContext(mock.patch.object(train, "_bootstrap", cls.round))
        cls.config = tiny_run(**{"eval.every": 3, "fs4.bootstrap.every": 4})
        cls.train(cls.folder / "whole")

    @staticmethod
    def round(run, source, state, step):
        return dataclasses.replace(state, extra=jax.tree.map(lambda x: x + step, state.extra))

    @classmethod
    def train(cls, workdir):
        with contextlib.redirect_stdout(io.StringIO()) as out, \
                contextlib.redirect_stderr(io.StringIO()):
            return train.train(cls.config, workdir), out.getvalue()

    def state(self, workdir):
        run = run_lib.prepare(self.config, trained_in=workdir)
        with Checkpoints(workdir, writes=False) as checkpoints:
            state, step = checkpoints.restore(run.abstract_state())
        return step, jax.device_get((state.params, state.opt_state, state.teacher, state.extra))

    @parameterized.parameters(
        ("_start", None, "before the first step"),
        ("_evaluate", 3, "at step 3, saved in"),
        ("_bootstrap", 4, "at step 4, saved in"),
        ("jit_step", None, "in the first step"))
    def test_asked_to_stop(self, part, saved, told):
        workdir = self.folder / part
        owner = run_lib.Run if part == "jit_step" else train
        replaced = (lambda run, state: asked_to_stop) if part == "jit_step" else asked_to_stop
        with mock.patch.object(owner, part, replaced):
            began = time.monotonic()
            status, output = self.train(workdir)
            self.assertLess(time.monotonic() - began, 30)
        self.assertEqual(status, EXIT_INTERRUPTED, output)
        self.assertIn(f"stopped by SIGTERM {told}", output)
        with Checkpoints(workdir, writes=False) as checkpoints:
            self.assertEqual(checkpoints.latest, saved)

        status, output = self.train(workdir)
        self.assertEqual(status, 0, output)
        jax.tree.map(np.testing.assert_array_equal, self.state(self.folder / "whole"),
                     self.state(workdir))
        evaluated = [[row["step"] for row in read_metrics(folder / "metrics.jsonl")
                      if "eval_miou" in row] for folder in (self.folder / "whole", workdir)]
        self.assertEqual(evaluated, [[3, 6], [3, 6]])

    def test_in_the_last_evaluation(self):
        workdir = self.folder / "last"
        real = train._evaluate
        with mock.patch.object(train, "_evaluate", lambda *a, **k: (
                asked_to_stop() if "partial" in k else real(*a, **k))):
            status, output = self.train(workdir)
        self.assertEqual(status, EXIT_INTERRUPTED, output)
        self.assertIn("in the last evaluation", output)
        self.assertEqual(self.state(workdir)[0], 6)
        self.assertEqual(self.train(workdir)[0], 0)
        self.assertTrue((workdir / "report.html").exists())


if __name__ == "__main__":
    absltest.main()
