"""Checkpoints: what is unfinished or damaged is never read, what can not be saved is told."""

import contextlib
import io
import pathlib
import shutil
import tempfile
import time
from unittest import mock

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax import checkpoint
from fs4_jax.checkpoint import Checkpoints, checksum
from fs4_jax.errors import CheckpointError
from fs4_jax.sharding import make_mesh


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()),
               key=lambda path: path.stat().st_size)


def flip(path):
    """Changes one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def place(number):
    """A data iterator that has given `number` examples."""
    iterator = iter(grain.MapDataset.range(10).to_iter_dataset())
    for _ in range(number):
        next(iterator)
    return iterator


class CheckpointsTest(parameterized.TestCase):

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.workdir = folder.name
        with Checkpoints(self.workdir) as checkpoints:
            for step in (1, 2, 3):
                checkpoints.save(step, self.state(step), place(step))
                checkpoints.wait()
        self.folder = checkpoints.directory

    def state(self, step):
        noise = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
        return {"w": jnp.asarray(noise + step), "key": jax.random.key(step)}

    def names(self):
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir())

    def test_the_newest_are_kept(self):
        self.assertEqual(self.names(), ["2", "3"])
        with Checkpoints(self.workdir) as checkpoints:
            iterator = place(0)
            state, step = checkpoints.restore(self.state(0), iterator)
        np.testing.assert_array_equal(state["w"], self.state(3)["w"])
        self.assertEqual(step, 3)
        self.assertEqual(next(iterator), 3)                   # where it was when 3 was saved

    def test_an_older_one(self):
        with Checkpoints(self.workdir, writes=False) as checkpoints:
            self.assertEqual(checkpoints.steps, [2, 3])
            state, step = checkpoints.restore(self.state(0), step=2)
        np.testing.assert_array_equal(state["w"], self.state(2)["w"])
        self.assertEqual(step, 2)

    def test_only_the_one_that_trains_clears_an_unfinished_save_away(self):
        unfinished = "9.orbax-checkpoint-tmp"
        (self.folder / unfinished / "state").mkdir(parents=True)
        with Checkpoints(self.workdir, writes=False) as reader:
            self.assertEqual(reader.latest, 3)
        self.assertIn(unfinished, self.names())
        with Checkpoints(self.workdir) as writer:
            self.assertEqual(writer.latest, 3)
            deadline = time.time() + 60          # orbax clears away in a thread of its own
            while unfinished in self.names() and time.time() < deadline:
                time.sleep(0.05)
        self.assertNotIn(unfinished, self.names())

    @parameterized.named_parameters(
        ("truncated", lambda folder: largest(folder / "state").write_bytes(b"torn")),
        ("a_bit", lambda folder: flip(largest(folder / "state"))),
        ("a_file_is_gone", lambda folder: (folder / "state" / "manifest.ocdbt").unlink()),
        ("data", lambda folder: shutil.rmtree(folder / "data")))
    def test_a_damaged_one_is_passed_over_and_set_aside(self, damage):
        damage(self.folder / "3")
        for writes in (False, True):
            with contextlib.redirect_stderr(io.StringIO()) as told, \
                    Checkpoints(self.workdir, writes=writes) as checkpoints:
                state, step = checkpoints.restore(self.state(0), place(0))
            self.assertEqual(step, 2)
            np.testing.assert_array_equal(state["w"], self.state(2)["w"])
            self.assertRegex(told.getvalue(), "checkpoint of step 3 in .* is damaged .*: going "
                             "back to step 2")
            self.assertEqual(self.names(), ["2"] if writes else ["2", "3"])
        self.assertTrue(pathlib.Path(self.workdir, "damaged_checkpoints", "3", "state").exists())
        with Checkpoints(self.workdir) as checkpoints:
            self.assertEqual(checkpoints.latest, 2)
            checkpoints.save(3, self.state(3), place(3))       # its step is free again
        with Checkpoints(self.workdir) as checkpoints:
            self.assertEqual(checkpoints.restore(self.state(0))[1], 3)

    def test_none_can_be_read(self):
        for name in ("2", "3"):
            flip(largest(self.folder / name / "state"))
        with Checkpoints(self.workdir) as checkpoints, self.assertRaisesRegex(
                CheckpointError, "none of the checkpoints .*step 3: .*checksum differs; step 2: "):
            checkpoints.restore(self.state(0))
        self.assertEqual(self.names(), ["2", "3"])            # nothing is moved for nothing

    def test_other_shapes_are_not_called_damage_alone(self):
        with Checkpoints(self.workdir) as checkpoints, self.assertRaisesRegex(
                CheckpointError, "Damaged, or written by another version"):
            checkpoints.restore({"other": jnp.zeros(2)})
        self.assertEqual(self.names(), ["2", "3"])

    def test_one_of_before_there_were_checksums(self):
        shutil.rmtree(self.folder / "3" / "checksum")
        with Checkpoints(self.workdir) as checkpoints:
            self.assertEqual(checkpoints.restore(self.state(0))[1], 3)

    @parameterized.parameters("check", "wait", "save", "__exit__")
    def test_a_save_that_failed(self, noticed):
        response = mock.Mock()
        response.result.side_effect = ValueError("RESOURCE_EXHAUSTED: Failed writing: No space left"
                                                 " on device [os_error_code='28']")
        left = self.folder / "4.orbax-checkpoint-tmp" / "state"
        with self.assertRaisesRegex(CheckpointError, "step 4 could not be written to .*: no space "
                                    "left on device; the newest whole checkpoint is step 3"), \
                Checkpoints(self.workdir) as checkpoints:
            with mock.patch.object(checkpoints._checkpointer, "save_checkpointables_async",
                                   return_value=response):
                checkpoints.save(4, self.state(4), place(4))
            left.mkdir(parents=True)
            if noticed == "save":
                checkpoints.save(5, self.state(5), place(5))
            elif noticed != "__exit__":
                getattr(checkpoints, noticed)()
        self.assertFalse(left.exists())             # it would fill the disk
        self.assertEqual(self.names(), ["2", "3"])


class ChecksumTest(parameterized.TestCase):

    def test_every_bit_counts_and_its_place(self):
        x = np.arange(12, dtype=np.float32).reshape(3, 4)
        before = checksum({"x": jnp.asarray(x)})
        for bit in range(32):
            other = x.copy()
            other.view(np.uint32)[1, 2] ^= np.uint32(1) << np.uint32(bit)
            self.assertNotEqual(checksum({"x": jnp.asarray(other)}), before)
        self.assertNotEqual(checksum({"x": jnp.asarray(x.T.reshape(3, 4))}), before)
        self.assertEqual(checksum({"x": jnp.asarray(x)}), before)

    @parameterized.parameters("float32", "bfloat16", "int32", "bool", "uint8")
    def test_on_the_device_and_sharded_it_is_the_same(self, dtype):
        x = jnp.asarray(np.random.default_rng(0).integers(0, 2, (8, 6)), dtype)
        split = jax.device_put(x, jax.NamedSharding(make_mesh({"data": 2, "fsdp": 4}),
                                                    jax.P("fsdp", "data")))
        want = checkpoint._sum_on_host(np.asarray(x))
        for array in (x, split):
            self.assertEqual(checkpoint._sum_on_device(array), want)
            self.assertEqual(checksum([array])[0], want)


if __name__ == "__main__":
    absltest.main()
