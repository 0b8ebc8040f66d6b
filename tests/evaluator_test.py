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
from fs4_jax.evaluation.per_image import PER_IMAGE
from fs4_jax.evaluation.protocols import PROTOCOLS, evaluate_counts
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
        self.assertAlmostEqual(got.scores["miou"], want.miou, places=6)
        self.assertAlmostEqual(got.scores["accuracy"], want.accuracy, places=6)
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
        self.assertIn("kmeans_rgb", scores["floors"])

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
            with mock.patch.object(evaluator, "_fit", side_effect=AssertionError):
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
