"""Tests of fs4_jax.methods.scribble: a step with every loss, its devices, and runs to the end."""

import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from fs4_jax import evaluate, train
from fs4_jax.config import ConfigError, default_config
from fs4_jax.config_checks import check_config
from fs4_jax.data.images import DataError
from fs4_jax.models.decoder import MultiLevelDecoder
from fs4_jax.run import checked_source, prepare
from fs4_jax.sharding import batch_sharding, make_mesh
from tests.fast_compiles import setUpModule, tearDownModule  # noqa: F401

_STEPS = 3
_FORMS = ("none", "static", "densecrf", "normalized_cut", "kernel_cut", "dfr")


def small_config(**changes):
    config = default_config()
    config.update(dict(method="scribble", num_clusters=10, batch_size=8, total_steps=4))
    config.data.update(dict(name="scenes", image_size=32, num_train=16, num_eval=6))
    config.encoder.update(dict(variant="mu/8", block=2, frozen=True))
    config.optimizer.update(dict(learning_rate=1e-3, warmup_steps=0))
    config.eval.update(dict(protocol="identity", batch_size=4, pictures=2, floor_images=4))
    config.scribble.annotation = "scribbles"
    config.scribble.decoder.update(dict(width=8, detail=4, upsample=2))
    config.scribble.regularizer.update(dict(radius=1, rampup=0.0))
    config.scribble.regularizer.dense.leaf_size = 4
    config.scribble.consistency.update(dict(width=4, pairs=8))
    config.update_from_flattened_dict(changes)
    return config


def random_batch(b=8, size=32, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 10, (b, size, size), dtype=np.uint8)
    label[rng.random(label.shape) < 0.9] = 255
    return {"image": rng.integers(0, 256, (b, size, size, 3), dtype=np.uint8), "label": label}


def batch_with_levels():
    """As a cache of tokens gives it: no encoder to compile."""
    levels = np.random.default_rng(1).normal(size=(8, 3, 4, 4, 128)).astype(np.float16)
    return random_batch() | {"levels": levels}


@functools.cache
def trained(data, fsdp, **changes):
    """(run, first parameters, last state, metrics) after a few steps on data x fsdp devices.

    A frozen encoder's tokens are given, one that is trained sees the images.
    """
    mesh = make_mesh({"data": data, "fsdp": fsdp}, jax.devices()[:data * fsdp])
    run = dataclasses.replace(prepare(small_config(**changes)), mesh=mesh)
    state = run.create_state()
    first = jax.device_get(state.params)
    step = run.jit_step(state)
    batch = batch_with_levels() if run.config.encoder.frozen else random_batch()
    batch = jax.device_put(batch, batch_sharding(mesh))
    for _ in range(_STEPS):
        state, metrics = step(state, batch)
    return run, first, state, jax.device_get(metrics)


class StepTest(parameterized.TestCase):

    @parameterized.parameters(*_FORMS)
    def test_every_loss_trains_the_decoder(self, form):
        changes = {} if form == "dfr" else {"scribble.regularizer.form": form}
        _, first, state, metrics = trained(1, 1, **changes)
        self.assertTrue(all(np.isfinite(x) for x in metrics.values()), metrics)
        self.assertEqual("loss_regularizer" in metrics, form != "none")
        for name in ("loss_pairs", "loss_strokes"):
            self.assertEqual(name in metrics, form == "dfr")
        np.testing.assert_allclose(metrics["labelled_share"], 0.1, atol=0.02)
        if form != "none":
            self.assertBetween(metrics["loss_regularizer"], 0.01, 2.0)
        for name in ("fuse", "refine", "classifier"):
            self.assertFalse(np.allclose(first["decoder"][name]["kernel"],
                                         state.params["decoder"][name]["kernel"]), name)

    @parameterized.parameters(("static", "dense"), ("dfr", "dense"))
    def test_dense_reach(self, form, reach):
        metrics = trained(1, 1, **{"scribble.regularizer.form": form,
                                   "scribble.regularizer.reach": reach})[-1]
        self.assertBetween(metrics["loss_regularizer"], 0.01, 1.0)

    def test_the_deep_features_are_trained_by_their_own_losses_alone(self):
        """Without them the regularizer moves the classes and leaves g as it was."""
        _, first, state, _ = trained(1, 1, **{"scribble.consistency.weight": 0.0,
                                              "optimizer.weight_decay": 0.0})
        np.testing.assert_array_equal(first["decoder"]["consistency"]["kernel"],
                                      state.params["decoder"]["consistency"]["kernel"])
        _, first, state, _ = trained(1, 1)
        self.assertFalse(np.array_equal(first["decoder"]["consistency"]["kernel"],
                                        state.params["decoder"]["consistency"]["kernel"]))

    def test_the_deep_features_do_not_move_the_tokens(self):
        decoder = MultiLevelDecoder(3, width=4, detail=0, upsample=1, consistency=2)
        levels = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 8))
        params = decoder.init(jax.random.key(1), levels, jnp.zeros((2, 8, 8, 3)))["params"]

        def size(params, levels, name):
            return jnp.sum(decoder.apply({"params": params}, levels,
                                         jnp.zeros((2, 8, 8, 3)))[name] ** 2)

        for name, moves in (("features", False), ("logits", True)):
            of_params, of_levels = jax.grad(size, argnums=(0, 1))(params, levels, name)
            self.assertEqual(bool(jnp.any(of_levels)), moves, name)
            own = "consistency" if name == "features" else "classifier"
            self.assertTrue(jnp.any(of_params[own]["kernel"]), name)

    def test_the_regularizer_begins_with_nothing_and_ramps_up(self):
        """A tenth of 100 steps: weight 0 at step 0, half at 5, whole from 10 on."""
        run = trained(1, 1, **{"scribble.regularizer.form": "static"})[0]
        method = dataclasses.replace(run.method, total_steps=100,
                                     settings=small_config(**{
                                         "scribble.regularizer.form": "static",
                                         "scribble.regularizer.rampup": 0.1}).scribble)
        params = trained(1, 1, **{"scribble.regularizer.form": "static"})[2].params
        for step, share in ((0, 0.0), (5, 0.5), (10, 1.0), (60, 1.0)):
            loss, (metrics, _) = method.loss(params, None, {}, batch_with_levels(),
                                             jax.random.key(0), jnp.int32(step))
            np.testing.assert_allclose(loss, metrics["loss_partial"] +
                                       share * metrics["loss_regularizer"], rtol=1e-5)

    def test_a_frozen_encoder_stays_and_a_trained_one_learns(self):
        for frozen in (True, False):
            _, first, state, _ = trained(1, 1, **{} if frozen else {"encoder.frozen": False})
            same = jax.tree.map(np.array_equal, first["encoder"],
                                jax.device_get(state.params["encoder"]))
            self.assertEqual(all(jax.tree.leaves(same)), frozen)

    @parameterized.parameters((8, 1), (2, 2))
    def test_on_many_devices_as_on_one(self, data, fsdp):
        """After three steps; sums in another order, through Adam's square roots: 1e-3."""
        alone, spread = trained(1, 1), trained(data, fsdp)
        for name in alone[-1]:
            np.testing.assert_allclose(alone[-1][name], spread[-1][name], rtol=1e-3, err_msg=name)

    def test_cached_levels_are_what_the_encoder_sees(self):
        run, _, state, _ = trained(1, 1)
        batch = random_batch()
        seen = jax.jit(run.method.loss)(state.params, None, {}, batch, jax.random.key(0),
                                        jnp.int32(1))[0]
        kept = run.method.keep(state.params, batch)
        self.assertEqual(kept["levels"].dtype, jnp.float16)
        cached = jax.jit(run.method.loss)(state.params, None, {}, {**batch, **kept},
                                          jax.random.key(0), jnp.int32(1))[0]
        np.testing.assert_allclose(cached, seen, rtol=1e-3)           # of float16

    def test_sure_pixels_become_pairs_after_the_ramp(self):
        run, _, state, _ = trained(1, 1)
        settings = small_config(**{"scribble.consistency.confident": 1e-3,
                                   "scribble.regularizer.rampup": 0.5}).scribble
        method = dataclasses.replace(run.method, settings=settings, total_steps=10)
        batch = batch_with_levels()

        def pairs(method, step):
            return float(method.loss(state.params, None, {}, batch, jax.random.key(0),
                                     jnp.int32(step))[1][0]["loss_pairs"])

        plain = dataclasses.replace(method, settings=small_config().scribble)
        self.assertEqual(pairs(method, 2), pairs(plain, 2))
        self.assertNotEqual(pairs(method, 5), pairs(plain, 5))

    def test_classify_gives_the_logits_of_the_embedding(self):
        run, _, state, _ = trained(1, 1)
        out = run.method.predict(state.params, random_batch()["image"])
        self.assertEqual(out["logits"].shape, (8, 8, 8, 10))
        np.testing.assert_allclose(run.method.classify(state.params, out["embedding"]),
                                   out["logits"], rtol=1e-4, atol=1e-5)


class RunTest(absltest.TestCase):

    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.create_tempdir().full_path)

    def test_trains_resumes_and_is_scored_on_the_labels_own_classes(self):
        config = small_config()
        config.checkpoint.every = 2
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            self.assertEqual(train.train(config, self.root / "whole"), 0)
        self.assertIn("labels of training: ", out.getvalue())
        scores = json.loads((self.root / "whole" / "eval.json").read_text())
        self.assertEqual(scores["protocol"], "identity")
        self.assertEqual(scores["matching"], list(range(10)))
        self.assertNotIn("clusters_used", scores)
        self.assertTrue((self.root / "whole" / "report.html").exists())
        with contextlib.redirect_stdout(io.StringIO()):
            self.assertEqual(evaluate.evaluate_workdir(config, self.root / "whole"), 0)
        again = json.loads((self.root / "whole" / "eval.json").read_text())
        self.assertEqual(again["miou"], scores["miou"])

    def test_the_configs_can_work(self):
        path = pathlib.Path(__file__).resolve().parents[2] / "configs/scribble.py"
        get_config = runpy.run_path(str(path))["get_config"]
        for arg in ("scenes", "pretrained", "camvid", "S/14"):
            with self.subTest(arg):
                config = get_config(arg)
                check_config(config)
                self.assertEqual(config.encoder.frozen, arg != "scenes")
                # What ties all to all as long as features are random.
                self.assertEqual(config.scribble.regularizer.strokes.weight > 0, arg != "scenes")

    def test_classes_that_are_not_those_of_the_labels(self):
        config = small_config(num_clusters=7)
        with self.assertRaisesRegex(ConfigError, "num_clusters=7, but scenes has 10 classes.*"
                                    "--config.num_clusters=10"):
            checked_source(config, "train")

    def test_what_a_step_reads_is_known_without_data(self):
        batch = prepare(small_config()).abstract_batch()
        self.assertEqual({key: x.shape for key, x in batch.items()},
                         {"image": (8, 32, 32, 3), "label": (8, 32, 32), "hash": (8,)})

    def test_images_without_labels(self):
        (self.root / "images").mkdir()
        Image.new("RGB", (40, 40)).save(self.root / "images" / "a.png")
        config = small_config(**{"data.name": "folder", "data.images": str(self.root / "images")})
        with self.assertRaisesRegex(DataError, "has no labels, and config.method=scribble"):
            checked_source(config, "train")

    def test_levels_that_the_encoder_does_not_run(self):
        config = small_config()
        config.scribble.decoder.levels = (1, 3)
        with self.assertRaisesRegex(ConfigError, r"levels=\(1, 3\): the encoder runs blocks 1 to"):
            prepare(config)


if __name__ == "__main__":
    absltest.main()
