"""Views drawn once, with the frozen encoder's tokens of them, kept on disk for training.

A frozen encoder sees the same image over and over. With config.encoder.cached_views=n each image's
views are drawn n times, encoded once, and every step reads one of the n: it costs what the head
costs. The folder is memory mapped, shared by runs (seeds) that ask for the same, refused to others.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np

from fs4_jax.config import ConfigError
from fs4_jax.data.images import UnreadableImage
from fs4_jax.data.pipeline import seen_of
from fs4_jax.metrics import ProgressLine
from fs4_jax.models.encoder_files import fingerprint
from fs4_jax.sharding import batch_sharding, replicated, round_up
from fs4_jax.whole_files import write_whole

_MANIFEST, _PROGRESS = "manifest.json", "progress.json"
_SEED = 0                  # of the views: runs of other seeds read the same ones
_FLUSH_SECONDS = 20.0
_THREADS = 4


@dataclasses.dataclass(frozen=True)
class CachedViews:
    """A source whose images are views with tokens; `train_dataset(cache, cache, ...)` reads it.

    arrays: {name: [n * number, ...]}, memory mapped; row c * number + i is draw c of the i-th
    readable image. index: int [number], that image's place in the source. source: of the images.
    """
    arrays: dict[str, Any]
    index: np.ndarray
    source: Any
    draws: int
    least_side = 1
    labelled = False           # what is kept has all that a step needs

    @property
    def keys(self):
        """What a step reads of a batch."""
        return tuple(self.arrays)

    def __len__(self):
        return len(self.index)

    def image(self, i, at_least=None):
        """The number of the image itself: `__call__` reads its arrays."""
        return i

    def __call__(self, i, rng):
        row = int(rng.integers(self.draws)) * len(self) + i
        return {name: np.asarray(array[row]) for name, array in self.arrays.items()}

    def example_name(self, i):
        return self.source.example_name(int(self.index[i]))


def cached_views(run, source, folder):
    """The CachedViews of a run's frozen encoder; made first, or finished, where it is not whole.

    Args:
      run: Run with a frozen encoder of given weights; config.encoder.cached_views draws.
      source: of the training images. folder: where it is kept.

    Raises:
      ConfigError: an encoder that is trained, has no given weights, or is shared by several
        processes; a folder that holds another cache (the message says what differs) or can not be
        written; no readable image.
    """
    draws, folder = run.config.encoder.cached_views, pathlib.Path(folder)
    _check(run)
    plan = _plan(run, source, draws)
    _claim(folder, plan)
    views = _Views(run.make_views, source)
    where = folder / _PROGRESS
    progress = json.loads(where.read_text()) if where.exists() else {"done": 0, "unreadable": []}
    total = draws * len(source)
    if progress["done"] < total:
        _encode_rest(run, views, folder, progress, total)
    index = np.setdiff1d(np.arange(len(source)), progress["unreadable"])
    if not len(index):
        raise ConfigError(f"none of the {len(source)} images can be read")
    arrays = {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))}
    if not arrays or any(len(array) != total for array in arrays.values()):
        raise ConfigError(f"{folder} is damaged: remove it, and it is made again")
    if len(index) < len(source):              # rows of unreadable images hold nothing
        rows = (np.arange(draws)[:, None] * len(source) + index).ravel()
        arrays = {name: _Rows(array, rows) for name, array in arrays.items()}
    return CachedViews(arrays, index, source, draws)


class _Rows:
    """Some rows of an array, read when asked for."""

    def __init__(self, array, rows):
        self._array, self._rows = array, rows

    def __getitem__(self, i):
        return self._array[self._rows[i]]


class _Views:
    """row -> views of image row % number, or the reason why it can not be read."""

    def __init__(self, make_views, source):
        self._make_views, self._source = make_views, source

    def __call__(self, row):
        draw, i = divmod(row, len(self._source))
        try:
            image, *label = seen_of(self._source, i, self._make_views)
        except UnreadableImage as error:
            return i, str(error)
        return i, self._make_views(image, np.random.default_rng((_SEED, draw, i)), *label)


def _encode_rest(run, views, folder, progress, total):
    """Fills the rows from progress["done"] on; an interrupted pass goes on from there."""
    size = round_up(run.config.batch_size, run.mesh)
    params = jax.device_put(run.encoder_params, replicated(run.mesh))
    encode = jax.jit(lambda params, batch: run.method.keep({"encoder": params}, batch),
                     out_shardings=replicated(run.mesh))
    first = progress["done"]
    line, arrays = ProgressLine(total, first, unit="caching tokens"), None
    began = saved = time.monotonic()
    for start, loaded in _read_ahead(views, range(first, total, size), size, total):
        for i, reason in (pair for pair in loaded if isinstance(pair[1], str)):
            if i not in progress["unreadable"]:
                progress["unreadable"].append(i)
                line.note(f"skipped {reason}")
        good = [row for row, (_, drawn) in enumerate(loaded) if not isinstance(drawn, str)]
        if good:
            batch = _stacked([loaded[row][1] for row in good], size)
            kept = jax.device_get(encode(params, jax.device_put(batch, batch_sharding(run.mesh))))
            kept |= {name: batch[name] for name in run.make_views.kept}
            arrays = arrays or _open(folder, kept, total)
            for name, values in kept.items():
                arrays[name][start + np.array(good)] = values[:len(good)]
        progress["done"] = start + len(loaded)
        line.update(progress["done"], {"images_per_second": (progress["done"] - first) /
                                       (time.monotonic() - began)})
        if progress["done"] == total or time.monotonic() - saved > _FLUSH_SECONDS:
            _save(folder, arrays, progress)
            saved = time.monotonic()
    line.close()


def _read_ahead(views, starts, size, total):
    """Yields (start, what `views` says of its rows); threads draw the next batches meanwhile."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        drawn = ([pool.submit(views, row) for row in range(start, min(start + size, total))]
                 for start in starts)
        ahead = collections.deque(itertools.islice(drawn, 2))
        for start in starts:
            loaded = [future.result() for future in ahead.popleft()]
            ahead.extend(itertools.islice(drawn, 1))
            yield start, loaded


def _check(run):
    if not hasattr(run.method, "keep"):
        raise ConfigError(f"config.encoder.cached_views: config.method={run.config.method} trains "
                          "its encoder; set it to 0")
    if not run.config.encoder.frozen or run.encoder_params is None:
        raise ConfigError("config.encoder.cached_views keeps the tokens of an encoder that does "
                          "not change: set config.encoder.frozen=True and config.encoder.weights, "
                          "or cached_views=0")
    if jax.process_count() > 1:
        raise ConfigError(f"config.encoder.cached_views is for one process, there are "
                          f"{jax.process_count()}: set it to 0")


def _plan(run, source, draws):
    """What a cache must agree with, all of it: weights, data and geometry."""
    def size(i):
        try:
            return source.size(i)
        except UnreadableImage:
            return "unreadable"

    images = [np.array(f"{source.example_name(i)} {size(i)}") for i in range(len(source))]
    encoder = run.method.encoder
    plan = {"weights": fingerprint(run.encoder_params), "block": encoder.block or encoder.depth,
            "dtype": run.config.dtype, "images": fingerprint(images), "num_images": len(source),
            "views": str(run.make_views), "cached_views": draws,
            "kept": sorted((*run.method.kept, *run.make_views.kept))}
    return plan | ({"labels": source.labels} if run.make_views.labelled else {})


def _claim(folder, plan):
    """Writes the plan into a new folder, or checks that it is the folder's."""
    path = folder / _MANIFEST
    if path.exists():
        there = json.loads(path.read_text())
        differing = [key for key in plan if there.get(key) != plan[key]]
        if differing:
            lines = "\n".join(f"  {key}: there {there.get(key)}, now {plan[key]}"
                              for key in differing)
            raise ConfigError(f"the token cache in {folder} is another one:\n{lines}\nremove it, "
                              "or give another config.encoder.cache_dir")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(plan, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"config.encoder.cache_dir={folder} can not be written: "
                          f"{error.strerror}") from error


def _stacked(examples, size):
    """One batch of `size` rows; the last example fills the rows that are left."""
    examples = examples + examples[-1:] * (size - len(examples))
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _open(folder, batch, total):
    """The files of a cache, as large as they will be."""
    arrays = {}
    for name, values in batch.items():
        path, shape = folder / f"{name}.npy", (total, *values.shape[1:])
        arrays[name] = np.lib.format.open_memmap(
            path, mode="r+" if path.exists() else "w+", dtype=values.dtype, shape=shape)
    return arrays


def _save(folder, arrays, progress):
    for array in (arrays or {}).values():
        array.flush()
    write_whole(folder / _PROGRESS, json.dumps(progress, indent=2) + "\n")
