"""Single files: every kind of picture and mask people have, and every way they are broken."""

import struct
import unittest.mock
import zlib

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image, ImageOps

from fs4_jax.data.folder import DataError, UnreadableImage, image_size, read_image, read_label
from tests.data.files import FolderCase, exif, picture

RNG = np.random.default_rng(0)


class ReadImageTest(FolderCase):

    @parameterized.parameters("png", "bmp", "webp", "jpg", "jpeg", "PNG")
    def test_formats(self, suffix):
        image = picture()
        path = self.write(f"a.{suffix}", image, **({"lossless": True} if suffix == "webp" else {}))
        read = read_image(path)
        self.assertEqual((read.dtype, read.shape), (np.uint8, (12, 20, 3)))
        tolerance = 16 if suffix in ("jpg", "jpeg") else 0
        np.testing.assert_allclose(read.astype(int), image, atol=tolerance)

    def test_grey_palette_and_one_bit_become_rgb(self):
        grey = picture()[..., 0]
        np.testing.assert_array_equal(read_image(self.write("l.png", grey)),
                                      np.repeat(grey[..., None], 3, -1))
        ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
        palette = Image.fromarray(ids, "P")
        colours = RNG.integers(0, 256, (256, 3), np.uint8)
        palette.putpalette(colours.tobytes())
        palette.save(self.root / "p.png")
        np.testing.assert_array_equal(read_image(self.root / "p.png"), colours[ids])
        bits = ids % 2 == 1
        np.testing.assert_array_equal(read_image(self.write("1.png", bits)),
                                      np.repeat(bits[..., None] * np.uint8(255), 3, -1))

    def test_transparency_is_laid_over_white(self):
        rgba = np.zeros((1, 3, 4), np.uint8)
        rgba[0, :, 0], rgba[0, :, 3] = 200, (0, 51, 255)
        read = read_image(self.write("a.png", rgba))
        np.testing.assert_array_equal(read[0], [[255, 255, 255], [244, 204, 204], [200, 0, 0]])
        la = self.write("la.png", np.array([[[0, 0], [0, 255]]], np.uint8))
        np.testing.assert_array_equal(read_image(la)[0, :, 0], [255, 0])
        grey = np.array([[7, 9]], np.uint8)
        keyed = self.write("keyed.png", grey, transparency=7)       # one grey is transparent
        np.testing.assert_array_equal(read_image(keyed)[0, :, 0], [255, 9])

    def test_cmyk(self):
        path = self.write("a.jpg", np.full((8, 8, 3), (200, 60, 30), np.uint8), mode="CMYK",
                          quality=95)
        with Image.open(path) as image:
            self.assertEqual(image.mode, "CMYK")
        np.testing.assert_allclose(read_image(path)[4, 4].astype(int), (200, 60, 30), atol=6)

    def test_sixteen_bit_grey_keeps_its_range(self):
        values = np.array([[0, 257, 128 * 257, 65535, 300, 200]], np.uint16)
        np.testing.assert_array_equal(read_image(self.write("a.png", values))[0, :, 1],
                                      [0, 1, 128, 255, 1, 1])

    @parameterized.parameters("webp", "png", "gif", "mpo")
    def test_an_animation_gives_its_first_frame(self, suffix):
        first, second = (Image.fromarray(np.full((9, 9, 3), v, np.uint8)) for v in (10, 240))
        made = self.root / f"a.{suffix}"
        first.save(made, save_all=True, append_images=[second],
                   **({"lossless": True} if suffix == "webp" else {}))
        np.testing.assert_array_equal(read_image(made), np.full((9, 9, 3), 10))

    @parameterized.product(orientation=tuple(range(1, 9)), suffix=("jpg", "png", "webp"))
    def test_exif_rotation(self, orientation, suffix):
        path = self.write(f"a.{suffix}", picture(), exif=exif(orientation))
        with Image.open(path) as image:
            expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        np.testing.assert_array_equal(read_image(path), expected)
        self.assertEqual(image_size(path), expected.shape[:2])
        self.assertEqual(image_size(path), (20, 12) if orientation >= 5 else (12, 20))

    @parameterized.parameters(0, 9, 300)
    def test_an_orientation_that_means_nothing_is_upright(self, orientation):
        path = self.write("a.jpg", picture(), exif=exif(orientation))
        self.assertEqual((image_size(path), read_image(path).shape), ((12, 20), (12, 20, 3)))

    def test_rotated_sixteen_bit_grey(self):
        path = self.write("a.png", np.arange(6, dtype=np.uint16).reshape(2, 3) * 257, exif=exif(6))
        np.testing.assert_array_equal(read_image(path)[..., 0], [[3, 0], [4, 1], [5, 2]])

    def test_damaged_exif_does_not_lose_the_picture(self):
        path = self.write("a.jpg", picture(), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01")
        self.assertEqual(read_image(path).shape, (12, 20, 3))
        self.assertEqual(image_size(path), (12, 20))

    def test_at_least_decodes_large_jpegs_smaller(self):
        path = self.write("a.jpg", picture(400, 640), exif=exif(6))
        self.assertEqual(read_image(path, at_least=100).shape, (160, 100, 3))
        self.assertEqual(read_image(path, at_least=101).shape, (320, 200, 3))
        self.assertEqual(read_image(path, at_least=399).shape, (640, 400, 3))
        self.assertEqual(read_image(path, at_least=9999).shape, (640, 400, 3))
        png = self.write("a.png", picture(400, 640))
        self.assertEqual(read_image(png, at_least=50).shape, (400, 640, 3))


class UnreadableTest(FolderCase):

    def assert_unreadable(self, path, reason, functions=(read_image,)):
        for function in functions:
            with self.assertRaises(UnreadableImage) as caught:
                function(path)
            self.assertIn(str(path), str(caught.exception))
            self.assertIn(reason, str(caught.exception))
            self.assertEqual(str(caught.exception).count(str(path)), 1)

    def test_no_image_at_all(self):
        both = (read_image, image_size)
        self.assert_unreadable(self.write_bytes("a.jpg", b""), "empty", both)
        self.assert_unreadable(self.write_bytes("b.jpg", b"<html>not found</html>"),
                               "cannot identify", both)
        self.assert_unreadable(self.root / "c.jpg", "No such file", both)
        (self.root / "d.jpg").mkdir()
        self.assert_unreadable(self.root / "d.jpg", "directory", both)

    @parameterized.parameters("jpg", "png", "webp", "bmp")
    def test_truncated(self, suffix):
        noise = RNG.integers(0, 256, (64, 64, 3), np.uint8)
        whole = self.write(f"whole.{suffix}", noise).read_bytes()
        for share in (0.3, 0.7):
            path = self.write_bytes(f"{share}.{suffix}", whole[:int(share * len(whole))])
            self.assert_unreadable(path, "")

    def test_decompression_bombs(self):
        path = self.write("a.png", picture(10, 20))
        for limit in (199, 50):      # where Pillow only warns, and where it raises itself
            with unittest.mock.patch.object(Image, "MAX_IMAGE_PIXELS", limit):
                self.assert_unreadable(path, "pixels", (read_image, image_size))
        with unittest.mock.patch.object(Image, "MAX_IMAGE_PIXELS", 200):
            self.assertEqual(read_image(path).shape, (10, 20, 3))

    def test_formats_that_run_programs_stay_shut(self):
        path = self.write_bytes("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
                                         b"%%EndComments\n")
        self.assert_unreadable(path, "cannot identify")


def grey_png(values, bits):
    """A PNG of a few bits a pixel; Pillow does not write greys like that."""
    values = np.asarray(values, np.uint8)
    height, width = values.shape
    per_byte = 8 // bits
    padded = np.pad(values, ((0, 0), (0, -width % per_byte))).reshape(height, -1, per_byte)
    packed = sum(padded[..., i] << (8 - bits * (i + 1)) for i in range(per_byte)).astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)

    def chunk(kind, data):
        return (struct.pack(">I", len(data)) + kind + data +
                struct.pack(">I", zlib.crc32(kind + data)))

    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0,
                                                              0, 0, 0)) +
            chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


class ReadLabelTest(FolderCase):

    def test_grey_values_and_palette_indices_as_they_are(self):
        ids = np.array([[0, 1, 2, 254, 255]], np.uint8)
        for suffix in ("png", "bmp"):
            np.testing.assert_array_equal(read_label(self.write(f"a.{suffix}", ids)), ids)
        palette = Image.fromarray(ids, "P")
        palette.putpalette(RNG.integers(0, 256, 768, np.uint8).tobytes())
        palette.save(self.root / "p.png")
        np.testing.assert_array_equal(read_label(self.root / "p.png"), ids)
        few = self.write("few.png", np.zeros((2, 2), np.uint8))
        small = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8), "P")
        small.putpalette([0, 0, 0, 9, 9, 9, 200, 0, 0, 7, 7, 7])
        small.save(few)         # Pillow writes 2 bits a pixel
        np.testing.assert_array_equal(read_label(few), [[0, 1], [2, 3]])

    @parameterized.parameters(1, 2, 4, 8)
    def test_greys_of_few_bits_are_not_stretched(self, bits):
        ids = np.arange(10).reshape(2, 5) % 2**bits
        path = self.write_bytes("a.png", grey_png(ids, bits))
        np.testing.assert_array_equal(read_label(path), ids)

    def test_one_and_sixteen_bits(self):
        bits = np.array([[True, False]])
        np.testing.assert_array_equal(read_label(self.write("1.png", bits)), [[1, 0]])
        deep = self.write("16.png", np.array([[0, 7, 255]], np.uint16))
        label = read_label(deep)
        np.testing.assert_array_equal(label, [[0, 7, 255]])
        self.assertEqual(label.dtype, np.uint8)
        with self.assertRaisesRegex(DataError, r"b\.png: id 256 in a 16-bit mask"):
            read_label(self.write("b.png", np.array([[256]], np.uint16)))

    def test_pictures_are_no_labels(self):
        rgb = self.write("rgb.png", picture())
        with self.assertRaisesRegex(DataError, r"rgb\.png: .*8-bit class ids"):
            read_label(rgb)
        with self.assertRaisesRegex(DataError, "8-bit class ids"):
            read_label(self.write("rgba.png", np.zeros((2, 2, 4), np.uint8)))
        with self.assertRaisesRegex(DataError, r"e\.png: unreadable mask \(the file is empty\)"):
            read_label(self.write_bytes("e.png", b""))


if __name__ == "__main__":
    absltest.main()
