"""Records of bytes in ArrayRecord files: the same bytes back, damage named."""

import pickle
from concurrent import futures

import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.data import build, stored
from fs4_jax.data.images import DataError, UnreadableImage, read_image
from tests.data.files import FolderCase, picture


class RecordTest(parameterized.TestCase):

    @parameterized.parameters(0, 1, 127, 128, 16_383, 16_384, 3_000_000)
    def test_there_and_back(self, size):
        features = {"image": np.random.default_rng(size).bytes(size), "name": "ü".encode()}
        self.assertEqual(stored.decode(stored.encode(features)), features)

    def test_it_is_a_tf_example(self):
        """Spelled out by hand after example.proto and the wire format."""
        value = b"\x0a\x02hi"                              # BytesList.value
        feature = b"\x0a\x04" + value                      # Feature.bytes_list
        entry = b"\x0a\x01a" + b"\x12\x06" + feature       # map entry: key, value
        self.assertEqual(stored.encode({"a": b"hi"}),
                         b"\x0a\x0d\x0a\x0b" + entry)      # Example.features, .feature

    @parameterized.parameters(b"\x08\x01", b"\x0a\x7fabc", b"\x0a\x02\x0a\x00")
    def test_other_bytes_are_refused(self, record):
        with self.assertRaises(ValueError):
            stored.decode(record)


class StoredFilesTest(FolderCase):

    def setUp(self):
        super().setUp()
        self.files = {f"a/{i}": str(self.write(f"tree/a/{i}.jpg", picture(12 + i, 20)))
                      for i in range(5)}
        splits = {"train": build.Split({"image": self.files})}
        self.out = self.root / "out"
        build.build(self.out, build.make_plan("some", splits, 2), splits, kinds={"image": "jpeg"})

    def shard(self, i):
        return self.out / f"some-train.array_record-{i:05d}-of-00003"

    def test_the_same_bytes_in_the_same_order(self):
        files = stored.stored_files(self.out, "some", "train")
        self.assertEqual(list(files), ["image"])
        self.assertEqual(list(files["image"]), list(self.files))
        for stem, file in files["image"].items():
            with open(self.files[stem], "rb") as original:
                self.assertEqual(file.read_bytes(), original.read())
        self.assertEqual(str(file), f"{self.shard(2)}, image of a/4")

    def test_threads_and_other_processes_read_it(self):
        files = list(stored.stored_files(self.out, "some", "train")["image"].values())
        files[0].read_bytes()
        files = pickle.loads(pickle.dumps(files))
        with futures.ThreadPoolExecutor(4) as pool:
            heights = list(pool.map(lambda file: read_image(file).shape[0], files * 10))
        self.assertEqual(heights, [12, 13, 14, 15, 16] * 10)

    def test_a_file_that_goes_away_meanwhile_is_named(self):
        path = self.write("more/b.jpg", picture())
        splits = {"train": build.Split({"image": {"b": str(path)}})}
        plan = build.make_plan("some", splits)
        path.unlink()
        with self.assertRaisesRegex(DataError, f"{path}: No such file"):
            build.build(self.root / "other", plan, splits, kinds={"image": "jpeg"})

    def test_not_a_stored_set(self):
        self.assertIsNone(stored.stored_files(self.root, "some", "train"))

    @parameterized.parameters(
        ("other", "train", r"holds some, not other: give another root, or --config.data.name=some"),
        ("some", "val", r"holds no split 'val', only train"))
    def test_another_set(self, name, split, message):
        with self.assertRaisesRegex(DataError, message):
            stored.stored_files(self.out, name, split)

    def test_an_unfinished_set_is_none(self):
        (self.out / stored.INFO_FILE).unlink()
        with self.assertRaisesRegex(DataError, "out .* is unfinished: there is no dataset_info"):
            stored.stored_files(self.out, "some", "train")

    def test_a_missing_shard(self):
        self.shard(1).unlink()
        with self.assertRaisesRegex(DataError, "array_record-00001-of-00003 is missing"):
            stored.stored_files(self.out, "some", "train")

    def test_a_damaged_shard(self):
        self.shard(1).write_bytes(self.shard(1).read_bytes()[:40_000])
        files = stored.stored_files(self.out, "some", "train")["image"]
        with self.assertRaisesRegex(UnreadableImage, "00001-of-00003, image of a/2: unreadable"):
            read_image(files["a/2"])
        read_image(files["a/4"])
        self.shard(0).write_bytes(self.shard(2).read_bytes())         # of two records, not one
        files = stored.stored_files(self.out, "some", "train")["image"]
        with self.assertRaisesRegex(UnreadableImage, "not the ArrayRecord file it was built as"):
            read_image(files["a/0"])


if __name__ == "__main__":
    absltest.main()
