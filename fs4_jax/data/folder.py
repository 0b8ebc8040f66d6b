"""Anybody's folder of images, with or without a folder of masks of the same stems."""

import concurrent.futures
import os
import pathlib

import numpy as np
from PIL import Image, ImageOps

from fs4_jax.evaluation.confusion import IGNORE_LABEL

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
LABEL_SUFFIXES = (".png", ".bmp")

_SAMPLED_LABELS = 16      # read at the start, to find ids out of range before minutes are spent
_THREADS = 8


class DataError(ValueError):
    """Something about the data that the user can mend; the message names the file or key."""


class UnreadableImage(ValueError):
    """An image file that can not be read; the message names it and says why."""


def read_image(path):
    """An image file as uint8 [H, W, 3] RGB.

    EXIF rotation is applied; grey and palette become RGB, transparency is laid over white,
    16 bits become 8, an animation gives its first frame.

    Raises:
      UnreadableImage: missing, corrupt, truncated, or a decompression bomb (Pillow's limit, about
        179 million pixels).
    """
    try:
        with Image.open(path) as image:
            image.seek(0)
            return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except Exception as error:      # Pillow raises a dozen kinds for a file that is no image
        reason = str(error).replace(str(path), "the file") or type(error).__name__
        raise UnreadableImage(f"{path}: unreadable image ({reason})") from error


def read_label(path):
    """A mask file as uint8 [H, W]: grey values or palette indices, as they are stored.

    Raises:
      DataError: missing or corrupt, a colour picture, or ids above 255.
    """
    try:
        with Image.open(path) as image:
            if image.mode == "1":
                return np.asarray(image).astype(np.uint8)
            if image.mode not in ("L", "P") and not image.mode.startswith("I"):
                raise DataError(f"{path}: a mask of mode {image.mode}; labels are single-channel "
                                "pictures whose grey value or palette index is the class id")
            label = np.asarray(image)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: unreadable mask ({error})") from error
    if label.size and label.max() > 255:
        raise DataError(f"{path}: id {label.max()} in a 16-bit mask; ids go from 0 to 254, 255 "
                        "means ignore")
    return label.astype(np.uint8)


def image_size(path):
    """(height, width) from the header alone, EXIF rotation counted in; UnreadableImage."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) >= 5
            return (width, height) if turned else (height, width)
    except Exception as error:
        raise UnreadableImage(f"{path}: unreadable image ({error})") from error


def list_files(directory, suffixes, what, key):
    """{stem: path} of a folder and its subfolders; a stem is the path below it without suffix.

    Args:
      directory: the folder. suffixes: lower case, with dots.
      what: "images" or "labels", key: the config key, both for messages.

    Raises:
      DataError: no such folder, nothing in it, or two files of one stem.
    """
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        raise DataError(f"config.{key}={directory} is not a folder"
                        f"{' (it is a file)' if directory.exists() else ': no such path'}")
    files = {}
    for root, folders, names in os.walk(directory):      # os.walk follows no links: no loops
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(names):
            path = pathlib.Path(root, name)
            if name.startswith(".") or path.suffix.lower() not in suffixes:
                continue
            stem = path.relative_to(directory).with_suffix("").as_posix()
            if stem in files:
                raise DataError(f"{files[stem]} and {path} have the same stem: masks and "
                                "predictions go by stems, so rename one")
            files[stem] = path
    if not files:
        raise DataError(f"config.{key}={directory} holds no {what} "
                        f"({', '.join(suffixes)}; subfolders were searched)")
    return dict(sorted(files.items()))


class FolderSource:
    """Images of a folder (and its subfolders), masks of the same stems from another.

    Args:
      images: folder. labels: folder, or "" for none.
      class_names: names by id; () where unknown.
      num_classes: 0 infers it from class_names, or by reading every mask once.
      ignore_ids: ids that are read as 255, "ignore".
      key: config key of the images' folder, for messages.
    """

    name = "folder"

    def __init__(self, images, labels="", *, class_names=(), num_classes=0, ignore_ids=(),
                 key="data.images"):
        self.images_dir, self.labels_dir = str(images), str(labels)
        found = list_files(images, IMAGE_SUFFIXES, "images", key)
        self._stems, self._images = list(found), list(found.values())
        self._table = np.arange(256).astype(np.uint8)
        self._table[list(ignore_ids)] = IGNORE_LABEL
        self.class_names, self.num_classes, self._labels = (), 0, None
        if labels:
            self._labels = self._match_labels(key.replace("images", "labels"))
            self.class_names = tuple(class_names)
            self.num_classes = len(class_names) or num_classes or self._infer_num_classes()

    def __len__(self):
        return len(self._images)

    def example_name(self, i):
        return self._stems[i]

    def size(self, i):
        return image_size(self._images[i])

    def __getitem__(self, i):
        example = {"name": self._stems[i], "image": read_image(self._images[i])}
        if self._labels is not None:
            example["label"] = self.label(i)
            if example["label"].shape != example["image"].shape[:2]:
                raise self._size_error(i, example["image"].shape[:2], example["label"].shape)
        return example

    def label(self, i):
        """uint8 [H, W], ids 0..num_classes-1 and 255; DataError for any other id."""
        label = self._to_ids(read_label(self._labels[i]), i)
        bad = label[(label >= self.num_classes) & (label != IGNORE_LABEL)]
        if bad.size:
            raise DataError(
                f"{self._labels[i]}: id {bad[0]} is outside 0..{self.num_classes - 1}: set "
                "config.data.num_classes (or class_names), or list the id in "
                "config.data.ignore_ids")
        return label

    def check(self):
        """Sizes of all images and masks (headers only), ids of a sample; raises DataError."""
        if self._labels is None:
            return
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            for i, sizes in enumerate(pool.map(self._sizes, range(len(self)))):
                if sizes and sizes[0] != sizes[1]:
                    raise self._size_error(i, *sizes)
        for i in np.unique(np.linspace(0, len(self) - 1, _SAMPLED_LABELS).astype(int)):
            self.label(i)

    def _to_ids(self, label, i):
        return self._table[label]

    def _sizes(self, i):
        try:
            return self.size(i), image_size(self._labels[i])
        except UnreadableImage:
            return None             # counted and named when its turn comes

    def _size_error(self, i, image, label):
        return DataError(f"{self._labels[i]} is {label[1]} x {label[0]} pixels, its image "
                         f"{self._images[i]} {image[1]} x {image[0]}: masks have their image's "
                         "size")

    def _match_labels(self, key):
        masks = list_files(self.labels_dir, LABEL_SUFFIXES, "labels", key)
        missing = [stem for stem in self._stems if stem not in masks]
        if missing:
            raise DataError(f"{len(missing)} of {len(self)} images have no mask in "
                            f"{self.labels_dir}, the first is {missing[0]}.png")
        return [masks[stem] for stem in self._stems]

    def _infer_num_classes(self):
        def largest(path):
            ids = self._table[np.unique(read_label(path))]
            return max((int(i) for i in ids if i != IGNORE_LABEL), default=-1)

        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            highest = max(pool.map(largest, self._labels))
        if highest < 0:
            raise DataError(f"the masks in {self.labels_dir} hold nothing but ignored ids")
        return highest + 1


def _to_rgb(image):
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        return Image.fromarray(np.clip(values / 257.0 + 0.5, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
