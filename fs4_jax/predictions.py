"""What `predict` writes of each image: mask, overlay, probabilities, COCO annotations; and when."""

import functools
import io
import json
import os
import pathlib
import zipfile

import jax
import numpy as np
from PIL import Image

from fs4_jax.archives import write_npz
from fs4_jax.config import ConfigError
from fs4_jax.data.images import DataError, read_label
from fs4_jax.evaluation.pictures import (colour_labels, contact_sheet, overlay, palette,
                                         save_indexed_png)
from fs4_jax.evaluation.regions import coco_annotations
from fs4_jax.evaluation.upsample import upsample_argmax
from fs4_jax.whole_files import whole_file, write_whole

KINDS = {"masks": ".png", "overlays": ".jpg", "probabilities": ".npz", "polygons": ".json"}
PLAN_FILE = "predict.json"
_TILE = 256                   # pixels of a mask at once, squared: memory does not grow with images
_SHEET_PICTURES = 12
_SHEET_SIZE = (320, 480)      # width, largest height


class Predictions:
    """Writes what was predicted, each file whole or not at all; knows what is there already.

    A file is taken as it is if it is newer than its image and than OUT/predict.json, which is
    written anew when anything that decides about the files has changed.

    Args:
      source: the images. out: folder. classes: MaskClasses. kinds: names of KINDS.
      plan: a dict that JSON can hold: what the files depend on besides the images.
    """

    def __init__(self, source, out, classes, kinds, plan):
        if "polygons" in kinds:
            _need_pycocotools()
        self._source, self._out, self._classes, self._kinds = source, out, classes, kinds
        self._colours = palette(len(classes.names))
        self._upsample = jax.jit(functools.partial(upsample_argmax, shape=(_TILE, _TILE)))
        self._since, self._written = self._begin(plan), set()

    def is_there(self, index):
        """Whether all that is wanted of image `index` lies in OUT."""
        try:
            since = max(self._since, os.stat(self._source.files(index)[0]).st_mtime_ns)
            return all(os.stat(self._file(kind, index)).st_mtime_ns >= since
                       for kind in self._kinds)
        except OSError:
            return False

    def write(self, index, scores, probabilities, extent, size):
        """Everything of image `index`.

        Args:
          scores: float [h, w, k] of each cluster, on a grid. probabilities: of the same; rows sum
            to 1. extent: pixels that the grid spans, (height, width). size: the image's own.
        """
        label = None
        if {"masks", "overlays", "polygons"} & set(self._kinds):
            label = self._label(scores, extent, size)
        if "masks" in self._kinds:
            save_indexed_png(self._path("masks", index), label, self._colours)
        if "overlays" in self._kinds:
            image = self._source.image(index)     # again: a batch of photographs is too much
            picture = Image.fromarray(self._overlay(image, label))
            _save_jpeg(picture, self._path("overlays", index))
        if "probabilities" in self._kinds:
            self._save_probabilities(index, probabilities, extent, size)
        if "polygons" in self._kinds:
            told = {"height": int(size[0]), "width": int(size[1]),
                    "annotations": coco_annotations(label)}
            write_whole(self._path("polygons", index), json.dumps(told))
        self._written.add(int(index))

    def finish(self):
        """Writes classes.json, and of all images the contact sheet and annotations.json."""
        names = self._classes.names
        entries = [{"id": i, "name": name, "colour": self._colours[i].tolist()}
                   for i, name in enumerate(names)]
        write_whole(self._inside("classes.json"), json.dumps(entries, indent=2) + "\n")
        there = [i for i in range(len(self._source)) if i in self._written or self.is_there(i)]
        if "polygons" in self._kinds:
            self._save_annotations(there, entries)
        if "masks" in self._kinds and there:
            chosen = np.unique(np.linspace(0, len(there) - 1, _SHEET_PICTURES).astype(int))
            tiles = [self._tile(there[i]) for i in chosen]
            sheet = contact_sheet(tiles, headings=("image", "prediction", "overlay"), names=names,
                                  palette=self._colours, across=2)
            _save_jpeg(Image.fromarray(sheet), self._inside("contact_sheet.jpg"))

    # ---- where ----------------------------------------------------------------------------------

    def _begin(self, plan):
        """When the present plan was made, in ns; a new one is made now."""
        file, text = self._inside(PLAN_FILE), json.dumps(plan, indent=2) + "\n"
        if not file.exists() or file.read_text() != text:
            write_whole(file, text)
        return file.stat().st_mtime_ns

    def _file(self, kind, index):
        return self._out / kind / f"{self._source.example_name(index)}{KINDS[kind]}"

    def _path(self, kind, index):
        return self._inside(self._file(kind, index).relative_to(self._out))

    def _inside(self, name):
        path = self._out / name
        if not path.resolve().is_relative_to(self._out.resolve()):     # by a link in an old OUT
            raise DataError(f"{path} leads out of --out={self._out}: remove that link")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    # ---- what -----------------------------------------------------------------------------------

    def _label(self, scores, extent, size):
        """uint8 [h, w] mask ids at the image's own size, made of tiles: compiled once for all."""
        label = np.empty(size, np.uint8)
        scores, extent = jax.device_put((scores[None], np.asarray(extent)[None]))
        for row in range(0, label.shape[0], _TILE):
            tiles = [self._upsample(scores, extent, origin=(row, column))[0]
                     for column in range(0, label.shape[1], _TILE)]
            part = label[row:row + _TILE]
            clusters = np.concatenate(jax.device_get(tiles), axis=1)
            part[:] = self._classes.ids[clusters[:part.shape[0], :part.shape[1]]]
        return label

    def _overlay(self, image, label):
        """`pictures.overlay` in bands of rows: its float64 copies of a large image are many."""
        picture = np.empty_like(image)
        for row in range(0, len(image), _TILE):
            above = min(row, 1)               # lines are drawn below the row they differ from
            band = slice(row - above, row + _TILE)
            picture[row:row + _TILE] = overlay(image[band], label[band], self._colours)[above:]
        return picture

    def _save_probabilities(self, index, probabilities, extent, size):
        classes = np.zeros((*probabilities.shape[:2], len(self._classes.names)), np.float32)
        for cluster, i in enumerate(self._classes.ids):
            classes[..., i] += probabilities[..., cluster]
        arrays = {"probabilities": classes.astype(np.float16),
                  "extent": np.asarray(extent, np.int32), "size": np.asarray(size, np.int32)}
        with whole_file(self._path("probabilities", index)) as writing:
            write_npz(writing, arrays.items(), compression=zipfile.ZIP_DEFLATED)

    def _save_annotations(self, there, entries):
        """annotations.json, COCO's form: images count from 1 in their order, categories too."""
        images, annotations = [], []
        for number, index in enumerate(there, start=1):
            told = json.loads(self._file("polygons", index).read_text())
            images.append({"id": number, "file_name": pathlib.Path(
                self._source.example_name(index) + pathlib.Path(
                    self._source.files(index)[0]).suffix).as_posix(),
                "height": told["height"], "width": told["width"]})
            for annotation in told["annotations"]:
                annotations.append({"id": len(annotations) + 1, "image_id": number, **annotation})
        categories = [{"id": entry["id"] + 1, "name": entry["name"], "supercategory": "",
                       "color": entry["colour"]} for entry in entries]
        told = {"info": {"description": "fs4_jax.predict"}, "images": images,
                "categories": categories, "annotations": annotations}
        write_whole(self._inside("annotations.json"), json.dumps(told))

    def _tile(self, index):
        """(name, small copies of image, prediction and overlay), on white where they are narrow."""
        image, label = self._source.image(index), read_label(self._file("masks", index))
        width, largest = _SHEET_SIZE
        scale = min(width / image.shape[1], largest / image.shape[0])
        size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
        small = np.asarray(Image.fromarray(image).resize(size, Image.BILINEAR))
        ids = np.asarray(Image.fromarray(label).resize(size, Image.NEAREST))
        pictures = [small, colour_labels(ids, self._colours), overlay(small, ids, self._colours)]
        pad = ((0, 0), (0, width - size[0]), (0, 0))
        return (self._source.example_name(index),
                [np.pad(picture, pad, constant_values=255) for picture in pictures])


def _need_pycocotools():
    try:
        import pycocotools  # noqa: F401
    except ImportError as error:
        raise ConfigError("--polygons needs the package pycocotools: pip install "
                          "'fs4_jax[coco]'") from error


def _save_jpeg(picture, path):
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=90)
    write_whole(path, content.getvalue())
