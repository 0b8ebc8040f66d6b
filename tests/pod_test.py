"""A pod of two processes, as launch/local_pod.sh makes it, trains and scores like one process."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from absl.testing import absltest

from fs4_jax.batch_log import batch_hash, read_batch_log
from fs4_jax.checkpoint import Checkpoints
from fs4_jax.config import recall_config
from fs4_jax.run import checked_source, prepare
from tests.train_test import restored

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_FLAGS = {          # of configs/demo.py: seconds of training, and every part of a run
    "num_clusters": 3, "total_steps": 4, "batch_size": 8, "log_every": 1, "mesh.fsdp": 2,
    "data.image_size": 32, "data.num_train": 16, "data.num_eval": 6, "encoder.block": 1,
    "checkpoint.every": 2, "fs4.fit_images": 16, "fs4.cae.width": 8, "fs4.cae.hidden": 16,
    "fs4.cae.radius": 1, "fs4.kernel.radius": 1, "fs4.pgg.levels": "(1,2)",
    "fs4.bootstrap.every": 3, "eval.batch_size": 4, "eval.floors": False, "eval.pictures": 2}
_ENV = os.environ | {"JAX_PLATFORMS": "cpu", "FS4_PYTHON": sys.executable,
                     "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": ""}
_SECONDS = 1200         # on a machine with other things to do
_TIMES = {"time", "images_per_second", "step_seconds", "data_wait_share"}


class PodTest(absltest.TestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.one, cls.pod = pathlib.Path(folder.name, "one"), pathlib.Path(folder.name, "pod")
        flags = _flags(_FLAGS)
        four = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
        runs = [subprocess.Popen(command, cwd=_ROOT, env=_ENV | more, text=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
                for command, more in (
                    ([sys.executable, "-m", "fs4_jax.main", f"--workdir={cls.one}", *flags], four),
                    (["launch/local_pod.sh", "2", "2", f"--workdir={cls.pod}", *flags], {}))]
        cls.outputs = [run.communicate(timeout=_SECONDS)[0] for run in runs]
        for run, output in zip(runs, cls.outputs):
            if run.returncode:
                raise AssertionError(f"{run.args} ended with {run.returncode}:\n{output}")

    def test_each_step_is_the_same(self):
        one, pod = ([json.loads(line) for line in (workdir / "metrics.jsonl").open()]
                    for workdir in (self.one, self.pod))
        self.assertEqual([row["step"] for row in pod], [1, 2, 3, 4, 4])
        for want, got in zip(one, pod, strict=True):
            self.assertEqual(want.keys(), got.keys())
            for name in want.keys() - _TIMES:
                # The same program on the same rows; sums between processes in another order.
                np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-5,
                                           err_msg=f"{name} at step {want['step']}")

    def test_the_state_after_them_is_the_same(self):
        config = recall_config(self.one)
        config.mesh.fsdp = 1
        want, got = (jax.tree.leaves(restored(config, workdir))
                     for workdir in (self.one, self.pod))
        for a, b in zip(want, got, strict=True):
            # Adam makes of rounding in a small gradient a part of a step: 1e-3 times 0.3.
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=3e-4)
            self.assertLess(np.linalg.norm(b - a.astype(np.float64)),
                            1e-4 * np.linalg.norm(a) + 1e-4)

    def test_the_same_pixels_are_counted(self):
        one, pod = (json.loads((workdir / "eval.json").read_text())
                    for workdir in (self.one, self.pod))
        self.assertEqual(pod["num_images"], 6)
        off = np.abs(np.array(one["confusion"]) - pod["confusion"]).sum()
        self.assertEqual(np.sum(pod["confusion"]), np.sum(one["confusion"]))
        self.assertLessEqual(off, 1e-3 * np.sum(one["confusion"]))    # ties between two classes
        self.assertAlmostEqual(pod["miou"], one["miou"], delta=0.1)

    def test_the_same_batches(self):
        self.assertEqual(list(read_batch_log(self.pod)), [1, 2, 3, 4])
        self.assertEqual(read_batch_log(self.pod), read_batch_log(self.one))

    def test_one_process_writes_and_prints(self):
        output = self.outputs[1]
        self.assertEqual(output.count("4 cpu device(s) of 2 process(es)"), 1)
        self.assertEqual(output.count("this model"), 1)
        self.assertEqual(output.count("step 4/4"), 1)
        other = (self.pod / "logs" / "process_1.log").read_text()
        self.assertNotIn("this model", other)
        self.assertNotIn("step 4/4", other)
        for name in ("report.html", "eval.json", "config.json", "encoder.json"):
            self.assertTrue((self.pod / name).exists(), name)
        self.assertLen((self.pod / "evals.jsonl").read_text().splitlines(), 1)


class StoppedPodTest(absltest.TestCase):

    def test_sigterm_saves_and_the_same_command_goes_on(self):
        workdir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()), "run")
        flags = _flags(_FLAGS | {"total_steps": 10**6, "checkpoint.every": 10**6, "mesh.fsdp": 1,
                                 "fs4.bootstrap.every": 0, "fs4.cae.enabled": False,
                                 "fs4.pgg.enabled": False, "fs4.kernel.enabled": False})
        before = 0
        for life in range(2):
            pod = subprocess.Popen(
                ["launch/local_pod.sh", "2", "1", f"--workdir={workdir}", *flags], cwd=_ROOT,
                env=_ENV, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            self.addCleanup(pod.kill)
            deadline = time.monotonic() + _SECONDS
            while max(read_batch_log(workdir), default=0) < before + 2 and pod.poll() is None:
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.05)
            asked = time.monotonic()
            pod.send_signal(signal.SIGTERM)
            output = pod.communicate(timeout=_SECONDS)[0]
            seconds = time.monotonic() - asked
            busy = max(1.0, os.getloadavg()[0] / os.cpu_count())
            print(f"a pod in its steps: out {seconds:.1f} s after SIGTERM, on a machine that has "
                  f"{busy:.1f} times what it can do")
            self.assertEqual(pod.returncode, 75, output)
            self.assertLess(seconds, 30 * busy)
            self.assertIn("stopped by SIGTERM at step", output)
            if life:
                self.assertIn(f"resuming from step {before}\n", output)
            with Checkpoints(workdir, writes=False) as checkpoints:
                self.assertEqual(checkpoints.latest, max(read_batch_log(workdir)))
                self.assertGreater(checkpoints.latest, before)
                before = checkpoints.latest

        config = recall_config(workdir)          # here: one process, eight devices
        run = prepare(config)
        views = iter(run.views(checked_source(config, "train"), config.seed))
        self.assertEqual(read_batch_log(workdir), {
            i: f"{int(batch_hash(next(views)['hash'])):08x}" for i in range(1, before + 1)})


def _flags(settings):
    return ["--config=configs/demo.py", *(f"--config.{k}={v}" for k, v in settings.items())]


if __name__ == "__main__":
    absltest.main()
