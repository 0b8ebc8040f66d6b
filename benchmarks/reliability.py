"""Many kills, and what reliability costs: `python -m benchmarks.reliability --kills=20`.

Trains a tiny run of each method once undisturbed, and as often as it takes through so many kills
(SIGKILL; half of them as soon as a save has begun, the others at random steps and moments) and
stops (SIGTERM), and compares: every bit of the state, every batch, every loss. `--costs` measures
instead what a checkpoint, the hash of a batch and the search for a number that is none take: by the
clock, and in CPU time, which says more on a machine with other things to do. `--hours=2` trains
that long in a pod of two processes, through three kills: see `benchmarks.long_run`.
"""

import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np
from absl import app, flags

from benchmarks import long_run
from fs4_jax.checkpoint import Checkpoints, checksum
from fs4_jax.config import default_config
from fs4_jax.data import pipeline
from fs4_jax.nonfinite import first_nonfinite, tensors_of_step
from fs4_jax.run import checked_source, prepare
from fs4_jax.train_step import split
from tests.reliability import runs

_KILLS = flags.DEFINE_integer("kills", 20, "SIGKILLs of each method.", lower_bound=0)
_STOPS = flags.DEFINE_integer("stops", 2, "SIGTERMs of each run.", lower_bound=0)
_METHODS = flags.DEFINE_list("methods", list(runs.METHODS), "Of tests/reliability/runs.py.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
_COSTS = flags.DEFINE_boolean("costs", False, "Measure costs, kill nothing.")
_VARIANT = flags.DEFINE_string("variant", "S/16", "Encoder whose run the costs are measured on.")
_HOURS = flags.DEFINE_float("hours", None, "The long run; 0: report what is in --folder.")
_FOLDER = flags.DEFINE_string("folder", "workdirs/long_run", "Of the long run.")


def main(_):
    if _COSTS.value:
        return costs()
    if _HOURS.value is not None:
        if _HOURS.value:
            long_run.train_for(_HOURS.value, _FOLDER.value, kills=3, seed=_SEED.value)
        return print("\n".join(long_run.report(_FOLDER.value)))
    for method in _METHODS.value:
        with tempfile.TemporaryDirectory() as folder:
            kill_runs(method, pathlib.Path(folder))


def kill_runs(method, folder):
    """Runs of a method, until `--kills` have struck; each must end as the undisturbed one."""
    cache, whole = folder / "cache", folder / "whole"
    began = time.monotonic()
    runs.Life(method, whole, cache).end()
    print(f"{method}: undisturbed, {time.monotonic() - began:.0f} s", flush=True)
    lives, number, kills = [], 0, 0
    while not number or kills < _KILLS.value:
        parts = folder / f"parts_{number}"
        for life in runs.disturbed(method, parts, cache, kills=_KILLS.value - kills,
                                   stops=_STOPS.value, seed=_SEED.value + number):
            lives.append(life)
            print(f"  {life}", flush=True)
        runs.assert_same_run(method, whole, parts)
        kills = sum(life.how != "stop" for life in lives)
        number += 1
    saving = sum(life.saving for life in lives)
    stops = [life.seconds for life in lives if life.how == "stop"]
    print(f"{method}: {kills} kills in {number} run(s), {saving} in the middle of "
          f"a save, {len(stops)} stops, out within {max(stops, default=0):.1f} s; state, batches "
          "and losses are those of the undisturbed run", flush=True)


def costs():
    config = default_config()
    config.encoder.variant, config.data.name, config.batch_size = _VARIANT.value, "scenes", 16
    run, source = prepare(config), checked_source(config, "train")
    state = run.create_state()
    size = sum(x.nbytes for x in jax.tree.leaves(state)
               if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)) / 1e6
    print(f"FS^4 on {config.encoder.variant}, a state of {size:.0f} MB")
    iterator = iter(run.views(source, 0))
    next(iterator)
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
        pauses, wholes = [], []
        for step in range(4):
            began, busy = time.perf_counter(), time.process_time()
            checkpoints.save(step, state, iterator)
            pauses.append((time.perf_counter() - began, time.process_time() - busy))
            checkpoints.wait()
            wholes.append((time.perf_counter() - began, time.process_time() - busy))
        restoring = _seconds(lambda: checkpoints.restore(run.abstract_state(), iterator))
    print(f"a save: pauses the step for {_median(pauses[1:])}, on disk after "
          f"{_median(wholes[1:])}; a restore: {_median([restoring])}")
    print(f"  of the pause, the checksum: {_timed(lambda: checksum(state))}")
    views = run.make_views(source[0]["image"], np.random.default_rng(0))
    print(f"hash of an example of {sum(x.nbytes for x in views.values()) / 1e3:.0f} kB: "
          f"{_timed(lambda: pipeline._hash_of(0, views))}; the example itself: "
          f"{_timed(lambda: run.make_views(source[0]['image'], np.random.default_rng(0)))}")
    trained, _ = split(state.params, run.method.frozen)
    look = jax.jit(lambda trained, extra: first_nonfinite(tensors_of_step(
        {}, trained, {"loss": np.float32(0)}, trained, extra, trained)))
    print("first number that is none (parameters, gradients, updates), by itself: "
          f"{_timed(lambda: look(trained, state.extra).block_until_ready())}")


def _timed(function):
    function()
    return _median([_seconds(function) for _ in range(10)])


def _seconds(function):
    """(of the clock, of all cores), in one call."""
    began, busy = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - began, time.process_time() - busy


def _median(pairs):
    clock, cores = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
    return f"{clock:.1f} ms ({cores:.1f} ms of CPU)"


if __name__ == "__main__":
    app.run(main)
