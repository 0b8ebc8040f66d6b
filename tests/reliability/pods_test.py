"""Every method in two processes: trained, evaluated, and the numbers are those of one process.

FS^4 itself: tests/pod_test.py; killed and moved between one process and two: kill_test.py.
"""

import json
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from tests.reliability import runs


class PodsTest(parameterized.TestCase):

    @parameterized.named_parameters((x, x) for x in ("alignseg", "dino", "scribble"))
    def test_trained_and_scored_as_by_one_process(self, method):
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        one, pod = folder / "one", folder / "pod"
        lives = [runs.Life(method, one, folder / "cache"),
                 runs.Life(method, pod, folder / "cache", processes=2)]
        for life in lives:
            life.end()
        self.assertIn("2 cpu device(s) of 2 process(es)", lives[1].output)
        runs.assert_same_batches(one, pod)
        off, name = runs.difference(method, one, pod)
        print(f"{method}: after {runs.STEPS} steps {name} differs most, by {off:.1e} of its norm")
        self.assertLess(off, runs.TOLERANCE, name)
        scores = [json.loads((workdir / "eval.json").read_text()) for workdir in (one, pod)]
        self.assertEqual(scores[1]["num_images"], 6)
        pixels = [np.sum(score["confusion"]) for score in scores]
        self.assertEqual(*pixels)
        self.assertLess(np.abs(np.subtract(*(score["confusion"] for score in scores))).sum(),
                        0.01 * pixels[0])


if __name__ == "__main__":
    absltest.main()
