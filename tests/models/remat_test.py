"""`ViT.remat`: the same encoder, with less kept for its gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.models import make_encoder
from fs4_jax.program_cost import live_bytes, product_flops

_IMAGES = np.random.default_rng(0).standard_normal((4, 32, 32, 3)).astype(np.float32)


def encoder(remat, **options):
    return dataclasses.replace(make_encoder("mu/8", image_size=32, **options), remat=remat)


def gradient(model):
    """Jitted gradient of a loss in which every token counts; drop path acts."""
    def loss(params, images):
        out = model.apply({"params": params}, images, train=True,
                          rngs={"dropout": jax.random.key(1)})
        return jnp.mean(out["patch_tokens"] ** 3) + jnp.mean(out["cls"] ** 3)

    return jax.jit(jax.grad(loss))


class RematTest(parameterized.TestCase):

    @parameterized.parameters({}, {"drop_path": 0.5}, {"position": "rope"})
    def test_same_parameters_and_gradients(self, **options):
        kept, again = (encoder(remat, **options) for remat in ("none", "blocks"))
        params, same = (model.init(jax.random.key(0), _IMAGES[:1])["params"]
                        for model in (kept, again))
        jax.tree.map(np.testing.assert_array_equal, params, same)
        # Compiled to another program, in float32: 1e-6 relative, of 4 blocks.
        want, got = (gradient(model)(params, _IMAGES) for model in (kept, again))
        off = jax.tree.map(lambda a, b: float(jnp.linalg.norm(a - b)), want, got)
        size = float(jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(want))))
        self.assertLess(max(jax.tree.leaves(off)), 2e-6 * size)
        self.assertGreater(size, 1e-3)

    def test_it_says_what_it_does_not_know(self):
        with self.assertRaisesRegex(ValueError, "remat='all' is unknown: one of none, blocks"):
            encoder("all").init(jax.random.key(0), _IMAGES)

    def test_less_memory_for_more_work(self):
        """Of the program as written: XLA on a CPU recomputes too, but frees nothing for it."""
        images = jax.ShapeDtypeStruct((64, 32, 32, 3), jnp.float32)
        live, work = {}, {}
        for remat in ("none", "blocks"):
            model = encoder(remat)
            params = jax.eval_shape(lambda m=model: m.init(jax.random.key(0), _IMAGES)["params"])
            traced = gradient(model).trace(params, images)
            live[remat], work[remat] = live_bytes(traced.jaxpr), product_flops(traced.jaxpr)
            if jax.default_backend() != "cpu":
                memory = traced.lower().compile().memory_analysis()
                live[remat] = memory.temp_size_in_bytes
        self.assertLess(live["blocks"], 0.6 * live["none"])       # 4 blocks: 1 and 4 inputs of 4
        self.assertBetween(work["blocks"], 1.1 * work["none"], 1.34 * work["none"])


if __name__ == "__main__":
    absltest.main()
