"""Tests of fs4_jax.optimizer, on tiny trees."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from fs4_jax.config import default_config
from fs4_jax.optimizer import make_optimizer, make_schedule


def settings(**changes):
    optimizer = default_config().optimizer
    optimizer.update(dict(learning_rate=0.1, warmup_steps=0, weight_decay=0.0, clip_norm=0.0))
    optimizer.update(changes)
    return optimizer


def tiny_params():
    """The shapes of a two-block encoder with a head, two numbers a side."""
    block = {"attn": {"qkv": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}},
             "norm1": {"scale": jnp.ones(2)}}
    return {"encoder": {"blocks_0": block, "blocks_1": block, "cls_token": jnp.ones((1, 1, 2)),
                        "pos_embed": jnp.ones((1, 2, 2, 2)), "norm": {"scale": jnp.ones(2)},
                        "patch_embed": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}},
            "head": {"classifier": {"prototypes": jnp.ones((3, 2))},
                     "context": {"project": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}}}


def one_update(optimizer, grads, params=None):
    """{path: first entry of the update} of the first step."""
    params = params or tiny_params()
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): float(leaf.reshape(-1)[0])
            for path, leaf in jax.tree_util.tree_leaves_with_path(updates)}


class ScheduleTest(parameterized.TestCase):

    def test_warms_up_to_the_peak_and_ends_at_zero(self):
        schedule = make_schedule(settings(warmup_steps=10), 110)
        values = [float(schedule(i)) for i in (0, 5, 10, 60, 110, 200)]
        np.testing.assert_allclose(values, [0, 0.05, 0.1, 0.05, 0, 0], atol=1e-7)
        falling = [float(schedule(i)) for i in range(10, 111)]
        self.assertEqual(falling, sorted(falling, reverse=True))

    def test_halves_every_so_many_steps(self):
        """torch's StepLR(step_size=30, gamma=0.5), with AlignSeg's 3 epochs in the place of 30."""
        schedule = make_schedule(settings(halve_every=30), 100)
        values = [float(schedule(i)) for i in (0, 29, 30, 59, 60, 99)]
        np.testing.assert_allclose(values, [0.1, 0.1, 0.05, 0.05, 0.025, 0.0125], rtol=1e-6)
        traced = jax.jit(schedule)(jnp.asarray(61, jnp.int32))
        np.testing.assert_allclose(traced, 0.025, rtol=1e-6)
        warm = make_schedule(settings(halve_every=30, warmup_steps=10), 100)
        np.testing.assert_allclose([float(warm(i)) for i in (0, 5, 10, 30)], [0, 0.05, 0.1, 0.05],
                                   rtol=1e-6)

    @parameterized.parameters((1, 50), (2, 50), (20, 50), (5, 0))
    def test_runs_shorter_than_the_warm_up(self, total_steps, warmup):
        schedule = make_schedule(settings(warmup_steps=warmup), total_steps)
        values = [float(schedule(i)) for i in range(total_steps)]
        self.assertTrue(all(0 <= v <= 0.1 + 1e-8 for v in values), values)
        self.assertAlmostEqual(max(values), 0.1, places=6)


class OptimizerTest(absltest.TestCase):

    def test_weight_decay_leaves_a_decoders_prototypes_alone(self):
        params = {"decoder": {"prototypes": jnp.ones((5, 2)), "layer_0": {
            "cross": {"query": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}},
            "ffn_norm": {"scale": jnp.ones(2)}}}}
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates = one_update(make_optimizer(settings(weight_decay=0.5), 100, 2), zeros, params)
        self.assertEqual({name for name, value in updates.items() if value != 0},
                         {"decoder/layer_0/cross/query/kernel"})

    def test_weight_decay_reaches_kernels_only(self):
        zeros = jax.tree.map(jnp.zeros_like, tiny_params())
        updates = one_update(make_optimizer(settings(weight_decay=0.5), 100, 2), zeros)
        for name, update in updates.items():
            want = -0.1 * 0.5 if name.endswith("/kernel") else 0.0
            self.assertAlmostEqual(update, want, msg=name)
        self.assertEqual(sum(u != 0 for u in updates.values()), 4)

    def test_layer_decay(self):
        """Each block 1/2 of the next, embeddings below the first, the head at the full rate."""
        ones = jax.tree.map(jnp.ones_like, tiny_params())
        optimizer = make_optimizer(settings(layer_decay=0.5, encoder_scale=0.2), 100, 2)
        rates = {"encoder/norm/": 0.2, "encoder/blocks_1/": 0.1, "encoder/blocks_0/": 0.05,
                 "encoder/cls_token": 0.025, "encoder/pos_embed": 0.025,
                 "encoder/patch_embed/": 0.025, "head/": 1.0}
        updates = one_update(optimizer, ones)
        for name, update in updates.items():
            rate, = [rate for prefix, rate in rates.items() if name.startswith(prefix)]
            # Adam's first step is the sign of the gradient.
            self.assertAlmostEqual(update, -0.1 * rate, places=6, msg=name)

    def test_decay_is_scaled_with_the_rate(self):
        zeros = jax.tree.map(jnp.zeros_like, tiny_params())
        optimizer = make_optimizer(settings(weight_decay=0.5, layer_decay=0.5), 100, 2)
        updates = one_update(optimizer, zeros)
        self.assertAlmostEqual(updates["encoder/blocks_0/attn/qkv/kernel"], -0.1 * 0.5 / 4)

    def test_is_optax_adamw(self):
        rng = np.random.default_rng(0)
        params = {"head": {"kernel": jnp.float32(rng.normal(size=(3, 4)))}}
        peer = optax.adamw(make_schedule(settings(), 20), b2=0.99, weight_decay=0.3)
        ours = make_optimizer(settings(weight_decay=0.3), 20, 2)
        states, trees = [peer.init(params), ours.init(params)], [params, params]
        for _ in range(5):
            grads = {"head": {"kernel": jnp.float32(rng.normal(size=(3, 4)))}}
            for i, tx in enumerate((peer, ours)):
                updates, states[i] = tx.update(grads, states[i], trees[i])
                trees[i] = optax.apply_updates(trees[i], updates)
        np.testing.assert_allclose(trees[1]["head"]["kernel"], trees[0]["head"]["kernel"],
                                   rtol=1e-6)

    def test_clipping_bounds_the_gradient_that_adam_sees(self):
        """A gradient 1000 times as large leaves the same first moment; 0 clips nothing."""
        params = {"head": {"kernel": jnp.zeros((2, 2))}}
        grads = {"head": {"kernel": jnp.full((2, 2), 50.0)}}                  # norm 100
        moments = {}
        for clip in (1.0, 0.0):
            optimizer = make_optimizer(settings(clip_norm=clip), 100, 2)
            _, state = optimizer.update(grads, optimizer.init(params), params)
            mu = optax.tree.get(state, "mu")["head"]["kernel"]
            moments[clip] = float(jnp.linalg.norm(mu))
        np.testing.assert_allclose(moments[1.0], 0.1 * 1.0, rtol=1e-5)         # (1 - b1) x norm
        np.testing.assert_allclose(moments[0.0], 0.1 * 100.0, rtol=1e-5)


if __name__ == "__main__":
    absltest.main()
