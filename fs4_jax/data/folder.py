"""Anybody's folder of images, with or without a folder of masks of the same stems."""

import concurrent.futures
import os
import pathlib

import numpy as np

from fs4_jax.data.images import (DataError, UnreadableImage, image_size, label_size, read_image,
                                 read_label)
from fs4_jax.evaluation.confusion import IGNORE_LABEL

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
LABEL_SUFFIXES = (".png", ".bmp")

_CHECKED_SIZES = 10_000   # pairs of headers read at the start: 3 seconds
_SAMPLED_LABELS = 16      # read at the start, to find ids out of range before minutes are spent
_THREADS = 8


# ---- folders ------------------------------------------------------------------------------------

def list_images(directory, *, key="data.images"):
    """{stem: path} of the images in a folder and its subfolders, in the order of the stems.

    Hidden files are left out, links are followed; a stem is the path below the folder, with "/",
    without suffix.

    Args:
      directory: the folder. key: its config key, for messages.

    Raises:
      DataError: no such folder, no images in it, or two files of one stem.
    """
    return list_files(directory, IMAGE_SUFFIXES, "images", key)


def list_files(directory, endings, what, key):
    """`list_images` for other endings, which the stems are without.

    Args:
      directory: the folder. endings: in lower case; that of a file may be in any.
      what: they are, and their config key: for messages.
    """
    directory = str(directory)
    if not os.path.isdir(directory):
        reason = "it is a file" if os.path.exists(directory) else "no such path"
        raise DataError(f"{directory} (config.{key}) is not a folder: {reason}")
    files, start = {}, len(os.path.join(directory, ""))
    for path in _walk(directory):
        ending = next((end for end in endings if path.lower().endswith(end)), None)
        if ending is None:
            continue
        stem = path[start:-len(ending)].replace(os.sep, "/")
        if stem in files:
            raise DataError(f"{files[stem]} and {path} have the same stem: masks and predictions "
                            "go by stems, so rename one")
        files[stem] = path
    if not files:
        raise DataError(f"{directory} (config.{key}) holds no {what}: no {', '.join(endings)} "
                        "in it or its subfolders")
    return dict(sorted(files.items()))


def _walk(folder, above=()):
    """Paths of all files below a folder that are not hidden."""
    here = os.path.realpath(folder)
    if here in above:
        return                      # a link back up: it would go round for ever
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: the folder can not be read ({error.strerror})") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        # Only links are looked up: is_dir() raises for one to itself, but is free for the rest.
        if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
            yield from _walk(entry.path, (*above, here))
        else:
            yield entry.path


# ---- the sources --------------------------------------------------------------------------------

class PairSource:
    """Images and their masks, file by file: what all the sources of this package have in common.

    Args:
      name: of the source.
      images: {stem: file}; a file is a path or a `stored.StoredFile`.
      labels: {stem: file}, one for every image; None for none.
      where: the images' folder, for messages.
      class_names: names by id; () where unknown. num_classes: of the labels.
      table: int16 [256], the class that each stored id means, 255 to ignore it, -1 for an error.
      ids: "is ...": what is wrong with an id that the table holds an error for.
    """

    # How files are read; formats other than pictures override these.
    _read_image, _image_size = staticmethod(read_image), staticmethod(image_size)
    _read_label, _label_size = staticmethod(read_label), staticmethod(label_size)

    def __init__(self, name, images, labels=None, *, where, class_names=(), num_classes=0,
                 table=None, ids=""):
        self.name, self.class_names, self.num_classes = name, tuple(class_names), num_classes
        self._folder, self._table, self._ids = str(where), table, ids
        self._stems, self._images = list(images), list(images.values())
        self._labels = None if labels is None else [labels[stem] for stem in images]

    def __len__(self):
        return len(self._images)

    def example_name(self, i):
        """The stem of example i."""
        return self._stems[i]

    def files(self, i):
        """Paths that example i is read from: its image's and, if there are labels, its mask's."""
        files = (self._images[i], self._labels[i]) if self._labels else (self._images[i],)
        return [getattr(file, "path", file) for file in files]

    def size(self, i):
        """(height, width) of image i, from its header; UnreadableImage."""
        return self._image_size(self._images[i])

    def __getitem__(self, i):
        example = {"name": self._stems[i], "image": self.image(i)}
        if self._labels is not None:
            example["label"] = self.label(i)
            if example["label"].shape != example["image"].shape[:2]:
                raise self._size_error(i, example["image"].shape, example["label"].shape)
        return example

    def image(self, i, *, at_least=None):
        """uint8 [H, W, 3] of example i, its mask unread; see `read_image`."""
        return self._read_image(self._images[i], at_least=at_least)

    def label(self, i):
        """uint8 [H, W] of example i, ids 0..num_classes-1 and 255; DataError for any other id."""
        stored = self._read_label(self._labels[i])
        label = self._table[stored]
        if label.size and label.min() < 0:
            raise DataError(f"{self._labels[i]}: id {stored[label < 0][0]} {self._ids}")
        return label.astype(np.uint8)

    def check(self, min_side=1):
        """Sizes of images and masks (at most 10,000, by their headers), ids of a sample of masks.

        A single image that can not be read is no error here: it is named when its turn comes.

        Args:
          min_side: the shortest side that an image may have: in training the encoder's patch.

        Raises:
          DataError: no image can be read, some are too small, or a mask does not fit.
        """
        chosen, small, unreadable = self._spread(_CHECKED_SIZES), [], []
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            for i, (image, label) in zip(chosen, pool.map(self._sizes, chosen)):
                if isinstance(image, UnreadableImage):
                    unreadable.append(image)
                elif label and image != label:
                    raise self._size_error(i, image, label)
                elif min(image) < min_side:
                    small.append(f"{self._images[i]}, {image[1]} x {image[0]} pixels")
            if len(unreadable) == len(chosen):
                raise DataError(f"none of the {len(chosen)} images tried in {self._folder} can be "
                                f"read; the first: {unreadable[0]}")
            if small:
                raise DataError(f"{len(small)} of the {len(chosen)} images tried in {self._folder} "
                                f"are smaller than the encoder's patch of {min_side}; the first: "
                                f"{small[0]}. Leave them out, or choose a config.encoder.variant "
                                "with a smaller patch")
            if self._labels:
                list(pool.map(self.label, self._spread(_SAMPLED_LABELS)))

    def _spread(self, number):
        """At most so many indices, evenly spread."""
        return np.unique(np.linspace(0, len(self) - 1, number).astype(int)).tolist()

    def _sizes(self, i):
        """(height, width) of image i, or its UnreadableImage; that of its mask, or None."""
        label = self._labels and self._label_size(self._labels[i])
        try:
            return self.size(i), label
        except UnreadableImage as error:
            return error, label

    def _size_error(self, i, image, label):
        return DataError(f"{self._labels[i]} is {label[1]} x {label[0]} pixels, its image "
                         f"{self._images[i]} {image[1]} x {image[0]}: masks have their image's "
                         "size")


class FolderSource(PairSource):
    """Images of a folder (and its subfolders), masks of the same stems from another.

    Args:
      images: folder. labels: folder of .png or .bmp masks; None or "" for none.
      name: of the source.
      class_names: names by id; () where unknown.
      num_classes: 0 takes len(class_names), or else reads every mask once: largest id + 1.
      ignore_ids: ids that are read as 255, "ignore".
      list_file: a text file with one stem a line: only these, in its order.
      key: config key of the images' folder, for messages.

    Raises:
      DataError: a missing or empty folder, an image without a mask, settings that disagree.
    """

    def __init__(self, images, labels=None, *, name="folder", class_names=(), num_classes=0,
                 ignore_ids=(), list_file=None, key="data.images"):
        files = list_images(images, key=key)
        if list_file:
            files = only(files, list_file, images)
        if not labels:
            super().__init__(name, files, where=images)
            return
        masks = list_files(labels, LABEL_SUFFIXES, "labels", key.replace("images", "labels"))
        check_pairs(files, masks, images, labels)
        number = _agreed(len(class_names), num_classes) or _largest_id(
            [masks[stem] for stem in files], ignore_ids, images) + 1
        super().__init__(
            name, files, masks, where=images, class_names=class_names, num_classes=number,
            table=id_table(number, ignore_ids),
            ids=f"is outside 0..{number - 1} (and 255, ignore): raise config.data.num_classes, "
            "name all the classes in config.data.class_names, or list the id in "
            "config.data.ignore_ids")


def check_pairs(files, masks, images, labels):
    """DataError that names the first of the images without a mask; folders are for the message."""
    missing = [stem for stem in files if stem not in masks]
    if missing:
        raise DataError(f"{len(missing)} of the {len(files)} images in {images} have no mask in "
                        f"{labels}: the first is {missing[0]}{LABEL_SUFFIXES[0]}")


def only(files, list_file, folder):
    """The files {stem: file} whose stems a list names, one a line, in the list's order.

    Raises DataError: an unreadable or empty list, a stem that is not there; names the `folder`.
    """
    try:
        stems = [line.strip() for line in pathlib.Path(list_file).read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{list_file}: the list can not be read ({error})") from error
    stems = [stem for stem in stems if stem]
    missing = [stem for stem in stems if stem not in files]
    if missing or not stems:
        raise DataError(f"{list_file} names {len(stems)} images; {len(missing)} of them are not "
                        f"in {folder}{': ' if missing else ''}{', '.join(missing[:5])}"
                        f"{', ...' if len(missing) > 5 else ''}")
    return {stem: files[stem] for stem in stems}


def _largest_id(labels, ignore_ids, folder):
    """Of all the masks, which are read in threads."""
    ignored = {IGNORE_LABEL, *ignore_ids}

    def largest(path):
        return max(set(np.unique(read_label(path)).tolist()) - ignored, default=-1)

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        number = max(pool.map(largest, labels))
    if number < 0:
        raise DataError(f"the masks of {folder} hold nothing but ignored ids: give "
                        "config.data.num_classes, or other config.data.ignore_ids")
    return number


def _agreed(named, number):
    if named and number and named != number:
        raise DataError(f"config.data.num_classes={number}, but config.data.class_names names "
                        f"{named}: give one of them, or make them agree")
    return named or number


def id_table(num_classes, ignore_ids=()):
    """int16 [256] for `PairSource`: ids 0 .. num_classes-1 mean themselves; DataError."""
    wrong = [i for i in ignore_ids if not 0 <= i <= 255]
    if wrong or not 0 < num_classes <= 255:
        raise DataError(f"config.data.ignore_ids={tuple(ignore_ids)}, num_classes={num_classes}: "
                        "labels are 8-bit class ids, 0 to 254, and 255 for ignore")
    table = np.full(256, -1, np.int16)
    table[:num_classes] = np.arange(num_classes)
    table[[IGNORE_LABEL, *ignore_ids]] = IGNORE_LABEL
    return table
