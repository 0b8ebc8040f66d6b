"""Potsdam-3: ISPRS' aerial photographs in IIC's and STEGO's tiles, three classes.

root/imgs/NAME.mat holds "img", uint8 [200, 200, 4] (red, green, blue, infrared; the last is not
used); root/gt/NAME.mat holds "gt", int32 [200, 200], 0..5; root/labelled_train.txt and
root/labelled_test.txt name the tiles.
"""

import pathlib

import numpy as np
import scipy.io

from fs4_jax.data.folder import PairSource, check_pairs, list_files, only
from fs4_jax.data.images import DataError, UnreadableImage, openable, reason_of
from fs4_jax.data.stored import stored_files
from fs4_jax.evaluation.confusion import IGNORE_LABEL

CLASS_NAMES = ("road and car", "building and clutter", "vegetation and tree")
_FINE_TO_COARSE = (0, 1, 2, 2, 0, 1)      # road, building, low vegetation, tree, car, clutter
_LISTS = {"train": "labelled_train.txt", "val": "labelled_test.txt"}


def read_image(path, *, at_least=None):
    """"img" of a .mat file as uint8 [H, W, 3] RGB; UnreadableImage. `at_least` is not needed."""
    del at_least
    try:
        image = scipy.io.loadmat(openable(path), variable_names=["img"])["img"]
        if image.ndim != 3 or image.shape[2] < 3 or image.dtype != np.uint8:
            raise ValueError(f"img is {image.dtype} of shape {image.shape}")
        return np.ascontiguousarray(image[..., :3])
    except Exception as error:       # a damaged file raises whatever its bytes lead to
        raise UnreadableImage(f"{path}: unreadable tile ({reason_of(error, path)})") from error


def read_label(path):
    """"gt" of a .mat file as uint8 [H, W], as it is stored; DataError."""
    try:
        label = scipy.io.loadmat(openable(path), variable_names=["gt"])["gt"]
        if label.ndim != 2 or label.dtype.kind not in "iu" or label.min() < 0 or label.max() > 255:
            raise ValueError(f"gt is {label.dtype} of shape {label.shape}, {label.min()}.."
                             f"{label.max()}")
        return label.astype(np.uint8)
    except Exception as error:
        raise DataError(f"{path}: unreadable mask ({reason_of(error, path)})") from error


def tree(root, split):
    """{"image": {name: path}, "label": {name: path}} of a split; see `PotsdamSource`."""
    root = pathlib.Path(root)
    images = only(list_files(root / "imgs", (".mat",), "tiles", "data.root"),
                  root / _LISTS[split], root / "imgs")
    labels = list_files(root / "gt", (".mat",), "masks", "data.root")
    check_pairs(images, labels, root / "imgs", root / "gt")
    return {"image": images, "label": {stem: labels[stem] for stem in images}}


class PotsdamSource(PairSource):
    """Tiles and masks in three classes; 255 is ignored.

    Args:
      root: the tree, or what `fs4_jax.data.prepare` built of it.
      split: "train" (labelled_train.txt) or "val" (labelled_test.txt).

    Raises:
      DataError: what is missing; an unknown id when read.
    """

    _read_image, _read_label = staticmethod(read_image), staticmethod(read_label)
    _image_size = staticmethod(lambda path: _shape(path, "img", UnreadableImage))
    _label_size = staticmethod(lambda path: _shape(path, "gt", DataError))

    def __init__(self, root, split="train"):
        files = stored_files(root, "potsdam", split) or tree(root, split)
        table = np.full(256, -1, np.int16)
        table[:len(_FINE_TO_COARSE)], table[255] = _FINE_TO_COARSE, IGNORE_LABEL
        super().__init__("potsdam", files["image"], files["label"],
                         where=pathlib.Path(root, "imgs"), class_names=CLASS_NAMES,
                         num_classes=len(CLASS_NAMES), table=table,
                         ids="is no id of Potsdam (0..5, 255)")


def _shape(path, variable, error_class):
    """(height, width) of a variable, which is not read for it."""
    try:
        shapes = {name: shape for name, shape, _ in scipy.io.whosmat(openable(path))}
        return shapes[variable][:2]
    except Exception as error:
        raise error_class(f"{path}: no {variable} to be read ({reason_of(error, path)})") from error
