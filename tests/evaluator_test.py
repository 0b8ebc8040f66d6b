"""The evaluator against loops over pixels, on a method that needs no training."""

import dataclasses
import json
import pathlib
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.affinity import dense_crf
from fs4_jax.config import ConfigError, default_config
from fs4_jax.data.views import resize_image
from fs4_jax.evaluate import summary
from fs4_jax.evaluation.floors import token_places
from fs4_jax.evaluation.per_image import PER_IMAGE
from fs4_jax.evaluation.protocols import PROTOCOLS, evaluate_counts
from fs4_jax.evaluation.readout import scale_averaged
from fs4_jax.evaluation.upsample import upsample_maps
from fs4_jax.evaluation.matching import mean_over_runs
from fs4_jax.evaluator import Evaluator
from fs4_jax.sharding import make_mesh

PATCH, NUM_CLASSES = 4, 3
COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [120, 120, 120]])


class Blocks:
    """Pictures of coloured blocks, noisy; the colour is nearly the class."""
    num_classes, class_names = NUM_CLASSES, ("red", "green", "blue")

    def __init__(self, sizes, seed=0):
        self.sizes, self.seed = sizes, seed

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, i):
        rng = np.random.default_rng((self.seed, i))
        h, w = self.sizes[i]
        label = np.kron(rng.integers(0, 3, (h // 8, w // 8)), np.ones((8, 8), int))
        seen = np.where(rng.random(label.shape) < 0.03, 3, label)
        image = COLOURS[seen] + rng.integers(-30, 30, (h, w, 3))
        return {"image": image.astype(np.uint8),
                "label": np.where(rng.random(label.shape) < 0.1, 255, label).astype(np.uint8)}

    def size(self, i):
        return self.sizes[i]

    def example_name(self, i):
        return f"blocks {i}"


@dataclasses.dataclass(frozen=True)
class Colour:
    """A method whose embedding is a token's mean colour; clusters are nearest in angle."""
    encoder = dataclasses.make_dataclass("Encoder", [("patch", int)])(PATCH)
    has_classes = True
    supervised = False

    def predict(self, params, images):
        b, h, w, _ = images.shape
        cells = images.astype(jnp.float32).reshape(b, h // PATCH, PATCH, w // PATCH, PATCH, 3)
        embedding = cells.mean(axis=(2, 4)) - 120.0
        # Redder to the right: what averaging with the mirrored image takes away.
        column = jnp.arange(w // PATCH) - (w // PATCH - 1) / 2
        embedding = embedding + params["slope"] * column[:, None] * jnp.array([1.0, 0.0, 0.0])
        return {"logits": self.classify(params, embedding), "embedding": embedding,
                "patch_tokens": embedding}

    def classify(self, params, embedding):
        length = jnp.linalg.norm(embedding, axis=-1, keepdims=True) + 1e-6
        return embedding / length @ params["prototypes"].T


def colour_params(order, slope=0.0):
    prototypes = COLOURS[list(order)] - 120.0
    prototypes = prototypes / (np.linalg.norm(prototypes, axis=-1, keepdims=True) + 1e-6)
    return {"prototypes": jnp.asarray(prototypes, jnp.float32), "slope": jnp.float32(slope)}


def without_crf(name, **changes):
    """A protocol at the size of these pictures."""
    return mock.patch.dict(PROTOCOLS, {name: dataclasses.replace(
        PROTOCOLS[name], crf=False, **changes)})


class EvaluatorCase(parameterized.TestCase):

    def evaluator(self, protocol, source, **settings):
        config = default_config()
        config.num_clusters, config.eval.protocol, config.eval.batch_size = 4, protocol, 8
        config.data.image_size = 32
        for key, value in settings.items():
            config.eval[key] = value
        train = Blocks([(32, 32)] * 6, seed=9)
        return Evaluator(Colour(), source, config, make_mesh(config.mesh), "test",
                         train_source=train)


class ProtocolTest(EvaluatorCase):

    def counts(self, source, ids_of):
        """One image's counts each, by a loop."""
        for i in range(len(source)):
            label, ids = source[i]["label"], ids_of(i)
            yield np.array([[((ids == k) & (label == c)).sum() for c in range(3)]
                            for k in range(4)])

    def ids(self, params, image):
        """Token clusters of an image at token resolution, repeated: PATCH x PATCH each."""
        out = Colour().predict(params, image[None])
        return np.asarray(jnp.argmax(out["logits"][0], -1))

    @parameterized.parameters("hungarian", *PER_IMAGE)
    def test_counted_at_token_size(self, protocol):
        """Labels of the tokens' own size: nothing is interpolated, so a loop says what is right."""
        source, params = Blocks([(32, 32)] * 5), colour_params([2, 0, 3, 1])

        class Small(Blocks):
            def __getitem__(self, i):
                example = super().__getitem__(i)
                return example | {"label": example["label"][1::PATCH, 2::PATCH]}

        small = Small(source.sizes)
        with without_crf(protocol, size=0, geometry="whole", scored_at=0):
            got = self.evaluator(protocol, small, floors=False).run(params, 7, floors=False)
        counts = list(self.counts(small, lambda i: self.ids(params, source[i]["image"])))
        if protocol == "hungarian":
            want = evaluate_counts(sum(counts))
            self.assertEqual(got.scores["matching"], want.matching.tolist())
            np.testing.assert_array_equal(got.scores["confusion"], sum(counts))
        else:
            scorer = PER_IMAGE[protocol](3)
            for image in counts:
                scorer.add(image)
            want = scorer.scores()
            self.assertNotIn("matching", got.scores)
        for name in PROTOCOLS[protocol].measures:
            self.assertAlmostEqual(got.scores[name], getattr(want, name), places=6)
        self.assertEqual((got.scores["num_images"], got.scores["step"]), (5, 7))

    def test_the_mirrored_embedding_is_averaged(self):
        source, accuracy = Blocks([(48, 48)] * 3), {}
        for protocol in ("stego27", "picie27"):
            with without_crf(protocol, size=48):
                for slope in (0.0, 60.0):
                    accuracy[protocol, slope] = self.evaluator(protocol, source).run(
                        colour_params(range(4), slope), 0, floors=False).scores["accuracy"]
        self.assertGreater(accuracy["stego27", 0.0], 85)
        # The slope cancels but for rounding at the borders of blocks.
        self.assertAlmostEqual(accuracy["stego27", 60.0], accuracy["stego27", 0.0], delta=0.1)
        self.assertLess(accuracy["picie27", 60.0], accuracy["picie27", 0.0] - 10)

    def test_the_crf_reads_what_stego_gives_it(self):
        """Softmax of twice the cosines of the upsampled embedding, and the image itself."""
        source, params = Blocks([(32, 32)] * 3), colour_params([2, 0, 3, 1])

        def refined(i):
            image = source[i]["image"]
            embedding = Colour().predict(params, image[None])["embedding"]
            full = upsample_maps(embedding, jnp.array([[32, 32]]), (32, 32))[0]
            p = jax.nn.softmax(2.0 * Colour().classify(params, full), axis=-1)
            return np.argmax(dense_crf(image, p), axis=-1)

        changes = dataclasses.replace(PROTOCOLS["stego27"], size=32)
        with mock.patch.dict(PROTOCOLS, {"stego27": changes}):
            got = self.evaluator("stego27", source).run(params, 0, floors=False).scores
        want = sum(self.counts(source, refined))
        # No slope: the mirrored embedding is the same but for rounding, which a tie may show.
        self.assertLess(np.abs(np.array(got["confusion"]) - want).sum(), 0.005 * want.sum())
        self.assertEqual(np.sum(got["confusion"]), want.sum())

    def test_probes_read_labels_of_the_training_split(self):
        source = Blocks([(32, 32)] * 4)
        with without_crf("stego-linear", size=32):
            evaluator = self.evaluator("stego-linear", source, probe_steps=60)
            scores = evaluator.run(colour_params(range(4)), 0, floors=False).scores
            self.assertGreater(scores["accuracy"], 80)
            with self.assertRaisesRegex(ConfigError, "eval.protocol=stego-linear .* labels"):
                config = evaluator.config
                Evaluator(Colour(), source, config, evaluator.mesh, "test")

    def test_the_mean_over_runs_of_k_means(self):
        source = Blocks([(32, 32)] * 4)
        with without_crf("overcluster", size=32, scored_at=0, num_clusters=6, runs=3):
            scores = self.evaluator("overcluster", source).run(
                colour_params(range(4)), 0, floors=True).scores
        self.assertLen(scores["runs"], 3)
        self.assertAlmostEqual(scores["miou"], np.mean([r["miou"] for r in scores["runs"]]))
        self.assertGreater(scores["accuracy"], 80)
        self.assertEqual(list(scores["floors"]), ["kmeans_plain", "kmeans_strong", "kmeans_rgb"])

    def test_a_matching_of_another_split(self):
        source, params = Blocks([(32, 32)] * 3), colour_params(range(4))
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "eval.json")
            path.write_text(json.dumps({"matching": [1, 2, 0, -1]}))
            scores = self.evaluator("hungarian", source, matching=str(path)).run(
                params, 0, floors=False).scores
            self.assertEqual(scores["matching"], [1, 2, 0, -1])
            self.assertLess(scores["accuracy"], 20)
            path.write_text(json.dumps({"matching": [1, 2]}))
            with self.assertRaisesRegex(ConfigError, "matches 2 clusters, the model has 4"):
                self.evaluator("hungarian", source, matching=str(path)).run(
                    params, 0, floors=False)
        with self.assertRaisesRegex(ConfigError, "eval.matching has no place"):
            self.evaluator("per-image-m2o", source, matching="x")

    def test_means_over_runs_leave_absent_classes_out(self):
        np.testing.assert_array_equal(
            mean_over_runs([[1.0, np.nan, np.nan], [3.0, 4.0, np.nan]]), [2.0, 4.0, np.nan])


class FloorsTest(EvaluatorCase):

    def test_three_floors_by_a_loop(self):
        """Labels of the tokens' own size: each floor is the nearest of its centroids."""
        source, params = Blocks([(32, 32)] * 5), colour_params(range(4))
        evaluator = self.evaluator("hungarian", source)
        fitted = evaluator._fits.run(params, floors=True)
        self.assertEqual(set(fitted), {"kmeans_plain", "kmeans_strong", "kmeans_rgb"})
        floors = evaluator.run(params, 0).scores["floors"]
        x = np.concatenate([np.asarray(Colour().predict(params, source[i]["image"][None])[
            "patch_tokens"]) for i in range(5)])
        x /= np.linalg.norm(x, axis=-1, keepdims=True)
        strong = fitted["kmeans_strong"]
        white = (x - strong["mean"]) @ strong["whiten"]
        white /= np.linalg.norm(white, axis=-1, keepdims=True)
        places = np.broadcast_to(token_places(8, 8), (5, 8, 8, 2))
        seen = {"kmeans_plain": (x, fitted["kmeans_plain"]),
                "kmeans_strong": (np.concatenate([white, places], -1), strong["centroids"])}
        for name, (features, centroids) in seen.items():
            logits = -((features[..., None, :] - centroids) ** 2).sum(-1)
            full = upsample_maps(jnp.asarray(logits), jnp.array([[32, 32]] * 5), (32, 32))
            ids = np.argmax(full, -1)
            want = evaluate_counts(sum(
                np.bincount((4 * source[i]["label"] + ids[i])[source[i]["label"] < 3],
                            minlength=12).reshape(3, 4).T for i in range(5)))
            self.assertAlmostEqual(floors[name]["miou"], want.miou, delta=0.1)     # ties

    def test_are_fitted_to_the_training_split(self):
        """To images of one colour no floor can tell three classes; the scored images would."""
        class Grey(Blocks):
            def __getitem__(self, i):
                example = super().__getitem__(i)
                return example | {"image": np.full_like(example["image"], (121, 120, 120))}

        source, params = Blocks([(32, 32)] * 5), colour_params(range(4))
        config = self.evaluator("hungarian", source).config
        mesh = make_mesh(config.mesh)
        for train, said in ((Grey([(32, 32)] * 4), "the training split"),
                            (None, "the scored images")):
            scores = Evaluator(Colour(), source, config, mesh, "test",
                               train_source=train).run(params, 0).scores
            self.assertEqual(scores["floors_fitted_to"], said)
            for floor in scores["floors"].values():
                if train is None:
                    self.assertGreater(floor["accuracy"], 65)
                else:
                    self.assertLess(floor["accuracy"], 45)

    def test_beside_k_means_itself_plain_is_no_floor(self):
        class Tokens(Colour):
            has_classes = False

        source = Blocks([(32, 32)] * 4)
        config = self.evaluator("kmeans", source).config
        scores = Evaluator(Tokens(), source, config, make_mesh(config.mesh), "test").run(
            colour_params(range(4)), 0).scores
        self.assertEqual(list(scores["floors"]), ["kmeans_strong", "kmeans_rgb"])
        self.assertEqual(scores["title"], "k-means on its tokens")


class RefinementTest(EvaluatorCase):

    @parameterized.parameters("hungarian", "kmeans")
    def test_flip_takes_the_slope_away(self, protocol):
        source, accuracy = Blocks([(32, 32)] * 4), {}
        for flip, slope in ((False, 60.0), (True, 60.0), (False, 0.0)):
            evaluator = self.evaluator(protocol, source, flip=flip)
            # k-means is fitted to tokens without a slope: only the reading is looked at.
            fitted = evaluator._fits.run(colour_params(range(4)), floors=False)
            with mock.patch.object(evaluator._fits, "run", return_value=fitted):
                scores = evaluator.run(colour_params(range(4), slope), 0, floors=False).scores
            accuracy[flip, slope] = scores["accuracy"]
            self.assertEqual(scores.get("flip", False), flip)
        self.assertGreater(accuracy[False, 0.0], 80)
        self.assertLess(accuracy[False, 60.0], accuracy[False, 0.0] - 4)
        self.assertGreater(accuracy[True, 60.0], accuracy[False, 0.0] - 3)

    def test_the_crf_refines_at_the_images_size_and_counts_at_the_labels(self):
        """Labels twice the image: refined probabilities are upsampled, by a loop over images."""
        class Large(Blocks):
            def __getitem__(self, i):
                example = super().__getitem__(i)
                return {key: np.kron(x, np.ones((2, 2) + (1,) * (x.ndim - 2), np.uint8))
                        for key, x in example.items()}

            def size(self, i):
                return tuple(2 * side for side in self.sizes[i])

        source, params = Large([(32, 32)] * 3), colour_params([2, 0, 3, 1])
        got = self.evaluator("hungarian", source, crf=True).run(params, 0, floors=False).scores
        self.assertTrue(got["crf"])
        want = np.zeros((4, 3), int)
        for i in range(3):
            image = resize_image(source[i]["image"], (32, 32))
            logits = Colour().predict(params, image[None])["logits"]
            small = jnp.array([[32, 32]])
            p = jax.nn.softmax(2.0 * upsample_maps(logits, small, (32, 32))[0])
            full = upsample_maps(dense_crf(image, p)[None], 2 * small, (64, 64))[0]
            ids, label = np.argmax(full, -1), source[i]["label"]
            want += np.array([[((ids == k) & (label == c)).sum() for c in range(3)]
                              for k in range(4)])
        self.assertEqual(np.sum(got["confusion"]), want.sum())
        self.assertLess(np.abs(np.array(got["confusion"]) - want).sum(), 0.005 * want.sum())
        plain = self.evaluator("hungarian", source).run(params, 0, floors=False).scores
        self.assertNotIn("crf", plain)
        self.assertNotEqual(plain["confusion"], got["confusion"])

    def test_the_crf_of_k_means(self):
        scores = self.evaluator("kmeans", Blocks([(32, 32)] * 3), crf=True, flip=True).run(
            colour_params(range(4)), 0, floors=True).scores
        self.assertGreater(scores["accuracy"], 80)
        self.assertLen(scores["runs"], 3)

    @parameterized.parameters(("flip", True), ("crf", True), ("scales", (0.5, 1.0)))
    def test_a_protocol_that_says_itself_refuses_them(self, switch, value):
        with self.assertRaisesRegex(ConfigError, f"eval.{switch} has no place in .*picie27"):
            self.evaluator("picie27", Blocks([(32, 32)]), **{switch: value})

    def test_scales_are_averaged_and_named(self):
        source = Blocks([(32, 32)] * 3)
        plain, scaled, one = (self.evaluator("hungarian", source, scales=scales).run(
            colour_params(range(4)), 0, floors=False).scores for scales in ((), (0.5, 2.0), (1.0,)))
        self.assertEqual(scaled["scales"], (0.5, 2.0))
        self.assertNotIn("scales", plain)
        self.assertEqual(one["confusion"], plain["confusion"])
        self.assertNotEqual(scaled["confusion"], plain["confusion"])
        self.assertGreater(scaled["accuracy"], 60)

    def test_the_mean_over_scales(self):
        """Cell means of a ramp, 4 x 4 cells of 2 pixels, at two sizes: both say the same, but for
        what resizing does at the border."""
        ramp = np.tile(np.arange(8, dtype=np.float32), (1, 8, 1))[..., None].repeat(3, -1)

        def embed(x):
            return x.reshape(1, x.shape[1] // 2, 2, x.shape[2] // 2, 2, 3).mean((2, 4))

        mean = scale_averaged(embed, ramp, (1.0, 2.0), 2)
        want = 0.5 * (embed(ramp) + jax.image.resize(embed(jax.image.resize(
            ramp, (1, 16, 16, 3), "linear")), (1, 4, 4, 3), "linear"))
        np.testing.assert_allclose(mean, want, rtol=1e-6)
        np.testing.assert_allclose(mean[0, 1, 1:3], embed(ramp)[0, 1, 1:3], rtol=1e-5)
        np.testing.assert_array_equal(scale_averaged(embed, ramp, (1.0,), 2), embed(ramp))


class FailuresTest(EvaluatorCase):

    def test_the_worst_images_are_shown_worst_first(self):
        class Spoilt(Blocks):
            """Images 3 and 1 show another class than their labels say, 3 all over."""
            def __getitem__(self, i):
                example = super().__getitem__(i)
                wrong = {3: 32, 1: 16}.get(i, 0)
                image = example["image"].copy()
                image[:wrong] = COLOURS[(example["label"][:wrong] + 1) % 3]
                return example | {"image": image}

        evaluator = self.evaluator("hungarian", Spoilt([(32, 32)] * 12), failures=2)
        result = evaluator.run(colour_params(range(4)), 0, floors=False, pictures=1)
        self.assertEqual([p.name for p in result.failures], ["blocks 3", "blocks 1"])
        self.assertEqual(result.scores["num_images"], 12)
        self.assertEqual(evaluator.run(colour_params(range(4)), 0, floors=False).failures, [])

    def test_health_of_the_clusters(self):
        """Labelled pixels only; prototypes that are all one colour put all in one cluster."""
        params = colour_params([0, 1, 2, 3])
        scores = self.evaluator("hungarian", Blocks([(32, 32)] * 8)).run(
            params, 0, floors=False).scores
        counts = np.array(scores["confusion"])
        self.assertEqual(scores["largest_cluster_share"], counts.sum(1).max() / counts.sum())
        self.assertEqual(scores["clusters_used"], np.sum(counts.sum(1) >= counts.sum() / 40))
        params = params | {"prototypes": params["prototypes"].at[1:].set(0) * 0}
        scores = self.evaluator("hungarian", Blocks([(32, 32)] * 8)).run(
            params, 0, floors=False).scores
        self.assertEqual((scores["clusters_used"], scores["largest_cluster_share"]), (1, 1.0))
        self.assertIn("check: 1 of 4 clusters are in use; the largest cluster holds 100 %",
                      summary(scores, default_config()))


class ResumeTest(EvaluatorCase):

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.partial = pathlib.Path(folder.name, "eval.partial.npz")
        self.source = Blocks([(32, 32)] * 20 + [(32, 64)] * 9)
        self.params = colour_params([1, 2, 0, 3])

    def interrupted(self, evaluator, after):
        """Runs until `after` batches are counted."""
        read, calls = evaluator._read, []

        def stops(*arguments, **options):
            if len(calls) == after:
                raise KeyboardInterrupt
            calls.append(1)
            return read(*arguments, **options)

        with mock.patch.object(evaluator, "_read", stops), \
                mock.patch("fs4_jax.evaluation.tally._SAVE_SECONDS", 0.0), \
                self.assertRaises(KeyboardInterrupt):
            evaluator.run(self.params, 3, floors=True, pictures=4, partial=self.partial)

    @parameterized.parameters("hungarian", "per-image-m2o")
    def test_goes_on_to_the_same_scores(self, protocol):
        with without_crf(protocol, size=32 * (protocol != "hungarian"), scored_at=0):
            evaluator = self.evaluator(protocol, self.source)
            whole = evaluator.run(self.params, 3, floors=True, pictures=4)
            self.interrupted(evaluator, 3)
            self.assertTrue(self.partial.exists())
            with mock.patch.object(evaluator._fits, "run", side_effect=AssertionError):
                resumed = evaluator.run(self.params, 3, floors=True, pictures=4,
                                        partial=self.partial)
        self.assertEqual(resumed.scores, whole.scores)
        self.assertEqual([p.name for p in resumed.pictures], [p.name for p in whole.pictures])
        np.testing.assert_allclose(resumed.clusters["share"], whole.clusters["share"])
        self.assertFalse(self.partial.exists())

    def test_another_step_or_a_torn_file_begins_anew(self):
        evaluator = self.evaluator("hungarian", self.source)
        self.interrupted(evaluator, 2)
        scores = evaluator.run(self.params, 4, floors=False, partial=self.partial).scores
        self.assertEqual((scores["num_images"], scores["step"]), (29, 4))
        self.partial.write_bytes(b"PK\x03\x04 torn")
        scores = evaluator.run(self.params, 4, floors=False, partial=self.partial).scores
        self.assertEqual(scores["num_images"], 29)


class MeshTest(EvaluatorCase):

    def test_the_same_counts_on_one_device_and_on_eight(self):
        source, params = Blocks([(32, 32)] * 11), colour_params(range(4))
        many = self.evaluator("hungarian", source)
        one = self.evaluator("hungarian", source)
        one.mesh = make_mesh({"data": 1, "fsdp": 1}, jax.devices()[:1])
        one = Evaluator(Colour(), source, one.config, one.mesh, "test")
        self.assertEqual(many.mesh.size, 8)
        self.assertEqual(many.run(params, 0, floors=False).scores["confusion"],
                         one.run(params, 0, floors=False).scores["confusion"])


if __name__ == "__main__":
    absltest.main()
