"""Tests of fs4_jax.methods.alignseg: a step, its terms, pairing, classes of segments, refusals."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.clustering.image_mixture import settle
from fs4_jax.clustering.kmeans import unit_length
from fs4_jax.config import ConfigError, default_config
from fs4_jax.data.sources import make_source
from fs4_jax.evaluate import make_evaluator
from fs4_jax.losses.alignment import cosines
from fs4_jax.methods import alignseg
from fs4_jax.models.alignseg_files import export_alignseg
from fs4_jax.run import prepare
from fs4_jax.sharding import batch_sharding
from tests.fast_compiles import setUpModule, tearDownModule  # noqa: F401
from tests.methods.dino_test import flat, prepare_on

_K, _CLASSES = 4, 3
MIXTURE = {"alignseg.mixture.weight": 10.0, "alignseg.mixture.rounds": 3,
            "alignseg.mixture.whitening": 0.25, "alignseg.mixture.fitted": True,
            "alignseg.correlation.weight": 0.0, "alignseg.contrast.weight": 0.0}


def small_config(**changes):
    config = default_config()
    config.update(dict(method="alignseg", batch_size=8, total_steps=10, num_clusters=_CLASSES))
    config.data.image_size = 32
    config.encoder.update(dict(variant="mu/8", frozen=True))
    config.optimizer.update(dict(learning_rate=1e-3, warmup_steps=0, clip_norm=0.0))
    config.alignseg.update(dict(num_prototypes=_K, num_heads=4, hidden=16, fit_images=8))
    config.update_from_flattened_dict(changes)
    return config


def random_batch(seed=0, b=8, v=3, size=32):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (b, v, size // 8, size // 8, 3), dtype=np.uint8)
    noise = rng.integers(0, 40, (b, v, size, size, 3), dtype=np.uint8)
    return {"crops": np.minimum(coarse.repeat(8, 2).repeat(8, 3), 215) + noise}


@functools.cache
def trained(data, fsdp, kept=False):
    """(first state, last state, metrics) after three steps on `data` x `fsdp` devices.

    kept: of tokens, which compiles faster.
    """
    run = prepare_on(data, fsdp, small_config())
    state = run.create_state()
    first, step, history = jax.device_get(state), run.jit_step(state), []
    for i in range(3):
        batch = kept_batch(i) if kept else random_batch(i)
        state, metrics = step(state, jax.device_put(batch, batch_sharding(run.mesh)))
        history.append(jax.device_get(metrics))
    return first, jax.device_get(state), history


def kept_batch(seed):
    rng = np.random.default_rng(seed)
    return {"patch_tokens": rng.normal(size=(8, 3, 4, 4, 128)).astype(np.float16),
            "attention": rng.random((8, 3, 4, 4), np.float32)}


@functools.cache
def made(**changes):
    """(method, parameters)."""
    method = prepare(small_config(**changes)).method
    return method, jax.jit(method.init)(jax.random.key(1), random_batch()["crops"][:, 0])[0]


def loss(method, params, batch):
    """(loss, metrics)."""
    total, (metrics, _) = jax.jit(lambda params, batch: method.loss(
        params, None, {}, batch, None, 0))(params, batch)
    return total, metrics


class AlignSegStepTest(parameterized.TestCase):

    def test_it_trains_the_decoder_alone(self):
        first, last, history = trained(1, 1)
        for metrics in history:
            self.assertTrue(all(np.isfinite(v) for v in metrics.values()), metrics)
            np.testing.assert_allclose(
                metrics["loss"], 1e4 * metrics["loss_correlation"] + metrics["loss_contrast"],
                rtol=1e-4, atol=1e-5)
            self.assertBetween(metrics["segments_used"], 1, _K)
            self.assertBetween(metrics["largest_segment_share"], 1 / _K, 1)
            self.assertBetween(metrics["foreground_share"], 0.01, 0.9)
        before, after = flat(first.params), flat(last.params)
        still = {name for name in before if (before[name] == after[name]).all()}
        keys = {f"decoder/layer_0/{x}/key/bias" for x in ("cross", "self")}     # they do nothing
        frozen = {name for name in before if not name.startswith("decoder/")}
        self.assertEqual(still, frozen | keys)

    def test_eight_devices_do_as_one(self):
        if len(jax.devices()) < 8:
            self.skipTest("needs 8 devices")
        _, one, history = trained(1, 1, kept=True)
        _, other, metrics = trained(2, 4, kept=True)
        for mine, theirs in zip(history, metrics):
            for name in mine:
                np.testing.assert_allclose(mine[name], theirs[name], rtol=2e-3, atol=1e-4,
                                           err_msg=name)
        for name, value in flat(one.params).items():     # Adam's first steps: the sign may flip
            np.testing.assert_allclose(value, flat(other.params)[name], atol=6.1e-3, err_msg=name)

    def test_what_is_kept_stands_for_the_crops(self):
        method, params = made()
        batch = random_batch()
        kept = method.keep({"encoder": params["encoder"]}, batch)
        self.assertEqual({k: (v.shape, v.dtype.name) for k, v in kept.items()},
                         {"patch_tokens": ((8, 3, 4, 4, 128), "float16"),
                          "attention": ((8, 3, 4, 4), "float32")})
        np.testing.assert_allclose(loss(method, params, kept)[0], loss(method, params, batch)[0],
                                   rtol=2e-3)

    def test_released_pairing_turns_the_local_crops_alone(self):
        """The same as giving the right pairing other images' local tokens, beside the masks that
        belong there."""
        right, params = made()
        released, _ = made(**{"alignseg.released_pairing": True})
        kept = jax.device_get(right.keep(params, random_batch()))
        local = kept["patch_tokens"][:, 1:]
        turned = local.swapaxes(0, 1).reshape(local.shape)
        other = kept | {"patch_tokens": np.concatenate([kept["patch_tokens"][:, :1], turned], 1)}
        want, got = loss(right, params, other), loss(released, params, kept)
        np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
        self.assertGreater(abs(got[0] - loss(right, params, kept)[0]), 1e-4)

    def test_as_released(self):
        method, params = made(**{"alignseg.correlation.reduction": "sum",
                                 "alignseg.correlation.weight": 0.15})
        total, metrics = loss(method, params, kept_batch(0))
        _, mean = loss(made()[0], params, kept_batch(0))
        self.assertGreater(abs(metrics["loss_correlation"]), 100 * abs(mean["loss_correlation"]))
        np.testing.assert_allclose(
            total, 0.15 * metrics["loss_correlation"] + metrics["loss_contrast"], rtol=1e-5)


class AlignSegClassesTest(parameterized.TestCase):

    def test_predict(self):
        method, params = made()
        images = random_batch()["crops"][:2, 0]
        out = jax.jit(method.predict)(params, images)
        self.assertEqual({k: v.shape for k, v in out.items()},
                         {"logits": (2, 4, 4, _CLASSES), "segments": (2, 4, 4, _K),
                          "embedding": (2, 4, 4, 128), "patch_tokens": (2, 4, 4, 128)})
        tokens = out["patch_tokens"].reshape(2, 16, -1)
        adapted = method.decoder.apply({"params": params["decoder"]}, tokens)
        np.testing.assert_allclose(out["segments"].reshape(2, 16, -1), cosines(tokens, adapted),
                                   atol=1e-5)
        with self.subTest("a token's class is that of its segment"):
            named = np.argmax(cosines(adapted, jnp.tile(params["classes"][None], (2, 1, 1))), -1)
            segment = np.argmax(out["segments"].reshape(2, 16, -1), -1)
            np.testing.assert_array_equal(np.argmax(out["logits"].reshape(2, 16, -1), -1),
                                          np.take_along_axis(named, segment, axis=1))

    def test_class_logits_by_hand(self):
        segments = np.array([[[0.9, 0.1, 0.4], [0.2, 0.3, 0.1]]], np.float32)
        logits = alignseg.class_logits(segments, np.array([[2, 0, 2]]), 4)
        np.testing.assert_allclose(logits, [[[0.1, -1, 0.9, -1], [0.3, -1, 0.2, -1]]])

    @parameterized.parameters("prototype", "tokens")
    def test_finish_finds_the_classes_of_segments(self, signature):
        """Images of three kinds; an image's segments all get its kind."""
        method, params = made(**{"alignseg.signature": signature})
        kinds = np.random.default_rng(0).normal(size=(3, 128)) * 4
        which = np.arange(24) % 3
        tokens = kinds[which][:, None, None, None] + np.random.default_rng(1).normal(
            size=(24, 3, 4, 4, 128)) * 0.1
        batches = [{"patch_tokens": x.astype(np.float16), "attention": np.ones((8, 3, 4, 4))}
                   for x in np.split(tokens, 3)]
        # Tokens of an image are alike, so that prototypes adapt to the image and nothing else:
        # without the residual of what they were, which a large norm drowns.
        decoder = jax.tree.map(lambda x: x, params["decoder"])
        decoder["prototypes"] = 1e-3 * decoder["prototypes"]
        value = decoder["layer_0"]["cross"]["value"]
        decoder["layer_0"]["cross"]["value"] = {**value, "kernel": value["kernel"] * 10}
        decoder["layer_0"]["cross"]["out"] = {
            "kernel": jnp.eye(128), "bias": jnp.zeros(128)}
        params = {**params, "decoder": decoder}
        done = method.finish(params, batches, jax.random.key(0))
        self.assertEqual({k for k in done if done[k] is not params[k]}, {"classes"})
        np.testing.assert_allclose(np.linalg.norm(done["classes"], axis=-1), 1, rtol=1e-5)
        again = method.finish(params, batches, jax.random.key(0))
        np.testing.assert_array_equal(done["classes"], again["classes"])
        told = [method._segments(params, x) for x in batches]
        told, owned = (np.concatenate([x[name] for x in told]) for name in ("signature", "owned"))
        ids = np.argmax(cosines(told, np.tile(done["classes"][None], (24, 1, 1))), -1)
        for kind in range(3):
            of_kind = (which == kind)[:, None] & owned
            self.assertLen(np.unique(ids[of_kind]), 1)
        self.assertLen(np.unique(ids[owned]), 3)

    def test_too_few_segments(self):
        method, params = made(num_clusters=50)
        with self.assertRaisesRegex(ConfigError, "32 segments of 8 images are fewer than "
                                    "config.num_clusters=50"):
            method.finish(params, [random_batch()], jax.random.key(0))


class MixtureTest(absltest.TestCase):

    def test_predict_settles_what_the_decoder_proposes(self):
        method, params = made(**MIXTURE)
        params, _ = method.fit(params, {}, [kept_batch(0), kept_batch(1)], jax.random.key(0))
        images = random_batch()["crops"][:2, 0]
        out = jax.jit(method.predict)(params, images)
        seen = method.keep(params, {"crops": images[:, None]})
        tokens = method.in_space(params, seen["patch_tokens"][:, 0].reshape(2, 16, -1))
        settled = settle(tokens, method.decoder.apply({"params": params["decoder"]}, tokens),
                         seen["attention"].reshape(2, 16), num_rounds=3, temperature=0.05)
        # Tokens that are kept are float16.
        np.testing.assert_allclose(out["segments"].reshape(2, 16, -1), cosines(tokens, settled),
                                   atol=5e-3)
        self.assertEqual(out["patch_tokens"].shape, (2, 4, 4, 128))

    def test_the_fit_finds_the_space_and_the_start(self):
        method, params = made(**MIXTURE)
        fitted, _ = method.fit(params, {}, [kept_batch(0), kept_batch(1)], jax.random.key(0))
        again, _ = method.fit(params, {}, [kept_batch(0), kept_batch(1)], jax.random.key(0))
        jax.tree.map(np.testing.assert_array_equal, fitted, again)
        changed = {name for name, value in flat(fitted).items()
                   if not np.array_equal(value, flat(params)[name])}
        self.assertEqual(changed, {"space/kernel", "space/bias", "decoder/prototypes", "classes"})

    def test_the_space_in_which_two_crops_of_a_place_agree(self):
        """Tokens that tell the place, and, 10 times as loud, the crop: what is told of the crop is
        not heard in the space, and whitening hears nothing else."""
        rng, parts = np.random.default_rng(0), {}
        batches = []
        for _ in range(4):
            place = rng.integers(4, size=(8, 4, 4))
            kept = {"attention": np.ones((8, 3, 4, 4), np.float32),
                    "correspondence": np.tile(np.stack(np.mgrid[:4, :4], -1).astype(np.float32),
                                              (8, 2, 1, 1, 1)),
                    "valid": np.ones((8, 2, 4, 4), bool)}
            tokens = 0.1 * rng.normal(size=(8, 3, 4, 4, 128))
            tokens[..., :4] += np.eye(4)[place][:, None]
            tokens[..., 4:12] += 10 * rng.normal(size=(8, 3, 1, 1, 8))
            batches.append(kept | {"patch_tokens": tokens.astype(np.float16)})
        for consistent in (True, False):
            method, params = made(**MIXTURE | {
                "alignseg.mixture.whitening": 0.0 if consistent else 0.25,
                "alignseg.mixture.consistent": consistent})
            fitted, _ = method.fit(params, {}, batches, jax.random.key(0))
            self.assertEqual(method.frozen, ("encoder", "classes", "space"))
            own = unit_length(method.in_space(fitted, batches[-1]["patch_tokens"][:, 0]))
            own = np.asarray(own).reshape(8 * 16, -1)
            same = place.reshape(-1)[:, None] == place.reshape(-1)
            near = own @ own.T
            parts[consistent] = near[same].mean() - near[~same].mean()
        self.assertGreater(parts[True], 3 * parts[False])

    def test_the_power_of_attention(self):
        batch, totals = kept_batch(0), {}
        sharper = batch | {"attention": batch["attention"] ** 2}
        for power in (0.0, 1.0, 2.0):
            method, params = made(**MIXTURE | {"alignseg.mixture.attention": power})
            totals[power] = [float(loss(method, params, x)[0]) for x in (batch, sharper)]
        self.assertEqual(*totals[0.0])
        self.assertNotAlmostEqual(*totals[1.0], places=4)
        np.testing.assert_allclose(totals[1.0][1], totals[2.0][0], rtol=1e-6)

    def test_places_are_settled_beside_the_tokens(self):
        place = {"alignseg.mixture.place": 1.0}
        method, params = made(**MIXTURE | place)
        images = random_batch()["crops"][:2, 0]
        seen = method.keep(params, {"crops": images[:, None]})
        tokens = method.in_space(params, seen["patch_tokens"][:, 0].reshape(2, 16, -1))
        adapted = method.decoder.apply({"params": params["decoder"]}, tokens)
        tokens, adapted = unit_length(tokens), unit_length(adapted)
        at = np.broadcast_to(np.arange(4) / 4 - 3 / 8, (2, 4, 4))
        both = [tokens, at.reshape(2, 16, 1), at.swapaxes(1, 2).reshape(2, 16, 1)]
        both = np.concatenate(both, -1)
        settled = settle(both, np.pad(adapted, ((0, 0), (0, 0), (0, 2))),
                         seen["attention"].reshape(2, 16), num_rounds=3, temperature=0.05)
        out = jax.jit(method.predict)(params, images)
        # Tokens that are kept are float16.
        np.testing.assert_allclose(out["segments"].reshape(2, 16, -1), cosines(both, settled),
                                   atol=5e-3)
        none = jax.jit(made(**MIXTURE)[0].predict)(params, images)
        self.assertGreater(np.abs(none["segments"] - out["segments"]).max(), 0.05)
        with self.assertRaisesRegex(ConfigError, "place is read by the rounds"):
            made(**MIXTURE | place | {"alignseg.mixture.rounds": 0})

    def test_segments_whose_prototypes_are_near_are_one(self):
        angles = np.deg2rad([[0, 50, 10, 95, 60], [0, 72, 144, 216, 288]])
        prototypes = np.stack([np.cos(angles), np.sin(angles)], -1) * [[[2.0]], [[3.0]]]
        np.testing.assert_array_equal(alignseg.merged(prototypes, np.cos(np.deg2rad(41))),
                                      [[0, 0, 0, 0, 0], [0, 1, 2, 3, 4]])
        np.testing.assert_array_equal(alignseg.merged(prototypes, np.cos(np.deg2rad(20))),
                                      [[0, 1, 0, 3, 1], [0, 1, 2, 3, 4]])
        images, out = random_batch()["crops"][:4, 0], {}
        for least in (1.0, 0.999, 0.0):
            method, params = made(**MIXTURE | {"alignseg.merge": least})
            params, _ = method.fit(params, {}, [kept_batch(0), kept_batch(1)], jax.random.key(0))
            ids = np.argmax(jax.jit(method.predict)(params, images)["segments"], -1)
            out[least] = [len(np.unique(x)) for x in ids]
        self.assertEqual(out[1.0], out[0.999])
        self.assertLess(sum(out[0.0]), sum(out[1.0]))

    def test_a_step_of_the_likelihood(self):
        method, params = made(**MIXTURE)
        total, metrics = loss(method, params, kept_batch(0))
        self.assertEqual({name for name in metrics if name.startswith("loss_")}, {"loss_mixture"})
        np.testing.assert_allclose(total, 10 * metrics["loss_mixture"], rtol=1e-6)
        self.assertEqual(method.frozen, ("encoder", "classes", "space"))

    def test_settings_that_can_not_work(self):
        for changes, message in (
                ({"alignseg.mixture.weight": 0.0}, "one of config.alignseg.correlation.weight, "),
                ({"alignseg.weights": "F.pth"}, "mixture.fitted=True would replace"),
                ({"alignseg.mixture.consistent": True}, "two measures of tokens: set one"),
                ({"alignseg.mixture.whitening": 1.5}, "whitening is 1.5; it is at most 1"),
                ({"alignseg.mixture.temperature": 0.0}, "alignseg.mixture.temperature")):
            with self.assertRaisesRegex(ConfigError, message):
                prepare(small_config(**MIXTURE | changes))


class AlignSegSettingsTest(parameterized.TestCase):

    @parameterized.parameters(
        ({"encoder.frozen": False}, "set config.encoder.frozen=True"),
        ({"alignseg.num_heads": 3}, "alignseg.num_heads=3 does not divide .* mu/8, 128"),
        ({"alignseg.num_local": 0}, "alignseg.num_local must be at least 1"),
        ({"alignseg.mass": 1.5}, "alignseg.mass is 1.5; it is at most 1"),
        ({"alignseg.signature": "cls"}, "alignseg.signature is 'cls'; choose one of prototype"),
        ({"alignseg.correlation.reduction": "max"}, "choose one of mean, sum"),
        ({"eval.also": ("best",)}, "eval.also is .*best.*; choose of hungarian"))
    def test_settings_that_can_not_work(self, changes, message):
        with self.assertRaisesRegex(ConfigError, message):
            prepare(small_config(**changes))

    @parameterized.parameters(({"eval.flip": True},), ({"eval.protocol": "stego27"},))
    def test_a_mean_of_embeddings_is_refused(self, changes):
        config = small_config(**{"data.name": "scenes", "data.num_eval": 4} | changes)
        run = prepare(config)
        with self.assertRaisesRegex(ConfigError, "what tells classes apart in config.method="
                                    "alignseg is each image's own: set config.eval.flip=False"):
            make_evaluator(run, make_source(config.data, "eval"), "eval")

    def test_crops_are_plain_unless_asked_for(self):
        data = small_config().data
        method, _ = made()
        plain = method.make_views(data, (32, 32))
        self.assertEqual((plain.settings.flip, plain.settings.hue, plain.settings.blur), (0, 0, 0))
        self.assertEqual((plain.global_scale, plain.local_scale), ((0.5, 1.0), (0.05, 0.25)))

    def test_training_starts_from_a_file(self):
        method, params = made()
        other = jax.jit(method.init)(jax.random.key(7), random_batch()["crops"][:, 0])[0]
        path = str(pathlib.Path(self.create_tempdir().full_path, "model.safetensors"))
        export_alignseg(other, path, encoder=method.encoder, decoder=method.decoder)
        changes = {"alignseg.weights": path}
        started, extra = prepare(small_config(**changes)).method.fit(
            params, {}, [kept_batch(0)], jax.random.key(0))
        jax.tree.map(np.testing.assert_array_equal, started["decoder"], other["decoder"])
        self.assertIs(started["encoder"], params["encoder"])
        with self.assertRaisesRegex(ConfigError, "alignseg.weights=.* holds another decoder:\n"
                                    "  config.alignseg.num_prototypes: there 4, now 7$"):
            prepare(small_config(**changes | {"alignseg.num_prototypes": 7})).method.fit(
                params, {}, [kept_batch(0)], jax.random.key(0))

    def test_crops_with_colours(self):
        data = small_config().data
        method = prepare(small_config(**{"alignseg.augment": True})).method
        self.assertEqual(method.make_views(data, (32, 32)).settings.flip, data.flip)


if __name__ == "__main__":
    absltest.main()
