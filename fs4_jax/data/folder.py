"""Anybody's folder of images, with or without a folder of masks of the same stems."""

import concurrent.futures
import os
import pathlib

import numpy as np
from PIL import Image

from fs4_jax.evaluation.confusion import IGNORE_LABEL

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
LABEL_SUFFIXES = (".png", ".bmp")

# What a file is decoded as, whatever its suffix says; Pillow's other formats may run programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_ORIENTATION = 0x0112     # EXIF tag: 1 upright; 5 to 8 swap height and width
_TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
          4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
          6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_90}
_GREY_STEPS = {"L;2": 85, "L;4": 17}      # Pillow stretches 2- and 4-bit greys to 0..255
_CHECKED_SIZES = 10_000   # pairs of headers read at the start: 3 seconds
_SAMPLED_LABELS = 16      # read at the start, to find ids out of range before minutes are spent
_THREADS = 8


class DataError(ValueError):
    """Something about the data that the user can mend; the message names the file or key."""


class UnreadableImage(ValueError):
    """An image file that can not be read; the message names it and says why."""


# ---- single files -------------------------------------------------------------------------------

def read_image(path, *, at_least=None):
    """An image file as uint8 [H, W, 3] RGB.

    EXIF rotation is applied; grey, palette and CMYK become RGB, transparency is laid over white,
    16-bit grey becomes 8-bit, an animation gives its first frame.

    Args:
      path: the file.
      at_least: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, several times as fast, while
        both sides keep so many pixels; None decodes it whole.

    Raises:
      UnreadableImage: missing, corrupt, truncated, or above Pillow's MAX_IMAGE_PIXELS (about 89
        million: a small file can hide a picture that fills the memory).
    """
    try:
        with _open(path) as image:
            turn = _TURNS.get(_orientation(image))
            if at_least:
                image.draft(None, (at_least, at_least))      # does nothing but for JPEG
            picture = _to_rgb(image)
            return np.asarray(picture if turn is None else picture.transpose(turn))
    except Exception as error:      # Pillow raises a dozen kinds for a file that is no image
        raise UnreadableImage(f"{path}: unreadable image ({_reason(error, path)})") from error


def read_label(path):
    """A mask file as uint8 [H, W]: grey values or palette indices, as they are stored.

    Raises:
      DataError: missing or corrupt, a colour picture, or 16-bit ids above 255.
    """
    try:
        with _open(path) as image:
            mode = image.mode
            step = _GREY_STEPS.get(str(image.tile[0][3]), 1) if image.tile else 1
            label = np.asarray(image)
    except Exception as error:
        raise DataError(f"{path}: unreadable mask ({_reason(error, path)})") from error
    if mode not in ("1", "L", "P") and not mode.startswith("I"):
        raise DataError(f"{path}: a mask of Pillow's mode {mode}; labels are 8-bit class ids, one "
                        "channel: the grey value or palette index of a pixel is its class")
    if label.size and label.max() > 255:
        raise DataError(f"{path}: id {label.max()} in a 16-bit mask; labels are 8-bit class ids, "
                        "0 to 254, and 255 for ignore")
    return label.astype(np.uint8) // np.uint8(step)


def image_size(path):
    """(height, width) from the header alone, EXIF rotation counted in; UnreadableImage."""
    try:
        with _open(path) as image:
            return image.size if _orientation(image) >= 5 else image.size[::-1]
    except Exception as error:
        raise UnreadableImage(f"{path}: unreadable image ({_reason(error, path)})") from error


def _label_size(path):
    try:
        with _open(path) as label:
            return label.size[::-1]         # as it is stored: masks are never turned
    except Exception as error:
        raise DataError(f"{path}: unreadable mask ({_reason(error, path)})") from error


def _open(path):
    if os.path.getsize(path) == 0:
        raise ValueError("the file is empty")
    image = Image.open(path, formats=_FORMATS)
    # Pillow only warns up to twice its limit, and warning filters are no thread's own.
    if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        size = f"{image.width} x {image.height}"
        image.close()
        raise Image.DecompressionBombError(
            f"{size} pixels, more than Pillow's safe {Image.MAX_IMAGE_PIXELS}")
    return image


def _orientation(image):
    """EXIF orientation 1..8; 1 where there is none, or none that can be parsed."""
    try:
        # The base class's: PngImageFile's would decode all the pixels to look for late chunks.
        orientation = Image.Image.getexif(image).get(_ORIENTATION, 1)
        return orientation if orientation in _TURNS else 1
    except Exception:     # a damaged tag is no reason to lose the picture
        return 1


def _to_rgb(image):
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        grey = np.clip((values + 128) // 257, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _reason(error, path):
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.replace(repr(str(path)), "the file").replace(str(path), "the file")


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
    return _list_files(directory, IMAGE_SUFFIXES, "images", key)


def _list_files(directory, suffixes, what, key):
    directory = str(directory)
    if not os.path.isdir(directory):
        reason = "it is a file" if os.path.exists(directory) else "no such path"
        raise DataError(f"{directory} (config.{key}) is not a folder: {reason}")
    files, start = {}, len(os.path.join(directory, ""))
    for path in _walk(directory):
        stem, suffix = os.path.splitext(path[start:])
        if suffix.lower() not in suffixes:
            continue
        stem = stem.replace(os.sep, "/")
        if stem in files:
            raise DataError(f"{files[stem]} and {path} have the same stem: masks and predictions "
                            "go by stems, so rename one")
        files[stem] = path
    if not files:
        raise DataError(f"{directory} (config.{key}) holds no {what}: no {', '.join(suffixes)} "
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


# ---- the source ---------------------------------------------------------------------------------

class FolderSource:
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
        self.name = name
        self._folder = str(images)
        files = list_images(images, key=key)
        if list_file:
            files = _only(files, list_file, images)
        self._stems, self._images = list(files), list(files.values())
        self.class_names, self.num_classes, self._labels = (), 0, None
        if labels:
            masks = _list_files(labels, LABEL_SUFFIXES, "labels", key.replace("images", "labels"))
            self._labels = self._match(masks, labels)
            self.class_names = tuple(class_names)
            self.num_classes = _agreed(len(class_names), num_classes) or self._infer(ignore_ids)
            self._table = _id_table(self.num_classes, ignore_ids)

    def __len__(self):
        return len(self._images)

    def example_name(self, i):
        """The stem of example i."""
        return self._stems[i]

    def size(self, i):
        """(height, width) of image i, from its header; UnreadableImage."""
        return image_size(self._images[i])

    def __getitem__(self, i):
        example = {"name": self._stems[i], "image": self.image(i)}
        if self._labels is not None:
            example["label"] = self.label(i)
            if example["label"].shape != example["image"].shape[:2]:
                raise self._size_error(i, example["image"].shape, example["label"].shape)
        return example

    def image(self, i, *, at_least=None):
        """uint8 [H, W, 3] of example i, its mask unread; see `read_image`."""
        return read_image(self._images[i], at_least=at_least)

    def label(self, i):
        """uint8 [H, W] of example i, ids 0..num_classes-1 and 255; DataError for any other id."""
        stored = read_label(self._labels[i])
        label = self._table[stored]
        if label.size and label.min() < 0:
            raise self._id_error(i, stored[label < 0][0])
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
        label = self._labels and _label_size(self._labels[i])
        try:
            return self.size(i), label
        except UnreadableImage as error:
            return error, label

    def _match(self, masks, labels):
        missing = [stem for stem in self._stems if stem not in masks]
        if missing:
            raise DataError(f"{len(missing)} of the {len(self)} images in {self._folder} have no "
                            f"mask in {labels}: the first is {missing[0]}{LABEL_SUFFIXES[0]}")
        return [masks[stem] for stem in self._stems]

    def _infer(self, ignore_ids):
        ignored = {IGNORE_LABEL, *ignore_ids}

        def largest(path):
            return max(set(np.unique(read_label(path)).tolist()) - ignored, default=-1)

        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            number = max(pool.map(largest, self._labels)) + 1
        if not number:
            raise DataError(f"the masks of {self._folder} hold nothing but ignored ids: give "
                            "config.data.num_classes, or other config.data.ignore_ids")
        return number

    def _size_error(self, i, image, label):
        return DataError(f"{self._labels[i]} is {label[1]} x {label[0]} pixels, its image "
                         f"{self._images[i]} {image[1]} x {image[0]}: masks have their image's "
                         "size")

    def _id_error(self, i, value):
        return DataError(f"{self._labels[i]}: id {value} is outside 0..{self.num_classes - 1} "
                         "(and 255, ignore): raise config.data.num_classes, name all the classes "
                         "in config.data.class_names, or list the id in config.data.ignore_ids")


def _only(files, list_file, folder):
    """The files whose stems a list names, in the list's order."""
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


def _agreed(named, number):
    if named and number and named != number:
        raise DataError(f"config.data.num_classes={number}, but config.data.class_names names "
                        f"{named}: give one of them, or make them agree")
    return named or number


def _id_table(num_classes, ignore_ids):
    """int16 [256]: what each stored id means; -1 where it means nothing."""
    wrong = [i for i in ignore_ids if not 0 <= i <= 255]
    if wrong or not 0 < num_classes <= 255:
        raise DataError(f"config.data.ignore_ids={tuple(ignore_ids)}, num_classes={num_classes}: "
                        "labels are 8-bit class ids, 0 to 254, and 255 for ignore")
    table = np.full(256, -1, np.int16)
    table[:num_classes] = np.arange(num_classes)
    table[[IGNORE_LABEL, *ignore_ids]] = IGNORE_LABEL
    return table
