"""Tests of fs4_jax.evaluation.pictures."""

import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from fs4_jax.evaluation import pictures


class ColourTokensTest(absltest.TestCase):

    def test_groups_of_tokens_have_colours_of_their_own(self):
        rng = np.random.default_rng(0)
        group = np.repeat([[[0, 1], [2, 3]]], 2, 0).repeat(8, 1).repeat(8, 2)
        tokens = 9 * np.eye(6)[group] + rng.normal(0, 0.1, (2, 16, 16, 6))
        colours = pictures.colour_tokens(tokens).astype(int)
        self.assertEqual(colours.shape, (2, 16, 16, 3))
        means = np.stack([colours[group == k].mean(0) for k in range(4)])
        spread = max(colours[group == k].std(0).max() for k in range(4))
        distance = np.abs(means[:, None] - means[None]).max(-1)
        self.assertGreater(distance[~np.eye(4, dtype=bool)].min(), 10 * spread)

    def test_the_same_tokens_everywhere(self):
        self.assertLen(np.unique(pictures.colour_tokens(np.ones((1, 2, 2, 5)))), 1)


class PaletteTest(parameterized.TestCase):

    @parameterized.parameters((12, 40), (27, 40), (60, 25), (255, 12))
    def test_colours_are_apart(self, n, least):
        colours = pictures.palette(n).astype(int)
        self.assertEqual(colours.shape, (n, 3))
        colours = np.concatenate([colours, [pictures.IGNORE_COLOUR]])
        distance = np.sqrt(((colours[:, None] - colours[None]) ** 2).sum(-1))
        self.assertGreater(distance[~np.eye(n + 1, dtype=bool)].min(), least)

    def test_colours_of_few_are_the_first_of_many(self):
        np.testing.assert_array_equal(pictures.palette(200)[:30], pictures.palette(30))
        np.testing.assert_array_equal(pictures.palette(200)[:5], pictures.palette(5))

    def test_a_caller_can_not_change_the_palette(self):
        pictures.palette(5)[:] = 0
        self.assertGreater(pictures.palette(5).max(), 0)

    def test_too_many(self):
        with self.assertRaisesRegex(ValueError, "100000 asked for"):
            pictures.palette(100_000)

    def test_oklab_of_white_and_of_red(self):
        np.testing.assert_allclose(pictures._oklab([255, 255, 255]), [1, 0, 0], atol=1e-4)
        np.testing.assert_allclose(pictures._oklab([255, 0, 0]), [0.628, 0.225, 0.126], atol=1e-3)


class PaintTest(absltest.TestCase):

    def setUp(self):
        super().setUp()
        self.palette = pictures.palette(4)

    def test_colour_labels(self):
        label = np.zeros((30, 30), np.uint8)
        label[:, 10:20], label[:, 20:] = 3, 255
        picture = pictures.colour_labels(label, self.palette)
        self.assertEqual((picture.shape, picture.dtype), ((30, 30, 3), np.uint8))
        self.assertTrue((picture[:, :10] == self.palette[0]).all())
        self.assertTrue((picture[:, 10:20] == self.palette[3]).all())
        self.assertLen(np.unique(picture[:, 20:].reshape(-1, 3), axis=0), 2)   # a hatch
        self.assertLess(picture[:, 20:].max(), 100)
        np.testing.assert_array_equal(
            picture, pictures.colour_labels(np.where(label == 255, -1, label.astype(int)),
                                            self.palette))

    def test_id_255_is_a_cluster_where_there_are_so_many(self):
        colours = pictures.palette(300)
        picture = pictures.colour_labels(np.full((2, 2), 255, np.int32), colours)
        self.assertTrue((picture == colours[255]).all())

    def test_id_without_a_colour(self):
        with self.assertRaisesRegex(ValueError, "id 4, the palette has 4 colours"):
            pictures.colour_labels(np.array([[4]]), self.palette)

    def test_overlay(self):
        image = np.full((6, 8, 3), 100, np.uint8)
        label = np.zeros((6, 8), np.int32)
        label[:, 4:] = 1
        label[4:, :] = -1
        picture = pictures.overlay(image, label, self.palette, alpha=0.5)
        expected = np.round(50 + 0.5 * self.palette[0].astype(float))
        np.testing.assert_array_equal(picture[0, 0], expected)
        self.assertTrue((picture[5] == 100).all())          # not labelled: the photograph
        self.assertGreater(picture[0, 4].min(), 190)         # a light line, 1 pixel wide
        np.testing.assert_array_equal(picture[0, 3], expected)
        np.testing.assert_array_equal(picture[1, 5], np.round(50 + 0.5 * self.palette[1]))
        with self.assertRaisesRegex(ValueError, r"image is \(6, 8\), label is \(3, 3\)"):
            pictures.overlay(image, np.zeros((3, 3), int), self.palette)

    def test_indexed_png_keeps_ids_and_shows_colours(self):
        path = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "mask.png"
        label = np.array([[0, 1, 2], [3, 255, -1]])
        for colours in (pictures.palette(2), self.palette, pictures.palette(300)):
            pictures.save_indexed_png(path, label, colours)
            with Image.open(path) as picture:
                self.assertEqual(picture.mode, "P")
                np.testing.assert_array_equal(np.asarray(picture), np.where(label < 0, 255, label))
                rgb = np.asarray(picture.convert("RGB"))
            np.testing.assert_array_equal(rgb[0, :2], colours[:2])
            np.testing.assert_array_equal(rgb[1, 1], pictures.IGNORE_COLOUR)
        self.assertEqual(path.read_bytes()[24], 8)           # bits a pixel, in the IHDR chunk
        self.assertEqual([p.name for p in path.parent.iterdir()], ["mask.png"])
        with self.assertRaisesRegex(ValueError, "id 256"):
            pictures.save_indexed_png(path, np.array([[256]]), self.palette)


class SheetTest(parameterized.TestCase):

    @parameterized.parameters((1, 1), (3, 1), (3, 2), (4, 2))
    def test_shape(self, tiles, across):
        picture = np.full((30, 60, 3), 7, np.uint8)
        sheet = pictures.contact_sheet([("a", [picture] * 3)] * tiles, picture_width=40,
                                       across=across, names=["x<y", "é"],
                                       palette=pictures.palette(2))
        self.assertEqual(sheet.dtype, np.uint8)
        self.assertEqual(sheet.shape[1], across * (3 * 44 - 4 + 24))
        self.assertEqual((sheet == 7).all(-1).sum(), tiles * 3 * 40 * 20)
        for colour in pictures.palette(2):
            self.assertGreater((sheet == colour).all(-1).sum(), 100)

    def test_pictures_of_unlike_sizes_and_numbers(self):
        big, tall = np.zeros((90, 60, 3), np.uint8), np.zeros((1, 500, 3), np.uint8)
        sheet = pictures.contact_sheet([("long " * 99, [big]), ("", [tall, big])],
                                       picture_width=30, headings=())
        self.assertEqual(sheet.shape[1], 64 + 24)

    def test_errors(self):
        with self.assertRaisesRegex(ValueError, "at least one picture"):
            pictures.contact_sheet([])
        with self.assertRaisesRegex(ValueError, "fewer colours"):
            pictures.contact_sheet([("", [np.zeros((2, 2, 3), np.uint8)])], names=["a"])

    def test_legend_flows(self):
        names = [f"class number {i}" for i in range(20)]
        wide = pictures.legend(names, pictures.palette(20), 4000)
        narrow = pictures.legend(names, pictures.palette(20), 300)
        self.assertEqual((wide.shape[1], narrow.shape[1]), (4000, 300))
        self.assertGreater(narrow.shape[0], 5 * wide.shape[0])
        for colour in pictures.palette(20):
            self.assertEqual((narrow == colour).all(-1).sum(), 14 * 14)


if __name__ == "__main__":
    absltest.main()
