"""predict: masks at each image's own size, ids that mean what classes.json says."""

import contextlib
import io
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from fs4_jax import predictions, train
from fs4_jax.cluster_names import MaskClasses
from fs4_jax.config import ConfigError
from fs4_jax.data.folder import DataError
from fs4_jax.evaluation.pictures import overlay, palette
from fs4_jax.predict import predict
from tests.train_test import quietly, tiny_config

try:
    import pycocotools.mask as coco
except ImportError:
    coco = None

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_SIZES = {"a": (40, 70), "sub/b c": (64, 48), "sub/deep/large": (300, 520)}
_CLASSES = ("sky", "road")


def write_images(folder):
    """Three images of three sizes and kinds, one that is cut off."""
    rng = np.random.default_rng(0)
    for stem, suffix, mode in (("a", ".jpg", "RGB"), ("sub/b c", ".png", "RGBA"),
                               ("sub/deep/large", ".jpg", "L")):
        path = pathlib.Path(folder, stem + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 255, (*_SIZES[stem], 4)).astype(np.uint8)
        Image.fromarray(noise).convert(mode).save(path)
    pathlib.Path(folder, "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")


def write_training_set(folder):
    """Nine images of 48 pixels, blue above grey, with their masks."""
    rng = np.random.default_rng(1)
    for kind in ("images", "labels"):
        pathlib.Path(folder, kind).mkdir(parents=True)
    for i in range(9):
        label = (np.arange(48)[:, None] >= rng.integers(16, 32)) * np.ones((1, 48), np.uint8)
        colours = np.array([[60, 120, 220], [110, 110, 100]])
        image = np.clip(colours[label] + rng.normal(0, 12, (48, 48, 3)), 0, 255)
        Image.fromarray(image.astype(np.uint8)).save(f"{folder}/images/{i}.png")
        Image.fromarray(label.astype(np.uint8)).save(f"{folder}/labels/{i}.png")


def train_on(folder, workdir, *, labels):
    config = tiny_config(total_steps=2, num_clusters=5)
    config.data.name, config.data.images = "folder", f"{folder}/images"
    if labels:
        config.data.labels, config.data.class_names = f"{folder}/labels", _CLASSES
    config.eval.pictures = 0
    quietly(train.train, config, workdir)


def read_ids(out, stem):
    with Image.open(out / "masks" / f"{stem}.png") as mask:
        return np.asarray(mask)


def contents(out):
    """{path: bytes} of all files."""
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def times(folder):
    return {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}


class PredictTest(parameterized.TestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.dir = pathlib.Path(folder.name)
        write_training_set(cls.dir / "set")
        train_on(cls.dir / "set", cls.dir / "labelled", labels=True)
        train_on(cls.dir / "set", cls.dir / "unlabelled", labels=False)
        cls.images = cls.dir / "images"
        write_images(cls.images)

    def predict(self, workdir, out, images=None, **options):
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            done, output = quietly(
                lambda: predict(workdir, images or self.images, out, **options))
        return done, output, errors.getvalue()

    @parameterized.parameters("labelled", "unlabelled")
    def test_what_is_written(self, workdir):
        out = self.dir / f"out of {workdir}"
        done, output, errors = self.predict(self.dir / workdir, out)
        self.assertEqual(done, 3)
        self.assertRegex(errors, "skipped .*torn.png: unreadable image")
        self.assertRegex(errors, r"image 4/4 .*img/s")
        self.assertIn("1 of 4 images unreadable", output)
        classes = json.loads((out / "classes.json").read_text())
        self.assertEqual([c["id"] for c in classes], list(range(len(classes))))
        for stem, size in _SIZES.items():
            with Image.open(out / "masks" / f"{stem}.png") as mask:
                self.assertEqual((mask.mode, mask.size), ("P", size[::-1]))
                colours = np.array(mask.getpalette()).reshape(256, 3)
            for entry in classes:
                np.testing.assert_array_equal(colours[entry["id"]], entry["colour"])
            self.assertLess(read_ids(out, stem).max(), len(classes))
            with Image.open(out / "overlays" / f"{stem}.jpg") as picture:
                self.assertEqual(picture.size, size[::-1])
        with Image.open(out / "contact_sheet.jpg") as sheet:
            self.assertGreater(min(sheet.size), 200)
        written = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
        self.assertLen(written, 9)      # with predict.json, and no half-written ones

    def test_ids_are_classes_where_labels_were_scored(self):
        scores = json.loads((self.dir / "labelled" / "eval.json").read_text())
        raw = self.dir / "labelled, not scored"
        shutil.copytree(self.dir / "labelled", raw, ignore=lambda *_: ["eval.json"])
        _, output, _ = self.predict(self.dir / "labelled", self.dir / "scored")
        self.assertIn("mask ids are classes, as ", output)
        _, output, _ = self.predict(raw, self.dir / "raw")
        self.assertIn("mask ids are clusters: cluster 0, cluster 1,", output)
        names = [c["name"] for c in json.loads(
            (self.dir / "scored" / "classes.json").read_text())]
        unmatched = [k for k, c in enumerate(scores["matching"]) if c < 0]
        self.assertEqual(names, [*_CLASSES, *(f"cluster {k} (no class)" for k in unmatched)])
        meaning = np.array(scores["matching"])
        meaning[unmatched] = [2, 3, 4]
        for stem in _SIZES:
            np.testing.assert_array_equal(meaning[read_ids(self.dir / "raw", stem)],
                                          read_ids(self.dir / "scored", stem))

    def test_a_mask_does_not_depend_on_tiles_or_on_the_batch(self):
        workdir = self.dir / "unlabelled"
        self.predict(workdir, self.dir / "tiles")
        tile, predictions._TILE = predictions._TILE, 640
        try:
            self.predict(workdir, self.dir / "whole", self.images / "sub")
        finally:
            predictions._TILE = tile
        for stem in ("sub/b c", "sub/deep/large"):
            ids = read_ids(self.dir / "tiles", stem)
            alone = read_ids(self.dir / "whole", stem.removeprefix("sub/"))
            self.assertLess(np.mean(ids != alone), 1e-3)        # rounding on a boundary

    def test_an_overlay_made_in_bands_is_the_overlay(self):
        rng = np.random.default_rng(0)
        image = rng.integers(0, 255, (600, 20, 3)).astype(np.uint8)
        label = np.repeat(rng.integers(0, 3, (300, 20)), 2, axis=0).astype(np.uint8)
        classes = MaskClasses(np.arange(3, dtype=np.uint8), list("abc"), "")
        writer = predictions.Predictions(range(1), self.dir / "bands", classes, ("masks",), plan={})
        np.testing.assert_array_equal(writer._overlay(image, label),
                                      overlay(image, label, palette(3)))

    def test_a_strip_and_many_images_make_a_sheet_of_bounded_size(self):
        images = self.dir / "strips"
        images.mkdir()
        for i in range(15):
            size = (3000, 9) if i == 7 else (32, 32)
            Image.fromarray(np.full((*size, 3), 9 * i, np.uint8)).save(images / f"{i}.png")
        done, _, _ = self.predict(self.dir / "unlabelled", self.dir / "strips out", images)
        self.assertEqual(done, 15)
        with Image.open(self.dir / "strips out" / "contact_sheet.jpg") as sheet:
            self.assertLess(max(sheet.size), 3000)

    def test_a_second_run_replaces_the_files(self):
        out = self.dir / "again"
        mask = out / "masks" / "a.png"
        mask.parent.mkdir(parents=True)
        mask.write_bytes(b"old")
        self.predict(self.dir / "unlabelled", out)
        self.assertEqual(read_ids(out, "a").shape, _SIZES["a"])

    def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(self):
        kinds = ["masks", "overlays", "probabilities"] + (["polygons"] if coco else [])
        workdir, images = self.dir / "labelled", self.dir / "set" / "images"
        options = dict(images=images, kinds=kinds, batch_size=8)
        whole, parts = self.dir / "whole run", self.dir / "run in parts"
        self.predict(workdir, whole, **options)
        write, written = predictions.Predictions.write, []

        def write_some(self, index, *answer):
            if len(written) == 3:
                raise KeyboardInterrupt
            written.append(index)
            write(self, index, *answer)

        with mock.patch.object(predictions.Predictions, "write", write_some), \
                self.assertRaises(KeyboardInterrupt):
            self.predict(workdir, parts, **options)
        self.assertFalse((parts / "classes.json").exists())
        done, _, errors = self.predict(workdir, parts, **options)
        self.assertEqual(done, 9)
        self.assertRegex(errors, "[1-8] of 9 images are done already")
        self.assertEqual(contents(parts), contents(whole))
        with self.subTest("nothing is done twice"):
            before = times(parts / "masks")
            _, _, errors = self.predict(workdir, parts, **options)
            self.assertIn("9 of 9 images are done already", errors)
            self.assertEqual(times(parts / "masks"), before)
            self.assertEqual(contents(parts), contents(whole))
        with self.subTest("a changed image, and a new one, are done"):
            (images / "0.png").touch()
            self.predict(workdir, parts, **options)
            changed = {k for k, when in times(parts / "masks").items() if when != before[k]}
            self.assertEqual(changed, {"0.png"})
        with self.subTest("other settings: everything anew"):
            self.predict(workdir, parts, **{**options, "tile": 40})
            self.assertTrue(all(when != before[name]
                                for name, when in times(parts / "masks").items()))
        with np.load(whole / "probabilities" / "0.npz") as file:
            total = file["probabilities"].astype(np.float32).sum(-1)
            np.testing.assert_allclose(total, np.ones_like(total), atol=5e-3)
            np.testing.assert_array_equal(file["size"], (48, 48))
        if coco:
            told = json.loads((whole / "annotations.json").read_text())
            self.assertEqual([x["file_name"] for x in told["images"]],
                             [f"{i}.png" for i in range(9)])
            self.assertEqual(sum(x["area"] for x in told["annotations"]), 9 * 48 * 48)
            self.assertEqual([x["id"] for x in told["annotations"]],
                             list(range(1, 1 + len(told["annotations"]))))

    def test_one_large_image_in_tiles_refined(self):
        file = self.images / "sub" / "deep" / "large.jpg"
        for name, options in (("whole", {}), ("tiles", dict(tile=96)), ("crf", dict(crf=True))):
            out = self.dir / f"large {name}"
            done, _, _ = self.predict(self.dir / "labelled", out, file, batch_size=8,
                                      kinds=("masks", "probabilities"), **options)
            self.assertEqual(done, 1)
            self.assertEqual(read_ids(out, "large").shape, (300, 520))
            with np.load(out / "probabilities" / "large.npz") as answer:
                grid, extent = answer["probabilities"].shape[:2], answer["extent"]
            # The images are seen at 32 pixels: 4 tokens to a side of a tile, which is 96 pixels.
            expected = {"tiles": ((14, 22), (14 * 24, 22 * 24))}.get(name)
            if expected:
                self.assertEqual((grid, tuple(extent)), expected)
            self.assertFalse((out / "overlays").exists())

    def test_a_workdir_trained_on_other_devices(self):
        workdir = self.dir / "other mesh"
        shutil.copytree(self.dir / "unlabelled", workdir)
        config = json.loads((workdir / "config.json").read_text())
        config["mesh"] = {"data": 3, "fsdp": 5}
        (workdir / "config.json").write_text(json.dumps(config))
        self.assertEqual(self.predict(workdir, self.dir / "out of mesh")[0], 3)

    def test_what_can_not_work(self):
        workdir, out = self.dir / "unlabelled", self.dir / "never"
        empty, torn = self.dir / "empty", self.dir / "torn"
        empty.mkdir()
        torn.mkdir()
        shutil.copy(self.images / "torn.png", torn)
        untrained = self.dir / "untrained"
        shutil.copytree(workdir, untrained, ignore=shutil.ignore_patterns("checkpoints"))
        overlays = self.dir / "overlays"
        shutil.copytree(self.images, overlays)
        file = workdir / "config.json"
        for error, message, arguments in (
                (ConfigError, "holds no config.json", (self.dir / "nowhere", self.images, out)),
                (ConfigError, "no complete checkpoint", (untrained, self.images, out)),
                (DataError, r"\(--images\) is not a folder", (workdir, self.dir / "none", out)),
                (DataError, r"\(--images\) holds no images", (workdir, empty, out)),
                (DataError, "none of the 1 images", (workdir, torn, out)),
                (DataError, "lies inside", (workdir, self.images, self.images)),
                (DataError, "lies inside", (workdir, self.images, self.images / "masks")),
                (DataError, "would be replaced", (workdir, overlays, self.dir)),
                (DataError, "can not be made", (workdir, self.images, file / "x"))):
            with self.assertRaisesRegex(error, message):
                self.predict(arguments[0], arguments[2], arguments[1])
        self.assertFalse((self.images / "masks").exists())

    def test_a_link_in_an_old_out_leads_nowhere(self):
        out, outside = self.dir / "linked", self.dir / "outside"
        (out / "masks").mkdir(parents=True)
        outside.mkdir()
        (out / "masks" / "sub").symlink_to(outside)
        with self.assertRaisesRegex(DataError, "leads out of"):
            self.predict(self.dir / "unlabelled", out)
        self.assertEmpty(list(outside.iterdir()))

    def test_the_command_explains_itself(self):
        def run(*arguments):
            return subprocess.run([sys.executable, "-m", "fs4_jax.predict", *arguments],
                                  cwd=_ROOT, text=True, capture_output=True)
        self.assertIn("--images", run("--help").stdout)
        result = run(f"--workdir={self.dir}", f"--images={self.images}",
                     f"--out={self.dir / 'never'}")
        self.assertEqual(result.returncode, 2)
        self.assertRegex(result.stderr, "^error: .*holds no config.json")
        self.assertNotIn("Traceback", result.stderr)


if __name__ == "__main__":
    absltest.main()
