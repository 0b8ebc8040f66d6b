"""The ablation's bookkeeping: what is run, what is kept, how parts are told apart."""

import json
import pathlib
import tempfile

from absl.testing import absltest

from benchmarks import ablation
from fs4_jax.config import default_config, flatten


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
            self.assertEqual(ablation.score("no such file", done, 0, {}, [])["miou"], 30)
            failed = pathlib.Path(folder, "failed_0")
            with self.assertRaisesRegex(SystemExit, "(?s)no such file.*failed_0.log"):
                ablation.score("no such file", failed, 0, {}, [])


if __name__ == "__main__":
    absltest.main()
