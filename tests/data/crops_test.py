"""Tests of fs4_jax.data.crops."""

import dataclasses

import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.data.crops import MultiCrop
from fs4_jax.data.images import DataError
from fs4_jax.data.views import ViewSettings

PLAIN = ViewSettings(brightness=0, contrast=0, saturation=0, hue=0, grey=0, blur=0,
                     crop_scale=(0.5, 1.0))
MULTI = MultiCrop(PLAIN, (32, 48), 8, num_local=3, local_size=(16, 16), local_scale=(0.1, 0.3),
                  solarize=0.0)


def ramp(height=120, width=160):
    """An image whose red is the row and whose green is the column: it shows where a view lies."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8)


class MultiCropTest(parameterized.TestCase):

    def test_shapes_and_the_same_bits_again(self):
        settings = dataclasses.replace(MULTI, settings=ViewSettings(), solarize=0.5)
        once, again, other = (settings(ramp(), np.random.default_rng(seed)) for seed in (0, 0, 1))
        self.assertEqual({k: (v.shape, str(v.dtype)) for k, v in once.items()}, {
            "global": ((2, 32, 48, 3), "uint8"), "local": ((3, 16, 16, 3), "uint8"),
            "correspondence": ((4, 6, 2), "float32"), "valid": ((4, 6), "bool")})
        self.assertEqual(set(settings.keys), set(once))
        for name in once:
            np.testing.assert_array_equal(once[name], again[name])
        self.assertTrue((once["global"] != other["global"]).any())

    def test_without_local_crops(self):
        settings = dataclasses.replace(MULTI, num_local=0)
        self.assertEqual(set(settings.keys), set(settings(ramp(), np.random.default_rng(0))))
        self.assertNotIn("local", settings.keys)

    def test_crops_show_the_share_they_should(self):
        """Red and green say how much of the image's 120 x 160 pixels a view spans."""
        shares = {"global": [], "local": []}
        for seed in range(40):
            views = MULTI(ramp(), np.random.default_rng(seed))
            for name in shares:
                for view in views[name].astype(float):
                    spans = np.ptp(view[..., 0]) / 120, np.ptp(view[..., 1]) / 160
                    shares[name].append(np.prod(spans))
        self.assertBetween(min(shares["local"]), 0.05, 0.12)      # spans miss half a pixel a side
        self.assertBetween(max(shares["local"]), 0.2, 0.3)
        self.assertGreater(min(shares["global"]), 0.4)
        self.assertGreater(max(shares["global"]), 0.8)

    def test_corresponding_tokens_show_the_same_place(self):
        compared = 0
        for seed in range(20):
            views = MULTI(ramp(), np.random.default_rng(seed))
            cells = views["global"].astype(float).reshape(2, 4, 8, 6, 8, 3).mean((2, 4))
            for r, c in zip(*np.nonzero(views["valid"])):
                row, column = views["correspondence"][r, c]
                low = np.floor([row, column]).astype(int)
                if (low < 0).any() or low[0] + 1 > 3 or low[1] + 1 > 5:
                    continue
                down, right = row - low[0], column - low[1]
                corner = cells[1, low[0]:low[0] + 2, low[1]:low[1] + 2]
                there = np.einsum("r,c,rcd->d", [1 - down, down], [1 - right, right], corner)
                # Pixels are whole numbers and resized: a token's mean is good to about one.
                np.testing.assert_allclose(there[:2], cells[0, r, c, :2], atol=1.5)
                compared += 1
        self.assertGreater(compared, 100)

    def test_only_the_second_global_crop_is_solarized(self):
        bright = np.full((64, 64, 3), 200, np.uint8)
        views = dataclasses.replace(MULTI, solarize=1.0)(bright, np.random.default_rng(0))
        self.assertEqual(np.unique(views["global"][0]).tolist(), [200])
        self.assertEqual(np.unique(views["global"][1]).tolist(), [55])
        self.assertEqual(np.unique(views["local"]).tolist(), [200])

    def test_photographs_are_decoded_large_enough(self):
        self.assertEqual(MULTI.least_side, 68)           # 48 / sqrt(0.5); 16 / sqrt(0.1) is 51
        self.assertEqual(dataclasses.replace(MULTI, local_scale=(0.01, 0.3)).least_side, 160)

    @parameterized.parameters(
        (dict(local_scale=(0.5, 0.2)), "dino.local_scale"), (dict(solarize=2), "dino.solarize"),
        (dict(local_size=(20, 16)), "dino.local_size=.*patch, 8"))
    def test_bad_settings_name_the_key(self, wrong, message):
        with self.assertRaisesRegex(DataError, message):
            dataclasses.replace(MULTI, **wrong)

    def test_an_image_smaller_than_a_patch(self):
        with self.assertRaisesRegex(DataError, "32 x 7 pixels is smaller"):
            MULTI(np.zeros((7, 32, 3), np.uint8), np.random.default_rng(0))


if __name__ == "__main__":
    absltest.main()
