"""export: one file that gives the model's classes where this package is not there."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys
import tempfile
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from fs4_jax import run as run_lib
from fs4_jax.checkpoint import Checkpoints
from fs4_jax.cluster_names import ClusterNames, write_cluster_names
from fs4_jax.config import ConfigError, remember_config
from fs4_jax.data.images import DataError
from fs4_jax.evaluation.pictures import palette
from fs4_jax.evaluation.upsample import upsample_argmax
from fs4_jax.export import LEAST_AGREEMENT, export
from fs4_jax.run import checked_source, prepare, remember_encoder, restore_inference, trained_run
from fs4_jax.sharding import make_mesh
from fs4_jax.standalone import NEVER, class_logits
from tests import alignseg_train_test, pretrain_test
from tests.fast_compiles import setUpModule, tearDownModule  # noqa: F401
from tests.train_test import quietly, tiny_config

try:
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    _NO_ONNX = False
except ImportError:
    _NO_ONNX = True

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_METHODS = ("fs4", "alignseg", "scribble")
_SIZE = {"fs4": (32, 48), "alignseg": (64, 64), "scribble": (32, 32)}
_MATCHING = [1, -1, 0]              # of FS4's three clusters: sky, no class, road
_NAMES = ("road", "sky", "boat")

# What runs a page's snippet in each folder, in a process that has no fs4_jax.
_DRIVER = """
import os, sys
sys.modules["fs4_jax"] = None
for folder in sys.argv[2:]:
    os.chdir(folder)
    exec(sys.argv[1], {})
assert not [name for name in sys.modules if name.startswith("fs4_jax.")]
"""


def configs():
    scribble = tiny_config(method="scribble", num_clusters=10)
    scribble.scribble.annotation = "scribbles"
    return {"fs4": tiny_config(), "alignseg": alignseg_train_test.tiny_config(),
            "scribble": scribble, "dino": pretrain_test.pretrain_config()}


def begin(config, workdir):
    """A workdir with a checkpoint of step 0: as trained, but for what training changes."""
    run = prepare(config)
    workdir.mkdir()
    remember_config(config, workdir)
    remember_encoder(run, workdir)
    source = checked_source(config, "train")
    state = run.create_state()
    if hasattr(run.method, "finish"):         # random classes would all be one
        params = run.method.finish(state.params, run.fit_batches(source, 1), state.key)
        where = jax.tree.map(lambda x: x.sharding, state.params)
        state = dataclasses.replace(state, params=jax.device_put(params, where))
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(0, state, iter(run.views(source, 0)))


def photo(size):
    """A picture with large and small things, uint8 [*size, 3]."""
    rng = np.random.default_rng(3)
    coarse = rng.uniform(0, 255, (size[0] // 8, size[1] // 8, 3)).repeat(8, 0).repeat(8, 1)
    return np.clip(coarse + rng.normal(0, 20, coarse.shape), 0, 255).astype(np.uint8)


def model_ids(workdir, image):
    """Cluster ids int [H, W] of the model in the workdir, by this package."""
    run = trained_run(workdir)
    params, _ = restore_inference(run, workdir)
    logits = jax.jit(lambda params, x: run.method.predict(params, x)["logits"])(params, image[None])
    size = np.array([image.shape[:2]])
    return np.asarray(upsample_argmax(logits, size, image.shape[:2]))[0]


def snippet(name):
    """The Python of docs/export.md that reads the file `name`."""
    blocks = re.findall(r"```python\n(.*?)```", (_ROOT / "docs/export.md").read_text(), re.DOTALL)
    block, = (block for block in blocks if name in block)
    return block.replace("photo.jpg", "photo.png")


class ExportTest(parameterized.TestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        one = make_mesh({"data": 1, "fsdp": 1}, jax.devices()[:1])      # eight compile for long
        cls.enterClassContext(mock.patch.object(run_lib, "make_mesh", lambda settings: one))
        cls.dir = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        for name, config in configs().items():
            begin(config, cls.dir / name)
        (cls.dir / "fs4" / "eval.json").write_text(json.dumps(
            {"matching": _MATCHING, "class_names": _NAMES, "split": "val", "num_images": 8,
             "protocol": "hungarian"}))

    def export(self, method, form, out, size=None):
        size = _SIZE[method] if size is None else size
        return quietly(lambda: export(self.dir / method, out, form=form, size=size))

    def load_elsewhere(self, form, file):
        """Writes each method's file, then mask.png by the page's snippet, without the package."""
        for method in _METHODS:
            folder = self.dir / form / method
            folder.mkdir(parents=True)
            _, output = self.export(method, form, folder / file)
            self.assertRegex(output, r"MB, \d+ ms an image here; the model's classes on 100.00 %")
            Image.fromarray(photo(_SIZE[method])).save(folder / "photo.png")
        done = subprocess.run(
            [sys.executable, "-c", _DRIVER, snippet(file),
             *(str(self.dir / form / method) for method in _METHODS)],
            text=True, capture_output=True, cwd=self.dir)
        self.assertEqual(done.returncode, 0, done.stderr)

    def check(self, form):
        for method in _METHODS:
            with self.subTest(method):
                wanted = model_ids(self.dir / method, photo(_SIZE[method]))
                self.assertGreater(len(np.unique(wanted)), 1, "one class for all tells nothing")
                if method == "fs4":
                    wanted = np.array([1, 3, 0])[wanted]      # as matched; 3: no class
                with Image.open(self.dir / form / method / "mask.png") as mask:
                    colours = np.array(mask.getpalette()).reshape(-1, 3)
                    ids = np.asarray(mask)
                self.assertGreaterEqual(np.mean(ids == wanted), LEAST_AGREEMENT)
                np.testing.assert_array_equal(colours[:3], palette(3))

    def test_stablehlo(self):
        self.load_elsewhere("stablehlo", "model.zip")
        self.check("stablehlo")
        about, _ = self.export("fs4", "stablehlo", self.dir / "again.zip")
        self.assertEqual([entry["name"] for entry in about["classes"]],
                         [*_NAMES, "cluster 1 (no class)"])
        self.assertEqual(about["input"]["shape"], ["batch", 32, 48, 3])
        self.assertEqual(about["input"]["normalization"]["mean"], [0.485, 0.456, 0.406])
        self.assertEqual(about["dtype"], "float32")

    @absltest.skipIf(_NO_ONNX, "needs the extra onnx")
    def test_onnx(self):
        self.load_elsewhere("onnx", "model.onnx")
        self.check("onnx")
        session = onnxruntime.InferenceSession(self.dir / "onnx/alignseg/model.onnx")
        about = session.get_modelmeta().custom_metadata_map
        self.assertEqual(about["method"], "AlignSeg")
        classes = configs()["alignseg"].num_clusters
        self.assertLen(json.loads(about["classes"]), classes)
        images = np.stack([photo((64, 64)), photo((64, 64))[::-1], photo((64, 64))])
        ids, logits = session.run(None, {"image": images})
        self.assertEqual((ids.shape, logits.shape), ((3, 64, 64), (3, 64, 64, classes)))
        np.testing.assert_array_equal(ids[0], ids[2])
        np.testing.assert_array_equal(np.argmax(logits, axis=-1), ids)

    def test_merged_clusters(self):
        logits = np.array([[3.0, 1.0, 2.0], [0.0, 1.0, 2.0]], np.float32)
        merged = np.asarray(class_logits(logits, np.array([0, 3, 0]), 4))
        np.testing.assert_array_equal(merged, [[3, NEVER, NEVER, 1], [2, NEVER, NEVER, 1]])
        names = ClusterNames({0: "water"}, {2: 0})
        write_cluster_names(self.dir / "scribble", names)
        self.addCleanup((self.dir / "scribble" / "clusters.json").unlink)
        about, _ = self.export("scribble", "stablehlo", self.dir / "merged.zip")
        self.assertEqual(about["classes"][0]["name"], "water")

    def test_what_can_not_work(self):
        out = self.dir / "never.zip"
        for error, message, arguments in (
                (ConfigError, "which has no classes: train FS", ("dino", out, 32)),
                (ConfigError, "no multiple of the encoder's patch, 8 pixels: take --size=32,40",
                 ("fs4", out, (32, 41))),
                (ConfigError, "holds no config.json", ("nowhere", out, 32)),
                (DataError, "there is no folder", ("fs4", self.dir / "none/model.zip", 32)),
                (DataError, "is a folder", ("fs4", self.dir, 32))):
            with self.assertRaisesRegex(error, message):
                self.export(arguments[0], "stablehlo", arguments[1], arguments[2])
        self.assertFalse(out.exists())
        with mock.patch.dict(sys.modules, {"onnx": None}), \
                self.assertRaisesRegex(ConfigError, r"pip install 'fs4_jax\[onnx\]'"):
            self.export("fs4", "onnx", out)

    def test_a_file_that_is_another_model_is_not_written(self):
        out = self.dir / "wrong.zip"
        wrong = mock.patch("fs4_jax.export._loaded_stablehlo", lambda content: lambda images:
                           np.zeros(images.shape[:3], np.uint8))
        with wrong, self.assertRaisesRegex(ConfigError, "nothing was written"):
            self.export("scribble", "stablehlo", out)
        self.assertFalse(out.exists())

    def test_the_size_on_the_command_line(self):
        from fs4_jax.export import _size
        self.assertEqual([_size(given) for given in ("", "64", "32,48")], [0, 64, (32, 48)])
        for given in ("a", "0", "1,2,3", "-8"):
            with self.assertRaisesRegex(ConfigError, "HEIGHT,WIDTH"):
                _size(given)


if __name__ == "__main__":
    absltest.main()
