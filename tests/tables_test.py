"""Bookkeeping of the tables of runs: what is run, what is kept, how variants are told apart."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest

from benchmarks import ablation, finished_runs
from fs4_jax.config import default_config, flatten

_ROOT = pathlib.Path(__file__).resolve().parents[1]


def scores(*miou):
    return [{"miou": x, "accuracy": x + 20, "floors": {"kmeans_plain": {"miou": x / 2,
                                                                        "accuracy": x}}}
            for x in miou]


class AblationTest(absltest.TestCase):

    def test_every_part_names_keys_that_there_are(self):
        known = flatten(default_config())
        for part, changes in ablation.PARTS.items():
            for key in changes:
                self.assertIn(key, known, part)

    def test_gains_are_taken_seed_by_seed(self):
        lines = ablation.table({"nothing": scores(30, 40), "pgg": scores(28, 41)})
        self.assertEqual(lines[2], "| nothing | 35.0 (30.0 to 40.0) | 55.0 |  |")
        self.assertEqual(lines[3], "| pgg | 34.5 (28.0 to 41.0) | 54.5 | +2.0 -1.0 |")
        self.assertEqual(lines[4], "| floor: kmeans_plain | 17.5 (15.0 to 20.0) | 35.0 | "
                                   "+15.0 +20.0 |")

    def test_finished_runs_are_read_and_failed_ones_named(self):
        with tempfile.TemporaryDirectory() as folder:
            done = pathlib.Path(folder, "done_0")
            done.mkdir()
            (done / "eval.json").write_text(json.dumps(scores(30)[0]))
            (done / "report.html").write_text("")
            self.assertEqual(finished_runs.score("no such file", done, 0, {}, [])["miou"], 30)
            failed = pathlib.Path(folder, "failed_0")
            with self.assertRaisesRegex(SystemExit, "(?s)no such file.*failed_0.log"):
                finished_runs.score("no such file", failed, 0, {}, [])


class ScribblesTest(absltest.TestCase):
    """In a process of its own: its flags have the ablation's names."""

    def test_keys_that_there_are_and_shares_of_the_gap(self):
        code = """
from absl import flags
from benchmarks import scribbles
from fs4_jax.config import default_config, flatten
flags.FLAGS(["x", "--cached_views=2"])
known = flatten(default_config())
for loss in scribbles.LOSSES:
    assert scribbles.changes(loss, scribbles.pathlib.Path("out")).keys() <= known.keys(), loss
def scores(*miou):
    return [{"miou": x, "accuracy": x + 20} for x in miou]
print(*scribbles.table({"partial": scores(40, 42), "dfr": scores(44, 45), "full": scores(46, 46)}),
      sep="\\n")
"""
        ran = subprocess.run([sys.executable, "-c", code], cwd=_ROOT, capture_output=True,
                             text=True, env=os.environ | {"PYTHONPATH": os.fspath(_ROOT)})
        self.assertEqual(ran.returncode, 0, ran.stderr)
        lines = ran.stdout.splitlines()
        self.assertEqual(lines[3], "| + DFR | 44.5 (44.0 to 45.0) | 64.5 (64.0 to 65.0) | 70 % | "
                                   "97 % |")
        self.assertEqual(lines[-2], "+ DFR, mIoU seed by seed: 44.0, 45.0")


if __name__ == "__main__":
    absltest.main()
