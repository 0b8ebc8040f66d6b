"""Disks that are full, can not be written or turn bits: what a run says, and that it goes on."""

import contextlib
import pathlib
import subprocess
import tempfile
import time
import unittest
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest

from fs4_jax import errors, train
from fs4_jax.batch_log import read_batch_log
from fs4_jax.config import ConfigError
from tests.tiny_method import TinyRunCase, in_place, tiny_run


@contextlib.contextmanager
def small_disk(folder, options="size=4m"):
    """A tmpfs on a folder; skips where this user may mount none."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder],
                          capture_output=True, text=True)
    if done.returncode:
        raise unittest.SkipTest(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield pathlib.Path(folder)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(path):
    """A file that takes what room there is."""
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


class DiskCase(TinyRunCase):

    def setUp(self):
        super().setUp()
        self.enterContext(in_place())
        self.config = tiny_run(**{"total_steps": 8})

    def assert_as_undisturbed(self, workdir):
        whole = self.dir / "whole"
        train.train(self.config, whole)
        jax.tree.map(np.testing.assert_array_equal, self.state(whole), self.state(workdir))
        self.assertEqual(read_batch_log(whole), read_batch_log(workdir))


class FullDiskTest(DiskCase):

    def test_it_says_so_and_what_was_saved_is_whole(self):
        disk = self.enterContext(small_disk(self.enterContext(tempfile.TemporaryDirectory())))
        workdir, ballast, due = disk / "w", disk / "ballast", train._save_due

        def full_at_six(config, step, first):
            if step == 6:
                while not (workdir / "checkpoints" / "4").exists():       # saved in the background
                    time.sleep(0.02)
                fill(ballast)
            return due(config, step, first)

        with mock.patch.object(train, "_save_due", full_at_six), \
                self.assertRaises(SystemExit) as ended, errors.explained():
            train.train(self.config, workdir)
        self.assertEqual(ended.exception.code, 2)
        self.assertRegex(self.log.getvalue().lower(), "error: .*no space left on device")
        self.assertIn("the same command goes on", self.log.getvalue())
        self.assertEqual(self.state(workdir)[0], 4)
        ballast.unlink()
        self.assertEqual(train.train(self.config, workdir), 0)
        self.assert_as_undisturbed(workdir)


class ReadOnlyTest(DiskCase):

    def refused(self, workdir):
        with mock.patch.object(train, "prepare") as prepared, \
                self.assertRaisesRegex(ConfigError, f"--workdir={workdir} can not be written: "):
            train.train(self.config, workdir)
        prepared.assert_not_called()          # at once

    def test_read_only(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.enterContext(small_disk(folder, "ro,size=1m"))
        self.refused(f"{folder}/w")
        self.refused(folder)

    def test_a_file_and_what_is_no_place_for_files(self):
        file = self.dir / "file"
        file.touch()
        self.refused(file)
        self.refused(file / "w")
        self.refused("/proc/w")               # not even root's


class DamagedTest(DiskCase):

    def test_a_run_goes_back_and_ends_with_the_same_bits(self):
        workdir = self.dir / "w"
        config = tiny_run(**{"total_steps": 8, "checkpoint.keep": 3})
        with self.assertRaises(KeyboardInterrupt), mock.patch.object(
                train, "_evaluate", side_effect=KeyboardInterrupt):
            train.train(config, workdir)
        for path in (workdir / "checkpoints" / "8" / "state").rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[:20])
        self.assertEqual(train.train(config, workdir), 0)
        self.assertRegex(self.log.getvalue(), "(?s)step 8 in .* is damaged .*: going back to step "
                         "6.*resuming from step 6")
        self.assert_as_undisturbed(workdir)


if __name__ == "__main__":
    absltest.main()
