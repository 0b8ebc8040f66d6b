"""Tiny runs of every method in processes of their own, to be killed, stopped and gone on with.

A method joins all of it by its line in METHODS; "tiny" is `TinyMethod`, of which many lives are
cheap. `disturbed` is what the tests call with a few kills, `python -m benchmarks.reliability` with
many.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np

from fs4_jax import distributed, errors, train
from fs4_jax.batch_log import BATCH_LOG_FILE, read_batch_log
from fs4_jax.metrics import read_metrics
from fs4_jax.stopping import EXIT_INTERRUPTED
from tests.methods import alignseg_test, scribble_test
from tests.pretrain_test import pretrain_config
from tests.tiny_method import in_place, tiny_run
from tests.train_test import restored, tiny_config

STEPS = 12
# Of each parameter, relative to its norm, between runs of one process and of two: sums over
# processes round in another order, of which Adam makes parts of its steps (of 1e-3). Seen after
# `STEPS`: 1e-8 (tiny), 1e-6 (dino, scribble), 4e-6 (fs4), 2e-5 (alignseg); the rest is room for
# another machine's order. Runs on other batches are 1 and more apart (alignseg, fs4).
TOLERANCE = 1e-4
METHODS = {"fs4": tiny_config, "dino": pretrain_config, "tiny": tiny_run}       # their configs
_OTHERS = {"alignseg": alignseg_test.small_config, "scribble": scribble_test.small_config}

# What only rounding moves, of which Adam makes steps: the bias of the consistency head, of whose
# features differences alone count, and that of keys, which adds the same to all scores of a query.
_FREE = ("['decoder']['consistency']['bias']",)
_QKV_BIAS = "['qkv']['bias']"
_ROOT = pathlib.Path(__file__).resolve().parents[2]
_SECONDS = 600              # that a life may take, on a machine with other things to do
_CHILD = "import sys; from tests.reliability import runs; sys.exit(runs.run(*sys.argv[1:]))"


def config_of(method):
    """A run of `STEPS` steps that saves after each: a kill often comes in the middle of a save."""
    config = (METHODS | _OTHERS)[method]()
    config.data.update(dict(name="scenes", num_train=16, num_eval=6))
    config.batch_size = 4
    if method != "dino":                   # which trains all blocks
        config.encoder.block = 1
    config.total_steps, config.checkpoint.every, config.log_every = STEPS, 1, 1
    config.fs4.bootstrap.every = 5
    config.eval.update(dict(floors=False, pictures=0, failures=0, at_start=False, probes=False))
    return config


def run(method, workdir, *where):
    """What a child does; its exit status. where: of a pod's, (coordinator, number, which)."""
    with contextlib.ExitStack() as stack:
        if where:                          # as main does
            stack.enter_context(distributed.failing_at_once())
        stack.enter_context(errors.explained())
        if where:
            distributed.initialize(where[0], int(where[1]), int(where[2]))
            stack.enter_context(distributed.quiet_unless_first())
        if method == "tiny":
            stack.enter_context(in_place(devices=jax.device_count()))
        return train.train(config_of(method), workdir)


class Life:
    """A run in a workdir until it is done or undone: a process, or several that are a pod.

    devices: that each sees (faked ones of the CPU). cache: folder of compiled programs.
    """

    def __init__(self, method, workdir, cache, devices=1, processes=1):
        self.workdir = pathlib.Path(workdir)
        self.began, self._log = time.monotonic(), self.workdir.with_suffix(".log")
        self._born = time.time()
        self._log_file = open(self._log, "wb")
        env = os.environ | {
            "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": os.fspath(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        port = _free_port()
        self._processes = [subprocess.Popen(
            [sys.executable, "-c", _CHILD, method, os.fspath(workdir),
             *([f"localhost:{port}", str(processes), str(i)] if processes > 1 else [])],
            cwd=_ROOT, stdout=self._log_file, stderr=subprocess.STDOUT, env=env)
            for i in range(processes)]
        self.process = self._processes[0]

    @property
    def output(self):
        return self._log.read_text(errors="replace")

    @property
    def resumed(self):
        """The step that it went on from; 0 where it began."""
        found = re.search(r"resuming from step (\d+)", self.output)
        return int(found[1]) if found else 0

    def steps(self):
        """The last step in its log of batches; 0 before it has gone on from where it found it."""
        log = self.workdir / BATCH_LOG_FILE
        opened = log.exists() and log.stat().st_mtime >= self._born
        return max(read_batch_log(self.workdir), default=0) if opened else 0

    def saving(self):
        """Whether a checkpoint is being written."""
        return any(self.workdir.glob("checkpoints/*tmp*"))

    def until(self, condition):
        """Waits for a condition; False where the process ended before."""
        while not condition():
            if self.process.poll() is not None:
                return False
            if time.monotonic() - self.began > _SECONDS:
                raise AssertionError(f"{self.workdir}: nothing for {_SECONDS} s:\n{self.output}")
            time.sleep(0.002)
        return True

    def end(self, status=0):
        """Waits for the end; AssertionError with all it said where the status is another."""
        try:
            for process in self._processes:
                process.wait(_SECONDS)
        finally:
            for process in self._processes:
                process.kill()
                process.wait()
            self._log_file.close()
        codes = [process.returncode for process in self._processes]
        if any(code != status for code in codes):
            raise AssertionError(f"{self.workdir}: exit status {codes}, not {status}:\n"
                                 f"{self.output}")

    def kill(self):
        for process in self._processes:
            process.send_signal(signal.SIGKILL)
        self.end(-signal.SIGKILL)


def _free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@dataclasses.dataclass(frozen=True)
class Undone:
    """How a life ended. resumed, reached: steps. saving: in the middle of a save. seconds: old."""
    how: str
    resumed: int
    reached: int
    saving: bool
    seconds: float


def disturbed(method, workdir, cache, *, kills, stops=1, seed=0):
    """Trains to the end through kills (SIGKILL) and stops (SIGTERM); yields an Undone of each.

    Moments are drawn: half of the kills as soon as a save has begun, a quarter at a step, a
    quarter at any moment since the start of the process. AssertionError where a life does not go
    on from a complete checkpoint at least as new as what was there before.
    """
    rng, workdir = random.Random(seed), pathlib.Path(workdir)
    ways = ["save", "step", "save", "moment"] * (kills // 4 + 1)
    ways = ways[:kills] + ["stop"] * stops
    rng.shuffle(ways)
    whole, length = 0, None
    for how in ways:
        life = Life(method, workdir, cache)
        if how == "moment" and length:
            until = life.began + rng.uniform(0, length)
            life.until(lambda until=until: time.monotonic() > until)
        else:
            # Late steps are left for the lives to come.
            target = whole + rng.randint(1, max(1, (STEPS - whole) // 3))
            life.until(lambda life=life, target=target: life.steps() >= target)
            if how == "save":
                life.until(life.saving)
            time.sleep(rng.uniform(0, 0.03))
        length = max(length or 0, time.monotonic() - life.began)
        if life.process.poll() is not None:            # it was done before
            life.end()
            return
        if how == "stop":
            asked = time.monotonic()
            life.process.send_signal(signal.SIGTERM)
            life.end(EXIT_INTERRUPTED)
            seconds = time.monotonic() - asked
        else:
            life.kill()
            seconds = time.monotonic() - life.began
        if life.steps() and life.resumed < whole:
            raise AssertionError(f"step {whole} was saved, but {life.resumed} was gone on from:\n"
                                 f"{life.output}")
        whole = max((int(path.name) for path in workdir.glob("checkpoints/*")
                     if path.name.isdecimal()), default=0)
        yield Undone(how, life.resumed, life.steps(), life.saving(), seconds)
    life = Life(method, workdir, cache)
    life.end()
    if life.resumed < whole:
        raise AssertionError(f"step {whole} was saved, but {life.resumed} was gone on from")


def assert_same_run(method, first, second):
    """AssertionError where two runs differ: in a bit of the state, in a batch, in a loss."""
    assert_same_batches(first, second)
    one, two = ({jax.tree_util.keystr(path): leaf for path, leaf in
                 jax.tree_util.tree_leaves_with_path(state_of(method, workdir))}
                for workdir in (first, second))
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    losses = [[(row["step"], row["loss"], row["grad_norm"]) for row in
               read_metrics(pathlib.Path(workdir, "metrics.jsonl")) if "loss" in row]
              for workdir in (first, second)]
    assert losses[0] == losses[1], f"losses differ: {json.dumps(losses)}"


def difference(method, first, second):
    """How far the parameters of two runs are apart, |a - b| / |a| (2-norms) of the one that is
    furthest, and its name.

    Norms, not largest numbers: an entry whose first gradient is as good as nothing goes up or
    down by most of Adam's step, as rounding has it (one of AlignSeg's 16,384 values does).
    """
    one, two = (_told_parameters(state_of(method, workdir)[2]) for workdir in (first, second))
    assert one.keys() == two.keys()
    def off(name):
        least = np.finfo(np.float32).tiny          # of what is nothing but zeros
        return np.linalg.norm(one[name] - two[name]) / max(np.linalg.norm(one[name]), least)

    return max((off(name), name) for name in one)


def _told_parameters(params):
    """{name: leaf} without what only rounding moves."""
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in
              jax.tree_util.tree_leaves_with_path(params)}
    return {name: np.delete(leaf.reshape(3, -1), 1, axis=0) if name.endswith(_QKV_BIAS) else leaf
            for name, leaf in leaves.items() if name not in _FREE}


def state_of(method, workdir):
    """(step, key, params, opt_state, teacher, extra) in a run's newest checkpoint, on the host."""
    with in_place() if method == "tiny" else contextlib.nullcontext():
        return restored(config_of(method), workdir)


def assert_same_batches(first, second):
    """AssertionError where two runs saw other batches, or in another order, or not all."""
    one, two = read_batch_log(first), read_batch_log(second)
    assert list(one) == list(range(1, STEPS + 1)), one
    assert one == two, f"batches differ: {one} {two}"
