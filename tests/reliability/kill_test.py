"""Kills, stops and other machines: a run ends with the bits of the one that nobody disturbed.

FS4_KILLS is the number of kills of each method, by default 2 (of the tiny one 6);
`python -m benchmarks.reliability` has more.
"""

import os
import pathlib
import tempfile

from absl.testing import absltest, parameterized

from tests.reliability import runs

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

        with self.subTest("two processes, one, two: the same batches, the same numbers"):
            moved = folder / "moved"
            for until, processes in ((runs.STEPS // 3, 2), (2 * runs.STEPS // 3, 1)):
                life = runs.Life(method, moved, cache, processes=processes)
                life.until(lambda life=life, until=until: life.steps() >= until)
                life.kill()
                self.assertLess(life.steps(), runs.STEPS)
                self.assertIn(f"of {processes} process(es)", life.output)
            runs.Life(method, moved, cache, processes=2).end()
            runs.assert_same_batches(whole, moved)
            off, name = runs.difference(method, whole, moved)
            print(f"{method}: after {runs.STEPS} steps, two thirds of them in two processes, "
                  f"{name} differs most, by {off:.1e} of its norm")
            self.assertLess(off, runs.TOLERANCE, name)


if __name__ == "__main__":
    absltest.main()
