"""Which source a config means, and what is said where it means none."""

import ml_collections
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.config import default_config
from fs4_jax.data.folder import DataError
from fs4_jax.data.pipeline import make_source
from tests.data.files import FolderCase, picture
from tests.data.trees import WRITERS
from tests.shared import shared_path


class MakeSourceTest(FolderCase):

    def setUp(self):
        super().setUp()
        for number, folder in enumerate(("a", "b", "root/train", "root/val"), 1):
            for i in range(number):
                self.write(f"{folder}/images/{i}.jpg", picture())
                self.write(f"{folder}/labels/{i}.png", np.full((12, 20), number, np.uint8))

    def make(self, split, **settings):
        data = default_config().data
        data.update({key: str(self.root / value) if key in (
            "root", "images", "labels", "eval_images", "eval_labels") else value
            for key, value in settings.items()})
        self.assertIsInstance(data, ml_collections.ConfigDict)
        return make_source(data, split)

    @parameterized.parameters(
        (dict(images="a/images"), 1, 0, 1, 0),
        (dict(images="a/images", labels="a/labels"), 1, 2, 1, 2),
        (dict(images="a/images", eval_images="b/images", eval_labels="b/labels"), 1, 0, 2, 3),
        (dict(root="root"), 3, 4, 4, 5),
        (dict(root="root", eval_images="b/images"), 3, 4, 2, 0),
        (dict(root="root", images="a/images"), 1, 0, 4, 5))
    def test_folders(self, settings, num_train, train_classes, num_eval, eval_classes):
        train, evaluation = self.make("train", **settings), self.make("eval", **settings)
        self.assertEqual((len(train), train.num_classes), (num_train, train_classes))
        self.assertEqual((len(evaluation), evaluation.num_classes), (num_eval, eval_classes))

    def test_classes_are_passed_on(self):
        source = self.make("eval", root="root", class_names=tuple("abcdef"), ignore_ids=(4,))
        self.assertEqual(source.class_names, tuple("abcdef"))
        self.assertEqual(source[0]["label"].min(), 255)

    def test_labels_below_root_are_not_required(self):
        for label in (self.root / "root/train/labels").iterdir():
            label.unlink()
        (self.root / "root/train/labels").rmdir()
        self.assertEqual(self.make("train", root="root").num_classes, 0)

    @parameterized.parameters(
        ("train", {}, r"--config\.data\.images=DIR"),
        ("eval", {}, r"--config\.data\.images=DIR"),
        ("eval", dict(images="a/images", eval_labels="b/labels"), r"without config\.data\.eval_im"),
        ("eval", dict(root="a"), r"a/val/images \(config\.data\.root\) is not a folder"),
        ("eval", dict(images="a/images", eval_images="x"), r"x \(config\.data\.eval_images\)"),
        ("train", dict(images="a/images", labels="x"), r"x \(config\.data\.labels\)"),
        ("train", dict(name="cocostuff"), r"--config\.data\.root=DIR"),
        ("train", dict(name="voc"), r"--config\.data\.root=DIR with DIR/JPEGImages"),
        ("eval", dict(name="camvid", root="root", label_set="12"), "'12'; camvid has 11"),
        ("train", dict(name="imagenet"), r"'imagenet'; choose one of folder, scenes, cocostuff"))
    def test_what_is_missing_is_named(self, split, settings, message):
        with self.assertRaisesRegex(DataError, message):
            self.make(split, **settings)

    def test_scenes(self):
        train = self.make("train", name="scenes", num_train=5, image_size=32)
        evaluation = self.make("eval", name="scenes", num_eval=3, image_size=32)
        self.assertEqual((len(train), len(evaluation)), (5, 3))
        self.assertEqual(evaluation.example_name(0), "scene_val_000000")
        own = self.make("eval", name="scenes", eval_images="b/images")
        self.assertEqual((own.name, len(own)), ("folder", 2))

    @parameterized.parameters(
        ("cocostuff", "", 27, 27), ("cocostuff", "171", 171, 171), ("cityscapes", "", 27, 27),
        ("cityscapes", "19", 19, 19), ("potsdam", "3", 3, 3), ("camvid", "", 11, 11),
        ("voc", "", 21, 21))
    def test_trees_by_name(self, name, labels, *number):
        WRITERS[name](self.root / "tree")
        settings = dict(name=name, root="tree", label_set=labels)
        sources = self.make("train", **settings), self.make("eval", **settings)
        self.assertEqual(tuple(source.num_classes for source in sources), number)
        self.assertEqual({source.name for source in sources}, {name})
        own = self.make("eval", eval_images="b/images", **settings)
        self.assertEqual((own.name, len(own)), ("folder", 2))

    @parameterized.parameters(("", 2, 0.2), ("21-aug", 3, 0.2), ("21-scribbles", 2, 0.5),
                              ("21-aug-scribbles", 3, 0.5), ("animals", 2, None))
    def test_voc_trains_on(self, labels, number, ignored):
        WRITERS["voc"](self.root / "tree")
        train, evaluation = (self.make(split, name="voc", root="tree", label_set=labels)
                             for split in ("train", "eval"))
        self.assertEqual((len(train), len(evaluation)), (number, 1))
        if ignored is None:
            self.assertEqual((train.num_classes, evaluation.num_classes), (7, 7))
        else:
            self.assertAlmostEqual((train.label(0) == 255).mean(), ignored, delta=0.1)
            self.assertEqual((evaluation.label(0) == 255).mean(), 0.2)

    def test_cocostuff(self):
        root = shared_path("data", "cocostuff_sample")
        data = default_config().data
        data.name, data.root = "cocostuff", str(root)
        self.assertEqual(len(make_source(data, "train")), 13)
        self.assertEqual(make_source(data, "eval").num_classes, 27)


if __name__ == "__main__":
    absltest.main()
