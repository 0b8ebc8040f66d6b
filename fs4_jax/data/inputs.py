"""What a command is given to look at: a folder, a file, or a pattern of files, in natural order."""

import glob
import os
import pathlib
import re

from fs4_jax.data.folder import IMAGE_SUFFIXES, PairSource, list_images
from fs4_jax.data.images import DataError


def input_source(images, *, flag="--images"):
    """A PairSource of images without masks, frames in the order of their numbers.

    Args:
      images: a folder (its subfolders too), one image, or a pattern with *, ? or [] (** for any
        depth; of the folders that it matches all images are taken). An image is called by its path
        below the folder, or below the pattern's part without wildcards, without its suffix.
      flag: for messages.

    Raises:
      DataError: nothing there, no images in it, or two of one name.
    """
    images = os.path.expanduser(str(images))
    if glob.has_magic(images) and not os.path.exists(images):
        files = _matching(images, flag)
    elif os.path.isfile(images):
        files = _named([images], os.path.dirname(images), flag)
        if not files:
            raise DataError(f"{images} ({flag}) is no image: none of {', '.join(IMAGE_SUFFIXES)}")
    else:
        try:
            files = list_images(images, key=flag)
        except DataError as error:
            raise DataError(str(error).replace(f"config.{flag}", flag)) from error
    ordered = {stem: files[stem] for stem in sorted(files, key=natural_key)}
    return PairSource("folder", ordered, where=images)


def natural_key(name):
    """Sorts "frame 2" before "frame 10"."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), part) if i % 2 else (0, part) for i, part in enumerate(parts)]


def _matching(pattern, flag):
    fixed = pathlib.Path(pattern)
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    found = []
    for path in sorted(glob.glob(pattern, recursive=True)):
        found += list_images(path, key=flag).values() if os.path.isdir(path) and \
            not pattern.endswith("**") and _holds_images(path) else [path]
    files = _named(dict.fromkeys(found), fixed, flag)
    if not files:
        raise DataError(f"{pattern} ({flag}) matches no images: no "
                        f"{', '.join(IMAGE_SUFFIXES)}")
    return files


def _holds_images(folder):
    try:
        return bool(list_images(folder))
    except DataError:
        return False


def _named(paths, folder, flag):
    """{stem: path} of those that are images."""
    files = {}
    for path in map(str, paths):
        if not path.lower().endswith(IMAGE_SUFFIXES) or not os.path.isfile(path):
            continue
        stem = os.path.splitext(os.path.relpath(path, folder or "."))[0].replace(os.sep, "/")
        if stem in files:
            raise DataError(f"{files[stem]} and {path} ({flag}) have the same stem: predictions go "
                            "by stems, so rename one")
        files[stem] = path
    return files
