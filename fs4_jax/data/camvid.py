"""CamVid in SegNet's form: 11 classes of street scenes, 480 x 360 pixels."""

import pathlib

from fs4_jax.data.folder import (LABEL_SUFFIXES, PairSource, check_pairs, id_table, list_files,
                                 list_images)
from fs4_jax.data.stored import stored_files

CLASS_NAMES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car",
               "pedestrian", "bicyclist")
_VOID = 11


def tree(root, split):
    """{"image": {name: path}, "label": {name: path}} of a split; see `CamvidSource`."""
    images = list_images(pathlib.Path(root, split, "images"), key="data.root")
    folder = pathlib.Path(root, split, "labels")
    labels = list_files(folder, LABEL_SUFFIXES, "masks", "data.root")
    check_pairs(images, labels, pathlib.Path(root, split, "images"), folder)
    return {"image": images, "label": {stem: labels[stem] for stem in images}}


class CamvidSource(PairSource):
    """root/{train,val}/images/NAME.{png,jpg}, root/{train,val}/labels/NAME.png; id 11 is ignored.

    Args:
      root: the tree, or what `fs4_jax.data.prepare` built of it.
      split: "train" (367 images) or "val" (101).

    Raises:
      DataError: what is missing; an unknown id when read.
    """

    def __init__(self, root, split="train"):
        files = stored_files(root, "camvid", split) or tree(root, split)
        super().__init__("camvid", files["image"], files["label"],
                         where=pathlib.Path(root, split, "images"), class_names=CLASS_NAMES,
                         num_classes=len(CLASS_NAMES), table=id_table(len(CLASS_NAMES), (_VOID,)),
                         ids="is no id of CamVid (0..10, and 11, void)")
