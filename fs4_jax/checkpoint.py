"""Checkpoints: state and data iterator, saved together, atomically, in the background (orbax)."""

import pathlib

from absl import logging
from orbax.checkpoint import v1 as ocp

_POLICIES = ocp.training.preservation_policies


class Checkpoints:
    """The checkpoints of a workdir, as a context manager that waits for the last save.

    A checkpoint appears under its step's name only when it is whole; a save that was cut off
    leaves nothing that reads as one.

    Args:
      workdir: holds the folder `checkpoints`.
      keep: how many of the newest stay.
      writes: False for readers: only the run that trains clears away what an earlier one left
        unfinished, for to a reader it may be a save in progress.
    """

    def __init__(self, workdir, keep=2, *, writes=True):
        self.directory = pathlib.Path(workdir).resolve() / "checkpoints"
        self._checkpointer = ocp.training.Checkpointer(
            self.directory, preservation_policy=_POLICIES.LatestN(keep),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            cleanup_tmp_directories=writes)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._checkpointer.close()

    @property
    def latest(self):
        """The newest complete step, or None."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(self, step, state, iterator):
        """Begins to save; returns once the arrays are copied. A step already saved is kept."""
        if self.latest == step:
            return
        self._checkpointer.save_checkpointables_async(
            step, {"state": state, "data": iterator}, force=True)

    def restore(self, state, iterator=None):
        """The newest checkpoint's state, and `iterator` set to where it was.

        Args:
          state: what to restore into: arrays or shape structs with the wanted shardings.
          iterator: the training data's iterator; None leaves its state unread (evaluation).

        Returns:
          The restored state.
        """
        wanted = {"state": state} if iterator is None else {"state": state, "data": iterator}
        restored = self._checkpointer.load_checkpointables(self.latest, wanted)
        logging.info("restored step %d from %s", self.latest, self.directory)
        return restored["state"]

    def wait(self):
        """Blocks until the last save is on disk."""
        self._checkpointer.wait()
