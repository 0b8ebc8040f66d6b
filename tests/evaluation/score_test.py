"""Scoring anybody's PNG masks: golden numbers through files, and every way to be wrong."""

import contextlib
import io
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from fs4_jax.evaluation.matching import MATCHINGS, score_matching
from fs4_jax.evaluation.per_image import PER_IMAGE
from fs4_jax.evaluation.protocols import MEASURES, measures
from fs4_jax.evaluation.score import MaskError, format_scores, score_folders
from tests.evaluation.matching_test import golden

_ROOT = pathlib.Path(__file__).resolve().parents[2]


class ScoreCase(parameterized.TestCase):

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = pathlib.Path(folder.name)

    def write(self, name, ids, mode=None):
        path = self.dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.asarray(ids))
        if mode == "P":
            image.putpalette(list(range(256)) * 3)
        image.save(path)
        return path

    def write_golden(self, seed, num_classes, side, dtype=np.uint8, ignore=255):
        prediction, label = golden(seed, num_classes, num_classes, side)
        for i, (p, t) in enumerate(zip(prediction, label)):
            self.write(f"p/sub/{i}.png", p.astype(dtype))
            self.write(f"t/sub/{i}.png", np.where(t < 0, ignore, t).astype(dtype))
        return prediction, label

    def score(self, num_classes=3, **options):
        with contextlib.redirect_stderr(io.StringIO()) as self.errors:
            return score_folders(self.dir / "p", self.dir / "t", num_classes=num_classes,
                                 **options)


class ScoreTest(ScoreCase):

    @parameterized.named_parameters(
        ("A", 1, 27, 320, 35.01586, 51.86902), ("B", 2, 27, 64, 34.87240, 51.70143),
        ("E", 5, 3, 64, 50.61800, 67.21491))
    def test_golden_numbers(self, seed, num_classes, side, miou, accuracy):
        self.write_golden(seed, num_classes, side)
        scores = self.score(num_classes)
        self.assertAlmostEqual(scores["miou"], miou, delta=1e-4)
        self.assertAlmostEqual(scores["accuracy"], accuracy, delta=1e-4)
        self.assertEqual((scores["num_images"], len(scores["per_class_iou"])), (6, num_classes))
        self.assertLen(set(scores["matching"]), num_classes)

    def test_sixteen_bits_palettes_and_another_ignored_id(self):
        self.write_golden(5, 3, 64)
        expected = self.score()
        self.write_golden(5, 3, 64, np.uint16, ignore=40000)
        self.assertEqual(self.score(ignore=40000), expected)
        for i in range(6):
            ids = np.asarray(Image.open(self.dir / f"p/sub/{i}.png")).astype(np.uint8)
            self.write(f"p/sub/{i}.png", ids, "P")
        self.assertEqual(self.score(ignore=40000), expected)

    @parameterized.parameters(*MATCHINGS, *PER_IMAGE)
    def test_more_clusters_than_classes(self, protocol):
        rng = np.random.default_rng(0)
        label = rng.integers(0, 3, (4, 16, 16)).astype(np.uint8)
        prediction = np.where(rng.random(label.shape) < 0.7, 2 * label + 1,
                              rng.integers(0, 7, label.shape)).astype(np.uint16)
        for i in range(4):
            self.write(f"p/{i}.png", prediction[i])
            self.write(f"t/{i}.png", label[i])
        got = self.score(protocol=protocol)
        counts = np.array([[[((p == k) & (t == c)).sum() for c in range(3)] for k in range(7)]
                           for p, t in zip(prediction, label)])
        if protocol in MATCHINGS:
            want = score_matching(counts.sum(0), MATCHINGS[protocol](counts.sum(0)))
            self.assertEqual(got["matching"], want.matching.tolist())
        else:
            scorer = PER_IMAGE[protocol](3)
            for image in counts:
                scorer.add(image)
            want = scorer.scores()
            self.assertIsNone(got["matching"])
        for name in measures(protocol):
            self.assertAlmostEqual(got[name], getattr(want, name), places=9)
        self.assertIn(f"{MEASURES[name]}  ", format_scores(got, ["a", "b", "c"]))

    def test_a_pixel_without_a_prediction_is_an_error(self):
        self.write("t/a.png", np.zeros((2, 4), np.uint8))
        self.write("p/a.png", np.array([[0, 0, 0, 255]] * 2, np.uint8))
        self.assertEqual(self.score(num_classes=1)["accuracy"], 75.0)

    def test_a_matching_of_another_split(self):
        self.write("t/a.png", np.array([[0, 1, 2]], np.uint8))
        self.write("p/a.png", np.array([[2, 0, 1]], np.uint8))
        self.assertEqual(self.score(matching=[1, 2, 0])["accuracy"], 100.0)
        self.assertEqual(self.score(matching=[0, 1, 2])["accuracy"], 0.0)
        with self.assertRaisesRegex(MaskError, "knows 2 clusters, .* ids up to 2"):
            self.score(matching=[0, 1])
        with self.assertRaisesRegex(MaskError, "every image has its own"):
            self.score(matching=[1, 2, 0], protocol="per-image-m2o")

    def test_nothing_labelled(self):
        self.write("t/a.png", np.full((2, 2), 255, np.uint8))
        self.write("p/a.png", np.zeros((2, 2), np.uint8))
        scores = self.score()
        self.assertIsNone(scores["miou"])
        self.assertIn("-", format_scores(scores, ["a", "b", "c"]))


class ErrorTest(ScoreCase):

    def setUp(self):
        super().setUp()
        for name in ("a", "b"):
            self.write(f"t/{name}.png", np.zeros((2, 3), np.uint8))
            self.write(f"p/{name}.png", np.zeros((2, 3), np.uint8))

    def refused(self, message, **options):
        with self.assertRaisesRegex(MaskError, message):
            self.score(**options)

    def test_missing_and_extra_masks_are_named(self):
        self.write("p/c.png", np.zeros((2, 3), np.uint8))
        self.score()
        self.assertIn("has no mask of their name: c", self.errors.getvalue())
        (self.dir / "p/b.png").unlink()
        self.refused("1 of the 2 labels have no prediction in .*: b$")

    def test_sizes(self):
        self.write("p/b.png", np.zeros((3, 3), np.uint8))
        self.refused(r"p/b\.png is 3 x 3, its label .*t/b\.png 3 x 2")

    def test_ids(self):
        self.write("t/b.png", np.full((2, 3), 3, np.uint8))
        self.refused(r"t/b\.png holds id 3, but --num_classes=3 allows 0\.\.2")
        self.write("t/b.png", np.zeros((2, 3), np.uint8))
        self.write("p/b.png", np.full((2, 3), 4, np.uint8))
        self.refused(r"p/b\.png holds id 4, but --num_clusters=4 allows 0\.\.3", num_clusters=4)
        self.assertEqual(self.score(num_clusters=5)["accuracy"], 50.0)

    def test_what_is_no_mask(self):
        self.write("p/b.png", np.zeros((2, 3, 3), np.uint8))
        self.refused(r"p/b\.png is a picture of mode RGB")
        (self.dir / "p/b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        self.refused(r"p/b\.png can not be read as a mask")

    def test_folders(self):
        with self.assertRaisesRegex(MaskError, "--predictions=.*nowhere is not a folder"):
            score_folders(self.dir / "nowhere", self.dir / "t", num_classes=2)
        (self.dir / "empty").mkdir()
        with self.assertRaisesRegex(MaskError, "--labels=.*empty holds no PNG masks"):
            score_folders(self.dir / "p", self.dir / "empty", num_classes=2)


class CommandTest(ScoreCase):

    def run_command(self, *options):
        return subprocess.run(
            [sys.executable, "-m", "fs4_jax.evaluation.score", f"--predictions={self.dir}/p",
             f"--labels={self.dir}/t", "--num_classes=3", *options], cwd=_ROOT, text=True,
            capture_output=True)

    def test_the_command(self):
        self.write_golden(5, 3, 64)
        result = self.run_command(f"--json={self.dir}/s.json", "--class_names=a,b,c")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stdout, r"mIoU +50\.618\d %")
        scores = json.loads((self.dir / "s.json").read_text())
        self.assertAlmostEqual(scores["miou"], 50.61800, delta=1e-4)
        again = self.run_command(f"--matching={self.dir}/s.json")
        self.assertRegex(again.stdout, r"mIoU +50\.618\d %")
        (self.dir / "p/sub/3.png").unlink()
        result = self.run_command()
        self.assertEqual(result.returncode, 2)
        self.assertRegex(result.stderr, "error: 1 of the 6 labels have no prediction .*: sub/3")


if __name__ == "__main__":
    absltest.main()
