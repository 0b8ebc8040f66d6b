"""Kills, stops and other machines: a run ends with the bits of the one that nobody disturbed.

FS4_KILLS is the number of kills of each method, by default 2 (of the tiny one 6);
`python -m benchmarks.reliability` has more.
"""

import os
import pathlib
import tempfile

import jax
import numpy as np
from absl.testing import absltest, parameterized

from tests.reliability import runs

# Sums over devices are made in another order: of each parameter, relative to its largest.
_TOLERANCE = 1e-3


class KillTest(parameterized.TestCase):

    @parameterized.named_parameters(*((method, method) for method in runs.METHODS))
    def test_killed_stopped_and_moved(self, method):
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        cache, whole, parts = (folder / name for name in ("cache", "whole", "parts"))
        runs.Life(method, whole, cache).end()
        kills = int(os.environ.get("FS4_KILLS", 2 if method != "tiny" else 6))
        lives = list(runs.disturbed(method, parts, cache, kills=kills))
        print(*lives, sep="\n")
        self.assertGreater(len(lives), 1, "it was done before it was disturbed")
        runs.assert_same_run(method, whole, parts)

        if method == "tiny":
            return                    # is made for one device
        with self.subTest("on another number of devices: the same batches, the same numbers"):
            moved = folder / "moved"
            first = runs.Life(method, moved, cache)
            first.until(lambda: first.steps() >= runs.STEPS // 2)
            first.kill()
            self.assertLess(first.steps(), runs.STEPS)
            runs.Life(method, moved, cache, devices=2).end()
            runs.assert_same_batches(whole, moved)
            one, two = (runs.state_of(method, workdir) for workdir in (whole, moved))
            for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one[2]),
                                    jax.tree.leaves(two[2]), strict=True):
                np.testing.assert_allclose(a, b, rtol=0, err_msg=jax.tree_util.keystr(path),
                                           atol=_TOLERANCE * np.abs(a).max())


if __name__ == "__main__":
    absltest.main()
