"""Features of a folder: equal to the model's own, the same after a stop or on several devices."""

import contextlib
import io
import itertools
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from fs4_jax.config import ConfigError
from fs4_jax.data.folder import DataError
from fs4_jax.data.images import read_image
from fs4_jax.data.pipeline import eval_shape
from fs4_jax.data.views import resize_image
from fs4_jax.data import pipeline
from fs4_jax.models import WeightsError, features, load_encoder, normalize_images
from tests.models.reference_vit import official_tensors

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_SIZES = {"a": (40, 70), "b": (50, 50), "c": (44, 44), "sub/d": (60, 61), "sub/e": (64, 64)}


class FeaturesTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.dir = pathlib.Path(folder.name)
        rng = np.random.default_rng(0)
        cls.weights = cls.dir / "encoder.npz"
        np.savez(cls.weights, **official_tensors(rng, width=64, depth=2, patch=8, registers=1))
        cls.images = cls.dir / "images"
        (cls.images / "sub").mkdir(parents=True)
        for stem, size in _SIZES.items():
            picture = rng.integers(0, 255, (*size, 3)).astype(np.uint8)
            Image.fromarray(picture).save(cls.images / f"{stem}.png")
        (cls.images / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        whole = (cls.images / "b.png").read_bytes()     # its header is whole, its pixels are not
        (cls.images / "cut.png").write_bytes(whole[:len(whole) // 2])

    def setUp(self):
        super().setUp()
        self.out = pathlib.Path(self.create_tempdir().full_path)

    def write(self, name, **options):
        out, errors = self.out / name, io.StringIO()
        options = {"batch_size": 2, "devices": jax.devices()[:1]} | options
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
            number = features.write_features(self.weights, self.images, out, **options)
        self.assertEqual(number, len(_SIZES))
        self.assertEqual({p.name for p in self.out.iterdir()} & {name, f"{name}.partial"}, {name})
        return out, errors.getvalue()

    @parameterized.product(format=features.FORMATS, case=[
        {}, {"output": "cls", "image_size": 48}, {"output": "keys", "block": 1},
        {"dtype": "float16"}])
    def test_equal_to_the_model(self, format, case):
        out, said = self.write(f"f{format}", **case)
        self.assertRegex(said, "skipped .*torn.png: unreadable image")
        self.assertRegex(said, "skipped .*cut.png: unreadable image")
        self.assertRegex(said, r"image 7/7 .*img/s")
        self.assertIn("2 of 7 images unreadable, skipped", said)
        metadata, records = features.read_features(out)
        records = dict(records)
        self.assertEqual(list(records), list(_SIZES))
        self.assertEqual(metadata, {
            "weights": str(self.weights), "block": case.get("block", 2), "patch": 8, "width": 64,
            "output": case.get("output", "patch_tokens"), "dtype": case.get("dtype", "float32"),
            "image_size": case.get("image_size", 32)})
        model, params = load_encoder(self.weights, block=case.get("block"))
        for name, size in _SIZES.items():
            image = read_image(self.images / f"{name}.png")
            image = resize_image(image, eval_shape(*size, metadata["image_size"], 8))
            expected = model.apply({"params": params}, normalize_images(image[None]),
                                   return_keys=True)[metadata["output"]][0]
            self.assertEqual(records[name].dtype, metadata["dtype"])
            self.assertEqual(records[name].shape, expected.shape)
            # A few steps of the type for tokens of size one to ten.
            tolerance = 1e-5 if metadata["dtype"] == "float32" else 1e-2
            np.testing.assert_allclose(records[name], expected, atol=tolerance)
        if format == ".npz":
            with np.load(out) as file:
                np.testing.assert_array_equal(file["sub/d"], records["sub/d"])

    @parameterized.parameters(*features.FORMATS)
    def test_goes_on_after_a_stop(self, format):
        whole, _ = self.write(f"whole{format}")
        batches = pipeline.eval_batches
        seen = []

        def three(*args, **kwargs):
            yield from itertools.islice(batches(*args, **kwargs), 2)
            raise KeyboardInterrupt

        def watched(source, **kwargs):
            seen.extend(source.example_name(i) for i in range(len(source)))
            return batches(source, **kwargs)

        with mock.patch.object(pipeline, "eval_batches", three):
            with self.assertRaises(KeyboardInterrupt):
                self.write(f"again{format}")
        out = self.out / f"again{format}"
        self.assertFalse(out.exists())
        (self.out / f"again{format}.partial" / "00000002.npz.writing").write_bytes(b"half")
        with self.assertRaisesRegex(DataError, "begun with other settings .*(block)"):
            self.write(f"again{format}", block=1)
        with mock.patch.object(pipeline, "eval_batches", watched):
            _, said = self.write(f"again{format}")
        self.assertRegex(said, r"[345] of 7 images are in .*partial already")
        self.assertBetween(len(seen), 1, 4)
        self.assertEqual(out.read_bytes(), whole.read_bytes())

    def test_several_devices(self):
        _, one = features.read_features(self.write("one.npz", batch_size=8)[0])
        _, many = features.read_features(
            self.write("many.npz", batch_size=8, devices=jax.devices()[:4])[0])
        for (name, a), (other, b) in zip(one, many, strict=True):
            self.assertEqual(name, other)
            np.testing.assert_allclose(a, b, atol=1e-5)

    def test_what_is_refused(self):
        for error, message, options in (
            (DataError, "must end in", {"out": self.out / "f.npy"}),
            (DataError, "there already", {"out": self.weights}),
            (DataError, "no folder", {"out": self.out / "none" / "f.npz"}),
            (DataError, "--images.*no such path", {"images": self.out / "none"}),
            (DataError, "--images.*holds no images", {"images": self.out}),
            (WeightsError, "not there", {"weights": self.out / "none.npz"}),
            (WeightsError, "is not a readable", {"weights": self.images / "a.png"}),
            (ConfigError, "config.json", {"weights": self.images}),
            (ConfigError, "--block=9", {"block": 9}),
        ):
            options = {"weights": self.weights, "images": self.images,
                       "out": self.out / "f.npz"} | options
            with self.subTest(message), self.assertRaisesRegex(error, message):
                features.write_features(**options)
        self.assertEmpty(list(self.out.iterdir()))
        for path in (self.out / "none.npz", self.weights, self.images / "a.png"):
            with self.assertRaises(DataError):
                features.read_features(path)
        torn = self.out / "images"
        torn.mkdir()
        (torn / "torn.png").write_bytes(b"")
        with contextlib.redirect_stderr(io.StringIO()):
            with self.assertRaisesRegex(DataError, "none of the 1 images"):
                features.write_features(self.weights, torn, self.out / "f.npz")

    def test_as_a_command(self):
        out = self.out / "f.npz"
        command = [sys.executable, "-m", "fs4_jax.models.features", f"--weights={self.weights}",
                   f"--images={self.images}", f"--out={out}"]
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("patch_tokens of 5 images", done.stdout)
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
        self.assertEqual(done.returncode, 2)
        self.assertRegex(done.stderr, "error: .* is there already")
        self.assertNotIn("Traceback", done.stderr)


if __name__ == "__main__":
    absltest.main()
