"""Tests of fs4_jax.data.aligned_crops: sizes, areas, the intersection rule, no colour changed."""

from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.data import aligned_crops
from fs4_jax.data.aligned_crops import AlignedCrops, common_area
from fs4_jax.data.images import DataError
from fs4_jax.data.views import ViewSettings

_PLAIN = dict(flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, grey=0.0, blur=0.0)


def crops(image_size=(32, 32), settings=None, **options):
    settings = ViewSettings(**(settings or _PLAIN))
    return AlignedCrops(settings, image_size, 8, **options)


def picture(height=120, width=160):
    """Each pixel says where it is: red by row, green by column."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.stack([rows, columns, np.zeros_like(rows)], -1).astype(np.uint8)


def shown(crop):
    """The box that a crop of `picture` shows, from its own colours, to about a pixel."""
    top, bottom = (crop[i, :, 0].mean() for i in (0, -1))
    left, right = (crop[:, i, 1].mean() for i in (0, -1))
    half = (bottom - top) / (len(crop) - 1) / 2, (right - left) / (crop.shape[1] - 1) / 2
    return top - half[0], left - half[1], bottom + half[0], right + half[1]


class AlignedCropsTest(parameterized.TestCase):

    def test_areas_and_intersections_of_what_is_shown(self):
        make, image, total = crops(), picture(), 120 * 160
        areas = []
        for seed in range(150):
            views = make(image, np.random.default_rng(seed))["crops"]
            self.assertEqual((views.shape, views.dtype), ((3, 32, 32, 3), np.uint8))
            boxes = [shown(x) for x in views]
            areas.append([common_area(x, x) / total for x in boxes])
            for box in boxes[1:]:
                self.assertGreater(common_area(box, boxes[0]) / total, 0.05 - 0.01)
        areas = np.array(areas)
        self.assertBetween(areas[:, 0].min(), 0.45, 0.6)      # a side that sticks out is cut
        self.assertGreater(areas[:, 0].max(), 0.85)
        self.assertBetween(areas[:, 1:].min(), 0.04, 0.08)
        self.assertBetween(areas[:, 1:].max(), 0.2, 0.27)

    def test_crops_that_miss_are_drawn_again(self):
        boxes = iter([(0.0, 0.0, 60.0, 80.0),                   # global: the upper left quarter
                      (60.0, 80.0, 120.0, 160.0),               # apart from it
                      (40.0, 60.0, 100.0, 140.0),               # 20 x 20 of 19200: 2 %
                      (10.0, 10.0, 50.0, 60.0)])                # 40 x 50: 10 %
        with mock.patch.object(aligned_crops, "draw_box", side_effect=lambda *_: next(boxes)):
            views = crops(num_local=1)(picture(), np.random.default_rng(0))["crops"]
        np.testing.assert_allclose(shown(views[1]), (10, 10, 50, 60), atol=2)
        self.assertIsNone(next(boxes, None))

    def test_plain_crops_are_the_pixels_themselves(self):
        views = crops()(picture(), np.random.default_rng(1))["crops"]
        for view in views:                   # not mirrored, no colour changed
            self.assertTrue((np.diff(view[:, 0, 0].astype(int)) >= 0).all())
            self.assertTrue((np.diff(view[0, :, 1].astype(int)) >= 0).all())
            self.assertEqual(view[..., 2].max(), 0)
        mirrored = crops(settings=_PLAIN | {"flip": 1.0})(picture(), np.random.default_rng(1))
        self.assertTrue((np.diff(mirrored["crops"][0, 0, :, 1].astype(int)) <= 0).all())

    @parameterized.parameters(0.0, 1.0, 0.5)
    def test_corresponding_tokens_show_the_same_place(self, flip):
        make, checked = crops((64, 64), settings=_PLAIN | {"flip": flip}), 0
        for seed in range(8):
            views = make(picture(), np.random.default_rng(seed))
            self.assertEqual({k: (v.shape, v.dtype.name) for k, v in views.items()}, {
                "crops": ((3, 64, 64, 3), "uint8"),
                "correspondence": ((2, 8, 8, 2), "float32"), "valid": ((2, 8, 8), "bool")})
            # What a token shows: the mean of its pixels, which is where it is.
            seen = views["crops"].reshape(3, 8, 8, 8, 8, 3).mean((2, 4))[..., :2]
            inner = views["valid"] & ((views["correspondence"] >= 0)
                                      & (views["correspondence"] <= 7)).all(-1)
            for i, r, c in np.argwhere(inner):
                row, column = views["correspondence"][i, r, c]
                # Tokens of the global crop are evenly spaced: between two lies what is between.
                along = np.interp(row, range(8), seen[0, :, 0, 0])
                across = np.interp(column, range(8), seen[0, 0, :, 1])
                np.testing.assert_allclose(seen[i + 1, r, c], (along, across), atol=1.5)
            checked += inner.sum()
        self.assertGreater(checked, 200)

    @parameterized.parameters(((32, 48),), ((64, 32),))
    def test_other_sizes(self, size):
        views = crops(size)(picture(), np.random.default_rng(0))["crops"]
        self.assertEqual(views.shape, (3, *size, 3))

    def test_the_same_draw_again(self):
        one, two = (crops()(picture(), np.random.default_rng(5))["crops"] for _ in range(2))
        np.testing.assert_array_equal(one, two)

    @parameterized.parameters(
        (dict(local_scale=(0.3, 0.1)), "alignseg.local_scale="),
        (dict(global_scale=(0.5,)), "alignseg.global_scale="),
        (dict(local_scale=(0.01, 0.04)), "alignseg.intersection=0.05 is not below"))
    def test_settings_that_can_not_work(self, options, message):
        with self.assertRaisesRegex(DataError, message):
            crops(**options)

    def test_a_rule_that_is_never_met(self):
        with self.assertRaisesRegex(DataError, "lower config.alignseg.intersection"):
            crops(local_scale=(0.01, 0.050001))(picture(), np.random.default_rng(0))


if __name__ == "__main__":
    absltest.main()
