"""Tests of fs4_jax.models.prototype_decoder: stacking, its defect as released, what it ignores."""

import jax
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.models.prototype_decoder import FewQueries, PrototypeDecoder

_B, _N, _D, _K = 2, 9, 12, 4


def tokens(seed=0):
    return np.random.default_rng(seed).normal(size=(_B, _N, _D)).astype(np.float32)


def made(**options):
    """(decoder, random parameters with no bias of 0)."""
    decoder = PrototypeDecoder(_K, **{"num_heads": 3, "hidden": 8} | options)
    params = decoder.init(jax.random.key(0), tokens())["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
    return decoder, jax.tree.unflatten(tree, noise)


def attended(params, queries, seen, heads):
    """Multi-head attention as it is taught: keys and values of every token, in double precision."""
    def project(x, name):
        layer = params[name]
        y = x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"])
        return y.reshape(*y.shape[:-1], heads, -1)

    q, k, v = project(queries, "query"), project(seen, "key"), project(seen, "value")
    scores = np.einsum("bqhc,bnhc->bhqn", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    y = np.einsum("bhqn,bnhc->bqhc", weights, v).reshape(queries.shape)
    out = params["out"]
    return y @ np.asarray(out["kernel"], np.float64) + np.asarray(out["bias"])


class DecoderTest(parameterized.TestCase):

    @parameterized.parameters(1, 3, 4)
    def test_attention_is_that_of_projected_tokens(self, heads):
        module = FewQueries(heads)
        rng = np.random.default_rng(0)
        queries = rng.normal(size=(_B, _K, _D)).astype(np.float32)
        params = module.init(jax.random.key(0), queries, tokens())["params"]
        params = jax.tree.map(lambda x: x + rng.normal(size=x.shape).astype(np.float32), params)
        np.testing.assert_allclose(module.apply({"params": params}, queries, tokens()),
                                   attended(params, queries, tokens(), heads), rtol=1e-4,
                                   atol=1e-4)

    def test_shapes_and_starts(self):
        decoder = PrototypeDecoder(5, hidden=768)
        params = jax.eval_shape(decoder.init, jax.random.key(0), np.zeros((1, 4, 384)))["params"]
        number = sum(np.prod(x.shape) for x in jax.tree.leaves(params))
        self.assertEqual(number, 5 * 384 + 2 * 4 * (384 * 384 + 384) + 3 * 2 * 384 +
                         2 * 384 * 768 + 384 + 768)                        # about 1.8 million
        params = PrototypeDecoder(5, hidden=768).init(jax.random.key(0), np.zeros((1, 4, 384)))
        layer = params["params"]["layer_0"]
        bound = np.sqrt(6 / (4 * 384))
        for name in ("query", "key", "value"):
            kernel = np.asarray(layer["cross"][name]["kernel"])
            self.assertBetween(np.abs(kernel).max(), 0.99 * bound, bound)
        self.assertBetween(np.std(layer["linear1"]["kernel"]), 0.015, 0.021)
        self.assertBetween(np.std(params["params"]["prototypes"]), 0.9, 1.1)

    def test_order_and_number_of_tokens_are_free(self):
        decoder, params = made()
        x = tokens()
        out = decoder.apply({"params": params}, x)
        self.assertEqual(out.shape, (_B, _K, _D))
        np.testing.assert_allclose(decoder.apply({"params": params}, x[:, ::-1]), out, atol=1e-5)
        self.assertGreater(np.abs(decoder.apply({"params": params}, x[:, :5]) - out).max(), 1e-3)

    def test_images_do_not_see_each_other(self):
        decoder, params = made()
        alone = decoder.apply({"params": params}, tokens()[1:])
        np.testing.assert_allclose(decoder.apply({"params": params}, tokens())[1:], alone,
                                   atol=1e-5)

    def test_layers_stack_and_as_released_they_do_not(self):
        x = tokens()

        def out_and_gradient(**options):
            decoder, params = made(num_layers=3, **options)
            def total(params):
                out = decoder.apply({"params": params}, x)
                return (out * np.arange(_D)).sum(), out
            grads, out = jax.grad(total, has_aux=True)(params)
            return decoder, params, out, {
                name: max(np.abs(g).max() for g in jax.tree.leaves(part))
                for name, part in grads.items()}

        _, params, stacked, grads = out_and_gradient()
        self.assertGreater(min(grads.values()), 1e-3, grads)
        _, same, released, grads = out_and_gradient(bug_compatible=True)
        jax.tree.map(np.testing.assert_array_equal, params, same)
        self.assertEqual((grads["layer_0"], grads["layer_1"]), (0.0, 0.0))
        self.assertGreater(min(grads["layer_2"], grads["prototypes"]), 1e-3)
        self.assertGreater(np.abs(stacked - released).max(), 1e-2)
        one = PrototypeDecoder(_K, 3, 8)
        last = {"prototypes": params["prototypes"], "layer_0": params["layer_2"]}
        np.testing.assert_allclose(one.apply({"params": last}, x), released, atol=1e-6)

    def test_heads_that_do_not_divide(self):
        with self.assertRaisesRegex(ValueError, "alignseg.num_heads=5 does not divide.* 12"):
            made(num_heads=5)


if __name__ == "__main__":
    absltest.main()
