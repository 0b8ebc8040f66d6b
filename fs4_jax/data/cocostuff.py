"""COCO-Stuff in its own tree, 27 classes: images, stuffthingmaps, the field's curated lists."""

import pathlib

import numpy as np

from fs4_jax.data.folder import DataError, FolderSource
from fs4_jax.evaluation.confusion import IGNORE_LABEL

# Png id (category id - 1) -> coarse class: things 0..90, then stuff 91..181. protocols.md 2a: the
# one table of PiCIE, STEGO, CAUSE, EAGLE, SmooSeg, DepthG and PPAP (a test holds its hash).
FINE_TO_COARSE_27 = (
    [9] + [11] * 8 + [8] * 6 + [7] * 10 + [6] * 8 + [10] * 10 + [5] * 8 + [2] * 10 + [3] * 10 +
    [0] * 6 + [1] * 6 + [4] * 8 +
    [17, 17, 22, 20, 20, 22, 15, 25, 16, 13, 12, 12, 17, 17, 23, 15, 15, 17, 15, 21, 15, 25, 13,
     13, 13, 13, 13, 22, 26, 14, 14, 15, 22, 21, 21, 24, 20, 22, 15, 17, 16, 15, 22, 24, 21, 17,
     25, 16, 21, 17, 22, 16, 21, 21, 25, 21, 26, 21, 24, 20, 17, 14, 21, 26, 15, 23, 20, 21, 24,
     15, 24, 22, 25, 15, 20, 17, 17, 22, 14, 18, 18, 18, 18, 18, 18, 18, 26, 26, 19, 19, 24])

CLASS_NAMES_27 = (
    "electronic", "appliance", "food-thing", "furniture-thing", "indoor", "kitchen", "accessory",
    "animal", "outdoor", "person", "sports", "vehicle",
    "ceiling", "floor", "food-stuff", "furniture-stuff", "raw-material", "textile", "wall",
    "window", "building", "ground", "plant", "sky", "solid", "structural", "water")

_LIST = "Coco164kFull_Stuff_Coarse_7.txt"


class CocoStuffSource(FolderSource):
    """root/images/{train2017,val2017}/ID.jpg, root/annotations/{train2017,val2017}/ID.png.

    Masks are the official stuffthingmaps (0..181 = category id - 1, 255 unlabelled), read as 27
    classes. Where root/curated/{split}2017/Coco164kFull_Stuff_Coarse_7.txt is there, only its ids
    are used; else all the images.

    Args:
      root: the tree. split: "train" or "val". curated: False leaves the list unread.

    Raises:
      DataError: folders, masks or listed images that are not there; an unknown id when read.
    """

    def __init__(self, root, split="train", curated=True):
        root, folder = pathlib.Path(root), f"{split}2017"
        chosen = root / "curated" / folder / _LIST
        super().__init__(root / "images" / folder, root / "annotations" / folder,
                         name="cocostuff", class_names=CLASS_NAMES_27, key="data.root",
                         list_file=chosen if curated and chosen.exists() else None)
        self._table = np.full(256, -1, np.int16)
        self._table[:len(FINE_TO_COARSE_27)] = FINE_TO_COARSE_27
        self._table[IGNORE_LABEL] = IGNORE_LABEL

    def _id_error(self, i, value):
        return DataError(f"{self._labels[i]}: id {value} is no COCO-Stuff id (0..181 = category "
                         "id - 1, 255 = unlabelled); the masks are stuffthingmaps_trainval2017")
