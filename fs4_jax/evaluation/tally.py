"""What an evaluation has counted so far: exact, small, and able to go on after an interruption."""

import io
import json
import time
import zipfile

import numpy as np
from absl import logging

from fs4_jax import distributed
from fs4_jax.evaluation.confusion import Confusion
from fs4_jax.evaluation.per_image import PER_IMAGE
from fs4_jax.whole_files import whole_file

_SAVE_SECONDS = 60.0


class Tally:
    """Sums over images; memory does not grow with their number.

    Args:
      fitted: {name: array or dict of arrays}, what was fitted before counting began.
      num_clusters, num_classes: of the model. rows: {name: number of clusters} of each readout
        that is counted. matching: the protocol's; a match an image has sums of its own.
    """

    def __init__(self, fitted, rows, num_clusters, num_classes, matching):
        self.fitted, self.done = fitted, set()
        per_image = PER_IMAGE.get(matching)
        self.readouts = {name: per_image(num_classes) if per_image else
                         Confusion(number, num_classes) for name, number in rows.items()}
        self._sums = {"share": np.zeros(num_clusters), "colour": np.zeros((num_clusters, 3)),
                      "components": np.zeros(())}
        self._saved = time.monotonic()

    def add(self, index, out):
        """Adds one image.

        Args:
          index: which; it is remembered as done.
          out: {"counts": {readout: int [clusters, classes]}, "share" [k], "colour" [k, 3],
            "components": number}.
        """
        for name, counts in out["counts"].items():
            self.readouts[name].add(counts)
        for name in self._sums:
            self._sums[name] += out[name]
        self.done.add(int(index))

    def clusters(self):
        """Share, mean colour and components of the clusters, as `Evaluation` has them."""
        share, colour = self._sums["share"], self._sums["colour"]
        return {"share": (share / max(share.sum(), 1)).tolist(),
                "mean_colour": (colour / np.maximum(share, 1)[:, None]).tolist(),
                "components_per_image": float(self._sums["components"] / max(len(self.done), 1))}

    def save(self, path, key):
        """Writes everything to `path` (npz), whole or not at all; `key` says what it belongs to."""
        arrays = {f"sums/{name}": value for name, value in self._sums.items()}
        for name, readout in self.readouts.items():
            arrays |= {f"readouts/{name}/{k}": v for k, v in readout.state.items()}
        with whole_file(path) as writing, open(writing, "wb") as file:
            np.savez(file, key=json.dumps(key, sort_keys=True), done=sorted(self.done), **arrays,
                     **{f"fitted/{name}": v for name, v in _flat(self.fitted).items()})

    def save_now_and_then(self, path, key):
        """`save` when the last one is a minute ago; process 0 does."""
        if distributed.is_first() and time.monotonic() - self._saved >= _SAVE_SECONDS:
            self.save(path, key)
            self._saved = time.monotonic()

    def restore(self, arrays):
        """Takes over the counts of a saved tally of the same shapes."""
        self._sums = {name: arrays[f"sums/{name}"] for name in self._sums}
        for name, readout in self.readouts.items():
            for k in readout.state:
                readout.state[k] = arrays[f"readouts/{name}/{k}"]
        self.done = set(arrays["done"].tolist())


class ImageCounts:
    """Each image's own counts of one readout, kept sparse: a few hundred bytes an image."""

    def __init__(self, readout):
        self._readout, self._counts = readout, {}

    def add(self, index, counts):
        if self._readout in counts:
            cells = np.argwhere(counts[self._readout])
            self._counts[index] = cells, counts[self._readout][tuple(cells.T)]

    def worst(self, matching, number):
        """Indices of the images with the lowest accuracy under a match, worst first."""
        accuracy = {}
        for index, (cells, pixels) in self._counts.items():
            right = np.array(matching)[cells[:, 0]] == cells[:, 1]
            if pixels.size:
                accuracy[index] = pixels[right].sum() / pixels.sum()
        return sorted(accuracy, key=accuracy.get)[:number]


def read_partial(path, key):
    """(arrays, fitted) of a saved tally, or None where there is none of this key.

    What process 0 finds counts for all of them.
    """
    if path is None:
        return None
    data = distributed.bytes_of_first(
        path.read_bytes() if distributed.is_first() and path.exists() else None)
    if data is None:
        return None
    try:
        with np.load(io.BytesIO(data)) as file:
            arrays = {name: file[name] for name in file.files}
        if str(arrays["key"]) != json.dumps(key, sort_keys=True):
            return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logging.warning("%s can not be read, the evaluation begins anew: %s", path, error)
        return None
    fitted = {}
    for name, value in arrays.items():
        if name.startswith("fitted/"):
            *folders, leaf = name.split("/")[1:]
            into = fitted
            for folder in folders:
                into = into.setdefault(folder, {})
            into[leaf] = value
    return arrays, fitted


def _flat(tree, prefix=""):
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = np.asarray(value)
    return flat
