"""ScribbleSup: scribbles over PASCAL VOC 2012, its XML polylines drawn three pixels wide.

Lin et al., CVPR 2016. The archive unpacks to scribble_annotation/pascal_2012/ID.xml, and lies in
the VOC tree here. The drawing follows rloss' convertscribbles.m (the field's own): width 3, later
strokes over earlier ones, everything else 255. As there, X and Y count pixels from one.
"""

import pathlib
import xml.etree.ElementTree

import numpy as np
from PIL import Image, ImageDraw

from fs4_jax.data.images import DataError, openable, reason_of
from fs4_jax.data.voc import CLASS_NAMES, SCRIBBLE_FOLDER, VocSource
from fs4_jax.evaluation.confusion import IGNORE_LABEL

# What ScribbleSup calls some of VOC's classes.
_SHORT_NAMES = {"plane": "aeroplane", "bike": "bicycle", "table": "diningtable",
                "plant": "pottedplant", "monitor": "tvmonitor"}


def read_scribbles(path, width=3):
    """The strokes of an XML file as uint8 [H, W]: VOC ids under them, 255 elsewhere.

    Args:
      path: the file, or a `stored.StoredFile`. width: of a stroke, pixels.

    Raises:
      DataError: not such a file, or a tag that is no class of VOC.
    """
    root = _parse(path)
    picture = Image.new("L", _size(root, path)[::-1], IGNORE_LABEL)
    draw = ImageDraw.Draw(picture)
    for stroke in root.iter("polygon"):
        tag = (stroke.findtext("tag") or "").strip().lower()
        name = _SHORT_NAMES.get(tag, tag)
        if name not in CLASS_NAMES:
            raise DataError(f"{path}: a scribble of {tag!r}, which is no class of VOC")
        try:
            points = [(float(point.findtext("X")) - 1, float(point.findtext("Y")) - 1)
                      for point in stroke.iter("point")]
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}: a point without numbers in X and Y") from error
        _draw(draw, points, CLASS_NAMES.index(name), width)
    return np.asarray(picture)


def scribble_size(path):
    """(height, width) that an XML file gives; DataError."""
    return _size(_parse(path), path)


class ScribbleSupSource(VocSource):
    """VOC's images with ScribbleSup's strokes as masks; 255 where nobody drew.

    Args:
      root: a VOC tree with scribble_annotation/pascal_2012/, or what `fs4_jax.data.prepare` built
        of one. split: "train" or "trainaug".

    Raises:
      DataError: what is missing, by name; an XML file that can not be read.
    """

    _read_label, _label_size = staticmethod(read_scribbles), staticmethod(scribble_size)

    def _labels_of(self, files, root):
        scribbles, folder = files.get("scribble", {}), pathlib.Path(root, SCRIBBLE_FOLDER)
        missing = [stem for stem in files["image"] if stem not in scribbles]
        if missing:
            raise DataError(f"{len(missing)} of the {len(files['image'])} images of {root} have no "
                            f"scribbles in {folder}: the first is {missing[0]}.xml")
        return scribbles


def _parse(path):
    try:
        return xml.etree.ElementTree.parse(openable(path)).getroot()
    except Exception as error:
        raise DataError(f"{path}: unreadable scribbles ({reason_of(error, path)})") from error


def _size(root, path):
    try:
        return int(root.findtext("size/height")), int(root.findtext("size/width"))
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: no size in it (<size>: <width>, <height>)") from error


def _draw(draw, points, label, width):
    """A polyline; Pillow's lines leave gaps at corners, and a dot bare, so discs fill them."""
    if len(points) > 1:
        draw.line(points, fill=label, width=width)
    radius = (width - 1) / 2
    for x, y in points:
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=label)
