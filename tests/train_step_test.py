"""Tests of fs4_jax.train_step with FS4: one device, eight, parameters split, micro-batches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from fs4_jax.accumulation import micro_batches
from fs4_jax.config import ConfigError, default_config
from fs4_jax.run import prepare
from fs4_jax.sharding import batch_sharding, make_mesh
from fs4_jax.train_step import init_state, make_train_step

_STEPS = 3
_PIECES = ("pgg", "cae", "kernel", "sinkhorn")
_LEARNING_RATE = 1e-3


_COMPILES = []


def _note_compile(event, seconds, **kwargs):
    if event == "/jax/core/compile/backend_compile_duration":
        _COMPILES.append(seconds)


def setUpModule():
    """Compiles fast rather than well: there are ten compilations here and few steps."""
    jax.config.update("jax_disable_most_optimizations", True)
    jax.monitoring.register_event_duration_secs_listener(_note_compile)


def tearDownModule():
    jax.config.update("jax_disable_most_optimizations", False)
    jax.monitoring.unregister_event_duration_listener(_note_compile)


def small_config(**changes):
    config = default_config()
    config.update(dict(num_clusters=5, batch_size=8, total_steps=10))
    config.data.image_size = 32
    config.encoder.update(dict(variant="mu/8", block=1))       # one block compiles sooner
    config.optimizer.update(dict(learning_rate=_LEARNING_RATE, warmup_steps=0))
    config.fs4.cae.update(dict(width=16, hidden=24, radius=1))
    config.fs4.kernel.radius = 1
    config.fs4.pgg.levels, config.fs4.pgg.guides = (1, 2), (1,)
    config.update_from_flattened_dict(changes)
    return config


def random_batch(step, b=8, size=32, tokens=4):
    """A batch as data/pipeline makes it, of noise."""
    rng = np.random.default_rng(step)
    views = rng.integers(0, 256, (2, b, size, size, 3), dtype=np.uint8)
    correspondence = rng.uniform(-0.5, tokens - 0.5, (b, tokens, tokens, 2)).astype(np.float32)
    return {"view1": views[0], "view2": views[1], "correspondence": correspondence,
            "valid": rng.random((b, tokens, tokens)) < 0.8}


def start(config, data, fsdp):
    """(run on data x fsdp devices, first state with random groups)."""
    mesh = make_mesh({"data": data, "fsdp": fsdp}, jax.devices()[:data * fsdp])
    run = dataclasses.replace(prepare(config), mesh=mesh)
    state = run.create_state()
    rng = np.random.default_rng(7)

    def like(x, values):
        return jax.device_put(values.astype(np.float32), x.sharding)

    centroids = jax.tree.map(lambda x: like(x, rng.normal(size=x.shape)),
                             state.extra["centroids"])
    shares = jax.tree.map(lambda x: like(x, rng.dirichlet(np.ones(x.shape[1]), x.shape[0])),
                          state.extra["shares"])
    return run, dataclasses.replace(
        state, extra=state.extra | {"centroids": centroids, "shares": shares})


def train(config, data=1, fsdp=1, num_steps=_STEPS):
    """Steps as train.py makes them.

    Returns the first (params, teacher) on the host, the last state, and of each step the metrics
    and the number of compilations.
    """
    run, state = start(config, data, fsdp)
    step_fn = run.jit_step(state)
    first = jax.device_get((state.params, state.teacher))
    history, compiled = [], []
    for step in range(num_steps):
        batch = jax.device_put(random_batch(step), batch_sharding(run.mesh))
        before = len(_COMPILES)
        state, metrics = step_fn(state, batch)
        compiled.append(len(_COMPILES) - before)
        history.append({k: float(v) for k, v in jax.device_get(metrics).items()})
    return first, state, history, compiled


@functools.cache
def mesh_run(data, fsdp):
    return train(small_config(), data, fsdp)


def reference_run():
    return mesh_run(1, 1)


@functools.cache
def first_loss(off=None):
    """(flat parameters, metrics) of the first batch, with a switch turned off."""
    method = prepare(small_config(**({off: False} if off else {}))).method
    batch = random_batch(0)

    @jax.jit
    def run(key):
        params, extra = method.init(key, batch["view1"][:1])
        loss, (metrics, _) = method.loss(params, params, extra, batch, key, 0)
        return params, metrics | {"loss": loss}

    params, metrics = jax.device_get(run(jax.random.key(0)))
    return flat(params), metrics


def flat(tree):
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree))}


def weights(params):
    """What is trained, flat: without the fine clusters' classes and sizes."""
    return flat({name: part for name, part in params.items() if name not in ("groups", "prior")})


class TrainStepTest(parameterized.TestCase):

    def test_it_trains(self):
        """All metrics finite, the loss is its weighted terms, every parameter moves."""
        first, state, history, compiled = reference_run()
        self.assertEqual(compiled, [1, 0, 0])
        self.assertEqual(int(state.step), _STEPS)
        for metrics in history:
            self.assertTrue(all(np.isfinite(v) for v in metrics.values()), metrics)
            want = metrics["loss_pixel"] + 0.5 * metrics["loss_pgg"] + 0.1 * metrics["loss_kernel"]
            self.assertAlmostEqual(metrics["loss"], want, delta=1e-5)
            self.assertGreater(metrics["grad_norm"], 0)
            self.assertBetween(metrics["assignment_entropy"], 0, np.log(5) + 1e-5)
            self.assertBetween(metrics["clusters_used"], 1, 5)
            self.assertBetween(metrics["largest_cluster_share"], 0.2, 1)
        before, after = weights(first[0]), weights(state.params)
        still = [name for name in after if np.array_equal(before[name], after[name])]
        self.assertEmpty(still)

    def test_the_teacher_is_an_average_of_students(self):
        first, state, _, _ = reference_run()
        start, student, teacher = (
            weights(first[0]), weights(state.params), flat(state.teacher))
        self.assertEqual(teacher.keys(), student.keys())
        for name in teacher:
            # After 3 steps the average still holds (1 - ...) of the start: it lies between.
            moved = np.abs(student[name] - start[name]).max()
            lag = np.abs(student[name] - teacher[name]).max()
            self.assertLess(lag, 3 * moved + 1e-9, name)
            self.assertFalse(np.array_equal(teacher[name], start[name]), name)

    @parameterized.named_parameters(("data_8", 8, 1), ("data_2_fsdp_4", 2, 4))
    def test_any_mesh_gives_the_answer_of_one_device(self, data, fsdp):
        """The batch's sums are global: the loss of 8 devices is not a mean of 8 losses."""
        first, single, single_history, _ = reference_run()
        _, state, history, compiled = mesh_run(data, fsdp)
        self.assertEqual(compiled, [1, 0, 0])
        for one, other in zip(single_history, history, strict=True):
            for name in one:
                # float32 sums in another order, through three steps: 1e-4 relative.
                np.testing.assert_allclose(other[name], one[name], rtol=1e-4, atol=1e-5,
                                           err_msg=name)
        begun, want, got = (
            weights(first[0]), weights(single.params), weights(state.params))
        for name in want:
            if name.endswith("qkv/bias"):      # without the keys' third: its gradient is 0
                begun[name], want[name], got[name] = (
                    np.delete(tree[name].reshape(3, -1), 1, axis=0) for tree in (begun, want, got))
            # Adam divides by the gradient's size, which makes a big step of the rounding of a
            # small gradient: single numbers may differ by tenths of a step, not the whole.
            off = np.linalg.norm(got[name] - want[name])
            self.assertLess(off, 0.005 * np.linalg.norm(want[name] - begun[name]), name)
            self.assertLess(np.abs(got[name] - want[name]).max(), 0.3 * _LEARNING_RATE, name)

    def test_fsdp_really_splits_kernels_and_their_moments(self):
        _, state, _, _ = mesh_run(2, 4)
        for tree in (state.params, state.opt_state, state.teacher):
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                local = leaf.addressable_shards[0].data.size
                divides = any(side % 4 == 0 for side in leaf.shape)
                split = name.endswith("kernel") and divides
                self.assertEqual(local, leaf.size // (4 if split else 1), name)

    def test_layer_decay_counts_the_blocks_that_are_run(self):
        """`encoder.block` = 1: the one block is the last, half a rate below the final norm."""
        config = small_config(**{"optimizer.layer_decay": 0.5, "optimizer.weight_decay": 0.0})
        optimizer = prepare(config).optimizer
        params = {"encoder": {"blocks_0": {"kernel": np.ones((2, 2), np.float32)},
                              "norm": {"scale": np.ones(2, np.float32)}}}
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        rates = {name: -u.flat[0] / _LEARNING_RATE for name, u in flat(updates).items()}
        # Adam's first step is the sign of the gradient, to its epsilon.
        self.assertAlmostEqual(rates["encoder/norm/scale"], 1.0, delta=1e-4)
        self.assertAlmostEqual(rates["encoder/blocks_0/kernel"], 0.5, delta=1e-4)

    def test_a_frozen_encoder_does_not_change(self):
        first, state, history, _ = train(small_config(**{"encoder.frozen": True}), num_steps=2)
        before, after = flat(first[0]["encoder"]), flat(state.params["encoder"])
        for name in before:
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)
        self.assertNotIn("encoder", state.teacher)
        self.assertFalse(any("encoder" in name for name in flat(state.opt_state)))
        head = [np.array_equal(flat(first[0]["head"])[n], v)
                for n, v in flat(state.params["head"]).items()]
        self.assertFalse(any(head))
        self.assertTrue(np.isfinite(history[-1]["loss"]))

    @parameterized.parameters(*_PIECES)
    def test_each_piece_can_be_switched_off(self, piece):
        params, metrics = first_loss(f"fs4.{piece}.enabled")
        self.assertTrue(all(np.isfinite(v) for v in metrics.values()), metrics)
        self.assertEqual("loss_pgg" in metrics, piece != "pgg")
        self.assertEqual(any("pyramid" in name for name in params), piece != "pgg")
        self.assertEqual("loss_kernel" in metrics, piece != "kernel")
        self.assertEqual(any("context/fuse" in name for name in params), piece != "cae")
        self.assertNotAlmostEqual(metrics["loss"], first_loss()[1]["loss"], delta=1e-4)

    def test_attention_starts_as_the_bilateral_form_and_trains(self):
        first, state, history, _ = train(small_config(**{"fs4.cae.form": "attention"}))
        bilateral = [metrics["loss"] for metrics in reference_run()[2]]
        attention = [metrics["loss"] for metrics in history]
        self.assertAlmostEqual(attention[0], bilateral[0], delta=1e-5)      # sums of float32
        self.assertNotAlmostEqual(attention[-1], bilateral[-1], delta=1e-4)
        before, after = weights(first[0]), weights(state.params)
        self.assertEmpty([name for name in after if np.array_equal(before[name], after[name])])

    def test_another_window_is_another_embedding(self):
        method = prepare(small_config(**{"fs4.cae.dilations": (1, 2)})).method
        self.assertEqual(method.head.embedding["dilations"], (1, 2))

    def test_all_pieces_can_be_switched_off_at_once(self):
        config = small_config(**{f"fs4.{piece}.enabled": False for piece in _PIECES})
        first, state, history, _ = train(config, num_steps=1)
        self.assertTrue(all(np.isfinite(v) for v in history[0].values()), history[0])
        self.assertAlmostEqual(history[0]["loss"], history[0]["loss_pixel"], delta=1e-6)
        before, after = weights(first[0]), weights(state.params)
        self.assertEmpty([name for name in after if np.array_equal(before[name], after[name])])


class Line:
    """A method whose loss is a mean over examples, and whose `extra` notes what it has seen."""
    frozen = ()

    def init(self, key, images):
        return {"head": {"kernel": jnp.array([0.5, -1.0])}}, {"seen": jnp.zeros(())}

    def loss(self, params, teacher, extra, batch, key, step):
        loss = jnp.mean((batch["x"] @ params["head"]["kernel"] - batch["y"]) ** 2)
        seen = 10 * extra["seen"] + batch["x"][0, 0]
        return loss, ({"loss_line": loss, "seen_before": extra["seen"]}, {"seen": seen})

    def update_teacher(self, teacher, trained, step):
        return teacher


@functools.cache
def descended(accumulate_steps, data, fsdp):
    """(updates of the parameters, metrics) of one step of gradient descent, FS4 as a mean.

    Sinkhorn's balance and the kernel's ratio are of a batch: switched off.
    """
    config = small_config(**{"batch_size": 16, "accumulate_steps": accumulate_steps,
                             "fs4.sinkhorn.enabled": False, "fs4.kernel.enabled": False})
    run, state = start(config, data, fsdp)
    run = dataclasses.replace(run, optimizer=optax.sgd(0.1))
    state = dataclasses.replace(state, opt_state=run.optimizer.init(state.params))
    before = flat(state.params)
    batch = random_batch(0, b=16) | {"valid": np.ones((16, 4, 4), bool)}
    batch = jax.device_put(batch, batch_sharding(run.mesh))
    state, metrics = run.jit_step(state)(state, batch)
    after = flat(state.params)
    return {name: after[name] - before[name] for name in after}, jax.device_get(metrics)


class AccumulationTest(parameterized.TestCase):

    def line_step(self, accumulate_steps):
        """(state, metrics) after a step of gradient descent on the first examples of a line."""
        method, optimizer = Line(), optax.sgd(0.1)
        state = init_state(method, optimizer, jax.random.key(0), None)
        x = np.arange(16, dtype=np.float32).reshape(8, 2) % 7
        step = jax.jit(make_train_step(method, optimizer, accumulate_steps))
        return step(state, {"x": x, "y": x[:, 0] - 2}, jax.random.key(1))

    @parameterized.parameters(2, 4, 8)
    def test_a_mean_over_examples_gives_the_same_update(self, number):
        state, metrics = self.line_step(1)
        parts, parts_metrics = self.line_step(number)
        # Eight numbers summed in another order, in float32: 1e-6 relative.
        np.testing.assert_allclose(parts.params["head"]["kernel"], state.params["head"]["kernel"],
                                   rtol=1e-6)
        for name in ("loss", "loss_line", "grad_norm"):
            np.testing.assert_allclose(parts_metrics[name], metrics[name], rtol=1e-6)
        self.assertEqual(int(parts.step), 1)

    def test_extra_goes_from_each_micro_batch_to_the_next(self):
        """Four micro-batches begin with rows 0 to 3, which begin with 0, 2, 4, 6."""
        state, metrics = self.line_step(4)
        self.assertEqual(float(state.extra["seen"]), 246)
        self.assertEqual(float(metrics["seen_before"]), np.mean([0, 0, 2, 24]))

    def test_no_row_moves_between_devices(self):
        mesh = make_mesh({"data": 4, "fsdp": 2})
        rows = jax.device_put(np.arange(32 * 3).reshape(32, 3), batch_sharding(mesh))
        split = jax.jit(lambda rows: micro_batches(rows, 2))
        parts = split(rows)
        np.testing.assert_array_equal(parts[1], np.asarray(rows)[1::2])
        held = {shard.device: shard.data for shard in rows.addressable_shards}
        for shard in parts.addressable_shards:
            self.assertEqual(shard.data.shape, (2, 2, 3))
            np.testing.assert_array_equal(np.sort(shard.data.ravel()),
                                          np.asarray(held[shard.device]).ravel())
        program = split.lower(rows).compile().as_text()
        for move in ("all-gather", "all-to-all", "collective-permute"):
            self.assertNotIn(move, program)

    @parameterized.named_parameters(("one_device", 1, 1), ("data_8", 8, 1), ("fsdp_4", 2, 4))
    def test_fs4_without_its_balance(self, data, fsdp):
        whole, whole_metrics = descended(1, 1, 1)
        parts, metrics = descended(2, data, fsdp)
        for name, want in whole.items():
            # float32 sums in another order through an encoder: 1e-4 of a parameter's update.
            off = np.linalg.norm(parts[name] - want)
            self.assertLess(off, 1e-4 * np.linalg.norm(want) + 1e-7, name)
        for name in ("loss", "loss_pixel", "loss_pgg", "grad_norm"):
            np.testing.assert_allclose(metrics[name], whole_metrics[name], rtol=1e-5)

    def test_a_batch_that_does_not_divide_names_both_keys(self):
        with self.assertRaisesRegex(ConfigError, "config.batch_size=24 is not divisible by 8 "
                                    "devices x config.accumulate_steps=2: use a multiple of 16"):
            prepare(small_config(batch_size=24, accumulate_steps=2))


class PredictTest(absltest.TestCase):

    def test_an_image_too_small_for_the_pyramid_is_segmented(self):
        method = prepare(small_config()).method
        params, _ = method.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.uint8))
        out = method.predict(params, np.zeros((1, 8, 16, 3), np.uint8))      # levels 1 and 2
        self.assertEqual(out["logits"].shape, (1, 1, 2, 5))
        np.testing.assert_allclose(method.classify(params, out["embedding"]), out["logits"],
                                   atol=1e-6)


if __name__ == "__main__":
    absltest.main()
