"""Checkpoints: what is unfinished is never read, and only the run that trains clears it away."""

import tempfile
import time

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from fs4_jax.checkpoint import Checkpoints


class CheckpointsTest(absltest.TestCase):

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.workdir = folder.name
        with Checkpoints(self.workdir) as checkpoints:
            for step in (1, 2, 3):
                checkpoints.save(step, {"w": jnp.full(3, step)}, {"next_example": step})
                checkpoints.wait()
        self.folder = checkpoints.directory

    def names(self):
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir())

    def test_the_newest_are_kept(self):
        self.assertEqual(self.names(), ["2", "3"])
        with Checkpoints(self.workdir) as checkpoints:
            state = checkpoints.restore({"w": jnp.zeros(3)})
        np.testing.assert_array_equal(state["w"], [3, 3, 3])

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


if __name__ == "__main__":
    absltest.main()
