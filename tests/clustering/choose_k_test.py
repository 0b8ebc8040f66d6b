"""Tests of fs4_jax.clustering.choose_k: planted clusters are found, flags are named."""

import json
import pathlib
import subprocess
import sys

import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.clustering import choose_k
from fs4_jax.clustering.choose_k import Candidate, candidate_numbers, recommend, sample_points
from fs4_jax.config import ConfigError
from tests.clustering.kmeans_test import blobs

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def write_features(path, arrays):
    """A file as fs4_jax.models.features writes it."""
    np.savez(path, __names__=np.array(list(arrays)),
             __metadata__=np.array(json.dumps({"output": "patch_tokens"})), **arrays)


def command(*args):
    return subprocess.run([sys.executable, "-m", "fs4_jax.clustering.choose_k", *args], cwd=_ROOT,
                          text=True, capture_output=True)


class ChooseKTest(parameterized.TestCase):

    @parameterized.parameters(4, 7)
    def test_planted_clusters_are_found(self, planted):
        x, _, _ = blobs(num_blobs=planted, each=60, d=12, spread=0.6, seed=planted)
        measured = list(choose_k.measure(x, [planted - 1, planted, planted + 2], 2))
        best, reason = recommend(measured)
        self.assertEqual(best, planted, measured)
        self.assertIn("stable labels", reason)
        spread = [c.spread_left for c in measured]
        self.assertEqual(spread, sorted(spread, reverse=True))

    def test_an_unstable_k_is_not_recommended(self):
        best, reason = recommend([Candidate(2, .9, .5, .95), Candidate(4, .5, .6, .98),
                                  Candidate(8, .4, .7, .60)])
        self.assertEqual(best, 4)
        self.assertIn("60.0 %, the highest of the 2 of 3 K", reason)

    def test_where_clusters_touch_it_is_the_largest_stable_k(self):
        best, reason = recommend([Candidate(2, .9, .4, .99), Candidate(4, .5, .2, .95),
                                  Candidate(8, .4, .2, .81), Candidate(12, .3, .2, .79)])
        self.assertEqual(best, 8)
        self.assertIn("touch at every K (silhouette 40.0 % at most)", reason)

    def test_doubts_are_told(self):
        best, reason = recommend([Candidate(2, .9, .9, .5), Candidate(4, .8, .1, .7)])
        self.assertEqual(best, 4)
        self.assertIn("No K has stable labels", reason)
        self.assertIn("end of the range", recommend([Candidate(4, .9, .3, 1.0),
                                                     Candidate(8, .8, .5, 1.0)])[1])

    def test_candidates(self):
        self.assertEqual(candidate_numbers(["8", "4", "6", "4"], 2, 3, 2), [4, 6, 8])
        self.assertEqual(candidate_numbers([], 2, 32, 5), [2, 4, 8, 16, 32])
        for given, least, most, message in (
                (["4", "x"], 2, 3, "--candidates=4,x"), (["1", "3"], 2, 3, "--candidates: a K of"),
                ([], 5, 5, "--max=5 must be larger than --min=5"), ([], 1, 5, "--min: a K of 1")):
            with self.assertRaisesRegex(ConfigError, message):
                candidate_numbers(given, least, most, 4)

    def test_a_sample_is_fair_and_keeps_all_of_few(self):
        arrays = [np.full((2, 5, 1), i, np.float16) for i in range(40)]
        sample = sample_points(iter(arrays), 100, seed=0)
        self.assertEqual(sample.shape, (100, 1))
        self.assertGreater(len(np.unique(sample)), 30)
        self.assertLess(abs(sample.mean() - 19.5), 4)
        np.testing.assert_array_equal(sample_points(iter(arrays), 400, seed=0)[:, 0],
                                      np.repeat(np.arange(40), 10))

    def test_the_command(self):
        folder = pathlib.Path(self.create_tempdir().full_path)
        features, out = folder / "features.npz", folder / "k.html"
        x, _, _ = blobs(num_blobs=5, each=48, d=8)
        write_features(features, {f"image{i}": part.reshape(6, 4, 8)
                                  for i, part in enumerate(np.split(x, 10))})
        result = command(f"--features={features}", "--candidates=3,5,8", "--seeds=2",
                         f"--out={out}")
        self.assertIn("recommended: K = 5.", result.stdout, result.stderr)
        self.assertIn("K = 8", out.read_text())
        result = command(f"--features={features}", "--candidates=3,500", f"--out={out}")
        self.assertEqual(result.returncode, 2)
        self.assertIn("lower --max or --candidates", result.stderr)


if __name__ == "__main__":
    absltest.main()
