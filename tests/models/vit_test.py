"""The encoder: its numbers against NumPy, drop path, bfloat16, and what it refuses."""

import functools
import os
import re
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.models import VARIANTS, ViT, load_encoder, make_encoder, normalize_images
from fs4_jax.models.transformer import Block
from fs4_jax.models.position import resize_position
from tests.models.reference_vit import (
    official_tensors,
    reference_bicubic,
    reference_vit,
    relative_error,
)


class ReferenceTest(parameterized.TestCase):
    # float32 keeps 6e-8 of a value; sums over hundreds of terms and three layers cost some twenty
    # such steps (measured: 1.1e-6 at most). A tanh GELU is at 1e-4, a cubic of a = -0.5 at 4e-2.
    tolerance = 1e-5

    def _load(self, tensors, **kwargs):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        path = os.path.join(folder, "encoder.npz")
        np.savez(path, **tensors)
        return load_encoder(path, position="bicubic", **kwargs)

    @parameterized.named_parameters(
        ("native", (16, 16), 4, 0, True),
        ("smaller", (8, 12), 4, 0, True),
        ("larger_not_square", (20, 28), 4, 0, True),
        ("one_axis_only", (16, 24), 4, 0, True),
        ("registers", (12, 16), 4, 4, True),
        ("no_layer_scale", (8, 8), 4, 0, False),
        ("patch_14", (28, 42), 14, 2, True),
    )
    def test_equals_numpy(self, size, patch, registers, layer_scale):
        rng = np.random.default_rng(0)
        tensors = official_tensors(
            rng, width=128, patch=patch, registers=registers, layer_scale=layer_scale, hidden=192
        )
        images = rng.standard_normal((2, *size, 3)).astype(np.float32)
        model, params = self._load(tensors)
        out = jax.jit(model.apply)({"params": params}, images)
        expected = reference_vit(tensors, images, num_heads=4, grid=(4, 4), blocks=3)
        names = {"cls", "patch_tokens"} | ({"registers"} if registers else set())
        self.assertEqual(set(out), names)
        for name in names:
            self.assertLess(relative_error(out[name], expected[name]), self.tolerance, name)

    def test_quiet_tokens_show_the_epsilon_of_the_norms(self):
        rng = np.random.default_rng(2)
        tensors = official_tensors(rng)
        for name, value in tensors.items():
            if not name.startswith("blocks") and "norm" not in name or name.endswith("gamma"):
                tensors[name] = value * np.float32(2e-3)  # variances near 1e-6
        images = rng.standard_normal((1, 16, 16, 3)).astype(np.float32)
        model, params = self._load(tensors)
        out = jax.jit(model.apply)({"params": params}, images)
        expected = reference_vit(tensors, images, num_heads=1, grid=(4, 4), blocks=3)
        for name in ("cls", "patch_tokens"):
            self.assertLess(relative_error(out[name], expected[name]), self.tolerance)

    def test_stops_at_a_block(self):
        rng = np.random.default_rng(1)
        tensors = official_tensors(rng, registers=1)
        images = rng.standard_normal((1, 8, 16, 3)).astype(np.float32)
        full, all_params = self._load(tensors)
        apply = jax.jit(full.apply, static_argnames="return_blocks")
        out = apply({"params": all_params}, images, return_blocks=(3, 1))
        for block in (1, 3):
            model, params = self._load(tensors, block=block)
            self.assertEqual(
                {name for name in params if name.startswith("blocks_")},
                {f"blocks_{i}" for i in range(block)},
            )
            expected = reference_vit(tensors, images, num_heads=1, grid=(4, 4), blocks=block)
            stopped = jax.jit(model.apply)({"params": params}, images)
            for name in ("cls", "patch_tokens"):
                self.assertLess(relative_error(stopped[name], expected[name]), self.tolerance)
            tokens = out["block_tokens"][0 if block == 3 else 1]
            self.assertLess(
                relative_error(tokens, expected["patch_tokens"]), self.tolerance, block
            )
        # Parameters of later blocks may stay in the tree.
        model = full.clone(block=1)
        _, params = self._load(tensors, block=1)
        apply = jax.jit(model.apply)
        np.testing.assert_array_equal(
            apply({"params": all_params}, images)["cls"], apply({"params": params}, images)["cls"]
        )


class ResizePositionTest(absltest.TestCase):
    def test_by_hand(self):
        # Halving 0, 1, 2, 3: centres 0.5 and 2.5, weights -3/32, 19/32, 19/32, -3/32, edge kept.
        pos = jnp.arange(4.0).reshape(1, 4, 1, 1)
        np.testing.assert_allclose(
            resize_position(pos, (2, 1)).ravel(), [19 / 32 - 6 / 32, 3 - 13 / 32], rtol=1e-6
        )

    def test_equals_scalar_loops(self):
        pos = np.random.default_rng(0).standard_normal((1, 5, 3, 2)).astype(np.float32)
        for grid in ((5, 3), (7, 2), (1, 1), (4, 9), (37, 3)):
            expected = reference_bicubic(pos[0].astype(np.float64), *grid)
            np.testing.assert_allclose(resize_position(pos, grid)[0], expected, atol=2e-6)

    def test_same_grid_is_untouched(self):
        pos = jnp.ones((1, 2, 3, 4))
        self.assertIs(resize_position(pos, (2, 3)), pos)


def small_vit(**kwargs):
    return ViT(patch=16, width=32, depth=2, num_heads=2, pos_grid=(2, 2), **kwargs)


def random_params(module, *args):
    """Parameters drawn by NumPy: compiling an `init` takes longer than the test that needs it."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args))["params"]
    return jax.tree.map(lambda p: (0.1 * rng.standard_normal(p.shape)).astype(p.dtype), shapes)


class TrainingTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.images = jax.random.normal(jax.random.key(1), (2, 32, 48, 3))

    def test_gradient_is_finite_and_reaches_everything(self):
        model = small_vit(layer_scale=0.1, num_registers=2)
        params = random_params(model, self.images)

        def loss(params):
            out = model.apply({"params": params}, self.images)
            return sum(jnp.sin(3 * value).mean() for value in out.values())

        grads = jax.jit(jax.grad(loss))(params)
        for path, grad in jax.tree_util.tree_leaves_with_path(grads):
            name = jax.tree_util.keystr(path)
            self.assertTrue(np.isfinite(grad).all(), name)
            self.assertGreater(np.abs(grad).max(), 0, name)

    def test_drop_path_is_off_unless_training(self):
        plain, dropping = small_vit(), small_vit(drop_path=0.5)
        params = {"params": random_params(plain, self.images)}

        @functools.partial(jax.jit, static_argnums=(0, 1))
        def cls(model, train, key=None):
            rngs = None if key is None else {"dropout": jax.random.key(key)}
            return model.apply(params, self.images, train=train, rngs=rngs)["cls"]

        expected = cls(plain, False)
        np.testing.assert_array_equal(cls(dropping, False), expected)
        np.testing.assert_array_equal(cls(plain, True), expected)
        outs = [cls(dropping, True, key) for key in (0, 0, 1)]
        np.testing.assert_array_equal(outs[0], outs[1])
        self.assertGreater(np.abs(outs[0] - outs[2]).max(), 1e-3)

    def test_drop_path_drops_samples_and_keeps_the_expectation(self):
        block = Block(2, 2.0, None, 0.25, jnp.float32)
        one = jax.random.normal(jax.random.key(1), (1, 3, 8))
        params = random_params(block, one, False)
        # With a silent MLP a sample is x or x + attention / keep.
        params = {"params": {**params, "mlp": jax.tree.map(np.zeros_like, params["mlp"])}}
        apply = jax.jit(block.apply, static_argnums=2)
        branch = np.asarray(apply(params, one, False) - one)
        n = 4000
        many = jnp.broadcast_to(one, (n, *one.shape[1:]))
        out = np.asarray(apply(params, many, True, rngs={"dropout": jax.random.key(2)}) - many)
        dropped = np.abs(out).max((1, 2)) < 1e-7
        kept = out[~dropped]
        np.testing.assert_allclose(kept, np.broadcast_to(branch / 0.75, kept.shape), atol=1e-6)
        # 5 standard deviations of a binomial mean.
        self.assertAlmostEqual(dropped.mean(), 0.25, delta=5 * (0.25 * 0.75 / n) ** 0.5)

    def test_drop_path_grows_linearly_with_depth(self):
        n, depth = 2000, 3
        model = ViT(patch=2, width=8, depth=depth, num_heads=1, pos_grid=(1, 1), drop_path=0.6)
        images = jnp.ones((n, 2, 2, 3))
        params = random_params(model, images)
        quiet = jax.tree.map(np.zeros_like, params["blocks_0"])
        params |= {f"blocks_{i}": quiet for i in range(depth)}
        apply = jax.jit(model.apply, static_argnames="train")
        silent = np.asarray(apply({"params": params}, images)["cls"])
        for i, rate in enumerate((0.0, 0.3, 0.6)):
            # Only block i's attention speaks; a sample that skips it equals the silent encoder.
            block = jax.tree.map(lambda x: x, params[f"blocks_{i}"])
            block["attn"]["proj"]["bias"] = jnp.arange(8.0)
            rngs = {"dropout": jax.random.key(i)}
            speaking = {"params": {**params, f"blocks_{i}": block}}
            out = np.asarray(apply(speaking, images, train=True, rngs=rngs)["cls"])
            dropped = (np.abs(out - silent).max(-1) < 1e-5).mean()
            self.assertAlmostEqual(dropped, rate, delta=5 * (rate * (1 - rate) / n) ** 0.5)

    def test_bfloat16_stays_near(self):
        models = [small_vit(dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16)]
        params = {"params": random_params(models[0], self.images)}
        outs = [jax.jit(model.apply)(params, self.images) for model in models]
        for name in ("cls", "patch_tokens"):
            self.assertEqual(outs[1][name].dtype, jnp.bfloat16)
            # bfloat16 keeps 3 digits: 4e-3 a rounding, some ten of them.
            expected = np.asarray(outs[0][name], np.float64)
            self.assertLess(relative_error(outs[1][name], expected), 0.04)

    def test_bfloat16_keeps_parameters_softmax_and_statistics_in_float32(self):
        model = small_vit(dtype=jnp.bfloat16)
        params = jax.eval_shape(model.init, jax.random.key(0), self.images)
        self.assertEqual({leaf.dtype.name for leaf in jax.tree.leaves(params)}, {"float32"})
        text = str(jax.make_jaxpr(model.apply)(params, self.images))
        for operation in ("exp", "rsqrt"):
            types = set(re.findall(rf"(\w+)\[[\d,]*\] = {operation} ", text))
            self.assertEqual(types, {"f32"}, operation)


class InterfaceTest(parameterized.TestCase):
    @parameterized.parameters(
        # Published counts of these ViTs at 224 without a head (timm: vit_*_patch16_224).
        ("Ti/16", 5_524_416),
        ("S/16", 21_665_664),
        ("B/16", 85_798_656),
        ("L/16", 303_301_632),
    )
    def test_variants_have_the_published_size(self, variant, count):
        shapes = jax.eval_shape(
            make_encoder(variant, image_size=224).init,
            jax.random.key(0),
            jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32),
        )
        self.assertEqual(sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)), count)

    @parameterized.parameters(("mu/8", (16, 24), (2, 3)), ("S/14", 28, (2, 2)), ("Ti/4", 8, (2, 2)))
    def test_every_encoder_gives_a_map(self, variant, image_size, grid):
        model = make_encoder(variant, image_size=image_size, block=1, num_registers=3)
        self.assertEqual(model.pos_grid, grid)
        images = jnp.zeros((2, grid[0] * model.patch, grid[1] * model.patch, 3))
        out, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
        width = VARIANTS[variant.split("/")[0]][0]
        self.assertEqual(
            jax.tree.map(jnp.shape, out),
            {"cls": (2, width), "registers": (2, 3, width), "patch_tokens": (2, *grid, width)},
        )

    def test_first_values(self):
        model = small_vit(layer_scale=1e-5)
        images = jnp.zeros((1, 32, 32, 3))
        params = jax.jit(model.init)(jax.random.key(0), images)["params"]
        block = params["blocks_1"]
        np.testing.assert_array_equal(block["ls2"], np.full(32, 1e-5, np.float32))
        np.testing.assert_array_equal(block["norm1"]["scale"], np.ones(32))
        np.testing.assert_array_equal(block["attn"]["qkv"]["bias"], np.zeros(96))
        self.assertAlmostEqual(float(block["mlp"]["fc1"]["kernel"].std()), 0.02, delta=0.003)
        # torch's convolution: uniform within 1 / sqrt(fan_in).
        bound = (16 * 16 * 3) ** -0.5
        self.assertLessEqual(np.abs(params["patch_embed"]["kernel"]).max(), bound)
        self.assertGreater(np.abs(params["patch_embed"]["kernel"]).max(), 0.99 * bound)

    def test_normalize_images(self):
        images = np.array([[0, 0, 0], [255, 255, 255], [124, 116, 104]], np.uint8)
        expected = [
            [-2.1179, -2.0357, -1.8044],
            [2.2489, 2.4286, 2.6400],
            [(124 / 255 - 0.485) / 0.229, (116 / 255 - 0.456) / 0.224, (104 / 255 - 0.406) / 0.225],
        ]
        np.testing.assert_allclose(normalize_images(images), expected, atol=1e-4)
        np.testing.assert_array_equal(
            normalize_images(images.astype(np.float32)), normalize_images(images)
        )
        self.assertEqual(normalize_images(images, jnp.bfloat16).dtype, jnp.bfloat16)

    @parameterized.parameters("S", "S/15", "XL/16", "S/16/16", "", None)
    def test_unknown_variant(self, variant):
        known = r"encoder\.variant=.*mu, Ti, S, B, L, H, g, S\+, H\+ .*4, 8, 14"
        with self.assertRaisesRegex(ValueError, known):
            make_encoder(variant)

    def test_image_size_must_divide(self):
        with self.assertRaisesRegex(ValueError, r"30x28 pixels.*patches of 14.*data\.image_size"):
            make_encoder("S/14", image_size=(30, 28))
        model = make_encoder("mu/8", image_size=16)
        with self.assertRaisesRegex(ValueError, r"16x20 pixels.*patches of 8.*data\.image_size"):
            model.init(jax.random.key(0), jnp.zeros((1, 16, 20, 3)))

    @parameterized.named_parameters(
        ("uint8", {}, np.zeros((1, 16, 16, 3), np.uint8), "normalize_images"),
        ("one_image", {}, np.zeros((16, 16, 3), np.float32), r"\[b,H,W,3\], got \(16, 16, 3\)"),
        ("channels_first", {}, np.zeros((1, 3, 16, 16), np.float32), r"\[b,H,W,3\]"),
        ("block_0", {"block": 0}, None, r"encoder\.block=0 .*1 to 4"),
        ("block_5", {"block": 5}, None, r"encoder\.block=5 .*1 to 4"),
        ("drop_path", {"drop_path": 1.0}, None, r"drop_path=1\.0"),
    )
    def test_says_what_is_wrong(self, kwargs, images, message):
        images = np.zeros((1, 16, 16, 3), np.float32) if images is None else images
        with self.assertRaisesRegex(ValueError, message):
            make_encoder("mu/8", image_size=16, **kwargs).init(jax.random.key(0), images)

    def test_return_blocks_beyond_the_last(self):
        model = make_encoder("mu/8", image_size=16, block=2)
        with self.assertRaisesRegex(ValueError, r"return_blocks=\(3,\).*1 to 2"):
            model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), return_blocks=(3,))

    def test_importing_the_library_alone_stays_light(self):
        code = "import sys, fs4_jax; sys.exit(not {'jax', 'flax', 'numpy'}.isdisjoint(sys.modules))"
        self.assertEqual(subprocess.run([sys.executable, "-c", code], check=False).returncode, 0)


if __name__ == "__main__":
    absltest.main()
