"""What a command is given to look at, and in what order."""

import contextlib
import pathlib
import tempfile

from absl.testing import absltest

from fs4_jax.data.images import DataError
from fs4_jax.data.inputs import input_source, natural_key
from tests.train_test import write_folder


def names(images):
    source = input_source(images)
    return [source.example_name(i) for i in range(len(source))]


class InputsTest(absltest.TestCase):

    def setUp(self):
        super().setUp()
        self.dir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        write_folder(self.dir, ["clip a/f10.png", "clip a/f9.png", "clip b/f1.png", "x [1].png"], 8)
        (self.dir / "clip a" / "notes.txt").touch()

    def test_folders_files_and_patterns(self):
        self.assertEqual(names(self.dir), ["clip a/f9", "clip a/f10", "clip b/f1", "x [1]"])
        self.assertEqual(names(self.dir / "clip a"), ["f9", "f10"])
        self.assertEqual(names(self.dir / "clip a" / "f9.png"), ["f9"])
        self.assertEqual(names(self.dir / "x [1].png"), ["x [1]"])       # a file, no pattern
        self.assertEqual(names(self.dir / "clip a" / "*"), ["f9", "f10"])
        self.assertEqual(names(self.dir / "clip *" / "f1*.png"), ["clip a/f10", "clip b/f1"])
        self.assertEqual(names(self.dir / "clip*"), ["clip a/f9", "clip a/f10", "clip b/f1"])
        self.assertEqual(names(self.dir / "**" / "*.png"), names(self.dir))
        with contextlib.chdir(self.dir / "clip a"):
            self.assertEqual(names("f9.png"), ["f9"])
            self.assertEqual(names("*.png"), ["f9", "f10"])

    def test_what_can_not_work(self):
        (self.dir / "clip a" / "f9.jpg").touch()
        for given, message in (("none", r"\(--images\) is not a folder"),
                               ("none*", r"none\* \(--images\) matches no images"),
                               ("clip a/notes.txt", "notes.txt .*is no image"),
                               ("clip a/*", "same stem")):
            with self.assertRaisesRegex(DataError, message):
                input_source(self.dir / given)

    def test_natural_order(self):
        given = ["f2", "f10", "f1b", "f1", "f02", "a3/f9", "a12/f1"]
        self.assertEqual(sorted(given, key=natural_key),
                         ["a3/f9", "a12/f1", "f1", "f1b", "f02", "f2", "f10"])


if __name__ == "__main__":
    absltest.main()
