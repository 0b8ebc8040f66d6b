"""From sources to batches: training views through grain, evaluation images in their own shapes."""

import concurrent.futures
import itertools

import grain
import jax
import numpy as np
from absl import flags

from fs4_jax.data.cocostuff import CocoStuffSource
from fs4_jax.data.folder import DataError, FolderSource, UnreadableImage
from fs4_jax.data.scenes import SceneSource
from fs4_jax.data.views import resize_image, two_views
from fs4_jax.evaluation.confusion import IGNORE_LABEL

_ASPECTS = ((1, 2), (9, 16), (3, 4), (1, 1), (4, 3), (16, 9), (2, 1))     # height : width
_BUCKET = 64          # label maps are padded to multiples of this: few compilations
_THREADS = 4


# ---- sources ------------------------------------------------------------------------------------

def make_source(data, split):
    """The source of config.data for "train" or "eval".

    Raises DataError (missing folder, ...), naming the path or the config key.
    """
    return _SOURCES[data.name](data, split)


def _folder(data, split):
    images, labels = data.images, data.labels
    key = "data.images"
    if split == "eval" and data.eval_images:
        images, labels, key = data.eval_images, data.eval_labels, "data.eval_images"
    elif data.root and not images:
        folder = f"{data.root}/{'train' if split == 'train' else 'val'}"
        images, labels, key = f"{folder}/images", f"{folder}/labels", "data.root"
    if not images:
        raise DataError("no images given: --config.data.images=DIR, or --config.data.root=DIR "
                        "with DIR/train/images and DIR/val/images")
    if split == "eval" and data.eval_labels and not data.eval_images:
        raise DataError("config.data.eval_labels without config.data.eval_images: give both")
    return FolderSource(images, labels, class_names=data.class_names,
                        num_classes=data.num_classes, ignore_ids=data.ignore_ids, key=key)


def _cocostuff(data, split):
    if not data.root:
        raise DataError("COCO-Stuff needs its tree: --config.data.root=DIR with DIR/images/"
                        "train2017 and DIR/annotations/train2017")
    return CocoStuffSource(data.root, "train" if split == "train" else "val")


def _scenes(data, split):
    number, split = (data.num_train, "train") if split == "train" else (data.num_eval, "val")
    size = data.image_size if np.ndim(data.image_size) == 0 else max(data.image_size)
    return SceneSource(number, seed=data.scenes_seed, split=split, image_size=size)


def _or_folder(make):
    """`--mode=eval` may point any data set's model at somebody's folder."""
    return lambda data, split: (_folder if split == "eval" and data.eval_images else make)(
        data, split)


_SOURCES = {"folder": _folder, "scenes": _or_folder(_scenes),
            "cocostuff": _or_folder(_cocostuff)}


# ---- training -----------------------------------------------------------------------------------

def train_dataset(source, *, seed, batch_size, view_settings, image_size, patch, num_workers=0,
                  process_index=0, process_count=1):
    """Endless shuffled batches of two views, as a grain IterDataset.

    Every example is a function of (seed, index); the iterator's state is a few integers. The
    shuffle is global, differs in every epoch, and is split over processes afterwards. An image
    that can not be read is replaced by the next readable one, and reported.

    Args:
      source: see `make_source`. seed: int. batch_size: over all processes.
      view_settings, image_size, patch: as for `two_views`.
      num_workers: decoding processes; 0 decodes in threads.
      process_index, process_count: this process's share.

    Returns:
      Batches of numpy arrays: what `two_views` returns, "index" int32 [b] of the image used and
      "skipped" int32 [b], the unreadable one asked for, or -1.
    """
    dataset = grain.MapDataset.source(_Range(len(source))).seed(seed).shuffle().repeat(None)
    dataset = dataset[process_index::process_count]
    dataset = dataset.random_map(_MakeViews(source, view_settings, tuple(image_size), patch))
    dataset = dataset.batch(batch_size // process_count, drop_remainder=True)
    if num_workers == 0:
        return dataset.to_iter_dataset(grain.ReadOptions(num_threads=_THREADS,
                                                         prefetch_buffer_size=2 * _THREADS))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()      # grain reads a flag, which fails outside of absl's app
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
    return dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))


def to_device(dataset, sharding):
    """The same batches as global jax arrays, two ahead of their use.

    Args:
      dataset: of `train_dataset`; each process gives its part of the batch.
      sharding: of the batch, along its first axis.
    """
    def put(batch):
        return {key: jax.make_array_from_process_local_data(sharding, value)
                for key, value in batch.items()}

    return grain.experimental.ThreadPrefetchIterDataset(dataset.map(put), prefetch_buffer_size=2)


class _Range:
    """0 .. n-1 as a grain source: the images themselves are read by the map."""

    def __init__(self, length):
        self._length = length

    def __len__(self):
        return self._length

    def __getitem__(self, i):
        return i


class _MakeViews(grain.transforms.RandomMap):
    """index -> two views, from the next readable image."""

    def __init__(self, source, settings, image_size, patch):
        self._source, self._settings = source, settings
        self._image_size, self._patch = image_size, patch

    def random_map(self, index, rng):
        for i in itertools.chain(range(index, len(self._source)), range(index)):
            try:
                image = self._source[i]["image"]
                break
            except UnreadableImage as error:
                reason = error
        else:
            raise DataError(f"none of the {len(self._source)} images can be read; the last: "
                            f"{reason}")
        try:
            views = two_views(image, rng, self._settings, image_size=self._image_size,
                              patch=self._patch)
        except DataError as error:
            raise DataError(f"{self._source.example_name(i)}: {error}") from error
        return views | {"index": np.int32(i), "skipped": np.int32(-1 if i == index else index)}


# ---- evaluation ---------------------------------------------------------------------------------

def eval_shape(height, width, image_size, patch):
    """(H, W) at which a whole image is seen.

    Args:
      height, width: of the image. patch: token side; H and W are multiples of it.
      image_size: one side: the nearest of seven aspect ratios (1:2 to 2:1) at about that side
        squared in area; a pair (H, W) is taken as it is.
    """
    if np.ndim(image_size):
        return tuple(image_size)
    aspect = min(_ASPECTS, key=lambda a: abs(np.log(a[0] / a[1] * width / height)))
    ratio = np.sqrt(aspect[0] / aspect[1])
    return tuple(max(1, round(image_size * r / patch)) * patch for r in (ratio, 1 / ratio))


def eval_batches(source, *, batch_size, image_size, patch, with_labels=True, skipped=None):
    """Every image once, whole, in batches of one shape; the last batch of a shape is padded.

    Args:
      source: see `make_source`. batch_size: images a batch.
      image_size, patch: as for `eval_shape`.
      with_labels: False leaves labels unread.
      skipped: a list that takes (name, reason) of each unreadable image; None: raise.

    Yields:
      dict of numpy arrays: "image" uint8 [b, H, W, 3]; "label" uint8 [b, Hl, Wl] at the labels'
      own size, padded with 255; "size" int32 [b, 2], each label's (or image's) own height and
      width; "index" int32 [b], -1 in padding rows.
    """
    groups = {}
    for i in range(len(source)):
        try:
            shape = eval_shape(*source.size(i), image_size, patch)
        except UnreadableImage as error:
            if skipped is None:
                raise
            skipped.append((source.example_name(i), str(error)))
            continue
        groups.setdefault(shape, []).append(i)
    jobs = [(shape, indices[i:i + batch_size]) for shape, indices in groups.items()
            for i in range(0, len(indices), batch_size)]

    def load(i, shape):
        try:
            example = source[i]
        except UnreadableImage as error:
            return i, error
        return i, example | {"resized": resize_image(example["image"], shape)}

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        # One batch is decoded while the one before is computed.
        queue = ((shape, [pool.submit(load, i, shape) for i in indices])
                 for shape, indices in jobs)
        ahead = list(itertools.islice(queue, 2))
        while ahead:
            shape, loads = ahead.pop(0)
            ahead.extend(itertools.islice(queue, 1))
            loaded = []
            for i, example in (future.result() for future in loads):
                if isinstance(example, UnreadableImage):
                    if skipped is None:
                        raise example
                    skipped.append((source.example_name(i), str(example)))
                else:
                    loaded.append((i, example))
            if loaded:
                yield _collate(loaded, shape, batch_size, with_labels)


def _collate(loaded, shape, batch_size, with_labels):
    """Pads a list of (index, example) to a full batch; padding never votes."""
    image = np.zeros((batch_size, *shape, 3), np.uint8)
    size = np.ones((batch_size, 2), np.int32)
    index = np.full(batch_size, -1, np.int32)
    for row, (i, example) in enumerate(loaded):
        image[row], index[row] = example["resized"], i
        size[row] = example["image"].shape[:2]
    batch = {"image": image, "size": size, "index": index}
    if with_labels:
        height, width = -(-size.max(0) // _BUCKET) * _BUCKET
        batch["label"] = np.full((batch_size, height, width), IGNORE_LABEL, np.uint8)
        for row, (_, example) in enumerate(loaded):
            h, w = example["label"].shape
            batch["label"][row, :h, :w] = example["label"]
    return batch
