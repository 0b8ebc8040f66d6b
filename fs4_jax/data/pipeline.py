"""From sources to batches: training views through grain, evaluation images in their own shapes."""

import collections
import concurrent.futures
import itertools
import zlib

import grain
import jax
import numpy as np
from absl import flags

from fs4_jax.data.images import DataError, UnreadableImage
from fs4_jax.data.sources import make_source as make_source     # who makes batches makes both
from fs4_jax.data.whole_images import WholeImages, image_of
from fs4_jax.evaluation.confusion import IGNORE_LABEL

_ASPECTS = ((1, 2), (9, 16), (3, 4), (1, 1), (4, 3), (16, 9), (2, 1))     # height : width
_BUCKET = 64          # label maps are padded to multiples of this: few compilations
_THREADS = 4          # that decode; Pillow lets go of Python's lock while it does


# ---- training -----------------------------------------------------------------------------------

def train_dataset(source, make_views, *, seed, batch_size, num_workers=0, process_index=0,
                  process_count=1, prefetch=2):
    """Endless shuffled batches of views, as a grain IterDataset.

    Every example is a function of (seed, its place in the order) and nothing else, so batches do
    not depend on the workers, and `process_count` processes together make those of one. The
    shuffle is global and another in every epoch. An image that can not be read is replaced by the
    next readable one, and reported. The iterator's state is one integer.

    Args:
      source: see `make_source`.
      make_views: (image uint8 [H, W, 3], np.random.Generator) -> dict of numpy arrays, and
        `least_side`, the side below which an image should not be decoded: see `views.TwoViews`.
        One that is `labelled` takes the label map, uint8 [H, W], as a third argument.
      seed: int. batch_size: over all processes.
      num_workers: decoding processes; 0 decodes in threads.
      process_index, process_count: this process's share.
      prefetch: batches made ahead of their use (in each worker).

    Returns:
      Batches of numpy arrays: what `make_views` returns, "index" int32 [b] of the image used,
      "skipped" int32 [b], the unreadable one asked for, or -1, and "hash" uint32 [b] of "index"
      and every byte of the views.
    """
    if batch_size % process_count:
        raise DataError(f"config.batch_size={batch_size} is no multiple of the {process_count} "
                        "processes")
    examples = grain.MapDataset.source(_Range(len(source))).seed(seed).shuffle().repeat(None)
    # Views are drawn before the split over processes: which images get which draws is global.
    examples = examples.random_map(_MakeViews(source, make_views))
    return _Batches(examples, batch_size, process_index, process_count, num_workers, prefetch)


def to_device(dataset, sharding, *, prefetch=2):
    """The same batches as global jax arrays, moved ahead of their use by a thread.

    The iterator's state is that of the last batch taken, whatever lies ready behind it.

    Args:
      dataset: of `train_dataset`; each process gives its part of the batch.
      sharding: of the batch, along its first axis.
      prefetch: batches that wait on the device.
    """
    def put(batch):
        return {key: jax.make_array_from_process_local_data(sharding, value)
                for key, value in batch.items()}

    return grain.experimental.ThreadPrefetchIterDataset(dataset.map(put),
                                                        prefetch_buffer_size=prefetch)


class _Range:
    """0 .. n-1 as a grain source: the images themselves are read by the map."""

    def __init__(self, length):
        self._length = length

    def __len__(self):
        return self._length

    def __getitem__(self, i):
        return i


class _MakeViews(grain.transforms.RandomMap):
    """index -> views of the next readable image."""

    def __init__(self, source, make_views):
        self._source, self._make_views = source, make_views

    def random_map(self, index, rng):
        i, seen = self._readable(index)
        try:
            views = self._make_views(seen[0], rng, *seen[1:])
        except DataError as error:
            raise DataError(f"{self._source.example_name(i)}: {error}") from error
        return views | {"index": np.int32(i), "skipped": np.int32(-1 if i == index else index),
                        "hash": _hash_of(i, views)}

    def _readable(self, index):
        for i in itertools.chain(range(index, len(self._source)), range(index)):
            try:
                return i, seen_of(self._source, i, self._make_views)
            except UnreadableImage as error:
                reason = error
        raise DataError(f"none of the {len(self._source)} images can be read; the last: {reason}")


class _Rows(grain.MapDataset):
    """One process's rows of the batches of an endless dataset, from example `first` on.

    The rows of a batch lie beside each other in its order, so that batches are the same, row by
    row, whatever the number of processes.
    """

    def __init__(self, examples, first, batch_size, process_index, process_count):
        super().__init__(examples)
        self.size = batch_size // process_count
        self._examples, self._batch_size = examples, batch_size
        self._first = first + process_index * self.size

    def __len__(self):
        return len(self._examples)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return self.slice(i)
        batch, row = divmod(i, self.size)
        return self._examples[self._first + batch * self._batch_size + row]


def _hash_of(index, views):
    """CRC-32 of an example's number and bytes."""
    code = zlib.crc32(int(index).to_bytes(8, "little"))
    for key in sorted(views):
        code = zlib.crc32(np.ascontiguousarray(views[key]).reshape(-1).view(np.uint8), code)
    return np.uint32(code)


class _Batches(grain.IterDataset):
    """This process's part of the batches of an endless dataset, from any example on.

    Its iterators' state is the number of examples that all processes have taken. Grain's own
    states depend on the number of workers; this one can be restored under any number of workers
    and processes.
    """

    def __init__(self, examples, batch_size, process_index, process_count, num_workers, prefetch):
        super().__init__()
        self.batch_size = batch_size
        self._examples, self._num_workers, self._prefetch = examples, num_workers, prefetch
        self._process_index, self._process_count = process_index, process_count

    def __iter__(self):
        return _BatchIterator(self)

    def start(self, first):
        """A grain iterator whose first batch begins with example `first` of all processes."""
        local = _Rows(self._examples, first, self.batch_size, self._process_index,
                      self._process_count)
        size = local.size
        if self._num_workers == 0:      # single examples in threads, so that a batch comes soonest
            options = grain.ReadOptions(_THREADS, max(_THREADS, self._prefetch * size))
            return iter(local.to_iter_dataset(options).batch(size, drop_remainder=True))
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()      # grain 0.2 reads a flag even outside of absl's app
        batches = local.batch(size, drop_remainder=True).to_iter_dataset(
            grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        return iter(batches.mp_prefetch(grain.MultiprocessingOptions(
            num_workers=self._num_workers, per_worker_buffer_size=self._prefetch)))


class _BatchIterator(grain.DatasetIterator):

    def __init__(self, batches):
        super().__init__()
        self._batches, self._next_example, self._inner = batches, 0, None

    def __next__(self):
        self._assert_not_closed()
        if self._inner is None:
            self._inner = self._batches.start(self._next_example)
        try:
            batch = next(self._inner)
        except Exception:
            self._stop()        # the other workers would go on for nobody
            raise
        self._next_example += self._batches.batch_size
        return batch

    def get_state(self):
        return {"next_example": self._next_example}

    def set_state(self, state):
        self._stop()
        self._next_example = state["next_example"]

    def close(self):
        super().close()
        self._stop()

    def _stop(self):
        if self._inner is not None:
            self._inner.close()
        self._inner = None


# ---- evaluation ---------------------------------------------------------------------------------

def eval_shape(height, width, image_size, patch):
    """(H, W) at which a whole image is seen.

    Args:
      height, width: of the image. patch: token side; H and W are multiples of it.
      image_size: one side: the nearest of seven aspect ratios (1:2 to 2:1) at about that side
        squared in area; a pair (H, W) is taken as it is.

    Raises:
      DataError: a pair that is no multiple of the patch.
    """
    if np.ndim(image_size):
        if any(side % patch for side in image_size):
            raise DataError(f"config.data.image_size={tuple(image_size)} is no multiple of the "
                            f"encoder's patch, {patch} pixels")
        return tuple(image_size)
    aspect = min(_ASPECTS, key=lambda a: abs(np.log(a[0] / a[1] * width / height)))
    ratio = np.sqrt(aspect[0] / aspect[1])
    return tuple(max(1, round(image_size * r / patch)) * patch for r in (ratio, 1 / ratio))


def eval_batches(source, *, batch_size, image_size, patch, on_unreadable="raise",
                 with_labels=True, skipped=None, wanted=None, process_index=0, process_count=1):
    """Every image once, whole, in batches of one shape; the last batch of a shape is padded.

    Images of one shape keep their order. Threads decode the next batches while one is used; no
    more than three are held. Several processes make the same batches as one, each its own rows;
    an image that one of them can not read is left out, or raised, by all.

    Args:
      source: see `make_source`. batch_size: images a batch, over all processes.
      image_size, patch: as for `eval_shape`.
      on_unreadable: "raise" raises UnreadableImage; "skip" leaves the image out.
      with_labels: False leaves labels unread.
      skipped: a list that takes (name, reason) of each image left out.
      wanted: a function of a batch's indices; those that it is false for are left out, unread.
      process_index, process_count: this process's share; `distributed.gather` asks the others.

    Yields:
      dict of numpy arrays, this process's b rows of the batch: "image" uint8 [b, H, W, 3]; "label"
      uint8 [b, Hl, Wl] at the labels' own size, padded with 255 (no such key without labels);
      "size" int32 [b, 2], each label's (or image's) own height and width; "index" int32 [b], -1
      in padding rows.
    """
    if batch_size % process_count:
        raise ValueError(f"batch_size={batch_size} is no multiple of {process_count} processes")
    with_labels = with_labels and source.num_classes > 0
    images = WholeImages(source, with_labels=with_labels, on_unreadable=on_unreadable,
                         left_out=[] if skipped is None else skipped,
                         process_index=process_index, process_count=process_count)
    rows = batch_size // process_count
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        groups = {}
        for i, size in images.sizes(pool):
            groups.setdefault(eval_shape(*size, image_size, patch), []).append(i)
        parts = ((shape, indices[first + process_index * rows:][:rows])
                 for shape, indices in groups.items()
                 for first in range(0, len(indices), batch_size)
                 if wanted is None or wanted(indices[first:first + batch_size]))
        queue = ((shape, [pool.submit(images.load, i, shape) for i in part])
                 for shape, part in parts)
        ahead = collections.deque(itertools.islice(queue, 2))
        try:
            while ahead:
                shape, futures = ahead.popleft()
                loaded, number, largest = images.agreed(
                    [future.result() for future in futures], shape, rows)
                del futures     # they hold their results
                ahead.extend(itertools.islice(queue, 1))
                if number:
                    yield _collate(loaded, shape, rows, largest if with_labels else None)
        finally:
            pool.shutdown(cancel_futures=True)


def _collate(loaded, shape, batch_size, largest):
    """A full batch of [(index, (image, size, label or None))]; padding never votes.

    largest: of all labels of the batch, (height, width); None: there are no labels.
    """
    image = np.zeros((batch_size, *shape, 3), np.uint8)
    size = np.ones((batch_size, 2), np.int32)
    index = np.full(batch_size, -1, np.int32)
    for row, (i, (resized, own_size, _)) in enumerate(loaded):
        image[row], size[row], index[row] = resized, own_size, i
    batch = {"image": image, "size": size, "index": index}
    if largest is not None:
        height, width = -(-largest // _BUCKET) * _BUCKET
        batch["label"] = np.full((batch_size, height, width), IGNORE_LABEL, np.uint8)
        for row, (_, (_, (h, w), label)) in enumerate(loaded):
            batch["label"][row, :h, :w] = label
    return batch


def seen_of(source, i, make_views):
    """What views of example i are made of: (image,), or (image, label) if they are labelled."""
    if make_views.labelled:
        example = source[i]
        return example["image"], example["label"]
    return (image_of(source, i, make_views.least_side),)
