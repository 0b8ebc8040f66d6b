"""Two real processes with two faked devices each: what they agree on, and how they end."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time

from absl.testing import absltest, parameterized

_ROOT = pathlib.Path(__file__).resolve().parents[1]

# What both processes run first: process I of 2 at a port, in a folder of their own.
_JOIN = """
import os, pathlib, sys
import numpy as np
from fs4_jax import distributed
port, process, folder = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
distributed.initialize(f"localhost:{port}", 2, process)
import jax
from fs4_jax.sharding import batch_sharding, make_mesh, replicated
mesh = make_mesh({"data": 2, "fsdp": 2})
"""

_VALUES = """
rows = np.arange(8.0).reshape(4, 2) + 100 * process
array = distributed.rows_to_devices(rows, batch_sharding(mesh))
assert array.shape == (8, 2), array.shape
both = np.concatenate([np.arange(8.0).reshape(4, 2) + 100 * p for p in (0, 1)])
key = jax.jit(lambda: jax.random.key(3), out_shardings=replicated(mesh))()
whole = distributed.to_host({"rows": array, "own": rows, "key": key})
np.testing.assert_array_equal(whole["rows"], both)
np.testing.assert_array_equal(whole["own"], rows)
assert jax.random.key_data(whole["key"]).tolist() == [0, 3]
assert whole["key"].is_fully_addressable
np.testing.assert_array_equal(distributed.local_rows(array), rows)
np.testing.assert_array_equal(distributed.gather(np.array([process, 7])), [[0, 7], [1, 7]])

# What lies on the host is process 0's; what is on the devices stays.
split = jax.NamedSharding(mesh, jax.P(None, "fsdp"))
placed = distributed.to_devices({"a": rows, "b": array, "c": np.array(True)},
                                {"a": split, "b": replicated(mesh), "c": replicated(mesh)})
np.testing.assert_array_equal(distributed.to_host(placed["a"]), both[:4])
np.testing.assert_array_equal(distributed.to_host(placed["b"]), both)
assert placed["a"].sharding == split and placed["a"].addressable_shards[0].data.shape == (4, 1)
assert distributed.bytes_of_first(b"ab" if process == 0 else b"c") == b"ab"
assert distributed.bytes_of_first(None) is None
assert distributed.is_first() == (process == 0)
with distributed.quiet_unless_first():
    print("said once")
"""

_IMAGES = """
from fs4_jax.data.images import UnreadableImage
from fs4_jax.data.pipeline import eval_batches

class Source:
    num_classes, broken = 3, ()
    sizes = [(16, 16)] * 7 + [(16, 32)] * 3
    def __len__(self): return 10
    def example_name(self, i): return f"image{i}"
    def size(self, i): return self.sizes[i]
    def __getitem__(self, i):
        if i in self.broken: raise UnreadableImage(f"image{i}: broken")
        h, w = self.sizes[i]
        h += 70 * (i == 6)                     # one label is larger: all pad to it
        return {"image": np.full((*self.sizes[i], 3), i, np.uint8),
                "label": np.full((h, w), i % 3, np.uint8)}

def read(source, **options):
    return list(eval_batches(source, batch_size=4, image_size=16, patch=8, **options))

source, options = Source(), dict(process_index=process, process_count=2)
alone, mine = read(source), read(source, **options)
assert len(mine) == len(alone) == 3
for whole, part in zip(alone, mine):
    for name in whole:
        np.testing.assert_array_equal(part[name], whole[name][2 * process:][:2], err_msg=name)

# Broken for one process alone: left out by both.
source.broken, skipped = ((2, 9) if process == 1 else (5,)), []
left = read(source, on_unreadable="skip", skipped=skipped, **options)
seen = distributed.gather(np.stack([batch["index"] for batch in left]))
assert sorted(seen[seen >= 0].tolist()) == \
     [0, 1, 3, 4, 6, 7, 8], seen
assert sorted(name for name, _ in skipped) == ["image2", "image5", "image9"], skipped
assert any("another process can not read it" in reason for _, reason in skipped)
try:
    read(source, **options)
except UnreadableImage:
    pass
else:
    raise AssertionError("both must raise")
"""

_STOP = """
import time
from fs4_jax.train import StopSignals
with StopSignals() as stop:
    for step in range(3000):
        if stop.before(step):
            break
        if step == 3:
            (folder / f"ready{process}").touch()
        time.sleep(0.02 * (1 + process))         # one is slower
steps = distributed.gather(np.array(step))
assert steps[0] == steps[1] < 2999, steps
sys.exit(75)
"""

_FAIL = """
with distributed.failing_at_once():
    if process == 1:
        raise ValueError("this one alone")
    distributed.wait_for_all("never")
"""


class TwoProcessesTest(parameterized.TestCase):

    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

    def begin(self, code):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        env = os.environ | {"JAX_PLATFORMS": "cpu",
                            "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
        return [subprocess.Popen(
            [sys.executable, "-c", _JOIN + textwrap.dedent(code), str(port), str(process),
             str(self.folder)], cwd=_ROOT, env=env, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT) for process in (0, 1)]

    def end(self, processes):
        outputs = [process.communicate(timeout=240)[0] for process in processes]
        return [process.returncode for process in processes], outputs

    def test_what_they_agree_on(self):
        status, outputs = self.end(self.begin(_VALUES + _IMAGES))
        self.assertEqual(status, [0, 0], "\n".join(outputs))
        self.assertEqual(["said once" in output for output in outputs], [True, False])

    @parameterized.parameters(signal.SIGTERM, signal.SIGINT)
    def test_a_signal_to_one_stops_both_before_the_same_step(self, number):
        processes = self.begin(_STOP)
        deadline = time.time() + 120
        while len(list(self.folder.iterdir())) < 2 and time.time() < deadline:
            time.sleep(0.05)
        processes[1].send_signal(number)
        status, outputs = self.end(processes)
        self.assertEqual(status, [75, 75], "\n".join(outputs))

    def test_one_that_fails_ends_at_once_and_the_other_with_it(self):
        began = time.time()
        status, outputs = self.end(self.begin(_FAIL))
        self.assertEqual(status[1], 1, outputs[1])
        self.assertNotEqual(status[0], 0, outputs[0])
        self.assertIn("this one alone", outputs[1])
        self.assertLess(time.time() - began, 200)


class CommandTest(parameterized.TestCase):

    @parameterized.parameters(
        (("--coordinator=localhost:1",), "need --distributed"),
        (("--distributed", "--coordinator=localhost:1"), "--num_processes, --process_id missing"),
        (("--distributed", "--coordinator=localhost:1", "--num_processes=2", "--process_id=2"),
         "--process_id=2 is not one of 0 to 1"),
        (("--distributed", "--coordinator=here", "--num_processes=2", "--process_id=1"),
         "has no port: give HOST:PORT"),
        (("--distributed", "--dry_run"), "--dry_run is for one process"),
        (("--distributed",), "jax could not join the other processes"))
    def test_what_can_not_work_says_what_to_do(self, arguments, message):
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, "-m", "fs4_jax.main", "--config=configs/demo.py",
                 f"--workdir={folder}/w", *arguments], cwd=_ROOT, capture_output=True, text=True,
                env=os.environ | {"JAX_PLATFORMS": "cpu"}, timeout=240)
            self.assertFalse(pathlib.Path(folder, "w").exists())
        self.assertNotIn(done.returncode, (0, 75))
        self.assertIn(message, done.stderr + done.stdout)


if __name__ == "__main__":
    absltest.main()
