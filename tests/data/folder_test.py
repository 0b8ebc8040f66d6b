"""Folders of images and masks: what is found, what does not fit, and how it is said."""

import os
import pickle
import unittest.mock

import numpy as np
from absl.testing import absltest
from PIL import ImageFile

from fs4_jax.data.folder import (DataError, FolderSource, UnreadableImage, list_images,
                                 read_image)
from tests.data.files import FolderCase, exif, picture
from tests.shared import shared_path


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
        with unittest.mock.patch.object(ImageFile.ImageFile, "load") as load:
            FolderSource(self.images).check(min_side=12)
            FolderSource(self.root / "pngs").check(min_side=12)
        load.assert_not_called()

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
