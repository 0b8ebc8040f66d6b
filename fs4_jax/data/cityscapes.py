"""Cityscapes' fine annotations in 27 classes (unsupervised segmentation) or 19 (the benchmark)."""

import pathlib

import numpy as np

from fs4_jax.data.folder import PairSource, list_files
from fs4_jax.data.images import DataError
from fs4_jax.data.stored import stored_files
from fs4_jax.evaluation.confusion import IGNORE_LABEL

# labelIds 7..33, in their order; 0..6 are void.
CLASS_NAMES_27 = (
    "road", "sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail",
    "bridge", "tunnel", "pole", "polegroup", "traffic light", "traffic sign", "vegetation",
    "terrain", "sky", "person", "rider", "car", "truck", "bus", "caravan", "trailer", "train",
    "motorcycle", "bicycle")
_NOT_IN_19 = ("parking", "rail track", "guard rail", "bridge", "tunnel", "polegroup", "caravan",
              "trailer")
_FIRST, _LAST = 7, 33

LABEL_SETS = ("27", "19")


def label_set(name):
    """(class names, int16 [256] table of labelIds); 255 is ignored. DataError for another name.

    "27": labelIds 7..33 are 0..26. "19": Cityscapes' own trainIds. The rest of 0..33 is ignored,
    as is 255, which the licence plate's -1 is in 8 bits.
    """
    if name not in LABEL_SETS:
        raise DataError(f"config.data.label_set is {name!r}; Cityscapes has "
                        f"{', '.join(LABEL_SETS)}")
    names = [n for n in CLASS_NAMES_27 if name == "27" or n not in _NOT_IN_19]
    table = np.full(256, -1, np.int16)
    table[:_LAST + 1] = table[255] = IGNORE_LABEL
    for i, class_name in enumerate(names):
        table[_FIRST + CLASS_NAMES_27.index(class_name)] = i
    return tuple(names), table


def tree(root, split):
    """{"image": {"CITY/NAME": path}, "label": ...} of a split; see `CityscapesSource`."""
    root = pathlib.Path(root)
    images = list_files(root / "leftImg8bit" / split, ("_leftimg8bit.png",), "images", "data.root")
    labels = list_files(root / "gtFine" / split, ("_gtfine_labelids.png",), "masks", "data.root")
    missing = [stem for stem in images if stem not in labels]
    if missing:
        raise DataError(f"{len(missing)} of the {len(images)} images in {root}/leftImg8bit/{split} "
                        f"have no mask: the first is {root}/gtFine/{split}/{missing[0]}"
                        "_gtFine_labelIds.png")
    return {"image": images, "label": {stem: labels[stem] for stem in images}}


class CityscapesSource(PairSource):
    """root/leftImg8bit/SPLIT/CITY/*_leftImg8bit.png, root/gtFine/SPLIT/CITY/*_gtFine_labelIds.png.

    Args:
      root: the tree, or what `fs4_jax.data.prepare` built of it.
      split: "train" (2,975 images) or "val" (500). labels: a label set, see `label_set`.

    Raises:
      DataError: what is missing; an unknown id when read.
    """

    def __init__(self, root, split="train", labels="27"):
        names, table = label_set(labels)
        files = stored_files(root, "cityscapes", split) or tree(root, split)
        super().__init__("cityscapes", files["image"], files["label"],
                         where=pathlib.Path(root, "leftImg8bit", split), class_names=names,
                         num_classes=len(names), table=table,
                         ids="is no labelId of Cityscapes (0..33, 255); trainIds and colours are "
                         "other files")
