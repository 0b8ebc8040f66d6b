"""Tests of fs4_jax.models.context_embedding: both forms, from where they start."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from fs4_jax.models.context_embedding import ContextEmbedding
from tests.affinity.windowed_test import loop_average

_WIDTH = 5


def random_seen(h=4, w=7, seed=0):
    """(patch tokens [2, h, w, 6], appearance [2, h, w, 16])."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(2, h, w, 6)).astype(np.float32),
            rng.normal(size=(2, h, w, 16)).astype(np.float32))


def start(form, dilations=(1,), **settings):
    """(model, its first parameters)."""
    model = ContextEmbedding(width=_WIDTH, hidden=8, form=form, dilations=dilations, **settings)
    return model, model.init(jax.random.key(0), *random_seen())["params"]


class ContextEmbeddingTest(parameterized.TestCase):

    @parameterized.product(form=("bilateral", "attention"), dilations=((1,), (1, 2)),
                           grid=((4, 7), (5, 3), (1, 6)))
    def test_starts_as_the_bilateral_average_of_the_projected_cues(self, form, dilations, grid):
        model, params = start(form, dilations, radius=2, position_sigma=1.5, colour_sigma=0.8)
        tokens, appearance = random_seen(*grid)
        cues = np.concatenate([tokens, appearance], axis=-1).astype(np.float64)
        projected = cues @ params["project"]["kernel"] + params["project"]["bias"]
        want = loop_average(projected, appearance[..., :3] / 0.8, 2, 1.5, dilations)
        # float32 against float64: sums of 22 products, then of at most 50 neighbours.
        np.testing.assert_allclose(model.apply({"params": params}, tokens, appearance), want,
                                   rtol=1e-4, atol=1e-5)

    def test_the_bilateral_form_has_the_parameters_that_it_had(self):
        self.assertEqual(jax.tree.map(jnp.shape, start("bilateral")[1]), {
            "project": {"kernel": (22, 5), "bias": (5,)}, "norm": {"scale": (10,), "bias": (10,)},
            "fuse": {"kernel": (34, 8), "bias": (8,)}, "out": {"kernel": (8, 5), "bias": (5,)}})

    def test_attention_learns_whom_to_attend_to(self):
        """The neighbour on the left, by training queries and keys alone."""
        model, params = start("attention")
        seen = random_seen()
        target = jnp.roll(model.apply({"params": params}, *seen), 1, axis=2)
        attends = {name: params[name] for name in ("attention_norm", "query", "key")}

        def loss(attends):
            embedding = model.apply({"params": params | attends}, *seen)
            return jnp.mean((embedding - target) ** 2)

        optimizer = optax.adam(1e-2)

        @jax.jit
        def step(attends, state):
            value, grads = jax.value_and_grad(loss)(attends)
            updates, state = optimizer.update(grads, state)
            return optax.apply_updates(attends, updates), state, value, grads

        state, losses, seen_grads = optimizer.init(attends), [], []
        for _ in range(20):
            attends, state, value, grads = step(attends, state)
            losses.append(float(value))
            seen_grads.append(jax.tree.map(lambda g: float(jnp.abs(g).max()), grads))
        # Keys matter once there are queries.
        self.assertGreater(seen_grads[0]["query"]["kernel"], 0)
        self.assertEqual(seen_grads[0]["key"]["kernel"], 0)
        self.assertGreater(min(jax.tree.leaves(seen_grads[1])), 0)
        self.assertLess(losses[-1], 0.9 * losses[0])

    def test_without_context_it_is_a_linear_map_of_the_tokens(self):
        model, params = start("attention", context=False)
        tokens, appearance = random_seen()
        self.assertEqual(set(params), {"project"})
        np.testing.assert_allclose(
            model.apply({"params": params}, tokens, appearance),
            tokens @ params["project"]["kernel"] + params["project"]["bias"], rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
    absltest.main()
