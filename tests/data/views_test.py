"""Two views: exact correspondence, reproducible draws, colours that stay colours."""

import dataclasses
from unittest import mock

import ml_collections
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image
from scipy import ndimage

from fs4_jax.data import views as views_lib
from fs4_jax.data.folder import DataError
from fs4_jax.data.views import ViewSettings, resize_image, two_views

PLAIN = ViewSettings(brightness=0, contrast=0, saturation=0, hue=0, grey=0, blur=0, flip=0)
SIZE = dict(image_size=(64, 96), patch=8)


def coordinates(height, width):
    """An image in which red is the column and green the row, in 250ths of the side."""
    row, column = np.mgrid[:height, :width] + 0.5
    return np.stack([column * 250 / width, row * 250 / height, 0 * row], -1).astype(np.uint8)


def at_tokens(view, places, patch):
    """The view's colours [..., 2] at token coordinates [..., 2]."""
    pixels = np.moveaxis((places + 0.5) * patch - 0.5, -1, 0)
    return np.stack([ndimage.map_coordinates(view[..., c].astype(float), pixels, order=1,
                                             mode="nearest") for c in (1, 0)], -1)


def blocks(seed, height=300, width=400):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 20, width // 20, 3), np.uint8)
    return small.repeat(20, 0).repeat(20, 1)


class CorrespondenceTest(parameterized.TestCase):

    @parameterized.parameters((360, 480, 0.0), (360, 480, 1.0), (480, 300, 0.5), (90, 100, 0.5),
                              (1200, 1500, 0.5), (361, 483, 0.5, "five"), (480, 300, 1.0, "five"))
    def test_view2_at_the_correspondence_shows_what_view1_shows(self, height, width, flip,
                                                                crops="random"):
        image = coordinates(height, width)
        settings = dataclasses.replace(PLAIN, flip=flip, crops=crops, crop_scale=(0.3, 1.0),
                                       view2_scale=(0.3, 1.0))
        compared = 0
        for seed in range(8):
            views = two_views(image, np.random.default_rng(seed), settings, **SIZE)
            valid, places = views["valid"], views["correspondence"]
            h, w = valid.shape
            own = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), -1)
            seen1 = at_tokens(views["view1"], own, 8)[valid]
            seen2 = at_tokens(views["view2"], places, 8)[valid]
            # A token is 3 to 20 units wide here: two units are a small part of one. The outermost
            # half pixel can not be sampled.
            np.testing.assert_allclose(seen2, seen1, atol=2.0)
            self.assertLess(np.abs(seen2 - seen1).mean(), 0.7)
            compared += valid.sum()
        self.assertGreater(compared, 8 * 8 * 12 * 0.3)

    def test_a_side_that_is_not_cropped_corresponds_to_itself(self):
        # All of the area, under a drawn aspect: one of the sides stays whole.
        settings = dataclasses.replace(PLAIN, view2_scale=(1.0, 1.0))
        own = np.stack(np.meshgrid(np.arange(8), np.arange(12), indexing="ij"), -1)
        whole = set()
        for seed in range(8):
            views = two_views(blocks(0), np.random.default_rng(seed), settings, **SIZE)
            moved = np.abs(views["correspondence"] - own).max((0, 1))
            whole.add(int(moved.argmin()))
            self.assertLess(moved.min(), 1e-5)
        self.assertEqual(whole, {0, 1})

    def test_valid_is_what_lies_inside_view2(self):
        settings = dataclasses.replace(PLAIN, flip=0.5)
        for seed in range(10):
            views = two_views(blocks(1), np.random.default_rng(seed), settings, **SIZE)
            places = views["correspondence"]
            inside = ((places > -0.5) & (places < np.array([7.5, 11.5]))).all(-1)
            np.testing.assert_array_equal(views["valid"], inside)
            self.assertGreater(inside.mean(), 0.3)      # view 2 shows half of view 1 at least


class TwoViewsTest(parameterized.TestCase):

    def test_shapes_and_types(self):
        views = two_views(blocks(0), np.random.default_rng(0), ViewSettings(), **SIZE)
        described = {name: (array.shape, array.dtype.name) for name, array in views.items()}
        self.assertEqual(described, {
            "view1": ((64, 96, 3), "uint8"), "view2": ((64, 96, 3), "uint8"),
            "correspondence": ((8, 12, 2), "float32"), "valid": ((8, 12), "bool")})

    def test_everything_comes_from_the_generator(self):
        once, again, other = (two_views(blocks(0), np.random.default_rng(seed), ViewSettings(),
                                        **SIZE) for seed in (5, 5, 6))
        for name in once:
            np.testing.assert_array_equal(once[name], again[name])
            self.assertFalse(np.array_equal(once[name], other[name]), name)

    def test_crops_show_the_share_that_was_asked_for(self):
        image = coordinates(400, 600)
        settings = dataclasses.replace(PLAIN, crop_scale=(0.2, 0.3), view2_scale=(0.4, 0.5))
        shares = []
        for seed in range(30):
            views = two_views(image, np.random.default_rng(seed), settings, **SIZE)
            extent = [np.ptp(views[v][..., :2].reshape(-1, 2).astype(float), axis=0) / 250
                      for v in ("view1", "view2")]
            first, second = (np.prod(e) for e in extent)
            shares.append((first, second / first))
            width, height = extent[0] * (600, 400)
            # 3/4 to 4/3 times the views' own aspect: nothing is stretched more than that.
            self.assertBetween(height / width * 96 / 64, 0.71, 1.4)
        np.testing.assert_array_less(np.abs(np.mean(shares, 0) - (0.25, 0.45)), 0.03)
        np.testing.assert_array_less(0.18, np.array(shares)[:, 0])

    def test_flip(self):
        image = coordinates(80, 80)
        for flip, sign in ((0, 1), (1, -1)):
            settings = dataclasses.replace(PLAIN, flip=flip)
            views = two_views(image, np.random.default_rng(0), settings, **SIZE)
            for view in ("view1", "view2"):
                red = views[view][32, :, 0].astype(int)
                self.assertTrue((np.diff(red) * sign >= 0).all())

    def test_the_two_photometric_draws_differ(self):
        grey = np.full((64, 96, 3), 120, np.uint8)
        settings = dataclasses.replace(PLAIN, brightness=0.5)
        values = np.array([[two_views(grey, np.random.default_rng(s), settings, **SIZE)[v][0, 0, 0]
                            for v in ("view1", "view2")] for s in range(40)])
        self.assertLess(abs(np.corrcoef(values.T)[0, 1]), 0.5)
        self.assertBetween(values.min(), 60, 80)
        self.assertBetween(values.max(), 160, 180)

    def test_grey_stays_grey_whatever_is_drawn(self):
        ramp = np.repeat(np.arange(96, dtype=np.uint8)[None, :, None] + 60, 64, 0).repeat(3, 2)
        settings = ViewSettings(hue=1.0, blur=1.0)
        for seed in range(10):
            view = two_views(ramp, np.random.default_rng(seed), settings, **SIZE)["view1"]
            self.assertLessEqual(np.ptp(view.astype(int), axis=-1).max(), 1)

    def test_each_strength_does_its_own(self):
        image = blocks(3) // 2 + 64                 # far from black and white: nothing is clipped

        def view(**strengths):
            return two_views(image, np.random.default_rng(1),
                             dataclasses.replace(PLAIN, **strengths), **SIZE)["view1"].astype(float)

        plain = view()
        luma = np.array([0.299, 0.587, 0.114])
        brighter = view(brightness=0.2)
        np.testing.assert_allclose(brighter / plain, (brighter / plain).mean(), atol=0.02)
        self.assertGreater(abs(brighter.mean() / plain.mean() - 1), 0.01)
        contrast = view(contrast=0.3)
        self.assertLess(abs(((contrast - plain) @ luma).mean()), 1.0)
        self.assertGreater(abs(contrast.std() / plain.std() - 1), 0.02)
        for strengths in (dict(saturation=0.9), dict(hue=0.3), dict(grey=1.0)):
            changed = view(**strengths)
            self.assertGreater(np.abs(changed - plain).max(), 5)
            self.assertLess(np.abs(changed @ luma - plain @ luma).max(), 1.5, strengths)
        self.assertLessEqual(np.ptp(view(grey=1.0), axis=-1).max(), 1)
        self.assertLess(np.abs(np.diff(view(blur=1.0), axis=1)).max(),
                        np.abs(np.diff(plain, axis=1)).max())

    def test_all_colours_at_once_against_a_numpy_reference(self):
        image = blocks(4) // 3 + 80
        settings = ViewSettings(flip=0, blur=0, hue=0.3, grey=0.3)
        luma = np.array([0.299, 0.587, 0.114])
        to_yiq = np.array([luma, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
        greys = 0
        for seed in range(12):
            rng = np.random.default_rng(seed)
            plain = two_views(image, np.random.default_rng(seed), PLAIN, **SIZE)["view1"]
            rng.uniform(size=4 + 4), rng.random(2)      # the boxes and flips come first
            turn, saturation, brightness, contrast = rng.uniform(-1, 1, 4)
            grey = rng.random(3)[0] < 0.3
            greys += grey
            yiq = plain @ to_yiq.T
            chroma = (yiq[..., 1] + 1j * yiq[..., 2]) * np.exp(1j * np.pi * 0.3 * turn)
            chroma = chroma * (0 if grey else 1 + 0.4 * saturation)
            yiq = np.stack([yiq[..., 0], chroma.real, chroma.imag], -1)
            mean = (plain @ luma).mean()
            rgb = (yiq @ np.linalg.inv(to_yiq).T - mean) * (1 + 0.4 * contrast) + mean
            expected = np.clip(rgb * (1 + 0.4 * brightness), 0, 255)
            view = two_views(image, np.random.default_rng(seed), settings, **SIZE)["view1"]
            np.testing.assert_allclose(view, expected, atol=1.5)
        self.assertBetween(greys, 1, 11)

    def test_hue_turns_by_the_angle_in_yiq(self):
        red = np.full((64, 96, 3), (180, 90, 90), np.uint8)
        turned = np.array([two_views(red, np.random.default_rng(s), dataclasses.replace(
            PLAIN, hue=0.1), **SIZE)["view1"][0, 0] for s in range(60)], float)
        to_iq = np.array([[0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
        chroma = turned @ to_iq.T
        angle = np.arctan2(chroma[:, 1], chroma[:, 0]) - np.arctan2(*(to_iq @ red[0, 0])[::-1])
        self.assertBetween(angle.max(), 0.08 * np.pi, 0.104 * np.pi)
        self.assertBetween(angle.min(), -0.104 * np.pi, -0.08 * np.pi)
        np.testing.assert_allclose(np.linalg.norm(chroma, axis=1),
                                   np.linalg.norm(to_iq @ red[0, 0]), atol=1.5)

    @parameterized.parameters((0, 1), (1, -1))
    def test_without_strength_a_view_is_a_plain_crop(self, flip, step):
        image = blocks(5, 120, 180)
        settings = dataclasses.replace(PLAIN, flip=flip, crop_scale=(1, 1), view2_scale=(1, 1))
        with mock.patch.object(views_lib, "_MAX_ASPECT", 1.0):      # so the crop is the whole
            views = two_views(image, np.random.default_rng(3), settings, **SIZE)
        expected = resize_image(image, (64, 96))[:, ::step]
        np.testing.assert_array_equal(views["view1"], expected)
        np.testing.assert_array_equal(views["view2"], expected)

    def test_images_smaller_than_the_patch(self):
        for shape in ((7, 100, 3), (100, 7, 3)):
            with self.assertRaisesRegex(DataError, r"patch of 8: .*data\.image_size.*variant"):
                two_views(np.zeros(shape, np.uint8), np.random.default_rng(0), PLAIN, **SIZE)
        for seed in range(5):       # long and thin, but there
            two_views(np.zeros((8, 900, 3), np.uint8), np.random.default_rng(seed),
                      ViewSettings(), **SIZE)


class ViewSettingsTest(parameterized.TestCase):

    def test_from_config(self):
        fields = dataclasses.asdict(ViewSettings(hue=0.25, crop_scale=(0.5, 0.75)))
        config = ml_collections.ConfigDict({**fields, "images": "elsewhere"})
        self.assertEqual(ViewSettings.from_config(config),
                         ViewSettings(hue=0.25, crop_scale=(0.5, 0.75)))

    @parameterized.parameters(dict(crop_scale=(0.0, 1.0)), dict(view2_scale=(0.5, 1.2)),
                              dict(crop_scale=(0.8, 0.2)), dict(crop_scale=(0.5,)), dict(flip=1.5),
                              dict(brightness=-0.1))
    def test_refuses_what_can_not_be_drawn(self, **wrong):
        with self.assertRaisesRegex(DataError, rf"config\.data\.{list(wrong)[0]}="):
            ViewSettings(**wrong)


class ResizeTest(parameterized.TestCase):

    def test_is_pillows_bilinear(self):
        image = blocks(2)
        expected = np.asarray(Image.fromarray(image).resize((96, 64), Image.BILINEAR))
        np.testing.assert_array_equal(resize_image(image, (64, 96)), expected)


class FiveCropsTest(parameterized.TestCase):

    def test_the_windows_are_torchvisions(self):
        """Its five_crop((int(h * 0.5), int(w * 0.5))): four corners, then a centre crop whose
        margins are int(round(margin / 2.0))."""
        self.assertEqual(views_lib.five_crops(6, 9), [
            (0, 0, 3, 4), (0, 5, 3, 9), (3, 0, 6, 4), (3, 5, 6, 9), (2, 2, 5, 6)])
        self.assertEqual(views_lib.five_crops(5, 10)[4], (2, 2, 4, 7))
        self.assertEqual(views_lib.five_crops(1, 1), [(0, 0, 1, 1)] * 5)

    @parameterized.parameters(((64, 64),), ((32, 96),), ((96, 48),))
    def test_view1_is_the_middle_of_a_window_undistorted(self, size):
        image = coordinates(200, 400)
        settings = dataclasses.replace(PLAIN, crops="five")
        share = min(100 / size[0], 200 / size[1])      # pixels of the image to one of the view
        centres = {(50, 100), (50, 300), (150, 100), (150, 300), (100, 200)}
        seen = set()
        for seed in range(40):
            view = two_views(image, np.random.default_rng(seed), settings, image_size=size,
                             patch=16)["view1"].astype(float)
            column, row = view[..., 0] * 400 / 250, view[..., 1] * 200 / 250
            middle = row.mean() + 0.4, column.mean() + 0.8     # colours were rounded down
            nearest = min(centres, key=lambda c: abs(c[0] - middle[0]) + abs(c[1] - middle[1]))
            np.testing.assert_allclose(middle, nearest, atol=1)
            self.assertAlmostEqual(np.ptp(row), share * size[0], delta=3)
            self.assertAlmostEqual(np.ptp(column), share * size[1], delta=4)
            seen.add(nearest)
        self.assertEqual(seen, centres)

    def test_random_draws_are_as_they_were(self):
        """`crops` draws nothing from the generator of "random" crops: old runs resume alike."""
        image = coordinates(90, 120)
        views = two_views(image, np.random.default_rng(3), ViewSettings(), **SIZE)
        other = two_views(image, np.random.default_rng(3), ViewSettings(crops="five"), **SIZE)
        self.assertFalse((views["view1"] == other["view1"]).all())
        with self.assertRaisesRegex(DataError, "config.data.crops is 'six'; choose random or"):
            ViewSettings(crops="six")

    def test_large_photographs_keep_the_views_resolution(self):
        self.assertEqual(ViewSettings(crops="five", view2_scale=(0.5, 1)).least_share, 0.125)
        self.assertEqual(ViewSettings(crop_scale=(0.2, 1), view2_scale=(0.5, 1)).least_share, 0.1)


if __name__ == "__main__":
    absltest.main()
