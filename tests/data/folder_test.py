"""Folders of images and masks: every kind of file people have, and every way they are broken."""

import os
import pathlib
import pickle
import struct
import tempfile
import unittest.mock
import zlib

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image, ImageFile, ImageOps

from fs4_jax.data.folder import (DataError, FolderSource, UnreadableImage, image_size, list_images,
                                 read_image, read_label)
from tests.shared import shared_path

RNG = np.random.default_rng(0)


class FolderCase(parameterized.TestCase):
    """Has a temporary folder, and writes pictures into it."""

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)

    def write(self, name, values, mode=None, **options):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.asarray(values))
        (image.convert(mode) if mode else image).save(path, **options)
        return path

    def write_bytes(self, name, data):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path


def picture(height=12, width=20):
    """A smooth colourful picture, uint8 [H, W, 3]: JPEG hardly changes it."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 200 / width + 20, y * 200 / height + 20, 120 + 0 * x], -1).astype(np.uint8)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


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


class ListImagesTest(FolderCase):

    def test_recursive_sorted_and_without_hidden_files(self):
        for name in ("b.jpg", "sub/a.PNG", "a.1.jpeg", ".hidden.jpg", ".git/c.jpg", "notes.txt",
                     "sub/deep/z.webp"):
            self.write_bytes(name, b"x")
        self.assertEqual(list(list_images(self.root).items()), [
            ("a.1", f"{self.root}/a.1.jpeg"), ("b", f"{self.root}/b.jpg"),
            ("sub/a", f"{self.root}/sub/a.PNG"), ("sub/deep/z", f"{self.root}/sub/deep/z.webp")])

    def test_spaces_and_other_alphabets(self):
        for name in ("a b/c d.jpg", "ä ö/日本 語.jpg"):
            self.write(name, picture())
        source = FolderSource(f"{self.root}/")
        self.assertEqual([source[i]["name"] for i in range(2)], ["a b/c d", "ä ö/日本 語"])

    def test_the_disk_is_asked_once_a_folder(self):
        for i in range(30):
            self.write_bytes(f"{i % 3}/{i}.jpg", b"x")
        asked = []
        for name in ("stat", "lstat", "scandir"):
            original = getattr(os, name)

            def counting(*args, original=original, **options):
                asked.append(args)
                return original(*args, **options)

            self.enter_context(unittest.mock.patch.object(os, name, counting))
        self.assertLen(list_images(self.root), 30)
        folders, depth = 4, len(self.root.parts) + 1
        self.assertLess(len(asked), 2 + folders * (1 + depth))      # realpath asks for each part

    def test_links_are_followed_but_not_round(self):
        elsewhere = self.root / "elsewhere"
        self.write_bytes("elsewhere/c.jpg", b"x")
        images = self.root / "images"
        self.write_bytes("images/a.jpg", b"x")
        (images / "linked").symlink_to(elsewhere)
        (images / "up").symlink_to(images)
        (elsewhere / "back").symlink_to(images)
        (images / "self").symlink_to(images / "self")
        self.assertEqual(list(list_images(images)), ["a", "linked/c"])

    def test_what_is_wrong_is_named(self):
        self.write_bytes("readme.txt", b"x")
        for path, reason in ((self.root / "none", "no such path"),
                             (self.root / "readme.txt", "it is a file"),
                             (self.root, r"\.jpg, \.jpeg, \.png, \.webp, \.bmp")):
            with self.assertRaisesRegex(DataError, reason) as caught:
                list_images(path, key="data.eval_images")
            self.assertIn(f"{path} (config.data.eval_images)", str(caught.exception))

    def test_two_files_of_one_stem(self):
        for name in ("s/a.jpg", "s/a.png"):
            self.write_bytes(name, b"x")
        with self.assertRaisesRegex(DataError, r"s/a\.jpg and .*s/a\.png have the same stem"):
            list_images(self.root)


class FolderSourceTest(FolderCase):

    def setUp(self):
        super().setUp()
        for i, name in enumerate(("b", "a", "sub/c")):
            self.write(f"images/{name}.jpg", picture())
            label = np.full((12, 20), i, np.uint8)
            label[0] = 255
            self.write(f"labels/{name}.png", label)
        self.images, self.labels = self.root / "images", self.root / "labels"

    def source(self, **options):
        return FolderSource(self.images, self.labels, **options)

    def test_examples(self):
        source = self.source(class_names=("one", "two", "three"))
        self.assertLen(source, 3)
        self.assertEqual((source.name, source.num_classes), ("folder", 3))
        example = source[2]
        self.assertEqual(example["name"], "sub/c")
        self.assertEqual(source.example_name(0), "a")
        self.assertEqual(source.size(1), (12, 20))
        np.testing.assert_array_equal(example["image"], read_image(self.images / "sub/c.jpg"))
        self.assertEqual(example["label"].dtype, np.uint8)
        np.testing.assert_array_equal(np.unique(example["label"]), [2, 255])
        source.check()

    def test_without_labels(self):
        source = FolderSource(self.images, class_names=("x",), num_classes=1)
        self.assertEqual((source.num_classes, source.class_names), (0, ()))
        self.assertEqual(source[0].keys(), {"name", "image"})
        source.check()

    def test_number_of_classes(self):
        self.assertEqual(self.source().num_classes, 3)
        self.assertEqual(self.source(ignore_ids=(2,)).num_classes, 2)
        self.assertEqual(self.source(num_classes=7).num_classes, 7)
        self.assertEqual(self.source(class_names=tuple("abcd"), num_classes=4).num_classes, 4)
        with self.assertRaisesRegex(DataError, "num_classes=5, but .*class_names names 4"):
            self.source(class_names=tuple("abcd"), num_classes=5)
        with self.assertRaisesRegex(DataError, "nothing but ignored ids"):
            self.source(ignore_ids=(0, 1, 2))
        with self.assertRaisesRegex(DataError, "ignore_ids.*8-bit"):
            self.source(ignore_ids=(256,))

    def test_ignored_ids_become_255(self):
        source = self.source(num_classes=2, ignore_ids=(2,))
        np.testing.assert_array_equal(np.unique(source[2]["label"]), [255])
        np.testing.assert_array_equal(np.unique(source[0]["label"]), [1, 255])

    def test_ids_out_of_range_are_found_at_once_and_when_read(self):
        source = self.source(num_classes=2)
        advice = r"sub/c\.png: id 2 is outside 0\.\.1 .*data\.num_classes.*data\.ignore_ids"
        with self.assertRaisesRegex(DataError, advice):
            source.check()
        with self.assertRaisesRegex(DataError, advice):
            source[2]
        source[0]

    def test_missing_masks(self):
        os.remove(self.labels / "b.png")
        os.remove(self.labels / "sub/c.png")
        with self.assertRaisesRegex(DataError, r"2 of the 3 images .* the first is b\.png"):
            self.source()

    def test_sizes_must_agree(self):
        self.write("labels/b.png", np.zeros((20, 12), np.uint8))
        source = self.source()
        message = r"b\.png is 12 x 20 pixels, its image .*b\.jpg 20 x 12"
        with self.assertRaisesRegex(DataError, message):
            source.check()
        with self.assertRaisesRegex(DataError, message):
            source[1]
        self.write("images/b.jpg", picture(), exif=exif(8))      # now it stands upright as well
        source.check()
        self.assertEqual(source[1]["image"].shape, (20, 12, 3))

    def test_unreadable_images_wait_for_their_turn_but_masks_do_not(self):
        self.write_bytes("images/b.jpg", b"")
        source = self.source()
        source.check()
        with self.assertRaisesRegex(UnreadableImage, r"b\.jpg.*empty"):
            source[1]
        self.write_bytes("labels/b.png", b"junk")
        with self.assertRaisesRegex(DataError, r"b\.png: unreadable mask"):
            source.check()

    def test_check_finds_images_below_the_patch(self):
        self.write("images/b.jpg", picture(11, 40))
        source = FolderSource(self.images)
        source.check(min_side=11)
        message = (r"1 of the 3 images .*patch of 12; the first: .*/b\.jpg, 40 x 11 pixels.*"
                   r"config\.encoder\.variant")
        with self.assertRaisesRegex(DataError, message):
            source.check(min_side=12)
        self.write("labels/b.png", np.zeros((11, 40), np.uint8))
        with self.assertRaisesRegex(DataError, message):
            self.source().check(min_side=12)

    def test_check_reads_no_more_of_an_image_than_its_header(self):
        for i in range(3):
            self.write(f"pngs/{i}.png", picture())
        with unittest.mock.patch.object(ImageFile.ImageFile, "load", side_effect=AssertionError):
            FolderSource(self.images).check(min_side=12)
            FolderSource(self.root / "pngs").check(min_side=12)

    def test_check_refuses_a_folder_of_which_nothing_can_be_read(self):
        for path in self.images.rglob("*.jpg"):
            path.write_bytes(b"")
        for source in (self.source(), FolderSource(self.images)):
            with self.assertRaisesRegex(DataError, r"none of the 3 images .*/a\.jpg.*empty"):
                source.check()

    def test_a_list_chooses_and_orders(self):
        chosen = self.write_bytes("list.txt", b"sub/c\nb\n\n")
        os.remove(self.labels / "a.png")        # not on the list, not missed
        source = self.source(list_file=chosen)
        self.assertEqual([source.example_name(i) for i in range(len(source))], ["sub/c", "b"])
        np.testing.assert_array_equal(np.unique(source[0]["label"]), [2, 255])
        self.write_bytes("list.txt", b"b\nx\ny\n")
        with self.assertRaisesRegex(DataError, r"list\.txt names 3 images; 2 of them .*: x, y$"):
            self.source(list_file=chosen)

    def test_a_list_of_nothing(self):
        with self.assertRaisesRegex(DataError, r"list\.txt names 0 images"):
            self.source(list_file=self.write_bytes("list.txt", b"\n"))
        with self.assertRaisesRegex(DataError, r"none\.txt: the list can not be read"):
            self.source(list_file=self.root / "none.txt")

    def test_goes_to_workers(self):
        source = pickle.loads(pickle.dumps(self.source()))
        self.assertEqual(source[1]["name"], "b")
        self.assertEqual(source.num_classes, 3)

    def test_real_photographs(self):
        root = shared_path("data", "camvid", "val")
        source = FolderSource(root / "images", root / "labels", ignore_ids=(11,))
        source.check()
        self.assertEqual((len(source), source.num_classes), (101, 11))
        self.assertEqual(source[5]["image"].shape[:2], source.size(5))


if __name__ == "__main__":
    absltest.main()
