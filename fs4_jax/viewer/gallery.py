"""What the viewer shows: photographs, truth and clusters of the images of a source, when asked."""

import collections
import functools
import io
import pathlib
import threading

import numpy as np
from PIL import Image

from fs4_jax.cluster_names import FILE, read_cluster_names
from fs4_jax.data.pipeline import image_of
from fs4_jax.evaluation.pictures import palette

PHOTO_SIDE, THUMBNAIL_SIDE = 1024, 96      # longest sides, pixels
_KEPT = 64                                 # predictions in memory


class Refused(Exception):
    """A file that must not be shown; the message says why."""


class Gallery:
    """Pictures of a source and what a model makes of them. Threads may share it.

    Args:
      segmenter: the model. source: the images.
      folders: the only ones that images and labels may come from.
    """

    def __init__(self, segmenter, source, folders=()):
        self._segmenter, self._source, self._folders = segmenter, source, tuple(folders)
        self.workdir, self.num_clusters = segmenter.workdir, segmenter.num_clusters
        self.has_truth = source.num_classes > 0
        self._kept, self._lock = collections.OrderedDict(), threading.Lock()
        # Photo, truth and clusters of an image are asked for one after the other.
        self._image = functools.lru_cache(maxsize=4)(self._read)

    def __len__(self):
        return len(self._source)

    def state(self):
        """What the page needs to know besides pictures: a dict that JSON can hold."""
        classes, model = self._segmenter.classes(renamed=False), self._segmenter
        truth = [str(name) for name in self._source.class_names] or [
            f"class {i}" for i in range(self._source.num_classes)]
        colours = palette(max(len(classes.names), len(truth))).tolist()
        return {
            "title": f"{model.run.method.title} in {self.workdir.resolve().name}, "
                     f"step {model.step}",
            "workdir": str(self.workdir), "meaning": classes.meaning,
            "images": [self._source.example_name(i) for i in range(len(self))],
            "truth": self.has_truth,
            "classes": [{"name": name, "colour": colour} for name, colour in zip(truth, colours)],
            "clusters": [{"name": classes.names[i], "colour": colours[i]} for i in classes.ids],
        }

    def names(self):
        """The ClusterNames in the workdir."""
        check_inside(self.workdir / FILE, (self.workdir,))
        return read_cluster_names(self.workdir, self.num_clusters)

    def photo(self, i, side=PHOTO_SIDE):
        """A JPEG, as bytes, of image i at most `side` pixels long."""
        file = io.BytesIO()
        image = Image.fromarray(self._image(i))
        image.resize(_fit(image.size, side), Image.BILINEAR, reducing_gap=2.0).save(
            file, "JPEG", quality=90)
        return file.getvalue()

    def truth(self, i):
        """Class ids of image i at its photo's size, uint8 [h, w]; 255 is not labelled."""
        self._image(i)
        label = Image.fromarray(self._source[i]["label"])
        return np.asarray(label.resize(_fit(label.size, PHOTO_SIDE), Image.NEAREST))

    def clusters(self, i):
        """Clusters of image i at its photo's size, uint8 [h, w]."""
        with self._lock:                     # one at a time: they share the machine
            if i not in self._kept:
                image = self._image(i)
                self._kept[i] = self._segmenter(image, _fit(image.shape[1::-1], PHOTO_SIDE)[::-1])
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(i)
            return self._kept[i]

    def _read(self, i):
        for path in getattr(self._source, "files", lambda i: ())(i):
            check_inside(path, self._folders)
        return image_of(self._source, i)


def check_inside(path, folders):
    """Refused: a path that, its links followed, lies in none of the folders."""
    real = pathlib.Path(path).resolve()
    if not any(real.is_relative_to(pathlib.Path(folder).resolve()) for folder in folders):
        raise Refused(f"{path} lies outside of {' and '.join(map(str, folders)) or 'everything'}: "
                      "nothing else is shown")


def data_folders(data, images=""):
    """The folders that images and labels lie in: --images, or those of the evaluation split."""
    if images:
        return (images,)
    if data.eval_images:
        folders = data.eval_images, data.eval_labels
    elif data.name == "folder" and not data.root:
        folders = data.images, data.labels
    else:
        folders = (data.root,)
    return tuple(folder for folder in folders if folder)


def _fit(size, side):
    """(width, height) of a picture whose longer side is at most `side`."""
    scale = min(1.0, side / max(size))
    return tuple(max(1, round(n * scale)) for n in size)
