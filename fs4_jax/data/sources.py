"""Which source a config means: config.data.name, its tree or stored set, its label set."""

import pathlib

import numpy as np

from fs4_jax.config import DATA_SETS
from fs4_jax.data.camvid import CamvidSource
from fs4_jax.data.cityscapes import CityscapesSource
from fs4_jax.data.cocostuff import CocoStuffSource
from fs4_jax.data.folder import FolderSource
from fs4_jax.data.images import DataError
from fs4_jax.data.potsdam import PotsdamSource
from fs4_jax.data.scenes import SceneSource
from fs4_jax.data.scribblesup import ScribbleSupSource
from fs4_jax.data.voc import VocAnimals, VocSource


def make_source(data, split):
    """The source of config.data for "train" or "eval".

    Raises DataError (unknown name, missing folder, ...), naming the path or the config key.
    """
    if data.name not in DATA_SETS:
        raise DataError(f"config.data.name is {data.name!r}; choose one of {', '.join(DATA_SETS)}")
    if split == "eval" and data.eval_images:      # anybody's folder, whatever was trained on
        return _folder(data, split)
    if data.name in ("folder", "scenes"):
        return (_folder if data.name == "folder" else _scenes)(data, split)
    labels = data.label_set or DATA_SETS[data.name][0]
    if labels not in DATA_SETS[data.name]:
        raise DataError(f"config.data.label_set is {labels!r}; {data.name} has "
                        f"{', '.join(DATA_SETS[data.name])}")
    if not data.root:
        raise DataError(f"{data.name} needs its tree: --config.data.root=DIR with "
                        f"{_TREES[data.name]}, or what python -m fs4_jax.data.prepare built of it")
    return _NAMED[data.name](data.root, "train" if split == "train" else "val", labels)


def _voc(root, split, labels):
    if labels == "animals":
        return VocAnimals(root, split)
    if split == "val":
        return VocSource(root, split)
    source = ScribbleSupSource if labels.endswith("scribbles") else VocSource
    return source(root, "trainaug" if "aug" in labels else "train")


_NAMED = {"cocostuff": CocoStuffSource, "cityscapes": CityscapesSource, "voc": _voc,
          "potsdam": lambda root, split, labels: PotsdamSource(root, split),
          "camvid": lambda root, split, labels: CamvidSource(root, split)}

_TREES = {"cocostuff": "DIR/images/train2017 and DIR/annotations/train2017",
          "voc": "DIR/JPEGImages, DIR/SegmentationClass and DIR/ImageSets/Segmentation",
          "cityscapes": "DIR/leftImg8bit/train and DIR/gtFine/train",
          "potsdam": "DIR/imgs, DIR/gt and DIR/labelled_train.txt",
          "camvid": "DIR/train/images and DIR/train/labels"}


def _folder(data, split):
    if split == "eval" and data.eval_images:
        return _folder_source(data, data.eval_images, data.eval_labels, "data.eval_images")
    if split == "eval" and data.eval_labels:
        raise DataError("config.data.eval_labels is set without config.data.eval_images: give "
                        "both")
    if data.root and (split == "eval" or not data.images):
        folder = pathlib.Path(data.root, "train" if split == "train" else "val")
        labels = folder / "labels"      # labels are never required
        return _folder_source(data, folder / "images", labels if labels.exists() else "",
                              "data.root")
    if not data.images:
        raise DataError("no images given: --config.data.images=DIR, or --config.data.root=DIR "
                        "with DIR/train/images and DIR/val/images")
    return _folder_source(data, data.images, data.labels, "data.images")


def _folder_source(data, images, labels, key):
    return FolderSource(images, labels, class_names=data.class_names,
                        num_classes=data.num_classes, ignore_ids=data.ignore_ids, key=key)


def _scenes(data, split):
    number, split = (data.num_train, "train") if split == "train" else (data.num_eval, "val")
    size = data.image_size if np.ndim(data.image_size) == 0 else max(data.image_size)
    return SceneSource(number, seed=data.scenes_seed, split=split, image_size=size,
                       labels=data.label_set or "classes")
