"""Checkpoints: state and data iterator, saved together, atomically, in the background (orbax)."""

import asyncio
import json
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from orbax.checkpoint import v1 as ocp

from fs4_jax import distributed
from fs4_jax.errors import CheckpointError

_POLICIES = ocp.training.preservation_policies
_DAMAGED = "damaged_checkpoints"
_PLACE = "place.json"


class Checkpoints:
    """The checkpoints of a workdir, as a context manager that waits for the last save.

    A checkpoint appears under its step's name only when it is whole; a save that was cut off
    leaves nothing that reads as one. With the state its checksum is saved: bits that change on
    the disk are found when it is read.

    Args:
      workdir: holds the folder `checkpoints`.
      keep: how many of the newest stay.
      writes: False for readers: only the run that trains clears away what an earlier one left
        unfinished, for to a reader it may be a save in progress.
    """

    def __init__(self, workdir, keep=2, *, writes=True):
        self.directory = pathlib.Path(workdir).resolve() / "checkpoints"
        self._writes, self._saving = writes, None
        self._checkpointer = ocp.training.Checkpointer(
            self.directory, preservation_policy=_POLICIES.LatestN(keep),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            cleanup_tmp_directories=writes)

    def __enter__(self):
        return self

    def __exit__(self, kind, *exc):
        try:
            self.wait()
        except CheckpointError:
            if kind is None:
                raise                 # else the error that is on its way says more
        finally:
            try:
                self._checkpointer.close()
            except Exception as error:
                logging.info("closing %s: %s", self.directory, error)

    @property
    def latest(self):
        """The newest step that was saved whole, or None."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    @property
    def steps(self):
        """All complete steps, rising."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def save(self, step, state, iterator):
        """Begins to save; returns once the arrays are copied. A step already saved is kept.

        Raises CheckpointError, as `check` and `wait` do, where this or the save before failed.
        """
        if self.latest == step:
            return
        self.wait()
        try:
            response = self._checkpointer.save_checkpointables_async(
                step, {"state": state, "data": _Place(iterator),
                       "checksum": {"state": checksum(state)}}, force=True)
        except Exception as error:
            raise self._failed(step, error) from error
        self._saving = (step, response)

    def check(self):
        """Raises CheckpointError where a save in the background has failed; does not wait.

        Several processes would see it at different steps: they look at the next save.
        """
        if self._saving is not None and jax.process_count() == 1 and \
                not self._checkpointer.is_saving_in_progress():
            self.wait()

    def wait(self):
        """Blocks until the last save is on disk."""
        if self._saving is None:
            return
        (step, response), self._saving = self._saving, None
        try:
            response.result()
        except Exception as error:
            raise self._failed(step, error) from error

    def restore(self, state, iterator=None, *, step=None):
        """The newest readable checkpoint, and `iterator` set to where it was.

        One that is damaged is told of on stderr and passed over; the run that trains sets it
        aside, in the folder damaged_checkpoints.

        Args:
          state: what to restore into: arrays or shape structs with the wanted shardings.
          iterator: the training data's iterator; None leaves its state unread (evaluation).
          step: of the one wanted, and no other; None: the newest.

        Returns:
          (the restored state, its step).

        Raises:
          CheckpointError: none of them can be read.
        """
        damaged = []
        wanted = reversed(self.steps) if step is None else (step,)
        for step in wanted:
            try:
                restored = self._restore(step, state, iterator)
            except Exception as error:        # orbax and tensorstore raise a dozen kinds
                if not isinstance(_first_cause(error), Exception):
                    raise _first_cause(error) from None      # a signal, which orbax has wrapped
                damaged.append((step, _reason_of(error)))
                continue
            for other, reason in damaged:
                print(f"the checkpoint of step {other} in {self.directory} is damaged ({reason}): "
                      f"going back to step {step}", file=sys.stderr, flush=True)
            if damaged and self._writes:
                self._set_aside([other for other, _ in damaged])
            logging.info("restored step %d from %s", step, self.directory)
            return restored, step
        raise CheckpointError(
            f"none of the checkpoints in {self.directory} can be read: "
            + "; ".join(f"step {step}: {reason}" for step, reason in damaged)
            + ". Damaged, or written by another version of fs4_jax: remove it to begin anew")

    def _restore(self, step, state, iterator):
        wanted = {"state": state} | ({} if iterator is None else {"data": _Place(iterator)})
        summed = (self.directory / str(step) / "checksum").exists()     # not in older ones
        if summed:
            wanted["checksum"] = {"state": np.zeros(len(jax.tree.leaves(state)), np.uint32)}
        restored = self._checkpointer.load_checkpointables(step, wanted)
        # Orbax restores random keys with a sharding of its own, which a step would refuse.
        found = jax.tree.map(
            lambda x, like: jax.device_put(x, like.sharding) if getattr(like, "sharding", None)
            else x,
            restored["state"], state)
        if summed and not np.array_equal(restored["checksum"]["state"], checksum(found)):
            raise CheckpointError("its arrays are not those that were saved: the checksum differs")
        return found

    def _set_aside(self, steps):
        """Moves damaged checkpoints away, so that their steps can be saved again."""
        if distributed.is_first():
            for step in steps:
                where = self.directory.parent / _DAMAGED / str(step)
                shutil.rmtree(where, ignore_errors=True)
                where.parent.mkdir(exist_ok=True)
                (self.directory / str(step)).rename(where)
        distributed.wait_for_all("damaged checkpoints are set aside")
        self._checkpointer.reload()

    def _failed(self, step, error):
        """The CheckpointError of a save; what is left of it is cleared away."""
        if distributed.is_first():
            for left in self.directory.glob(f"{step}.*tmp*"):
                shutil.rmtree(left, ignore_errors=True)
        whole = [int(path.name) for path in self.directory.iterdir() if path.name.isdecimal()]
        newest = f"the newest whole checkpoint is step {max(whole)}" if whole else \
            "there is no checkpoint yet"
        return CheckpointError(
            f"the checkpoint of step {step} could not be written to {self.directory}: "
            f"{_reason_of(error)}; {newest}. With room on the disk for one more checkpoint than "
            "config.checkpoint.keep, the same command goes on from there")


class _Place:
    """Where a data iterator stands: one file for all processes, whatever their number.

    Grain's own way is a file for each process, which another number of them can not read. Ours is
    the number of examples that all have taken, the same in each.
    """

    def __init__(self, iterator):
        self._iterator = iterator

    async def save(self, directory):
        state = json.dumps(self._iterator.get_state())

        async def write():
            path = await directory.await_creation()
            if distributed.is_first():
                await asyncio.to_thread((path / _PLACE).write_text, state)
        return write()

    async def load(self, directory):
        async def read():
            text = await asyncio.to_thread((directory / _PLACE).read_text)
            self._iterator.set_state(json.loads(text))
        return read()


def checksum(tree):
    """uint32 [leaves], numpy: of every bit and its place, the same however arrays are sharded."""
    leaves = [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
              for x in jax.tree.leaves(tree)]
    if jax.default_backend() == "cpu" and jax.process_count() == 1:
        sums = [_sum_on_host(np.asarray(x)) for x in leaves]
    else:       # where they are: what is sharded stays so, and no copy is made of the state
        # In one program: compiled once, and waited for. Programs that run at once may talk to the
        # other processes in another order there, and all would wait for ever.
        sums = jax.device_get(_sums_on_device(leaves))
    return np.array(sums, np.uint32)


# An odd factor for each place, so that no single changed bit cancels.

def _sum_on_host(x):
    """Without a program to compile, for tens of shapes."""
    bits = x.reshape(-1).view(f"uint{8 * x.dtype.itemsize}").astype(np.uint32)
    return np.sum(bits * np.arange(1, 2 * bits.size, 2, np.uint32), dtype=np.uint32)


@jax.jit
def _sums_on_device(leaves):
    return [_sum_on_device(x) for x in leaves]


def _sum_on_device(x):
    if jnp.issubdtype(x.dtype, jnp.floating):
        x = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    place, stride = jnp.uint32(1), 2         # by axes, for a reshape would gather what is sharded
    for axis in reversed(range(x.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    return jnp.sum(x.astype(jnp.uint32) * place, dtype=jnp.uint32)


def _first_cause(error):
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _reason_of(error):
    """The first line of what went wrong at first, without the specs that tensorstore appends."""
    error = _first_cause(error)
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if "No space left on device" in text or "RESOURCE_EXHAUSTED" in text:
        return "no space left on device"
    return text.strip().split("\n")[0].split(" [")[0][:300]
