"""The loop as a whole: what it leaves behind, and that faults are named (kills: reliability/)."""

import contextlib
import io
import json
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from fs4_jax import evaluate, train
from fs4_jax.checkpoint import Checkpoints
from fs4_jax.config import ConfigError, default_config
from fs4_jax.data.folder import DataError, UnreadableImage
from fs4_jax.run import prepare
from fs4_jax.watch import NonFinite
from tests.shared import shared_path


def tiny_config(**changes):
    """Three clusters of 32-pixel scenes: seconds to train."""
    config = default_config()
    config.num_clusters, config.total_steps, config.batch_size = 3, 6, 8
    config.log_every = 1
    config.data.name, config.data.image_size = "scenes", 32
    config.data.num_train, config.data.num_eval = 16, 8
    config.encoder.variant = "mu/8"
    config.checkpoint.every = 2
    config.fs4.fit_images, config.fs4.cae.width, config.fs4.cae.hidden = 16, 8, 16
    config.fs4.bootstrap.every = 3
    config.fs4.cae.radius = config.fs4.kernel.radius = 1      # quicker to compile
    config.fs4.pgg.levels, config.fs4.pgg.guides = (1, 2), (1,)
    config.fs4.mixture.enabled = True
    config.eval.batch_size, config.eval.floors, config.eval.pictures = 8, False, 2
    config.update(changes)
    return config


def restored(config, workdir):
    """The state in a workdir's newest checkpoint, on the host."""
    run = prepare(config, trained_in=workdir)
    with Checkpoints(workdir, writes=False) as checkpoints:
        state, _ = checkpoints.restore(run.abstract_state())
    keys = jax.random.key_data(state.key)
    return jax.device_get((state.step, keys, state.params, state.opt_state, state.teacher,
                           state.extra))


def quietly(function, *arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = function(*arguments)
    return status, out.getvalue()


def write_folder(path, names, size=48, labels=False):
    for name in names:
        rng = np.random.default_rng(len(name))
        file = pathlib.Path(path, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        shape = (size, size) if labels else (size, size, 3)
        Image.fromarray(rng.integers(0, 3 if labels else 255, shape).astype(np.uint8)).save(file)


class TrainTest(absltest.TestCase):

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = pathlib.Path(folder.name)

    def assert_same_bits(self, a, b):
        self.assertEqual(jax.tree.structure(a), jax.tree.structure(b))
        for path, x in jax.tree_util.tree_leaves_with_path(a):
            y = dict(jax.tree_util.tree_leaves_with_path(b))[path]
            np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))

    def test_end_of_a_run(self):
        config = tiny_config()
        config.eval.floors = True
        status, output = quietly(train.train, config, self.dir)
        self.assertEqual(status, 0)
        scores = json.loads((self.dir / "eval.json").read_text())
        for key in ("protocol", "split", "num_images", "miou", "accuracy", "per_class_iou"):
            self.assertIn(key, scores)
        self.assertEqual(scores["num_images"], 8)
        self.assertEqual(np.sum(scores["confusion"]), 8 * 32 * 32)    # every labelled pixel
        for floor in ("kmeans_plain", "kmeans_strong", "kmeans_rgb"):
            self.assertBetween(scores["floors"][floor]["miou"], 0, 100)
        self.assertIn("k-means on RGB", output)
        self.assertIn("<svg", (self.dir / "report.html").read_text())

        with self.subTest("again: nothing is trained, the scores are the same"):
            before = restored(config, self.dir)
            quietly(train.train, config, self.dir)
            self.assert_same_bits(before, restored(config, self.dir))
            again = json.loads((self.dir / "eval.json").read_text())
            self.assertEqual(again["confusion"], scores["confusion"])

        with self.subTest("other settings are refused, with the keys"):
            other = tiny_config(batch_size=16)
            with self.assertRaisesRegex(ConfigError, "batch_size: there 8, now 16"):
                train.train(other, self.dir)

        with self.subTest("scored on a folder"):
            write_folder(self.dir / "images", ["a.png", "sub/b.png"])
            write_folder(self.dir / "labels", ["a.png", "sub/b.png"], labels=True)
            config.data.eval_images = str(self.dir / "images")
            config.data.eval_labels = str(self.dir / "labels")
            quietly(evaluate.evaluate_workdir, config, self.dir)
            scores = json.loads((self.dir / "eval.json").read_text())
            self.assertEqual((scores["num_images"], scores["num_classes"]), (2, 3))
            self.assertEqual(scores["split"], config.data.eval_images)

    def test_rounds_end(self):
        """Rounds are due every two steps; after two of them there are no more."""
        config = tiny_config(total_steps=7)
        config.fs4.bootstrap.every, config.fs4.bootstrap.rounds = 2, 2
        with mock.patch.object(train, "_bootstrap", side_effect=lambda run, source, state, step:
                               state) as rounds:
            quietly(train.train, config, self.dir)
        self.assertEqual([call.args[3] for call in rounds.call_args_list], [2, 4])

    def test_folder_without_labels_and_with_unreadable_images(self):
        images = self.dir / "images"
        write_folder(images, [f"{'x' * i}.png" for i in range(1, 9)])
        (images / "torn.png").write_bytes((images / "x.png").read_bytes()[:300])
        config = tiny_config(total_steps=3)
        config.data.name, config.data.images = "folder", str(images)
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            quietly(train.train, config, self.dir / "w")
        self.assertEqual(errors.getvalue().count("skipped torn"), 1)
        self.assertFalse((self.dir / "w" / "eval.json").exists())
        self.assertTrue((self.dir / "w" / "report.html").exists())

        with self.subTest("in a split that is to be scored it is an error"):
            write_folder(self.dir / "labels", [f"{'x' * i}.png" for i in range(1, 9)] +
                         ["torn.png"], labels=True)
            config.data.eval_images, config.data.eval_labels = str(images), str(
                self.dir / "labels")
            with self.assertRaisesRegex((UnreadableImage, DataError), "torn"):
                quietly(evaluate.evaluate_workdir, config, self.dir / "w")

    def test_a_loss_that_is_no_number(self):
        config = tiny_config(total_steps=8)
        config.optimizer.learning_rate = 1e38
        config.optimizer.warmup_steps = 3
        with self.assertRaisesRegex(
                NonFinite, r"is (nan|inf) at step \d, on images .*scene_train_"):
            quietly(train.train, config, self.dir)
        with Checkpoints(self.dir) as checkpoints:
            newest = checkpoints.latest
        if newest is not None:
            for leaf in jax.tree.leaves(restored(config, self.dir)):
                self.assertTrue(np.isfinite(leaf).all())

    def test_a_frozen_encoder_without_weights_is_warned_of(self):
        config = default_config()
        run = mock.Mock(config=config)
        for frozen, weights, warned in ((True, "", 1), (True, "w.npz", 0), (False, "", 0)):
            config.encoder.frozen, config.encoder.weights = frozen, weights
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                train._describe(run, [], mock.MagicMock(), "W")
            self.assertEqual(printed.getvalue().count("WARNING: an encoder left at"), warned)

    def test_what_can_not_work_is_refused_before_training(self):
        cases = {
            "batch_size": (dict(batch_size=12), "batch_size=12 is not divisible by the 8"),
            "K": (dict(num_clusters=0), "num_clusters"),
            "dtype": (dict(dtype="float8"), "dtype"),
        }
        for name, (changes, message) in cases.items():
            with self.subTest(name), self.assertRaisesRegex(ConfigError, message):
                train.train(tiny_config(**changes), self.dir)
        for key, value, error, message in (
                ("encoder.variant", "X/8", ConfigError, "encoder.variant"),
                ("encoder.weights", "no.safetensors", ConfigError, "no.safetensors"),
                ("data.image_size", 36, ConfigError, "36x36.*patches of 8.*data.image_size"),
                ("mesh.data", 3, ConfigError, "config.mesh"),
                ("fs4.pgg.levels", (1, 8), ConfigError, "8 cells on a side, .* 4 tokens"),
                ("data.name", "folder", DataError, "config.data.images=DIR"),
                ("eval.protocol", "best", ConfigError, "eval.protocol")):
            config = tiny_config()
            config.update_from_flattened_dict({key: value})
            with self.subTest(key), self.assertRaisesRegex(error, message):
                train.train(config, self.dir)
        self.assertEmpty(list(self.dir.iterdir()))


class CocoStuffTest(parameterized.TestCase):
    """COCO-Stuff's own tree trains and is scored in 27 classes."""

    @parameterized.parameters("real", "made")
    def test_a_tree(self, kind):
        with tempfile.TemporaryDirectory() as folder:
            root = shared_path("data", "cocostuff_sample")
            if kind == "made":                # of other photographs, with a curated list
                tool, root = shared_path("tools", "make_cocostuff_layout.py"), f"{folder}/tree"
                subprocess.run([sys.executable, tool, root, "--train", "12", "--val", "5"],
                               check=True, capture_output=True)
            config = tiny_config(total_steps=2, num_clusters=27)
            config.data.name, config.data.root = "cocostuff", str(root)
            config.fs4.pgg.levels = config.fs4.pgg.guides = (2,)
            status, output = quietly(train.train, config, f"{folder}/w")
            self.assertEqual(status, 0, output)
            scores = json.loads(pathlib.Path(folder, "w", "eval.json").read_text())
        self.assertEqual((scores["num_classes"], scores["num_clusters"]), (27, 27))
        self.assertEqual(scores["num_images"], 8 if kind == "real" else 5)
        self.assertGreater(scores["accuracy"], 0.0)


if __name__ == "__main__":
    absltest.main()
