"""The convert command: both ways, what it says, what it writes beside the tensors."""

import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from absl.testing import absltest, parameterized

from fs4_jax.models import ViT, WeightsError, export_encoder, load_encoder
from fs4_jax.models.weights import convert
from tests.models.reference_vit import official_tensors


def metadata_of(path):
    with safetensors.safe_open(path, framework="numpy") as file:
        return file.metadata()


class ConvertTest(parameterized.TestCase):

    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.tensors = official_tensors(
            np.random.default_rng(0), width=128, depth=2, patch=8, registers=4)
        self.source = self.folder / "in.safetensors"
        safetensors.numpy.save_file(self.tensors, self.source)

    def test_there_and_back(self):
        there, back = self.folder / "hf.safetensors", self.folder / "back.npz"
        lines = convert(self.source, there, names="huggingface")
        self.assertIn("dinov2-registers, ViT-(width 128, depth 2, 4 heads, patch 8), 4 registers",
                      lines[0])
        self.assertIn("positions 4x4, resized bicubic_antialias, official names", lines[0])
        self.assertEqual(lines[1], "left out: mask token (1)")
        self.assertIn("encoder.layer.1.attention.attention.query.weight",
                      safetensors.numpy.load_file(there))
        self.assertIn("huggingface names", convert(there, back)[0])
        models, params = zip(*map(load_encoder, (self.source, there, back)), strict=True)
        self.assertLen(set(models), 1)
        for other in params[1:]:
            jax.tree.map(np.testing.assert_array_equal, params[0], other)

    def test_metadata(self):
        target = self.folder / "out.safetensors"
        convert(self.source, target, position="bicubic")
        said = metadata_of(target)
        self.assertEqual(said["family"], "dinov2-registers")
        self.assertEqual(said["source"], "in.safetensors")
        self.assertEqual(
            said["source_sha256"], hashlib.sha256(self.source.read_bytes()).hexdigest())
        self.assertEqual(json.loads(said["architecture"]), {
            "num_heads": 4, "pos_grid": [4, 4], "position": "bicubic", "norm_epsilon": 1e-6,
            "family": "dinov2-registers"})
        self.assertEqual(load_encoder(target)[0].position, "bicubic")

    def test_says_whose_encoder_it_took_and_what_it_left_out(self):
        both = {f"{who}.{name}": value for who in ("student", "teacher")
                for name, value in self.tensors.items()}
        both["teacher.head.weight"] = np.zeros((10, 128), np.float32)
        safetensors.numpy.save_file(both, self.source)
        target = self.folder / "out.safetensors"
        text = "\n".join(convert(self.source, target, allow_supervised=True))
        self.assertIn("took the teacher; also in the file: student", text)
        self.assertIn("left out the classifier (teacher.head.weight): this encoder has seen labels",
                      text)
        self.assertEqual(metadata_of(target)["family"], "supervised")

    @parameterized.parameters(
        ("in.safetensors", "is the input itself"), ("no/out.safetensors", "there is no folder"),
        ("out.pth", "written as .safetensors or .npz"))
    def test_where_it_can_not_write(self, name, message):
        with self.assertRaisesRegex(WeightsError, message):
            convert(self.source, self.folder / name)

    @parameterized.parameters("official", "huggingface")
    def test_rotary_encoders_come_back(self, names):
        model = ViT(patch=4, width=64, depth=1, num_heads=4, pos_grid=(1, 1), num_registers=2,
                    layer_scale=1.0, position="rope", mlp="swiglu", norm_epsilon=1e-5)
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda p: rng.standard_normal(p.shape).astype(np.float32), shapes)
        third = params["blocks_0"]["attn"]["qkv"]["bias"]
        third[64:128] = 0           # DINOv3 has no key bias, and its files no place for one
        path = self.folder / "rope.safetensors"
        export_encoder(params, path, model=model, names=names, family="dinov3")
        again, loaded = load_encoder(path)
        self.assertEqual(again, model)
        jax.tree.map(np.testing.assert_array_equal, loaded, params)
        safetensors.numpy.save_file(safetensors.numpy.load_file(path), path)    # no metadata
        said = {"official": 4, "huggingface": 1}[names]     # frequencies, or one for 64 channels
        self.assertEqual(load_encoder(path)[0], model.clone(num_heads=said))

    def test_command(self):
        def command(*args):
            return subprocess.run([sys.executable, "-m", "fs4_jax.models.weights", *args],
                                  text=True, capture_output=True)

        done = command("convert", f"--input={self.source}", f"--output={self.folder}/o.safetensors")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn(f"wrote {self.folder}/o.safetensors (official names, float32)", done.stdout)
        failed = command("convert", f"--input={self.folder}/no.npz", "--output=o.npz")
        self.assertEqual(failed.returncode, 2)
        self.assertRegex(failed.stderr, r"^error: .*no\.npz .* is not there, or not a file\n$")


if __name__ == "__main__":
    absltest.main()
