"""COCO-Stuff: the field's table, the curated lists, the official tree."""

import hashlib
import os
import subprocess
import sys

import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.data.cocostuff import (CLASS_NAMES_27, FINE_NAMES, FINE_TO_COARSE_27, LABEL_SETS,
                                    UNUSED_IDS, CocoStuffSource, check_list, label_set)
from fs4_jax.data.folder import DataError
from tests.data.files import FolderCase, picture
from tests.shared import shared_path

LIST = "curated/val2017/Coco164kFull_Stuff_Coarse_7.txt"


class TableTest(parameterized.TestCase):

    def test_it_is_the_fields_own(self):
        digest = hashlib.sha256(bytes(FINE_TO_COARSE_27)).hexdigest()
        self.assertEqual(digest, "5b6c6ce82fb97a8c2d29cc61a451953c867c5aa043372a5286bbf668351e7129")
        self.assertLen(set(CLASS_NAMES_27), 27)
        self.assertEqual(set(FINE_TO_COARSE_27), set(range(27)))

    def test_class_names_fit_the_label_names(self):
        lines = shared_path("data", "cocostuff", "labels.txt").read_text().splitlines()
        fine = {name: int(i) for i, name in (line.split("\t") for line in lines)}
        some = {"person": "person", "car": "vehicle", "traffic light": "outdoor", "cat": "animal",
                "handbag": "accessory", "skis": "sports", "fork": "kitchen", "pizza": "food-thing",
                "bed": "furniture-thing", "laptop": "electronic", "oven": "appliance",
                "clock": "indoor", "ceiling-tile": "ceiling", "floor-wood": "floor",
                "fruit": "food-stuff", "shelf": "furniture-stuff", "metal": "raw-material",
                "towel": "textile", "wall-brick": "wall", "window-blind": "window",
                "skyscraper": "building", "road": "ground", "grass": "plant", "clouds": "sky",
                "mountain": "solid", "fence": "structural", "river": "water"}
        self.assertEqual(set(some.values()), set(CLASS_NAMES_27))
        for name, coarse in some.items():
            self.assertEqual(CLASS_NAMES_27[FINE_TO_COARSE_27[fine[name]]], coarse, name)


class LabelSetTest(parameterized.TestCase):

    def test_the_fine_names_are_the_official_ones(self):
        lines = shared_path("data", "cocostuff", "labels.txt").read_text().splitlines()
        self.assertEqual(FINE_NAMES, tuple(line.split("\t")[1] for line in lines))
        self.assertEqual([FINE_NAMES[i] for i in UNUSED_IDS], [
            "street sign", "hat", "shoe", "eye glasses", "plate", "mirror", "window", "desk",
            "door", "blender", "hair brush"])

    @parameterized.parameters(*LABEL_SETS)
    def test_every_class_has_a_name_and_an_id(self, name):
        names, table = label_set(name)
        self.assertLen(names, int(name))
        self.assertEqual(set(table[:182].tolist()) - {255}, set(range(int(name))))
        self.assertEqual(set(table[182:255].tolist()), {-1})
        self.assertEqual(table[255], 255)

    def test_15_is_stuff_alone(self):
        """STEGO's cocostuff15: coarse - 12, things ignored. PiCIE keeps 12 things, 3 stuff."""
        names, table = label_set("15")
        self.assertEqual(names, CLASS_NAMES_27[12:])
        coarse = np.array(FINE_TO_COARSE_27)
        np.testing.assert_array_equal(table[:182], np.where(coarse < 12, 255, coarse - 12))
        self.assertEqual(table[[0, 90, 101, 156]].tolist(), [255, 255, 0, 11])

    def test_171_and_81(self):
        """The first and last ids of CAUSE's own tables."""
        fine, table = label_set("171")
        self.assertEqual(table[[0, 10, 11, 12, 90, 91, 113, 181]].tolist(),
                         [0, 10, 255, 11, 255, 80, 102, 170])
        self.assertEqual((fine[79], fine[80]), ("toothbrush", "banner"))
        names, table = label_set("81")
        self.assertEqual(table[[0, 10, 11, 12, 89, 90, 91, 181]].tolist(),
                         [1, 11, 255, 12, 80, 255, 0, 0])
        self.assertEqual((names[0], names[1], names[80]), ("stuff", "person", "toothbrush"))

    def test_another_name(self):
        with self.assertRaisesRegex(DataError, "label_set is '172'; COCO-Stuff has 27, 15, 171"):
            label_set("172")


class CocoStuffSourceTest(FolderCase):

    def setUp(self):
        super().setUp()
        for i, ids in enumerate(([0, 2, 181], [156, 255, 255], [148, 148, 95])):
            self.write(f"images/val2017/{i:012d}.jpg", picture(3, 6))
            label = np.repeat(np.array(ids, np.uint8)[:, None], 6, 1)
            self.write(f"annotations/val2017/{i:012d}.png", label)

    def test_fine_ids_become_27_classes(self):
        source = CocoStuffSource(self.root, "val")
        source.check()
        self.assertEqual((len(source), source.num_classes, source.name), (3, 27, "cocostuff"))
        self.assertEqual(source[0]["label"][:, 0].tolist(), [9, 11, 24])
        self.assertEqual(source[1]["label"][:, 0].tolist(), [23, 255, 255])
        self.assertEqual(source[1]["label"].dtype, np.uint8)

    def test_the_curated_list(self):
        self.write_bytes(LIST, b"000000000002\n000000000000\n")
        os.remove(self.root / "annotations/val2017/000000000001.png")
        with self.assertWarnsRegex(UserWarning, r"_7\.txt is not .* its sha256 is .* one's 7c62"):
            source = CocoStuffSource(self.root, "val")
        self.assertEqual(source.example_name(0), "000000000002")
        self.assertLen(source, 2)
        with self.assertRaisesRegex(DataError, r"1 of the 3 images .* 000000000001\.png"):
            CocoStuffSource(self.root, "val", curated=False)
        self.write_bytes(LIST, b"\n".join(b"%012d" % i for i in range(9)))
        with self.assertRaisesRegex(DataError, "names 9 images; 6 .*: 000000000003, .*, \\.\\.\\."):
            CocoStuffSource(self.root, "val", other_list="accept")
        with self.assertRaisesRegex(DataError, r"_7\.txt is not the field's curated list"):
            CocoStuffSource(self.root, "val", other_list="raise")

    def test_other_label_sets_have_another_list(self):
        self.write_bytes(LIST, b"000000000002\n")
        self.write_bytes(LIST.replace("_7", ""), b"000000000001\n000000000000\n")
        sources = {labels: CocoStuffSource(self.root, "val", labels, other_list="accept")
                   for labels in LABEL_SETS}
        self.assertEqual({labels: len(source) for labels, source in sources.items()},
                         {"27": 1, "15": 1, "171": 2, "81": 2, "182": 3})
        self.assertEqual(sources["171"][0]["label"][:, 0].tolist(), [145, 255, 255])
        self.assertEqual(sources["81"][1]["label"][:, 0].tolist(), [1, 3, 0])

    @parameterized.parameters(182, 254)
    def test_unknown_ids_are_no_class(self, value):
        self.write("annotations/val2017/000000000001.png", np.full((3, 6), value, np.uint8))
        source = CocoStuffSource(self.root, "val")
        message = rf"000000000001\.png: id {value} is no COCO-Stuff id"
        with self.assertRaisesRegex(DataError, message):
            source.check()
        with self.assertRaisesRegex(DataError, message):
            source[1]

    def test_a_missing_split(self):
        with self.assertRaisesRegex(DataError, r"images/train2017 \(config\.data\.root\)"):
            CocoStuffSource(self.root, "train")

    @parameterized.parameters(("train", 13), ("val", 8))
    def test_real_masks(self, split, number):
        source = CocoStuffSource(shared_path("data", "cocostuff_sample"), split)
        source.check(min_side=16)
        self.assertLen(source, number)
        seen = {int(i) for n in range(len(source)) for i in np.unique(source[n]["label"])}
        self.assertLessEqual(seen, {*range(27), 255})
        self.assertGreater(len(seen), 10)

    def test_a_tree_made_of_other_photographs(self):
        tool = shared_path("tools", "make_cocostuff_layout.py")
        subprocess.run([sys.executable, tool, self.root / "made", "--train", "6", "--val", "3"],
                       check=True, capture_output=True)
        for split, number in (("train", 6), ("val", 3)):
            source = CocoStuffSource(self.root / "made", split, other_list="accept")
            source.check()
            self.assertLen(source, number)
            classes = np.unique(source[number - 1]["label"])
            self.assertContainsSubset({CLASS_NAMES_27.index("sky"), CLASS_NAMES_27.index("ground"),
                                       CLASS_NAMES_27.index("vehicle")}, set(classes.tolist()))

    def test_the_fields_own_lists(self):
        digests = {"train": "3b837594a81880a70f177afab906fc45147d8b9c2c4f51132f784e41941812f9",
                   "val": "7c629734c88f1a74bba6311e01d4d9fe976df84f07cb4fc86452ce5116e51655"}
        for split, digest in digests.items():
            path = shared_path("data", "cocostuff", LIST.replace("val", split))
            self.assertEqual(hashlib.sha256(path.read_bytes()).hexdigest(), digest)
            self.assertTrue(check_list(path, "raise"))


if __name__ == "__main__":
    absltest.main()
