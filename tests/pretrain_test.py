"""An encoder from nothing, then FS^4 on top of it: the two commands, at a size of seconds."""

import json
import pathlib
import tempfile

import jax
import numpy as np
from absl.testing import absltest

from fs4_jax import evaluate, predict, train
from fs4_jax.config import ConfigError
from fs4_jax.models import load_encoder, weights
from fs4_jax.run import encoder_of_workdir, prepare
from tests.train_test import quietly, restored, tiny_config, write_folder


def pretrain_config(**changes):
    """DINO on 32-pixel scenes: seconds."""
    config = tiny_config(method="dino", total_steps=4)
    config.dino.update(dict(num_prototypes=16, patch_prototypes=16, hidden=16, bottleneck=8,
                            num_local=2, local_size=16))
    config.eval.update(dict(protocol="kmeans", probes=True, probe_steps=5, probe_images=8,
                            at_start=True))
    config.update_from_flattened_dict(changes)
    return config


class PretrainTest(absltest.TestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        jax.config.update("jax_disable_most_optimizations", True)      # few steps: compile fast
        cls.folder = tempfile.TemporaryDirectory()
        cls.workdir = pathlib.Path(cls.folder.name, "dino")
        cls.status, cls.out = quietly(train.train, pretrain_config(), cls.workdir)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()
        jax.config.update("jax_disable_most_optimizations", False)
        super().tearDownClass()

    def test_it_is_scored_by_kmeans_and_probes_before_and_after(self):
        self.assertEqual(self.status, 0)
        self.assertIn("DINO on 16 images", self.out)
        for line in ("k-means on its tokens", "linear probe, labelled", "neighbours, labelled"):
            self.assertIn(line, self.out)
        scores = json.loads((self.workdir / "eval.json").read_text())
        self.assertEqual((scores["protocol"], len(scores["runs"])), ("kmeans", 3))
        self.assertEqual(set(scores["probes"]), {"linear", "knn"})
        rows = [json.loads(line) for line in (self.workdir / "metrics.jsonl").read_text()
                .splitlines()]
        scored = [row["step"] for row in rows if "knn_miou" in row]
        self.assertEqual(scored, [0, 4])
        self.assertIn("<html", (self.workdir / "report.html").read_text())

    def test_fs4_begins_with_the_teachers_encoder(self):
        fs4 = tiny_config(total_steps=2)
        fs4.encoder.weights = str(self.workdir)
        run = prepare(fs4)
        teacher = restored(pretrain_config(), self.workdir)[4]["encoder"]
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(run.encoder_params),
                     teacher)
        state = run.create_state()
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params["encoder"]),
                     teacher)
        after = pathlib.Path(self.folder.name, "fs4")
        self.assertEqual(quietly(train.train, fs4, after)[0], 0)
        # What FS^4 has made of it can be fed back, or be trained on.
        again = encoder_of_workdir(after)[1]
        moved = restored(fs4, after)[4]["encoder"]
        jax.tree.map(np.testing.assert_array_equal, again, moved)
        more = pretrain_config(**{"encoder.weights": str(after), "total_steps": 1})
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(prepare(more).encoder_params),
                     moved)

    def test_it_is_written_under_official_names(self):
        path = pathlib.Path(self.folder.name, "own.safetensors")
        weights.convert(self.workdir, path)
        model, params = load_encoder(path, expected_variant="mu/8")
        teacher = restored(pretrain_config(), self.workdir)[4]["encoder"]
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), teacher)
        self.assertEqual(model, encoder_of_workdir(self.workdir)[0])

    def test_a_middle_block_of_it(self):
        model, params = encoder_of_workdir(self.workdir, block=2)
        self.assertNotIn("blocks_2", params)
        out = model.apply({"params": params}, np.zeros((1, 32, 40, 3), np.float32))
        self.assertEqual(out["patch_tokens"].shape, (1, 4, 5, 128))
        with self.assertRaisesRegex(ConfigError, "encoder.block=9: .* blocks 1 to 4"):
            encoder_of_workdir(self.workdir, block=9)

    def test_what_does_not_fit_is_said(self):
        other = tiny_config()
        other.encoder.weights, other.encoder.variant = str(self.workdir), "S/16"
        with self.assertRaisesRegex(ConfigError, "trained a mu/8, but .*variant is S/16"):
            prepare(other)
        other.encoder.weights = self.folder.name
        with self.assertRaisesRegex(ConfigError, "holds no config.json"):
            prepare(other)

    def test_it_has_no_classes_to_predict(self):
        images = pathlib.Path(self.folder.name, "images")
        write_folder(images, ["a.png"])
        with self.assertRaisesRegex(ConfigError, "has no classes: train FS.4 on top of it"):
            predict.predict(self.workdir, images, pathlib.Path(self.folder.name, "masks"))
        with self.assertRaisesRegex(ConfigError, "set config.eval.protocol to kmeans"):
            train.train(pretrain_config(**{"eval.protocol": "hungarian"}),
                        pathlib.Path(self.folder.name, "other"))

    def test_evaluated_again_it_scores_the_same(self):
        before = json.loads((self.workdir / "eval.json").read_text())
        self.assertEqual(quietly(evaluate.evaluate_workdir, pretrain_config(), self.workdir)[0], 0)
        after = json.loads((self.workdir / "eval.json").read_text())
        for key in ("miou", "accuracy", "probes", "step"):
            self.assertEqual(before[key], after[key])


if __name__ == "__main__":
    absltest.main()
