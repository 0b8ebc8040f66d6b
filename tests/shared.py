"""Where the tests find real photographs and weights: a folder `shared` beside the checkout.

They can not be part of the project (their licences); a test that needs them skips, and says so.
`FS4_SHARED` names the folder when it lies elsewhere.
"""

import os
import pathlib
import unittest

import numpy as np
from PIL import Image


def shared_path(*parts):
    """The path of a file or folder in `shared`; raises SkipTest where it is missing."""
    default = pathlib.Path(__file__).resolve().parents[2] / "shared"
    path = pathlib.Path(os.environ.get("FS4_SHARED", default)).joinpath(*parts)
    if not path.exists():
        raise unittest.SkipTest(f"needs {path}, which is not here (set FS4_SHARED to its folder)")
    return path


def street_photo(size):
    """A photograph of a street, uint8 [1, height, width, 3]; size: (width, height)."""
    folder = shared_path("data", "camvid", "train", "images")
    with Image.open(sorted(folder.glob("*.jpg"))[0]) as photo:
        return np.asarray(photo.convert("RGB").resize(size))[None]
