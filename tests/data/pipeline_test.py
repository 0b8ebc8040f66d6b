"""The pipelines: the same batches under any workers and processes, whole evaluation batches."""

import json
import time

import grain
import jax
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.data.folder import DataError, FolderSource, UnreadableImage
from fs4_jax.data.pipeline import eval_batches, eval_shape, to_device, train_dataset
from fs4_jax.data.views import TwoViews, ViewSettings, resize_image
from tests.data.files import FolderCase, picture
from tests.shared import shared_path


class MemorySource:
    """Images in memory; those in `broken` can not be read."""

    name, class_names = "memory", ("a", "b")

    def __init__(self, number=10, sizes=((24, 32),), broken=(), num_classes=2):
        self.num_classes, self.broken = num_classes, broken
        rng = np.random.default_rng(0)
        self.images = [rng.integers(0, 256, (*sizes[i % len(sizes)], 3), np.uint8)
                       for i in range(number)]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        if i in self.broken:
            raise UnreadableImage(f"{self.example_name(i)}.jpg: broken")
        example = {"name": self.example_name(i), "image": self.images[i]}
        if self.num_classes:
            example["label"] = self.images[i][..., 0] % 2
        return example

    def size(self, i):
        return self.images[i].shape[:2]

    def example_name(self, i):
        return f"image{i}"


VIEWS = TwoViews(ViewSettings(), (16, 24), 8)


def batches_of(source, number, **options):
    options = dict(make_views=VIEWS, seed=3, batch_size=4) | options
    iterator = iter(train_dataset(source, **options))
    taken = [next(iterator) for _ in range(number)]
    iterator.close()
    return taken


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


class TrainDatasetTest(parameterized.TestCase):

    def test_batches_are_as_the_contract_says(self):
        batch = batches_of(MemorySource(), 1)[0]
        described = {name: (array.shape, array.dtype.name) for name, array in batch.items()}
        self.assertEqual(described, {
            "view1": ((4, 16, 24, 3), "uint8"), "view2": ((4, 16, 24, 3), "uint8"),
            "correspondence": ((4, 2, 3, 2), "float32"), "valid": ((4, 2, 3), "bool"),
            "index": ((4,), "int32"), "skipped": ((4,), "int32"), "hash": ((4,), "uint32")})
        self.assertEqual(batch["skipped"].tolist(), [-1] * 4)

    def test_every_epoch_is_another_order_of_all_images(self):
        order = np.concatenate([b["index"] for b in batches_of(MemorySource(12), 9)])
        epochs = order.reshape(3, 12).tolist()
        for epoch in epochs:
            self.assertEqual(sorted(epoch), list(range(12)))
        self.assertLen({tuple(e) for e in epochs} | {tuple(range(12))}, 4)

    def test_every_epoch_draws_other_views(self):
        first, second = batches_of(MemorySource(4), 2)
        order = [np.argsort(b["index"]) for b in (first, second)]
        one, other = first["view1"][order[0]], second["view1"][order[1]]
        for i in range(4):
            self.assertFalse(np.array_equal(one[i], other[i]))

    def test_fewer_images_than_a_batch(self):
        batch = batches_of(MemorySource(3), 1, batch_size=8)[0]
        self.assertEqual(sorted(batch["index"][:6].tolist()), [0, 0, 1, 1, 2, 2])
        self.assertEqual(batches_of(MemorySource(1), 1)[0]["index"].tolist(), [0] * 4)

    def test_the_seed_decides(self):
        once, again, other = (batches_of(MemorySource(), 2, seed=s) for s in (1, 1, 2))
        assert_same(once, again)
        self.assertFalse(np.array_equal(once[0]["index"], other[0]["index"]))

    def test_processes_share_what_one_would_draw(self):
        whole = batches_of(MemorySource(), 5)
        for count in (2, 4):
            parts = [batches_of(MemorySource(), 5, process_index=p, process_count=count)
                     for p in range(count)]
            united = [{name: np.concatenate([b[name] for b in step]) for name in step[0]}
                      for step in zip(*parts)]
            assert_same(united, whole)
        with self.assertRaisesRegex(DataError, "batch_size=4 is no multiple of the 3 processes"):
            batches_of(MemorySource(), 1, process_count=3)

    def test_worker_processes_change_nothing_and_take_over_anywhere(self):
        source, options = MemorySource(), dict(make_views=VIEWS, seed=3, batch_size=4)
        expected = batches_of(source, 6)
        iterator = iter(train_dataset(source, num_workers=2, **options))
        assert_same([next(iterator) for _ in range(3)], expected[:3])
        state = json.loads(json.dumps(iterator.get_state()))
        iterator.close()
        self.assertEqual(state, {"next_example": 12})
        threads = iter(train_dataset(source, **options))
        threads.set_state(state)
        assert_same([next(threads) for _ in range(3)], expected[3:])
        halves = [iter(train_dataset(source, process_index=p, process_count=2, **options))
                  for p in (0, 1)]
        for half in halves:
            half.set_state(state)
        np.testing.assert_array_equal(
            np.concatenate([next(half)["index"] for half in halves]),
            expected[3]["index"])

    def test_the_iterators_state_is_complete(self):
        dataset = train_dataset(MemorySource(), VIEWS, seed=0, batch_size=4)
        grain.experimental.assert_equal_output_after_checkpoint(
            grain.experimental.LimitIterDataset(dataset, 4))

    def test_unreadable_images_are_replaced_and_reported(self):
        source = MemorySource(6, broken=(2, 3, 5))
        taken = batches_of(source, 3, batch_size=6)
        for batch in taken:
            asked = np.where(batch["skipped"] >= 0, batch["skipped"], batch["index"])
            self.assertEqual(sorted(asked.tolist()), list(range(6)))
            replaced = dict(zip(batch["skipped"].tolist(), batch["index"].tolist()))
            self.assertEqual({i: replaced.get(i) for i in (2, 3, 5)}, {2: 4, 3: 4, 5: 0})
            self.assertEqual(sum(batch["skipped"] >= 0), 3)

    def test_nothing_readable(self):
        with self.assertRaisesRegex(DataError, "none of the 3 images can be read.*broken"):
            batches_of(MemorySource(3, broken=(0, 1, 2)), 1)

    @parameterized.parameters(0, 2)
    def test_too_small_images_are_named_from_threads_and_from_workers(self, num_workers):
        with self.assertRaisesRegex(DataError, "^image0: an image of 32 x 7 pixels"):
            batches_of(MemorySource(1, sizes=((7, 32),)), 1, num_workers=num_workers)

    def test_after_an_error_the_batch_can_be_asked_for_again(self):
        source = MemorySource(4, broken=(0, 1, 2, 3))
        iterator = iter(train_dataset(source, VIEWS, seed=3, batch_size=4))
        with self.assertRaises(DataError):
            next(iterator)
        self.assertEqual(iterator.get_state(), {"next_example": 0})
        source.broken = ()
        assert_same([next(iterator)], batches_of(source, 1))


class TrainOnFilesTest(FolderCase):

    def test_labels_stay_unread(self):
        for i in range(3):
            self.write(f"images/{i}.jpg", picture())
            self.write(f"labels/{i}.png", np.zeros((12, 20), np.uint8))
        source = FolderSource(self.root / "images", self.root / "labels")
        self.write_bytes("labels/1.png", b"junk")
        batch = batches_of(source, 1)[0]
        self.assertEqual(set(batch["index"].tolist()), {0, 1, 2})

    def test_broken_files_are_replaced_by_the_next(self):
        for i in range(5):
            self.write(f"{i}.png", picture())
        self.write_bytes("1.png", b"")
        self.write_bytes("2.png", (self.root / "2.png").read_bytes()[:-60])     # header is fine
        self.write_bytes("4.png", b"no image")
        source = FolderSource(self.root)
        source.check(min_side=8)
        batch = batches_of(source, 1, batch_size=5)[0]
        asked = {int(s): int(i) for s, i in zip(batch["skipped"], batch["index"]) if s >= 0}
        self.assertEqual(asked, {1: 3, 2: 3, 4: 0})


class ToDeviceTest(parameterized.TestCase):

    def setUp(self):
        super().setUp()
        self.options = dict(make_views=TwoViews(ViewSettings(), (16, 16), 8), seed=3, batch_size=8)
        devices = jax.devices()[:8 if len(jax.devices()) >= 8 else 1]
        mesh = jax.make_mesh((len(devices),), ("data",), (jax.sharding.AxisType.Auto,),
                             devices=devices)
        self.sharding = jax.NamedSharding(mesh, jax.P("data"))

    def test_the_same_batches_as_sharded_arrays(self):
        host = iter(train_dataset(MemorySource(), **self.options))
        device = iter(to_device(train_dataset(MemorySource(), **self.options), self.sharding))
        for _ in range(3):
            batch = next(device)
            assert_same([jax.device_get(batch)], [next(host)])
            for array in batch.values():
                self.assertIsInstance(array, jax.Array)
                self.assertTrue(array.sharding.is_equivalent_to(self.sharding, array.ndim))

    def test_the_state_is_that_of_the_last_batch_taken(self):
        def batches():
            return iter(to_device(train_dataset(MemorySource(), **self.options), self.sharding))

        ahead = batches()
        self.assertEqual(ahead.get_state(), {"next_example": 0})
        for _ in range(3):
            next(ahead)
        time.sleep(0.3)         # the thread has made more by now
        state = json.loads(json.dumps(ahead.get_state()))
        self.assertEqual(state, {"next_example": 24})
        resumed = batches()
        resumed.set_state(state)
        self.assertEqual(resumed.get_state(), state)
        expected = [jax.device_get(next(ahead)) for _ in range(3)]
        assert_same([jax.device_get(next(resumed)) for _ in range(3)], expected)
        ahead.set_state({"next_example": 24})           # also under a thread that runs already
        assert_same([jax.device_get(next(ahead)) for _ in range(3)], expected)

    def test_what_the_thread_meets_is_raised(self):
        source = MemorySource(3, broken=(0, 1, 2))
        with self.assertRaisesRegex(DataError, "none of the 3 images"):
            next(iter(to_device(train_dataset(source, **self.options), self.sharding)))


class EvalShapeTest(parameterized.TestCase):

    @parameterized.parameters(
        (360, 480, 224, 16, (192, 256)), (480, 360, 224, 16, (256, 192)),
        (500, 500, 224, 14, (224, 224)), (1080, 1920, 224, 16, (160, 304)),
        (100, 1000, 224, 16, (160, 320)), (5000, 10, 96, 8, (136, 64)),
        (400, 500, 224, 16, (192, 256)), (9, 9, 8, 16, (16, 16)))
    def test_buckets(self, height, width, image_size, patch, expected):
        self.assertEqual(eval_shape(height, width, image_size, patch), expected)

    def test_a_pair_is_taken_as_it_is(self):
        self.assertEqual(eval_shape(10, 90, (64, 32), 16), (64, 32))
        with self.assertRaisesRegex(DataError, r"data\.image_size=\(64, 40\).*16 pixels"):
            eval_shape(10, 90, (64, 40), 16)


class EvalBatchesTest(parameterized.TestCase):

    OPTIONS = dict(batch_size=4, image_size=32, patch=8)

    def test_every_image_once_in_batches_of_one_shape(self):
        source = MemorySource(11, sizes=((24, 32), (70, 30), (30, 30)))
        seen = []
        for batch in eval_batches(source, **self.OPTIONS):
            self.assertLen(batch["image"], 4)
            for row, i in enumerate(batch["index"]):
                if i < 0:
                    self.assertEqual(batch["image"][row].max(), 0)
                    self.assertEqual(batch["label"][row].min(), 255)
                    self.assertEqual(batch["size"][row].tolist(), [1, 1])
                    continue
                seen.append(int(i))
                image = source.images[i]
                h, w = image.shape[:2]
                shape = eval_shape(h, w, 32, 8)
                np.testing.assert_array_equal(batch["image"][row], resize_image(image, shape))
                self.assertEqual(batch["size"][row].tolist(), [h, w])
                label = batch["label"][row]
                np.testing.assert_array_equal(label[:h, :w], source[i]["label"])
                self.assertEqual(min(label[h:].min(initial=255), label[:, w:].min(initial=255)),
                                 255)
                self.assertEqual([side % 64 for side in label.shape], [0, 0])
        self.assertEqual(seen, [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8])

    def test_types_and_label_buckets(self):
        batch = next(eval_batches(MemorySource(2, sizes=((64, 65), (60, 70))), **self.OPTIONS))
        described = {name: (array.shape, array.dtype.name) for name, array in batch.items()}
        self.assertEqual(described, {
            "image": ((4, 32, 32, 3), "uint8"), "label": ((4, 64, 128), "uint8"),
            "size": ((4, 2), "int32"), "index": ((4,), "int32")})

    def test_without_labels(self):
        for batch in (next(eval_batches(MemorySource(2), with_labels=False, **self.OPTIONS)),
                      next(eval_batches(MemorySource(2, num_classes=0), **self.OPTIONS))):
            self.assertEqual(batch.keys(), {"image", "size", "index"})
            self.assertEqual(batch["size"].tolist(), [[24, 32]] * 2 + [[1, 1]] * 2)

    def test_unreadable_images(self):
        source = MemorySource(9, broken=(1, 2, 3, 4, 5))
        with self.assertRaisesRegex(UnreadableImage, "image1.jpg: broken"):
            list(eval_batches(source, **self.OPTIONS))
        skipped = []
        batches = list(eval_batches(source, on_unreadable="skip", skipped=skipped, **self.OPTIONS))
        self.assertEqual(np.concatenate([b["index"] for b in batches]).tolist(),
                         [0, -1, -1, -1, 6, 7, -1, -1, 8, -1, -1, -1])
        self.assertEqual(skipped[0], ("image1", "image1.jpg: broken"))
        self.assertEqual([name for name, _ in skipped], [f"image{i}" for i in range(1, 6)])

    def test_whole_batches_of_unreadable_images_are_left_out(self):
        source = MemorySource(4, broken=(0, 1, 2, 3))
        self.assertEqual(list(eval_batches(source, on_unreadable="skip", **self.OPTIONS)), [])
        with self.assertRaisesRegex(ValueError, "raise or skip"):
            next(eval_batches(source, on_unreadable="ignore", **self.OPTIONS))

    def test_reads_only_a_few_batches_ahead(self):
        read = []

        class Counting(MemorySource):
            def __getitem__(self, i):
                read.append(i)
                return super().__getitem__(i)

        batches = eval_batches(Counting(40), **self.OPTIONS)
        next(batches)
        time.sleep(0.2)
        self.assertLessEqual(len(read), 12)
        batches.close()
        self.assertLessEqual(len(read), 12)

    def test_headers_that_can_not_be_read_are_skipped_too(self):
        source = MemorySource(3)
        source.size = lambda i: (_ for _ in ()).throw(UnreadableImage("x.jpg: no header"))
        skipped = []
        self.assertEqual(list(eval_batches(source, on_unreadable="skip", skipped=skipped,
                                           **self.OPTIONS)), [])
        self.assertLen(skipped, 3)
        with self.assertRaises(UnreadableImage):
            list(eval_batches(source, **self.OPTIONS))

    def test_real_photographs(self):
        root = shared_path("data", "camvid", "val")
        source = FolderSource(root / "images", root / "labels", num_classes=11, ignore_ids=(11,))
        counts = np.zeros(256, np.int64)
        for batch in eval_batches(source, batch_size=16, image_size=64, patch=16):
            self.assertEqual(batch["image"].shape[1:], (48, 80, 3))
            counts += np.bincount(batch["label"].reshape(-1), minlength=256)
        expected = sum(np.bincount(source.label(i).reshape(-1), minlength=256)
                       for i in range(len(source)))
        np.testing.assert_array_equal(counts[:255], expected[:255])


if __name__ == "__main__":
    absltest.main()
