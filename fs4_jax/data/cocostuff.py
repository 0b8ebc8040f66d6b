"""COCO-Stuff in its own tree, 27 classes: images, stuffthingmaps, the field's curated lists."""

import pathlib

import numpy as np

from fs4_jax.data.folder import DataError, FolderSource, list_files
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
    classes. Where root/curated/{split}2017/Coco164kFull_Stuff_Coarse_7.txt is there, its ids are
    used; else all the images.

    Args:
      root: the tree. split: "train" or "val". curated: False leaves the list unread.
    """

    name = "cocostuff"

    def __init__(self, root, split="train", *, curated=True):
        folder = f"{split}2017"
        root = pathlib.Path(root)
        super().__init__(root / "images" / folder, root / "annotations" / folder,
                         class_names=CLASS_NAMES_27, key="data.root")
        table = np.full(256, IGNORE_LABEL, np.int16)
        table[:182] = FINE_TO_COARSE_27
        table[182:255] = -1
        self._table = table
        chosen = root / "curated" / folder / _LIST
        if curated and chosen.exists():
            self._keep(chosen)

    def _keep(self, path):
        wanted = path.read_text().split()
        at = {stem: i for i, stem in enumerate(self._stems)}
        missing = [name for name in wanted if name not in at]
        if missing or not wanted:
            raise DataError(f"{path} lists {len(wanted)} ids; {len(missing)} of them have no image "
                            f"in {self.images_dir}: {', '.join(missing[:5])} ...")
        order = [at[name] for name in wanted]
        self._stems, self._images, self._labels = (
            [values[i] for i in order] for values in (self._stems, self._images, self._labels))

    def _to_ids(self, label, i):
        ids = self._table[label]
        if (ids < 0).any():
            raise DataError(f"{self._labels[i]}: id {label[ids < 0][0]} is no COCO-Stuff id "
                            "(0..181, 255)")
        return ids.astype(np.uint8)
