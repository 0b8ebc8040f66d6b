"""VOC, ScribbleSup, Cityscapes, Potsdam and CamVid: official layouts, the field's label ids."""

import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.data import cityscapes, potsdam, voc
from fs4_jax.data.camvid import CamvidSource
from fs4_jax.data.cityscapes import CityscapesSource
from fs4_jax.data.images import DataError, UnreadableImage
from fs4_jax.data.potsdam import PotsdamSource
from fs4_jax.data.scribblesup import ScribbleSupSource, read_scribbles
from fs4_jax.data.voc import VocAnimals, VocSource
from tests.data.files import FolderCase, picture
from tests.data.trees import SCRIBBLES, WRITERS, save, save_text, stripes
from tests.shared import shared_path


class VocTest(FolderCase):

    def setUp(self):
        super().setUp()
        WRITERS["voc"](self.root)

    @parameterized.parameters(("train", 2), ("val", 1), ("trainaug", 3))
    def test_splits(self, split, number):
        source = VocSource(self.root, split)
        source.check()
        self.assertEqual((len(source), source.num_classes), (number, 21))
        self.assertEqual(np.unique(source[0]["label"]).tolist()[-2:], [20, 255])
        self.assertEqual(source.class_names[15], "person")

    def test_what_is_missing(self):
        save_text(self.root / "ImageSets/Segmentation/val.txt", "2007_000002\n2012_000009\n")
        with self.assertRaisesRegex(DataError, r"1 of the 2 images .* 2012_000009\.png"):
            VocSource(self.root, "val")
        (self.root / "ImageSets/Segmentation/trainaug.txt").unlink()
        with self.assertRaisesRegex(DataError, "trainaug.txt: the list can not be read"):
            VocSource(self.root, "trainaug")

    def test_an_unknown_id(self):
        save(self.root / "SegmentationClass/2007_000002.png", stripes([21]), palette=True)
        with self.assertRaisesRegex(DataError, r"2007_000002\.png: id 21 is no VOC id"):
            VocSource(self.root, "val").check()

    def test_animals_are_seven_classes_and_the_rest_is_ignored(self):
        stored = VocSource(self.root, "train").label(0)
        label = VocAnimals(self.root, "train").label(0)
        wanted = {0: 0, 8: 1, 10: 2, 12: 3, 13: 4, 17: 5, 15: 6}
        np.testing.assert_array_equal(label, np.vectorize(lambda k: wanted.get(k, 255))(stored))
        self.assertEqual(VocAnimals(self.root, "val").class_names[wanted[12]], "dog")
        save(self.root / "SegmentationClass/2007_000002.png", stripes([21]), palette=True)
        with self.assertRaisesRegex(DataError, r"2007_000002\.png: id 21 is no VOC id"):
            VocAnimals(self.root, "val").label(0)

    @parameterized.parameters(("train", 437), ("val", 297))
    def test_real_masks(self, split, number):
        source = VocSource(shared_path("data", "voc_animals"), split)
        self.assertLen(source, number)
        source.check(min_side=16)
        chosen = range(0, number, 60)
        seen = {voc.CLASS_NAMES[k] for i in chosen for k in np.unique(source.label(i)) if k < 255}
        self.assertContainsSubset({"background"}, seen)
        self.assertNotEmpty(seen & {"cat", "cow", "dog", "horse", "sheep"})


class ScribbleSupTest(FolderCase):

    def setUp(self):
        super().setUp()
        WRITERS["voc"](self.root)

    def test_strokes_are_three_wide_and_later_ones_on_top(self):
        source = ScribbleSupSource(self.root, "trainaug")
        source.check()
        label = source[0]["label"]
        self.assertEqual((label.shape, label.dtype), ((12, 20), np.uint8))
        self.assertEqual(label[:, 14].tolist(), [0] * 3 + [255] * 9)     # X, Y count from one
        self.assertEqual(label[4:7, 6].tolist(), [1] * 3)                # "plane"
        self.assertEqual((label[3, 6], label[7, 6]), (255, 255))
        self.assertEqual(label[8, 8:11].tolist(), [1] * 3)
        self.assertEqual(label[7:10, 16].tolist(), [15] * 3)             # a dot
        self.assertEqual(np.unique(label).tolist(), [0, 1, 15, 255])
        self.assertGreater((label == 255).mean(), 0.5)

    def test_every_name_is_a_class(self):
        for tag in ("plane", "bike", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
                    "table", "dog", "horse", "motorbike", "person", "plant", "sheep", "sofa",
                    "train", "monitor", *voc.CLASS_NAMES):
            path = self.write_bytes("a.xml", SCRIBBLES.replace("plane", tag).encode())
            self.assertIn(read_scribbles(path)[5, 6], range(21), tag)

    @parameterized.parameters(
        ("<annotation", "a.xml: unreadable scribbles"),
        ("<annotation/>", "a.xml: no size in it"),
        (SCRIBBLES.replace("plane", "tree"), "a.xml: a scribble of 'tree', which is no class"),
        (SCRIBBLES.replace("<X>4</X>", ""), "a.xml: a point without numbers"))
    def test_what_is_wrong_is_named(self, text, message):
        with self.assertRaisesRegex(DataError, message):
            read_scribbles(self.write_bytes("a.xml", text.encode()))

    def test_a_missing_file_is_named(self):
        (self.root / "scribble_annotation/pascal_2012/2007_000003.xml").unlink()
        with self.assertRaisesRegex(DataError, r"1 of the 2 .*: the first is 2007_000003\.xml"):
            ScribbleSupSource(self.root, "train")


class CityscapesTest(FolderCase):

    def setUp(self):
        super().setUp()
        WRITERS["cityscapes"](self.root)

    def test_27_classes(self):
        source = CityscapesSource(self.root, "train")
        source.check()
        self.assertEqual((len(source), source.num_classes), (2, 27))
        self.assertEqual(source.example_name(0), "aachen/aachen_000000_000019")
        self.assertEqual(np.unique(source[0]["label"]).tolist(), [0, 1, 2, 19, 26, 255])

    def test_19_classes_are_the_train_ids(self):
        names, table = cityscapes.label_set("19")
        self.assertEqual(names, (
            "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light",
            "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck",
            "bus", "train", "motorcycle", "bicycle"))
        ids = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
        self.assertEqual(table[ids].tolist(), list(range(19)))
        self.assertEqual((table[:34] == 255).sum(), 15)
        self.assertEqual(set(table[34:255].tolist()), {-1})
        self.assertEqual(np.unique(CityscapesSource(self.root, "val", "19")[0]["label"]).tolist(),
                         [0, 1, 13, 18, 255])

    def test_what_is_wrong_is_named(self):
        label = self.root / "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png"
        save(label, stripes([34]))
        with self.assertRaisesRegex(DataError, "labelIds.png: id 34 is no labelId"):
            CityscapesSource(self.root, "val").check()
        label.unlink()
        save(self.root / "gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png", stripes([7]))
        with self.assertRaisesRegex(DataError, f"the first is {label}"):
            CityscapesSource(self.root, "val")
        with self.assertRaisesRegex(DataError, "label_set is '8'; Cityscapes has 27, 19"):
            CityscapesSource(self.root, "val", "8")


class PotsdamTest(FolderCase):

    def setUp(self):
        super().setUp()
        WRITERS["potsdam"](self.root)

    def test_three_classes_of_rgb(self):
        source = PotsdamSource(self.root, "train")
        source.check(min_side=12)
        self.assertEqual((len(source), source.num_classes, source.size(0)), (2, 3, (12, 20)))
        np.testing.assert_array_equal(source[0]["image"], picture())
        self.assertEqual(source[0]["label"][0, ::3].tolist(), [0, 1, 2, 2, 0, 1, 255])
        self.assertEqual(PotsdamSource(self.root, "val").example_name(0), "1_0_0")

    def test_what_is_wrong_is_named(self):
        self.write_bytes("imgs/0_0_0.mat", b"no tile")
        source = PotsdamSource(self.root, "train")
        for read in (source.image, source.size):
            with self.assertRaisesRegex(UnreadableImage, r"imgs/0_0_0\.mat: "):
                read(0)
        source.check()          # the other one can be read
        (self.root / "gt/1_0_0.mat").write_bytes(b"")
        with self.assertRaisesRegex(DataError, r"gt/1_0_0\.mat: .*the file is empty"):
            PotsdamSource(self.root, "val").check()
        potsdam.scipy.io.savemat(self.root / "gt/1_0_0.mat", {"gt": np.full((12, 20), 6)})
        with self.assertRaisesRegex(DataError, r"gt/1_0_0\.mat: id 6 is no id of Potsdam"):
            PotsdamSource(self.root, "val").check()


class CamvidTest(FolderCase):

    def test_eleven_classes(self):
        WRITERS["camvid"](self.root)
        source = CamvidSource(self.root, "train")
        source.check()
        self.assertEqual((len(source), source.num_classes), (3, 11))
        self.assertEqual(np.unique(source[2]["label"]).tolist(), [0, 2, 10, 255])
        save(self.root / "val/labels/0001TP_000000.png", stripes([12]))
        with self.assertRaisesRegex(DataError, r"0001TP_000000\.png: id 12 is no id of CamVid"):
            CamvidSource(self.root, "val").check()

    def test_the_real_one(self):
        root = shared_path("data", "camvid")
        for split, number in (("train", 367), ("val", 101)):
            source = CamvidSource(root, split)
            self.assertLen(source, number)
            source.check()
            self.assertContainsSubset({0, 1, 3, 5}, np.unique(source[0]["label"]).tolist())


if __name__ == "__main__":
    absltest.main()
