"""Tests of fs4_jax.data.strokes and labelled_crop: what scribble supervision is trained with."""

import contextlib
import io
import pickle

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from fs4_jax.config import default_config
from fs4_jax.data.folder import FolderSource
from fs4_jax.data.images import DataError
from fs4_jax.data.labelled_crop import LabelledCrop, cut_label
from fs4_jax.data.pipeline import train_dataset
from fs4_jax.data.scenes import SceneSource
from fs4_jax.data.strokes import StrokeSource
from fs4_jax.data.views import ViewSettings


def said(function, *args, **kwargs):
    """(what a call prints, what it warns of)."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        function(*args, **kwargs)
    return out.getvalue(), error.getvalue()


class StrokesTest(parameterized.TestCase):

    def setUp(self):
        super().setUp()
        self.root = self.create_tempdir()

    def folder(self, labels, sizes=None, **options):
        """A FolderSource of images and the given masks, uint8 [h, w] each."""
        for i, label in enumerate(labels):
            label = np.asarray(label, np.uint8)
            height, width = (sizes or {}).get(i, label.shape)
            for name, picture in (("images", np.zeros((height, width, 3), np.uint8)),
                                  ("strokes", label)):
                path = self.root.mkdir(name).full_path
                Image.fromarray(picture).save(f"{path}/{i:02d}.png")
        return FolderSource(f"{self.root.full_path}/images", f"{self.root.full_path}/strokes",
                            **options)

    @parameterized.parameters("scribbles", "points")
    def test_drawn_strokes_are_a_small_part_of_the_masks_and_always_the_same(self, kind):
        scenes = SceneSource(6)
        drawn = StrokeSource(scenes, kind, seed=3)
        again = pickle.loads(pickle.dumps(StrokeSource(scenes, kind, seed=3)))
        for i in (5, 0, 5):
            strokes, mask = drawn[i]["label"], scenes[i]["label"]
            marked = strokes != 255
            self.assertBetween(marked.mean(), 1e-4, 0.2)
            np.testing.assert_array_equal(strokes[marked], mask[marked])
            np.testing.assert_array_equal(again[i]["label"], strokes)
        other = StrokeSource(scenes, kind, seed=4)
        self.assertFalse(np.array_equal(other[5]["label"], drawn[5]["label"]))

    def test_given_labels_are_read_as_they_are(self):
        scenes = SceneSource(2)
        np.testing.assert_array_equal(StrokeSource(scenes)[1]["label"], scenes[1]["label"])

    def test_the_share_of_labelled_pixels_is_said(self):
        label = np.full((10, 20), 255)
        label[2, :4], label[5, 3:6] = 0, 1
        out, warned = said(StrokeSource(self.folder([label, label], num_classes=2)).check)
        self.assertIn("3.50 % of the pixels of 2 images", out)
        self.assertEqual(warned, "")

    def test_bare_images_and_classes_never_drawn_are_warned_of_by_name(self):
        label = np.full((10, 20), 255)
        label[2] = 1
        source = StrokeSource(self.folder([label, np.full((10, 20), 255)],
                                          class_names=("sky", "road", "cow")))
        _, warned = said(source.check)
        self.assertIn("1 of 2 images have no stroke", warned)
        self.assertIn("01", warned)
        self.assertIn("nobody has drawn sky, cow", warned)

    def test_no_stroke_at_all(self):
        source = StrokeSource(self.folder([np.full((9, 9), 255)], num_classes=2))
        with self.assertRaisesRegex(DataError, "none of the 1 images of folder has a stroke"):
            source.check()

    def test_a_stroke_of_an_unknown_class_is_refused_by_file(self):
        """Also where it is in one of many files, and not in the few that a source samples."""
        labels = [np.zeros((8, 8)) for _ in range(40)]
        labels[3][4, 4] = 7
        source = StrokeSource(self.folder(labels, num_classes=2))
        with self.assertRaisesRegex(DataError, r"03\.png: id 7 is outside 0\.\.1"):
            said(source.check)

    def test_strokes_larger_than_the_image_are_refused(self):
        source = StrokeSource(self.folder([np.zeros((9, 12))], {0: (8, 8)}, num_classes=1))
        with self.assertRaisesRegex(DataError, "00.png is 12 x 9 pixels, its image .* 8 x 8"):
            source.check()

    def test_settings_that_can_not_be(self):
        scenes, bare = SceneSource(1), self.folder([np.zeros((8, 8))], num_classes=1)
        bare.num_classes = 0
        for source, kind, options, message in (
                (scenes, "boxes", {}, "config.scribble.annotation is 'boxes'; choose one of"),
                (scenes, "scribbles", {"ratio": 1.5},
                 "config.scribble.ratio=1.5: choose from 0 to 1"),
                (scenes, "scribbles", {"width": (5, 3)}, r"config.scribble.width=\(5, 3\): give"),
                (scenes, "scribbles", {"width": (0, 3)}, r"config.scribble.width=\(0, 3\): give"),
                (scenes, "scribbles", {"width": (3,)}, r"config.scribble.width=\(3,\): give"),
                (bare, "given", {}, "folder has no labels.*config.data.labels=DIR")):
            with self.assertRaisesRegex(DataError, message):
                StrokeSource(source, kind, **options)


class LabelledCropTest(absltest.TestCase):

    def test_the_label_is_cut_as_the_image_is(self):
        """An image whose colour is its class: crops of both agree but for a pixel at borders."""
        rng = np.random.default_rng(0)
        label = np.kron(rng.integers(0, 4, (6, 8)), np.ones((20, 20))).astype(np.uint8)
        image = np.repeat(label[..., None] * 60, 3, -1).astype(np.uint8)
        config = default_config().data
        config.update(dict(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, grey=0.0,
                           blur=0.0))
        crop = LabelledCrop(ViewSettings.from_config(config), (56, 64), 8)
        for seed in range(8):
            views = crop(image, np.random.default_rng(seed), label)
            self.assertEqual(views["label"].shape, (56, 64))
            agree = np.abs(views["image"][..., 0] / 60 - views["label"]) < 0.5
            self.assertGreater(agree.mean(), 0.93, seed)      # unrelated: 0.25

    def test_thin_strokes_survive_a_smaller_size(self):
        label = np.full((80, 80), 255, np.uint8)
        label[21], label[:, 33] = 3, 4
        small = cut_label(label, (0, 0, 80, 80), False, (20, 20))
        np.testing.assert_array_equal(np.delete(small[5], 8), 3)
        np.testing.assert_array_equal(np.delete(small[:, 8], 5), 4)
        self.assertEqual((small != 255).sum(), 39)
        flipped = cut_label(label, (0, 0, 80, 80), True, (20, 20))
        np.testing.assert_array_equal(flipped, small[:, ::-1])

    def test_a_larger_size_is_nearest_neighbour(self):
        label = np.array([[0, 255], [1, 2]], np.uint8)
        large = cut_label(label, (0, 0, 2, 2), False, (6, 4))
        np.testing.assert_array_equal(large, np.kron(label, np.ones((3, 2), np.uint8)))

    def test_full_masks_stay_full(self):
        label = np.random.default_rng(0).integers(0, 5, (50, 60)).astype(np.uint8)
        self.assertLess(cut_label(label, (3.3, 7.1, 41.9, 55.5), False, (16, 16)).max(), 5)

    def test_batches_of_the_pipeline(self):
        source = StrokeSource(SceneSource(8, image_size=64), "scribbles")
        crop = LabelledCrop(ViewSettings(), (32, 32), 8)
        first, again = (next(iter(train_dataset(source, crop, seed=1, batch_size=4)))
                        for _ in range(2))
        self.assertEqual(first["label"].shape, (4, 32, 32))
        self.assertTrue(((first["label"] == 255) | (first["label"] < 10)).all())
        for key in first:
            np.testing.assert_array_equal(first[key], again[key])


if __name__ == "__main__":
    absltest.main()
