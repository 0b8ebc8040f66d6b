"""Jax functions as ONNX models: onnxruntime computes what jax does, for batches of any size."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.models.vit import ViT, normalize_images
from fs4_jax.onnx_graph import Untranslatable
from tests.fast_compiles import setUpModule, tearDownModule  # noqa: F401

try:
    import onnxruntime
except ImportError:
    onnxruntime = None


def convert(function, shape, dtype=np.float32, num_outputs=1):
    """The function as onnxruntime runs it, and the model."""
    from fs4_jax.onnx_rules import to_onnx
    names = [f"y{i}" for i in range(num_outputs)]
    model = to_onnx(function, shape, dtype, input_name="x", output_names=names,
                    metadata={"made": "here"})
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return lambda x: session.run(names, {"x": x}), session


@absltest.skipIf(onnxruntime is None, "needs the extra onnx")
class OnnxRulesTest(parameterized.TestCase):

    def assert_same(self, function, shape, dtype=np.float32, num_outputs=1, tolerance=1e-5):
        call, session = convert(function, shape, dtype, num_outputs)
        rng = np.random.default_rng(0)
        for batch in (2, 1):
            x = rng.normal(0, 1, (batch, *shape))
            x = (255 * np.abs(np.sin(x)) if dtype == np.uint8 else x).astype(dtype)
            for ours, theirs in zip(call(x), jax.jit(function)(x), strict=True):
                self.assertEqual((ours.shape, ours.dtype), (theirs.shape, theirs.dtype))
                np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
        return session

    def test_numbers(self):
        def function(x):
            positive = jnp.abs(x) + 0.5
            parts = jnp.split(x, [1, 3], axis=2)
            return (jnp.clip(x, -0.5, 0.5) + jnp.log1p(positive) * jnp.expm1(x) - x ** 3 / 7,
                    jnp.where(jnp.isfinite(x / (x - x)) | (x != x[..., :1]), x, jnp.tanh(-x)),
                    jnp.argmin(x, axis=1), jnp.max(x, axis=(1, 3)), jnp.prod(positive, axis=2),
                    jax.nn.silu(parts[1]) + jnp.sqrt(positive[:, :, 1:3]) ** -1,
                    jnp.stack([x, jnp.sign(x), jnp.sin(x) * jnp.cos(x)], axis=2),
                    jnp.pad(x, ((0, 0), (1, 2), (0, 0), (0, 0)), mode="edge")[:, ::2],
                    jnp.mean(x) * x.shape[0], *jnp.unstack(x, axis=3)[:2])
        self.assert_same(function, (4, 5, 3), num_outputs=11)

    def test_products(self):
        weights = np.random.default_rng(1).normal(0, 1, (3, 7)).astype(np.float32)
        square = np.random.default_rng(2).normal(0, 1, (5, 5)).astype(np.float32)

        def function(x):
            return (x @ weights, jnp.einsum("dk,bhwd->kbhw", weights, x),
                    jnp.einsum("bhwc,bhvc->bhwv", x, x), jnp.einsum("bhwc,bhwd->bcd", x, x),
                    jnp.einsum("wv,bhwc->bhvc", square, x), jnp.einsum("bhwc,c->bhw", x,
                                                                       weights[:, 0]))
        self.assert_same(function, (4, 5, 3), num_outputs=6)

    def test_loops_and_branches(self):
        offsets = np.arange(3, dtype=np.int32)

        def function(x):
            def body(carry, step):
                offset, row = step
                part = jax.lax.dynamic_slice_in_dim(x, offset, 2, axis=1)
                return carry + jnp.sum(part, axis=(1, 2, 3)), (row * carry[:, None, None], offset)
            start = jnp.zeros(x.shape[0])
            each = jnp.moveaxis(x[:, :3], 1, 0)
            total, (rows, seen) = jax.lax.scan(body, start, (offsets, each), reverse=True)
            return jax.lax.cond(offsets[1] > 0, lambda t: t, lambda t: -t, total), rows, seen
        self.assert_same(function, (4, 5, 3), num_outputs=3)

    def test_convolutions(self):
        kernel = np.random.default_rng(1).normal(0, 1, (3, 2, 3, 4)).astype(np.float32)

        def function(x):
            x = normalize_images(x)
            return (jax.lax.conv_general_dilated(
                x, kernel, (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),)
        self.assert_same(function, (8, 6, 3), np.uint8)

    @parameterized.parameters(
        dict(num_registers=2, position="bicubic_antialias", mlp="swiglu", layer_scale=1.0),
        dict(position="rope"))
    def test_encoders(self, **options):
        encoder = ViT(patch=8, width=16, depth=2, num_heads=2, pos_grid=(2, 2), **options)
        params = encoder.init(jax.random.key(0), jnp.zeros((1, 16, 24, 3)))["params"]

        def function(x):
            out = encoder.apply({"params": params}, normalize_images(x))
            return out["patch_tokens"], out["cls"]
        session = self.assert_same(function, (16, 24, 3), np.uint8, num_outputs=2, tolerance=1e-4)
        self.assertEqual(session.get_inputs()[0].shape, ["batch", 16, 24, 3])
        self.assertEqual(session.get_modelmeta().custom_metadata_map, {"made": "here"})

    @parameterized.parameters(
        (lambda x: (jnp.sort(x),), "'sort' has no rule"),
        (lambda x: (jax.lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x),), "depends on the image"),
        (lambda x: (jax.lax.dynamic_slice_in_dim(x, jnp.argmax(x[0]), 1, axis=1),),
         "place depends on the image"))
    def test_what_can_not_be_translated(self, function, message):
        with self.assertRaisesRegex(Untranslatable, message):
            convert(function, (4,))


if __name__ == "__main__":
    absltest.main()
