"""AlignSeg from end to end: trained, stopped, resumed, scored twice over, masks written."""

import contextlib
import importlib.util
import io
import json
import os
import pathlib
import signal
import tempfile
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest
from PIL import Image

from fs4_jax import run, train
from fs4_jax.predict import predict
from fs4_jax.sharding import make_mesh
from tests.fast_compiles import setUpModule, tearDownModule  # noqa: F401
from tests.methods.alignseg_test import small_config
from tests.train_test import quietly, restored, write_folder


def tiny_config():
    config = small_config(total_steps=4, log_every=1)
    config.data.update(dict(name="scenes", image_size=64, num_train=16, num_eval=8))
    config.encoder.update(dict(variant="mu/16", block=1))
    config.checkpoint.every = 2
    config.alignseg.fit_images = 16
    config.alignseg.mixture.update(dict(weight=1.0, rounds=2, attention=0.5, place=0.5,
                                        consistent=True, fitted=True))
    config.alignseg.merge = 0.95
    config.eval.update(dict(batch_size=8, floors=False, pictures=2, also=("per-image-m2o",)))
    return config


def stopped_at(step):
    """SIGTERM before a step."""
    due = train._evaluation_due

    def asked(config, now, *arguments):
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return due(config, now, *arguments)

    return mock.patch.object(train, "_evaluation_due", asked)


class AlignSegTrainTest(absltest.TestCase):

    def test_the_configs_can_work(self):
        for name, *kinds in (("demo", "mixture", "right"), ("camvid", "mixture", "five", "right"),
                             ("voc", "right", "released", "mixture"), ("coco27",)):
            path = pathlib.Path(__file__).resolve().parents[1] / f"configs/alignseg_{name}.py"
            spec = importlib.util.spec_from_file_location(name, path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            for arguments in [(kind,) for kind in kinds] or [()]:
                config = module.get_config(*arguments)
                with self.subTest(f"{name} {arguments}"):
                    method = run.prepare(config).method
                    method.make_views(config.data, (224, 224))
                    self.assertIn("per-image-m2o-whole" if name == "demo" else "per-image-m2o",
                                  config.eval.also)
                    self.assertEqual(method.settings.released_pairing, arguments == ("released",))
                    self.assertEqual("space" in method.frozen,
                                     arguments in (("mixture",), ("five",)))

    def test_from_images_to_masks(self):
        # On one device: eight compile for minutes, and methods/alignseg_test.py has them.
        one = make_mesh({"data": 1, "fsdp": 1}, jax.devices()[:1])
        self.enterContext(mock.patch.object(run, "make_mesh", lambda settings: one))
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        config, parts, whole = tiny_config(), folder / "parts", folder / "whole"
        with stopped_at(1):
            status, output = quietly(train.train, config, parts)
        self.assertEqual(status, train.EXIT_INTERRUPTED, output)
        self.assertFalse((parts / "eval.json").exists())
        status, output = quietly(train.train, config, parts)
        self.assertEqual(status, 0, output)
        self.assertIn("resuming from step 1", output)
        scores = json.loads((parts / "eval.json").read_text())

        with self.subTest("both scores, each under its own name"):
            self.assertEqual(scores["protocol"], "hungarian")
            self.assertEqual(np.shape(scores["confusion"]), (config.num_clusters, 10))
            other = scores["also"]["per-image-m2o"]
            self.assertEqual(other["protocol"], "per-image-m2o")
            self.assertEqual((other["num_images"], scores["num_images"]), (8, 8))
            for score in (scores, other):
                self.assertBetween(score["miou"], 0, 100)
            # Its own truth names each segment: at least as right as one match of all images.
            self.assertGreater(other["accuracy"], scores["accuracy"])
            self.assertIn("protocol per-image-m2o:", output)

        with self.subTest("a run that was stopped ends with the same bits"):
            config.eval.update(dict(also=(), pictures=0))
            quietly(train.train, config, whole)
            jax.tree.map(np.testing.assert_array_equal, restored(config, whole),
                         restored(config, parts))
            again = json.loads((whole / "eval.json").read_text())
            self.assertEqual(again["confusion"], scores["confusion"])

        with self.subTest("masks of classes"):
            write_folder(folder / "images", ["a.png", "b.png"], size=64)
            with contextlib.redirect_stdout(io.StringIO()):
                predict(parts, folder / "images", folder / "out", batch_size=2)
            names = json.loads((folder / "out" / "classes.json").read_text())
            for name in ("a", "b"):
                mask = np.asarray(Image.open(folder / "out" / "masks" / f"{name}.png"))
                self.assertEqual(mask.shape, (64, 64))
                self.assertTrue(set(np.unique(mask)) <= {x["id"] for x in names})


if __name__ == "__main__":
    absltest.main()
