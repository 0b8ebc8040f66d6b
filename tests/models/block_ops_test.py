"""The operations of a block: values in NumPy and float64, gradients against finite differences."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from absl.testing import absltest, parameterized

from fs4_jax.models import block_ops, transformer


SCALE = 0.7


def attention(qkv):
    return block_ops.attention(qkv, SCALE)


def numpy_attention(qkv):
    q, k, v = np.moveaxis(qkv, 2, 0)
    scores = SCALE * np.einsum("bqhc,bkhc->bhqk", q, k)
    return np.einsum("bhqk,bkhc->bqhc", scipy.special.softmax(scores, axis=-1), v)


def numpy_gelu(x):
    return x * scipy.special.ndtr(x)


def numpy_layer_norm(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale + bias


# name: (function, the same in NumPy, shapes of the arguments)
OPERATIONS = {
    "attention": (attention, numpy_attention, [(3, 7, 3, 2, 4)]),
    "attention in long rows": (attention, numpy_attention, [(2, 41, 3, 1, 2)]),
    "layer_norm": (lambda *args: block_ops.layer_norm(*args, 1e-6), numpy_layer_norm,
                   [(2, 5, 40), (40,), (40,)]),
    "dense": (block_ops.dense, lambda x, w, b: x @ w + b, [(2, 5, 4), (4, 6), (6,)]),
    "gelu": (block_ops.gelu, numpy_gelu, [(3, 5)]),
    "mlp": (block_ops.mlp, lambda x, w, b, v, c: numpy_gelu(x @ w + b) @ v + c,
            [(2, 3, 4), (4, 6), (6,), (6, 4), (4,)]),
}
NAMES = tuple((name, name) for name in OPERATIONS)


def draw(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def value_and_gradients(function, weight, *args):
    """function(*args), and the gradients of sum(weight * function(*args))."""
    y, pull = jax.vjp(function, *args)
    return y, pull(weight.astype(y.dtype))


class BlockOpsTest(parameterized.TestCase):
    @parameterized.named_parameters(*NAMES)
    def test_values_and_gradients(self, name):
        function, reference, shapes = OPERATIONS[name]
        args = draw(shapes)
        expected = reference(*args)
        weight = draw([expected.shape], seed=1)[0]
        y, gradients = jax.jit(value_and_gradients, static_argnums=0)(
            function, jnp.float32(weight), *map(jnp.float32, args))
        # A few steps of float32 (1e-7) for values of size one.
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
        step = 1e-5      # in float64: the differences are good to 1e-10
        for i, gradient in enumerate(gradients):
            self.assertEqual(gradient.shape, args[i].shape)
            slopes = np.empty_like(args[i])
            for index in np.ndindex(slopes.shape):
                up, down = [a.copy() for a in args], [a.copy() for a in args]
                up[i][index] += step
                down[i][index] -= step
                difference = reference(*up) - reference(*down)
                slopes[index] = np.sum(weight * difference) / (2 * step)
            np.testing.assert_allclose(gradient, slopes, rtol=1e-5, atol=3e-6)

    @parameterized.named_parameters(*NAMES)
    def test_bfloat16(self, name):
        function, _, shapes = OPERATIONS[name]
        args = [jnp.bfloat16(a) for a in draw(shapes)]
        wide = [a.astype(jnp.float32) for a in args]
        weight = jnp.float32(draw([jax.eval_shape(function, *args).shape], seed=1)[0])
        run = jax.jit(value_and_gradients, static_argnums=0)
        narrow, expected = run(function, weight, *args), run(function, weight, *wide)
        for a, b in zip(jax.tree.leaves(narrow), jax.tree.leaves(expected), strict=True):
            self.assertEqual(a.dtype, jnp.bfloat16)
            # bfloat16 keeps 4e-3 of a value: some steps of the largest.
            scale = np.abs(b).max()
            np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.03 * scale)

    @parameterized.named_parameters(*NAMES)
    def test_vmap_of_the_gradient(self, name):
        function, _, shapes = OPERATIONS[name]
        one, two = ([jnp.float32(a) for a in draw(shapes, seed)] for seed in (0, 1))
        weight = jnp.float32(draw([jax.eval_shape(function, *one).shape], seed=2)[0])
        both = jax.vmap(lambda *args: value_and_gradients(function, weight, *args))(
            *(jnp.stack(pair) for pair in zip(one, two)))
        for i, args in enumerate((one, two)):
            single = value_and_gradients(function, weight, *args)
            for a, b in zip(jax.tree.leaves(both), jax.tree.leaves(single), strict=True):
                np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6)

    @parameterized.parameters(3, 4, 16)
    def test_parts_of_a_head_are_all_of_it(self, b):
        qkv, weight = (jnp.float32(a) for a in draw([(b, 7, 3, 2, 4), (b, 7, 2, 4)]))
        def answers():                    # compiled anew: what is traced holds IN_CACHE
            return jax.jit(lambda *args: value_and_gradients(attention, *args))(weight, qkv)

        whole = answers()
        for most in (1, 2 * 7 * 7):
            with mock.patch.object(block_ops, "IN_CACHE", most):
                parts = answers()
            for one, other in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(whole[0], numpy_attention(qkv), atol=1e-5)

    def test_attention_of_large_scores(self):
        qkv = jnp.float32(draw([(1, 5, 3, 1, 4)])[0]).at[:, :, 0].multiply(1e4)
        y, (gradient,) = value_and_gradients(attention, qkv[:, :, 2], qkv)
        np.testing.assert_allclose(y, numpy_attention(qkv), atol=1e-5)
        self.assertTrue(np.isfinite(gradient).all())

    def test_gelu_far_out(self):
        x = jnp.float32([-1e30, -40.0, -6.0, 0.0, 6.0, 40.0, 1e30])
        y, (slope,) = value_and_gradients(block_ops.gelu, jnp.ones(7), x)
        np.testing.assert_allclose(y, numpy_gelu(np.float64(x)), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(slope, [0, 0, 0, 0.5, 1, 1, 1], atol=1e-6)

    def test_every_platform_has_its_branch(self):
        x = jax.ShapeDtypeStruct((3, 7, 3, 2, 4), jnp.float32)
        run = jax.jit(attention)
        for platform, loops in (("cpu", 1), ("tpu", 0), ("cuda", 0)):
            lowered = run.trace(x).lower(lowering_platforms=(platform,)).as_text()
            self.assertEqual(lowered.count("stablehlo.while"), loops, platform)

    def test_what_a_block_keeps_for_its_gradient(self):
        b, n, d = 2, 200, 48
        tokens = jax.ShapeDtypeStruct((b, n, d), jnp.float32)

        def memory(depth):
            blocks = [transformer.Block(num_heads=2, mlp_ratio=4.0, layer_scale=1.0, drop_path=0.0,
                                        dtype=jnp.float32) for _ in range(depth)]

            def loss(params, x):
                for block, param in zip(blocks, params):
                    x = block.apply(param, x, train=True)
                return jnp.square(x).sum()

            params = [jax.eval_shape(functools.partial(block.init, train=False), jax.random.key(0),
                                     tokens) for block in blocks]
            compiled = jax.jit(jax.grad(loss)).lower(params, tokens).compile()
            return compiled.memory_analysis().temp_size_in_bytes

        # In token arrays: queries, keys, values 3; the hidden layer 4; both norms' inputs and
        # outputs 4; attention's answer, that of each branch 3. XLA's own choice was 26.
        kept = (memory(6) - memory(3)) / 3 / (b * n * d * 4)
        self.assertLess(kept, 15.5)
        self.assertGreater(kept, 8)


if __name__ == "__main__":
    absltest.main()
