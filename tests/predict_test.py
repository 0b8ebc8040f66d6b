"""predict: masks at each image's own size, ids that mean what classes.json says."""

import contextlib
import io
import json
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest
from PIL import Image

from fs4_jax import train
from fs4_jax.config import ConfigError
from fs4_jax.data.folder import DataError
from fs4_jax.predict import predict
from tests.train_test import quietly, tiny_config


def write_images(folder):
    rng = np.random.default_rng(0)
    for name, shape in (("a.jpg", (40, 70, 3)), ("sub/b c.png", (64, 48, 3))):
        path = pathlib.Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, shape).astype(np.uint8)).save(path)
    pathlib.Path(folder, "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")


class PredictTest(absltest.TestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.dir = pathlib.Path(folder.name)
        quietly(train.train, tiny_config(total_steps=2), cls.dir / "w")
        write_images(cls.dir / "images")

    def predict(self, out):
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            done, output = quietly(predict, self.dir / "w", self.dir / "images", out)
        return done, output + errors.getvalue()

    def test_masks_overlays_sheet_and_classes(self):
        out = self.dir / "out"
        done, output = self.predict(out)
        self.assertEqual(done, 2)
        self.assertIn("skipped torn", output)
        classes = json.loads((out / "classes.json").read_text())
        for stem, size in (("a", (40, 70)), ("sub/b c", (64, 48))):
            with Image.open(out / "masks" / f"{stem}.png") as mask:
                self.assertEqual(mask.mode, "P")
                ids = np.asarray(mask)
            self.assertEqual(ids.shape, size)
            self.assertContainsSubset(np.unique(ids), [c["id"] for c in classes])
            with Image.open(out / "overlays" / f"{stem}.jpg") as overlay:
                self.assertEqual(overlay.size, size[::-1])
        self.assertTrue((out / "contact_sheet.jpg").exists())

    def test_ids_are_classes_once_scored_and_clusters_before(self):
        scores = json.loads((self.dir / "w" / "eval.json").read_text())
        self.predict(self.dir / "scored")
        (self.dir / "w" / "eval.json").rename(self.dir / "eval.json")
        try:
            self.predict(self.dir / "raw")
        finally:
            (self.dir / "eval.json").rename(self.dir / "w" / "eval.json")
        raw = np.asarray(Image.open(self.dir / "raw" / "masks" / "a.png"))
        scored = np.asarray(Image.open(self.dir / "scored" / "masks" / "a.png"))
        np.testing.assert_array_equal(np.array(scores["matching"])[raw], scored)
        names = [c["name"] for c in json.loads(
            (self.dir / "scored" / "classes.json").read_text())]
        self.assertEqual(names[:10], scores["class_names"])

    def test_what_can_not_work(self):
        images = self.dir / "images"
        with self.assertRaisesRegex(ConfigError, "no config.json"):
            predict(self.dir / "nowhere", images, self.dir / "out")
        with self.assertRaisesRegex(DataError, "not a folder"):
            predict(self.dir / "w", self.dir / "nowhere", self.dir / "out")
        with self.assertRaisesRegex(DataError, "lies inside"):
            predict(self.dir / "w", images, images / "masks")


if __name__ == "__main__":
    absltest.main()
