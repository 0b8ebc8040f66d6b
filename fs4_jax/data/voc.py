"""PASCAL VOC 2012 segmentation: its own tree, with the augmented list where it is there."""

import pathlib

import numpy as np

from fs4_jax.data.folder import PairSource, check_pairs, id_table, list_files, list_images, only
from fs4_jax.data.stored import stored_files
from fs4_jax.evaluation.confusion import IGNORE_LABEL

CLASS_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor")
ANIMAL_NAMES = ("background", "cat", "cow", "dog", "horse", "sheep", "person")

# Where ScribbleSup's archive unpacks to; see `fs4_jax.data.scribblesup`.
SCRIBBLE_FOLDER = "scribble_annotation/pascal_2012"


def tree(root, split):
    """{"image": {id: path}, "label": {id: path}} of the ids that a split's list names.

    Args:
      root: holds JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/{split}.txt; for
        "trainaug" SegmentationClassAug/. With scribble_annotation/pascal_2012/ there is "scribble"
        too, {id: path} of those that have one.
      split: "train", "val" or "trainaug".

    Raises:
      DataError: folders, lists, or listed files that are not there.
    """
    root = pathlib.Path(root)
    labels = root / ("SegmentationClassAug" if split == "trainaug" else "SegmentationClass")
    images = only(list_images(root / "JPEGImages", key="data.root"),
                  root / "ImageSets" / "Segmentation" / f"{split}.txt", root / "JPEGImages")
    masks = list_files(labels, (".png",), "masks", "data.root")
    check_pairs(images, masks, root / "JPEGImages", labels)
    files = {"image": images, "label": {stem: masks[stem] for stem in images}}
    if (root / SCRIBBLE_FOLDER).is_dir() and split != "val":
        drawn = list_files(root / SCRIBBLE_FOLDER, (".xml",), "scribbles", "data.root")
        files["scribble"] = {stem: drawn[stem] for stem in images if stem in drawn}
    return files


class VocSource(PairSource):
    """Masks are palette PNGs: 0 background, 1..20 objects, 255 the border, which is ignored.

    Args:
      root: VOCdevkit/VOC2012, or what `fs4_jax.data.prepare` built of it.
      split: "train" (1,464 images), "val" (1,449) or "trainaug" (10,582: with SBD's masks, whose
        list and SegmentationClassAug are no part of VOC's archive).

    Raises:
      DataError: what is missing; an unknown id when read.
    """

    def __init__(self, root, split="train"):
        files = stored_files(root, "voc", split) or tree(root, split)
        super().__init__("voc", files["image"], self._labels_of(files, root),
                         where=pathlib.Path(root, "JPEGImages"), class_names=CLASS_NAMES,
                         num_classes=len(CLASS_NAMES), table=id_table(len(CLASS_NAMES)),
                         ids="is no VOC id (0 background, 1..20 objects, 255 border)")

    def _labels_of(self, files, root):
        return files["label"]


class VocAnimals(VocSource):
    """VOC in seven classes, background, five animals and people; the others are ignored.

    For the photographs of a VOC tree whose lists name animals alone. Args: as for `VocSource`.
    """

    def __init__(self, root, split="train"):
        super().__init__(root, split)
        voc_ids = [CLASS_NAMES.index(name) for name in ANIMAL_NAMES]
        self.class_names, self.num_classes = ANIMAL_NAMES, len(ANIMAL_NAMES)
        table = np.where(self._table < 0, -1, IGNORE_LABEL).astype(np.int16)
        table[voc_ids] = np.arange(len(voc_ids))
        self._table = table
