"""Reading encoders: what is accepted, what is refused and how, and the real one in float64."""

import json
import os
import pathlib
import pickle
import sys
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors.numpy
from absl.testing import absltest, parameterized

from fs4_jax.models import (
    WeightsError,
    export_encoder,
    load_encoder,
    make_encoder,
    normalize_images,
    read_architecture,
)
from tests.models.reference_vit import official_tensors, reference_vit, relative_error
from tests.shared import shared_path, street_photo


class WeightsTestCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.tensors = official_tensors(np.random.default_rng(0), depth=2)

    def _save(self, tensors, name="encoder.safetensors", metadata=None):
        path = self.folder / name
        if path.suffix == ".npz":
            np.savez(path, **tensors)
        else:
            safetensors.numpy.save_file(tensors, path, metadata=metadata)
        return path

    def _refusal(self, path, **kwargs):
        """The message, which must name the file; the header alone must be enough for it."""
        with self.assertRaises(WeightsError) as caught:
            read_architecture(path, **kwargs)
        self.assertIn(str(path), str(caught.exception))
        with self.assertRaises(WeightsError):
            load_encoder(path, **kwargs)
        return str(caught.exception)


class ReadTest(WeightsTestCase):
    def test_architecture_from_shapes(self):
        tensors = official_tensors(
            np.random.default_rng(0), width=192, depth=2, patch=8, grid=(3, 3), registers=5
        )
        arch = read_architecture(self._save(tensors))
        self.assertEqual((arch.width, arch.depth, arch.patch, arch.num_heads), (192, 2, 8, 3))
        self.assertEqual((arch.pos_grid, arch.num_registers), ((3, 3), 5))
        self.assertEqual((arch.mlp_width, arch.layer_scale), (256, True))
        self.assertEqual(arch.variant, "(width 192, depth 2, 3 heads, patch 8)")

    @parameterized.parameters(
        (np.float32, "e.safetensors"),
        (np.float16, "e.safetensors"),
        (ml_dtypes.bfloat16, "e.safetensors"),
        (np.float32, "e.npz"),
        (np.float16, "e.npz"),
    )
    def test_every_dtype_comes_out_float32(self, dtype, name):
        tensors = {name: value.astype(dtype) for name, value in self.tensors.items()}
        _, params = load_encoder(self._save(tensors, name))
        self.assertEqual({leaf.dtype.name for leaf in jax.tree.leaves(params)}, {"float32"})
        np.testing.assert_array_equal(
            params["blocks_1"]["mlp"]["fc1"]["kernel"],
            tensors["blocks.1.mlp.fc1.weight"].astype(np.float32).T,
        )
        np.testing.assert_array_equal(
            params["patch_embed"]["kernel"].reshape(4, 4, 3, -1)[1, 2, 0],
            tensors["patch_embed.proj.weight"].astype(np.float32)[:, 0, 1, 2],
        )

    @parameterized.parameters(
        "teacher.backbone.", "backbone.", "module.", "student.", "encoder.", "module.backbone."
    )
    def test_prefixes_are_dropped(self, prefix):
        plain = load_encoder(self._save(self.tensors))
        named = {prefix + name: value for name, value in self.tensors.items()}
        model, params = load_encoder(self._save(named, "prefixed.safetensors"))
        self.assertEqual(model, plain[0])
        jax.tree.map(np.testing.assert_array_equal, params, plain[1])

    @parameterized.parameters(
        ("teacher.backbone.", "student."),
        ("target_encoder.module.", "encoder.module."),
        ("state_dict.module.momentum_encoder.", "state_dict.module.base_encoder."),
        ("module.encoder_q.", ""),
    )
    def test_the_averaged_one_of_two_encoders_is_taken(self, taken, left):
        both = {taken + name: value for name, value in self.tensors.items()}
        both |= {left + name: value + 1 for name, value in self.tensors.items()}
        _, params = load_encoder(self._save(both))
        np.testing.assert_array_equal(params["norm"]["bias"], self.tensors["norm.bias"])

    def test_the_same_encoder_twice(self):
        both = {w + n: v for w in ("teacher.", "teacher.module.") for n, v in self.tensors.items()}
        message = self._refusal(self._save(both))
        self.assertRegex(message, r"more than one encoder: teacher\.\S+ and teacher\.module\.\S+")

    def test_heads_are_left_out_and_nothing_else(self):
        heads = ("teacher.head.mlp.0.weight", "head.last_layer.weight_g", "dino_head.mlp.2.bias",
                 "ibot_head.last_layer.weight_v", "decoder_blocks.0.norm1.weight",
                 "decoder_pos_embed", "masked_embed", "module.predictor.0.weight",
                 "head.1.running_mean", "fc.fc1.weight", "prototypes", "pooler.dense.bias")
        path = self._save(self.tensors | {name: np.zeros((3, 3), np.float32) for name in heads})
        load_encoder(path)
        self.assertIn("extra neck.weight [3, 3]", self._refusal(self._save(
            self.tensors | {"neck.weight": np.zeros((3, 3), np.float32)})))

    def test_blocks_in_chunks(self):
        chunked = {n.replace("blocks.1.", "blocks.1.1.").replace("blocks.0.", "blocks.0.0."): v
                   for n, v in self.tensors.items()}
        self.assertEqual(read_architecture(self._save(chunked)).depth, 2)

    @parameterized.parameters("head.weight", "classifier.weight", "module.fc.bias")
    def test_a_classifier_is_refused_unless_allowed(self, name):
        path = self._save(self.tensors | {name: np.zeros((10, 64), np.float32)})
        message = self._refusal(path)
        for word in (name, "label-free", "--allow_supervised"):
            self.assertIn(word, message)
        _, params = load_encoder(path, allow_supervised=True)
        self.assertNotIn("head", params)

    @parameterized.parameters(
        (True, 0, "dinov2", "bicubic"), (True, 4, "dinov2-registers", "bicubic_antialias"),
        (False, 0, "dino", "bicubic_offset"))
    def test_the_family_says_how_positions_are_resized(self, layer_scale, registers, family, how):
        tensors = official_tensors(
            np.random.default_rng(0), depth=1, layer_scale=layer_scale, registers=registers)
        path = self._save(tensors)
        arch = read_architecture(path)
        self.assertEqual((arch.family, arch.position), (family, how))
        self.assertEqual(load_encoder(path)[0].position, how)
        self.assertEqual(load_encoder(path, position="bicubic")[0].position, "bicubic")

    def test_structure_equals_a_fresh_encoder(self):
        tensors = official_tensors(np.random.default_rng(0), depth=2, registers=2)
        model, params = load_encoder(self._save(tensors))
        fresh = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
        self.assertEqual(
            jax.tree.map(lambda p: (p.shape, p.dtype), params),
            jax.tree.map(lambda p: (p.shape, p.dtype), fresh["params"]),
        )

    def test_options_reach_the_model(self):
        path = self._save(self.tensors)
        model, params = load_encoder(path, dtype=jnp.bfloat16, block=1, drop_path=0.2)
        self.assertEqual((model.dtype, model.block, model.drop_path), (jnp.bfloat16, 1, 0.2))
        self.assertNotIn("blocks_1", params)
        with self.assertRaisesRegex(ValueError, r"encoder\.block=3: .*blocks 1 to 2"):
            load_encoder(path, block=3)


    @parameterized.parameters((0, "moco-v3", 12), (1, "mae", 6))
    def test_fixed_positions_tell_moco_v3_which_has_other_heads(self, first_axis, family, heads):
        tensors = official_tensors(
            np.random.default_rng(0), width=384, depth=1, layer_scale=False, hidden=4)
        places = np.indices((4, 4)).reshape(2, 16, 1)
        angles = [places[axis] / 10000 ** (np.arange(96) / 96) for axis in (first_axis,
                                                                            1 - first_axis)]
        waves = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
        tensors["pos_embed"][0] = np.concatenate([np.zeros((1, 384)), np.concatenate(waves, 1)])
        arch = read_architecture(self._save(tensors))
        self.assertEqual((arch.family, arch.num_heads), (family, heads))
        self.assertEqual(arch.position, "bicubic")


class RefusalTest(WeightsTestCase):
    def test_lists_everything_at_once(self):
        tensors = dict(self.tensors)
        del tensors["blocks.1.norm2.bias"], tensors["norm.bias"]
        tensors["neck.weight"] = np.zeros((3, 64), np.float32)
        tensors["blocks.0.attn.qkv.bias"] = np.zeros(64, np.float32)
        tensors["blocks.1.mlp.fc2.bias"] = np.zeros(64, np.int32)
        message = self._refusal(self._save(tensors))
        for line in (
            "missing blocks.1.norm2.bias [64]",
            "missing norm.bias [64]",
            "extra neck.weight [3, 64]",
            "blocks.0.attn.qkv.bias is [64], not [192]",
            "blocks.1.mlp.fc2.bias is I32, not float16, bfloat16 or float32",
        ):
            self.assertIn("\n  " + line, message)
        self.assertEqual(message.count("\n"), 5)

    def test_one_odd_tensor_does_not_blame_the_others(self):
        for name in ("norm.weight", "cls_token", "patch_embed.proj.weight", "pos_embed"):
            tensors = {**self.tensors, name: self.tensors[name].repeat(2, -1)}
            message = self._refusal(self._save(tensors, f"{name}.safetensors"))
            self.assertIn(f"\n  {name} is", message)
            self.assertEqual(message.count("\n"), 1, message)

    @parameterized.parameters(*official_tensors(np.random.default_rng(0), depth=1))
    def test_any_tensor_may_be_missing(self, name):
        tensors = {n: v for n, v in self.tensors.items() if n != name}
        if name == "mask_token":
            read_architecture(self._save(tensors))
        else:
            self.assertIn(f"missing {name}", self._refusal(self._save(tensors)))

    def test_layer_scale_is_all_or_nothing(self):
        without = {n: v for n, v in self.tensors.items() if ".ls" not in n}
        self.assertFalse(read_architecture(self._save(without)).layer_scale)
        del self.tensors["blocks.1.ls2.gamma"]
        message = self._refusal(self._save(self.tensors, "partial.safetensors"))
        self.assertIn("missing blocks.1.ls2.gamma", message)

    def test_a_missing_block(self):
        tensors = {n: v for n, v in self.tensors.items() if "blocks.0." not in n}
        self.assertIn("missing blocks.0.attn.qkv.weight", self._refusal(self._save(tensors)))

    def test_nothing_in_it(self):
        message = self._refusal(self._save({"other": np.zeros(3, np.float32)}))
        self.assertIn("missing blocks.0", message)
        self.assertIn("extra other [3]", message)

    def test_positions_that_are_no_square(self):
        self.tensors["pos_embed"] = self.tensors["pos_embed"][:, :-1]
        self.assertIn("15 positions, which are not 3x3", self._refusal(self._save(self.tensors)))

    @parameterized.parameters("no JSON", "[]", "{}", '{"num_heads": "many"}', json.dumps(
        {"num_heads": 4, "pos_grid": [4, 4], "position": "tricubic", "norm_epsilon": 1e-6}))
    def test_broken_metadata(self, said):
        path = self._save(self.tensors, metadata={"architecture": said})
        self.assertIn(f"architecture = {said}, which", self._refusal(path))

    def test_heads_that_do_not_divide(self):
        said = {"num_heads": 5, "pos_grid": [4, 4], "position": "bicubic", "norm_epsilon": 1e-6}
        path = self._save(self.tensors, metadata={"architecture": json.dumps(said)})
        self.assertIn("5 heads do not divide the width 64", self._refusal(path))

    def test_another_variant(self):
        tensors = official_tensors(
            np.random.default_rng(0), width=128, depth=4, patch=14, grid=(2, 2), hidden=512
        )
        path = self._save(tensors)
        self.assertEqual(read_architecture(path, expected_variant="mu/14").variant, "mu/14")
        for other in ("mu/16", "S/14"):
            message = self._refusal(path, expected_variant=other)
            for word in ("encoder.weights", "encoder.variant", "mu/14", other):
                self.assertIn(word, message)

    def test_not_finite(self):
        self.tensors["blocks.1.norm1.bias"][3] = np.nan
        path = self._save(self.tensors)
        with self.assertRaisesRegex(WeightsError, r"\S+: not finite: blocks\.1\.norm1\.bias"):
            load_encoder(path)

    @parameterized.parameters("e.safetensors", "e.npz")
    def test_no_such_file(self, name):
        self.assertIn("is not there", self._refusal(self.folder / name))
        (self.folder / name).mkdir()
        self.assertIn("is not there, or not a file", self._refusal(self.folder / name))

    @parameterized.parameters("e.safetensors", "e.npz")
    def test_broken_files(self, name):
        whole = self._save(self.tensors, name).read_bytes()
        pickled = b"\x80\x02" + b"x" * 200
        for content in (b"", b"abc", pickled, whole[:-7], whole[: len(whole) // 2]):
            path = self.folder / name
            path.write_bytes(content)
            self.assertRegex(self._refusal(path), r"not a readable \.(npz|safetensors) file: .")

    def test_damaged_array_in_an_npz(self):
        path = self._save(self.tensors, "e.npz")
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
        with self.assertRaisesRegex(WeightsError, "not a readable .npz file"):
            load_encoder(path)

    @parameterized.parameters(".pth", ".pt", ".bin", ".ckpt", ".pth.tar")
    def test_pickles_run_nothing(self, suffix):
        path = self.folder / f"dino{suffix}"
        path.write_bytes(pickle.dumps(_Trap(self.folder / "sprung"), protocol=2))
        self.assertRegex(self._refusal(path), "objects are not loaded|torch is not installed")
        self.assertFalse((self.folder / "sprung").exists())

    def test_without_torch_the_error_says_how_to_convert(self):
        path = self.folder / "dino.pth.tar"
        path.write_bytes(b"anything")
        with mock.patch.dict(sys.modules, {"torch": None}):
            message = self._refusal(path)
        self.assertIn("torch is not installed", message)
        self.assertIn(f"python -m fs4_jax.models.weights convert --input={path} "
                      f"--output={self.folder / 'dino.safetensors'}", message)

    def test_objects_in_an_npz_are_not_unpickled(self):
        trap = np.array([_Trap(self.folder / "sprung")], dtype=object)
        path = self._save({**self.tensors, "norm.bias": trap}, "e.npz")
        self.assertIn("norm.bias is [1], not [64]", self._refusal(path))
        self.assertFalse((self.folder / "sprung").exists())


class _Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class ExportTest(WeightsTestCase):
    @parameterized.parameters("e.safetensors", "e.npz")
    def test_official_names_come_back(self, name):
        tensors = official_tensors(np.random.default_rng(0), depth=2, patch=8, registers=3)
        _, params = load_encoder(self._save(tensors))
        export_encoder(params, self.folder / name)
        if name.endswith("npz"):
            back = dict(np.load(self.folder / name))
        else:
            back = safetensors.numpy.load_file(self.folder / name)
        del tensors["mask_token"]
        self.assertEqual(set(back) - {"architecture"}, set(tensors))
        for key, value in tensors.items():
            np.testing.assert_array_equal(back[key], value, key)
            self.assertEqual(back[key].dtype, np.float32)

    @parameterized.parameters(
        ("mu/8", 16, None, 0), ("mu/16", (16, 48), 0.1, 2), ("Ti/14", 28, None, 4)
    )
    def test_a_fresh_encoder_comes_back(self, variant, image_size, layer_scale, registers):
        model = make_encoder(
            variant, image_size=image_size, layer_scale=layer_scale, num_registers=registers
        )
        size = [side * model.patch for side in model.pos_grid]
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size, 3)))["params"]
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda p: rng.standard_normal(p.shape).astype(np.float32), shapes)
        path = self.folder / "e.safetensors"
        export_encoder(params, path)
        again, loaded = load_encoder(path, expected_variant=variant)
        self.assertEqual((again.num_heads, again.pos_grid), (model.num_heads, model.pos_grid))
        self.assertEqual(jax.tree.structure(loaded), jax.tree.structure(params))
        jax.tree.map(np.testing.assert_array_equal, loaded, params)

    def test_unusual_heads_are_kept_when_named(self):
        _, params = load_encoder(self._save(self.tensors))
        export_encoder(params, self.folder / "e.safetensors", num_heads=4)
        self.assertEqual(read_architecture(self.folder / "e.safetensors").num_heads, 4)


class RealWeightsTest(absltest.TestCase):
    """A trained ViT-S/14 on a street scene, at an image size it was not trained at."""

    def test_equals_numpy_on_a_photo(self):
        path = shared_path("weights", "dinov2_vits14.safetensors")
        images = np.asarray(normalize_images(street_photo((154, 112))))
        model, params = load_encoder(path, expected_variant="S/14")
        apply = jax.jit(model.apply, static_argnames="return_blocks")
        out = apply({"params": params}, images, return_blocks=(8,))
        tensors = safetensors.numpy.load_file(path)
        for blocks in (8, 12):
            expected = reference_vit(tensors, images, num_heads=6, grid=(37, 37), blocks=blocks)
            tokens = out["patch_tokens"] if blocks == 12 else out["block_tokens"][0]
            # Float32 through 12 blocks of a trained network, whose residual stream has outlying
            # dimensions: measured 2.8e-6 of the largest value.
            self.assertLess(relative_error(tokens, expected["patch_tokens"]), 2e-5)
        self.assertLess(relative_error(out["cls"], expected["cls"]), 2e-5)


if __name__ == "__main__":
    absltest.main()
