"""Tests of fs4_jax.methods.dino: a step, its terms, schedules, and several devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.config import ConfigError, default_config
from fs4_jax.run import prepare
from fs4_jax.sharding import batch_sharding, make_mesh
from tests.fast_compiles import setUpModule, tearDownModule  # noqa: F401

_STEPS = 3


def small_config(**changes):
    config = default_config()
    config.update(dict(method="dino", batch_size=8, total_steps=10))
    config.data.image_size = 32
    config.encoder.update(dict(variant="mu/8", drop_path=0.2))
    config.optimizer.update(dict(learning_rate=1e-3, warmup_steps=0, final_weight_decay=0.4))
    config.dino.update(dict(num_prototypes=24, patch_prototypes=16, hidden=24, bottleneck=8,
                            num_local=2, local_size=16))
    config.dino.dense.weight, config.dino.texture.weight = 0.5, 0.25
    config.update_from_flattened_dict(changes)
    return config


def random_batch(seed=0, b=8, size=32, tokens=4, num_local=2):
    """A batch as data/pipeline makes it, of noise."""
    rng = np.random.default_rng(seed)

    def views(n, side):
        return rng.integers(0, 256, (b, n, side, side, 3), dtype=np.uint8)

    return {"global": views(2, size), "local": views(num_local, size // 2),
            "correspondence": rng.uniform(-0.5, tokens - 0.5, (b, tokens, tokens, 2)).astype(
                np.float32), "valid": rng.random((b, tokens, tokens)) < 0.8}


def flat(tree):
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree))}


@functools.cache
def trained(data, fsdp, **changes):
    """(first state, last state, metrics) after a few steps on `data` x `fsdp` devices."""
    run = prepare_on(data, fsdp, small_config(**changes))
    state = run.create_state()
    first, step, history = jax.device_get(state), run.jit_step(state), []
    for i in range(_STEPS):
        batch = jax.device_put(random_batch(i), batch_sharding(run.mesh))
        state, metrics = step(state, batch)
        history.append(jax.device_get(metrics))
    return first, jax.device_get(state), history


def prepare_on(data, fsdp, config):
    mesh = make_mesh({"data": data, "fsdp": fsdp}, jax.devices()[:data * fsdp])
    config.mesh.update(dict(data=-1, fsdp=1))
    return dataclasses.replace(prepare(config), mesh=mesh)


class DinoStepTest(parameterized.TestCase):

    def test_it_trains(self):
        first, last, history = trained(1, 1)
        for metrics in history:
            self.assertTrue(all(np.isfinite(v) for v in metrics.values()), metrics)
            want = metrics["loss_cls"] + metrics["loss_ibot"] + 0.5 * metrics["loss_dense"] + \
                0.25 * metrics["loss_texture"] + 0.1 * metrics["loss_koleo"]
            np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)
        before, after = flat(first.params), flat(last.params)
        still = [name for name in before if (before[name] == after[name]).all()]
        self.assertEqual(still, [])
        for name, value in flat(last.teacher).items():      # between where it was and the student
            self.assertTrue((value != after[name]).any(), name)
            self.assertTrue((value != before[name]).any(), name)

    def test_eight_devices_do_as_one(self):
        if len(jax.devices()) < 8:
            self.skipTest("needs 8 devices")
        _, one, history = trained(1, 1)
        for data, fsdp in ((8, 1), (2, 4)):
            _, other, metrics = trained(data, fsdp)
            for mine, theirs in zip(history, metrics):
                for name in mine:
                    # float32 sums in another order.
                    np.testing.assert_allclose(mine[name], theirs[name], rtol=2e-4, atol=2e-5,
                                               err_msg=name)
            for name, value in flat(one.params).items():
                # Adam's first steps are the gradient's sign: a gradient near 0 may flip it, and
                # three steps of 1e-3 then lie apart by at most 6e-3.
                np.testing.assert_allclose(value, flat(other.params)[name], atol=6.1e-3,
                                           err_msg=name)

    def test_the_last_layers_are_held_at_first(self):
        first, last, _ = trained(1, 1, **{"dino.freeze_last_layer_steps": 2})
        held = run_steps(2, **{"dino.freeze_last_layer_steps": 2})
        for head in ("cls", "patch"):
            name = f"head/{head}/last_layer/prototypes"
            np.testing.assert_array_equal(flat(first.params)[name], flat(held.params)[name])
            self.assertTrue((flat(first.params)[name] != flat(last.params)[name]).any())
            mlp = f"head/{head}/mlp_0/kernel"
            self.assertTrue((flat(first.params)[mlp] != flat(held.params)[mlp]).any())

    def test_centering_moves_the_centres_and_sinkhorn_leaves_them(self):
        _, last, history = trained(1, 1, **{"dino.centering": "center"})
        for name in ("cls", "patch"):
            self.assertGreater(np.abs(last.extra["centres"][name]).max(), 0)
        self.assertTrue(all(np.isfinite(m["loss"]) for m in history))
        self.assertEqual(np.abs(trained(1, 1)[1].extra["centres"]["cls"]).max(), 0)

    @parameterized.parameters(
        ({"dino.ibot.weight": 0.0, "dino.dense.weight": 0.0}, ("cls", "koleo", "texture")),
        ({"dino.koleo.weight": 0.0, "dino.patch_prototypes": 0},
         ("cls", "dense", "ibot", "texture")))
    def test_terms_can_be_left_out(self, changes, terms):
        method = prepare(small_config(**changes)).method
        batch = random_batch()
        params, extra = jax.eval_shape(method.init, jax.random.key(0), batch["global"][:1, 0])
        loss, (metrics, _) = jax.eval_shape(
            method.loss, params, params, extra, batch, jax.random.key(0), jnp.zeros((), jnp.int32))
        self.assertEqual({k for k in metrics if k.startswith("loss_")},
                         {f"loss_{name}" for name in terms})
        self.assertEqual("patch" in params["head"], changes.get("dino.patch_prototypes", 1) > 0 and
                         "ibot" in terms)


def run_steps(number, **changes):
    run = prepare_on(1, 1, small_config(**changes))
    state = run.create_state()
    step = run.jit_step(state)
    for i in range(number):
        state, _ = step(state, jax.device_put(random_batch(i), batch_sharding(run.mesh)))
    return jax.device_get(state)


class DinoPartsTest(parameterized.TestCase):

    def test_schedules(self):
        method = prepare(small_config(**{
            "total_steps": 100, "dino.teacher_momentum": 0.9, "dino.teacher_temperature": 0.07,
            "dino.warmup_teacher_temperature": 0.04, "dino.warmup_temperature_steps": 10})).method
        for step, want in ((0, 0.04), (5, 0.055), (10, 0.07), (50, 0.07)):
            self.assertAlmostEqual(float(method._temperature(step)), want, places=6)
        for step, momentum in ((0, 0.9), (50, 0.95), (100, 1.0)):
            moved = method.update_teacher({"x": jnp.zeros(())}, {"x": jnp.ones(())},
                                          jnp.asarray(step))
            self.assertAlmostEqual(float(moved["x"]), 1 - momentum, places=6)

    def test_predict_is_the_teachers_encoder(self):
        method = prepare(small_config()).method
        images = random_batch()["global"][:2, 0]
        params, _ = method.init(jax.random.key(0), images)
        out = method.predict(params, images)
        self.assertEqual(out["patch_tokens"].shape, (2, 4, 4, 128))
        self.assertNotIn("logits", out)
        self.assertIs(method.inference_params("student", "teacher"), "teacher")

    @parameterized.parameters(
        ({"encoder.frozen": True}, "encoder.frozen=True leaves"),
        ({"encoder.block": 2}, "set config.encoder.block=0"),
        ({"dino.centering": "both"}, "dino.centering is 'both'; choose one of sinkhorn, center"))
    def test_settings_that_can_not_work(self, changes, message):
        with self.assertRaisesRegex(ConfigError, message):
            prepare(small_config(**changes))


if __name__ == "__main__":
    absltest.main()
