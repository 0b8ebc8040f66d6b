"""What a protocol shows and counts: sides and crops as torchvision computes them."""

import dataclasses

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from fs4_jax.evaluation.geometry import (ProtocolSource, Subset, center_crop, resize,
                                         short_side_shape)
from fs4_jax.evaluation.protocols import PROTOCOLS


class Pictures:
    """Images of given (height, width), each pixel its row and column; labels of their sum."""
    num_classes, class_names = 4, ()

    def __init__(self, *sizes):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, i):
        rows, columns = np.indices(self.sizes[i])
        image = np.stack([rows % 256, columns % 256, rows * 0], axis=-1).astype(np.uint8)
        return {"image": image, "label": ((rows // 7 + columns // 5) % 4).astype(np.uint8)}

    def example_name(self, i):
        return f"picture {i}"


class GeometryTest(parameterized.TestCase):

    @parameterized.parameters(
        # torchvision's Resize(320): int(320 * long / short)
        ((480, 640), (320, 426)), ((640, 480), (426, 320)), ((427, 640), (320, 479)),
        ((320, 320), (320, 320)), ((1024, 2048), (320, 640)), ((100, 333), (320, 1065)))
    def test_the_short_side(self, size, expected):
        self.assertEqual(short_side_shape(*size, 320), expected)

    @parameterized.parameters(
        # margins 1, 2, 3, 5: int(round(margin / 2.0)), a half rounds to even
        (5, 4, 0), (6, 4, 1), (7, 4, 2), (9, 4, 2))
    def test_odd_margins(self, length, side, top):
        array = np.arange(length)[:, None].repeat(side, axis=1)
        np.testing.assert_array_equal(center_crop(array, side)[:, 0], np.arange(top, top + side))

    def test_nearest_takes_the_pixel_below_the_centre(self):
        ids = np.arange(8, dtype=np.uint8)[None].repeat(2, 0)
        np.testing.assert_array_equal(resize(ids, (2, 4), "nearest")[0], [1, 3, 5, 7])

    def test_stego_resizes_the_image_by_nearest_too(self):
        source = ProtocolSource(Pictures((480, 641)), PROTOCOLS["stego27"], patch=8)
        example, raw = source[0], Pictures((480, 641))[0]
        self.assertEqual(source.size(0), (320, 320))
        for key in ("image", "label"):
            whole = np.asarray(Image.fromarray(raw[key]).resize((427, 320), Image.NEAREST))
            # margin 107: 53.5 rounds to 54
            np.testing.assert_array_equal(example[key], whole[:, 54:374])

    def test_picie_resizes_the_image_bilinearly(self):
        source = ProtocolSource(Pictures((480, 641)), PROTOCOLS["picie27"], patch=8)
        whole = Image.fromarray(Pictures((480, 641))[0]["image"]).resize((427, 320), Image.BILINEAR)
        np.testing.assert_array_equal(source[0]["image"], np.asarray(whole)[:, 54:374])

    def test_a_patch_that_does_not_divide(self):
        source = ProtocolSource(Pictures((480, 640), (90, 80)), PROTOCOLS["stego27"], patch=14)
        for i in range(2):
            self.assertEqual(source[i]["image"].shape, (322, 322, 3))
            self.assertEqual(source[i]["label"].shape, (322, 322))

    def test_squares_are_counted_at_their_own_size(self):
        source = ProtocolSource(Pictures((60, 90)), PROTOCOLS["per-image-m2o"], patch=16)
        self.assertEqual(source[0]["image"].shape, (448, 448, 3))
        self.assertEqual(source[0]["label"].shape, (100, 100))
        own = dataclasses.replace(PROTOCOLS["per-image-m2o"], scored_at=0)
        self.assertEqual(ProtocolSource(Pictures((60, 90)), own, 16)[0]["label"].shape, (60, 90))

    def test_some_examples(self):
        subset = Subset(Pictures((5, 6), (7, 8), (9, 10)), [2, 0])
        self.assertLen(subset, 2)
        self.assertEqual(subset[0]["label"].shape, (9, 10))
        self.assertEqual(subset.example_name(1), "picture 0")
        self.assertEqual(subset.num_classes, 4)


if __name__ == "__main__":
    absltest.main()
