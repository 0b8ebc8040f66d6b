"""A temporary folder for tests to fill with pictures."""

import pathlib
import tempfile

import numpy as np
from absl.testing import parameterized
from PIL import Image


class FolderCase(parameterized.TestCase):
    """Has a temporary folder, and writes pictures into it."""

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)

    def write(self, name, values, mode=None, **options):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.asarray(values))
        (image.convert(mode) if mode else image).save(path, **options)
        return path

    def write_bytes(self, name, data):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path


def picture(height=12, width=20):
    """A smooth colourful picture, uint8 [H, W, 3]: JPEG hardly changes it."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 200 / width + 20, y * 200 / height + 20, 120 + 0 * x], -1).astype(np.uint8)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags
