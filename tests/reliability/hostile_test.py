"""Files and settings from strangers: every failure is one of our errors and names its cause."""

import contextlib
import functools
import io
import json
import os
import pathlib
import pickle
import tempfile
import time
import warnings

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fs4_jax import predict, train
from fs4_jax.config import ConfigError, default_config, flatten
from fs4_jax.config_checks import check_config
from fs4_jax.data.folder import FolderSource
from fs4_jax.data.images import DataError, UnreadableImage, image_size, read_image, read_label
from fs4_jax.data.pipeline import train_dataset
from fs4_jax.data.views import TwoViews, ViewSettings
from fs4_jax.models import load_encoder
from fs4_jax.models.weight_files import WeightsError
from fs4_jax.run import checked_source, prepare
from tests.data.files import FolderCase, picture
from tests.tiny_method import in_place, tiny_run

_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")
fuzzed = functools.partial(settings, deadline=None, derandomize=True, database=None,
                           suppress_health_check=list(HealthCheck))


class HostileCase(FolderCase):

    def jpeg(self, image, **options):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", **options)
        return file.getvalue()

    def hostile_images(self):
        """Writes all kinds; the names of those that can be read."""
        photo = picture(40, 56)
        good = ["plain.png", "with space .png", "naïve 風景 🙂.png", "new\nline.png",
                "-dash;$(touch x)'\".png", "a\\b.png"]
        for name in good:
            self.write(f"images/{name}", photo)
        self.write("images/cmyk.jpg", photo, mode="CMYK")
        self.write("images/pixel.png", photo[:1, :1])
        self.write("images/strip.png", np.zeros((9, 20_000, 3), np.uint8))
        whole = self.jpeg(picture(400, 560))
        self.write_bytes("images/torn.jpg", whole[:len(whole) // 2])
        cmyk = (self.root / "images/cmyk.jpg").read_bytes()
        self.write_bytes("images/torn cmyk.jpg", cmyk[:len(cmyk) // 2])
        # A header that promises 20,000 x 20,000 pixels, in 100 bytes.
        bomb = bytearray(self.write("bomb.png", photo).read_bytes())
        bomb[16:24] = (20_000).to_bytes(4, "big") * 2
        self.write_bytes("images/bomb.png", bomb)
        self.write_bytes("images/text.jpg", b"<html>404 not found</html>")
        self.write_bytes("images/empty.jpg", b"")
        os.symlink(self.root / "images", self.root / "images" / "loop")
        os.symlink("self.png", self.root / "images" / "self.png")
        return sorted([*good, "cmyk.jpg", "pixel.png", "strip.png"])


class FolderTest(HostileCase):

    def test_what_can_be_read_is_and_the_rest_is_named(self):
        good = self.hostile_images()
        source, read, bad = FolderSource(self.root / "images"), [], []
        for i in range(len(source)):
            try:
                image = source[i]["image"]
                self.assertEqual((image.dtype, image.ndim, image.shape[2]), (np.uint8, 3, 3))
                read.append(source.example_name(i))
            except UnreadableImage as error:
                self.assertIn(source.example_name(i), str(error))
                bad.append(source.example_name(i))
        stems = sorted(name.rpartition(".")[0] for name in good)
        self.assertEqual(sorted(read), stems)
        self.assertEqual(set(bad) - {"self"}, {"torn", "torn cmyk", "bomb", "text", "empty"})

    def test_ten_thousand_empty_files(self):
        folder = self.root / "images"
        folder.mkdir()
        for i in range(10_000):
            (folder / f"{i}.jpg").touch()
        config = default_config()
        config.data.images = str(folder)
        began = time.monotonic()
        with self.assertRaisesRegex(DataError, "0.jpg.*the file is empty"):
            checked_source(config, "train")
        self.assertLess(time.monotonic() - began, 60)
        self.write("images/good.png", picture(40, 56))      # one among ten thousand
        views = TwoViews(ViewSettings.from_config(config.data), (32, 32), 8)
        batch = next(iter(train_dataset(FolderSource(folder), views, seed=0, batch_size=2)))
        self.assertEqual(set(batch["index"].tolist()), {10_000})

    def test_predict_writes_nowhere_but_in_out(self):
        good, out = self.hostile_images(), self.root / "out"
        self.enterContext(in_place())
        self.enterContext(contextlib.redirect_stdout(io.StringIO()))
        told = self.enterContext(contextlib.redirect_stderr(io.StringIO()))
        train.train(tiny_run(total_steps=2), self.root / "w")

        def others():
            return {path: (path.lstat().st_mtime_ns, path.lstat().st_size)
                    for path in self.root.rglob("*") if not path.is_relative_to(out)}

        before = others()
        number = predict.predict(self.root / "w", self.root / "images", out)
        self.assertEqual(others(), before)
        self.assertEqual(number, len(good))
        for name in good:
            mask = out / "masks" / f"{name.rpartition('.')[0]}.png"
            with Image.open(mask) as written, Image.open(self.root / "images" / name) as seen:
                self.assertEqual(written.size, seen.size)
        for name in ("torn", "torn cmyk", "bomb", "text", "empty"):
            self.assertIn(name, told.getvalue())


class WeightsTest(HostileCase):

    @parameterized.parameters("weights.pth", "weights.npz", "weights.safetensors")
    def test_weights_never_run_code(self, name):
        flag = self.root / "it ran"

        class Trap:
            def __reduce__(self):
                return pathlib.Path.touch, (flag,)

        content = pickle.dumps({"model": Trap(), "cls_token": Trap()})
        if name.endswith("npz"):
            np.savez(self.root / name, **{"embedding/kernel": np.array([Trap()], object)})
        else:
            self.write_bytes(name, content)
        with self.assertRaises(WeightsError) as refused:
            load_encoder(self.root / name)
        self.assertIn(name, str(refused.exception))
        self.assertFalse(flag.exists())

    def test_checkpoints_and_partial_evaluations_never_run_code(self):
        """Nothing below fs4_jax unpickles; numpy does where it is asked to."""
        package = pathlib.Path(predict.__file__).parent
        for path in package.rglob("*.py"):
            text = path.read_text()
            for word in ("pickle.load", "allow_pickle=True", "weights_only=False", "joblib",
                         "marshal.", "eval(", "exec("):
                found = [line for line in text.splitlines() if word in line
                         and not line[:line.index(word)].endswith(("_", "."))]
                self.assertEmpty(found, f"{path}: {word}")


class FuzzTest(absltest.TestCase):

    @fuzzed(max_examples=300)
    @given(st.sampled_from(_FORMATS), st.integers(0, 3), st.data())
    def test_image_bytes(self, kind, changes, data):
        content = bytearray(_encoded(kind))
        for _ in range(changes):
            place = data.draw(st.integers(0, len(content) - 1))
            length = data.draw(st.sampled_from((1, 1, 2, 4, 100)))
            how = data.draw(st.sampled_from(("change", "cut", "remove", "insert")))
            noise = data.draw(st.binary(min_size=length, max_size=length))
            if how == "cut":
                del content[max(1, place):]
            else:
                content[place:place + (0 if how == "insert" else length)] = \
                    b"" if how == "remove" and len(content) > length else noise
        self.reads_or_says_why(bytes(content), f"{kind.lower()}")

    @fuzzed(max_examples=100)
    @given(st.binary(max_size=200), st.sampled_from(
        (b"", b"\xff\xd8\xff\xe0\x00\x10JFIF", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", b"GIF89a",
         b"BM", b"II*\x00", b"MM\x00*", b"RIFF\x00\x00\x00\x00WEBPVP8 ")))
    def test_any_bytes(self, content, start):
        self.reads_or_says_why(start + content, "png")

    def reads_or_says_why(self, content, suffix):
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = pathlib.Path(folder, f"image.{suffix}")
            path.write_bytes(content)
            for read, error in ((read_image, UnreadableImage), (image_size, UnreadableImage),
                                (read_label, DataError)):
                try:
                    value = read(path)
                except error as told:
                    self.assertIn(str(path), str(told))
                else:
                    if read is read_image:
                        self.assertEqual((value.dtype, value.shape[2:]), (np.uint8, (3,)))

    @fuzzed(max_examples=400)
    @given(st.data())
    def test_config_values(self, data):
        """A config of which some values were drawn makes a Run, or an error that names a key."""
        config = default_config()
        config.encoder.variant = "mu/8"
        config.data.image_size, config.batch_size = 32, 8
        config.method = data.draw(st.sampled_from(("fs4", "dino", "alignseg", "scribble")))
        keys = sorted(flatten(config))
        drawn = {}
        for key in data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=2)):
            value = data.draw(_values_like(_at(config, key)))
            with contextlib.suppress(TypeError, ValueError):      # ml_collections' own checks
                config.update_from_flattened_dict({key: value})
                drawn[key] = value
        try:
            check_config(config)
            prepare(config)
        except (ConfigError, DataError, WeightsError) as error:
            self.assertTrue(str(error))
        except Exception as error:
            raise AssertionError(f"{json.dumps(drawn, default=repr)} in a run of {config.method}: "
                                 f"{type(error).__name__}: {error}") from error


@functools.cache
def _encoded(kind):
    file = io.BytesIO()
    Image.fromarray(picture(24, 40)).save(file, kind)
    return file.getvalue()


def _at(config, key):
    for name in key.split("."):
        config = config[name]
    return config


def _values_like(value):
    numbers = st.sampled_from((0, 1, 2, 3, 7, 255, 256, 10**6, 2**31, 2**63, -1, -10**9))
    reals = st.sampled_from((0.0, -0.0, 1e-30, 0.5, 1.0, 1.5, 1e30, -1.0, float("nan"),
                             float("inf"), -float("inf")))
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return numbers
    if isinstance(value, float):
        return reals
    if isinstance(value, str):
        return st.sampled_from(("", "x", "none", "random", "fs4", "a\nb", "ü", "/", ".", "..",
                                "/dev/null", "S/16", "mu/4", "x" * 5000, "\0"))
    return st.one_of(st.tuples(), st.tuples(numbers), st.tuples(reals, reals),
                     st.tuples(numbers, numbers, numbers), st.tuples(st.just("x")))


if __name__ == "__main__":
    absltest.main()
