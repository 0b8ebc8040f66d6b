"""One crop of an image with its sparse labels, as scribble supervision trains on."""

import dataclasses
import math

import numpy as np

from fs4_jax.data.views import ViewSettings, checked_size, cut, draw_box, part_around, photometric
from fs4_jax.evaluation.confusion import IGNORE_LABEL


@dataclasses.dataclass(frozen=True)
class LabelledCrop:
    """A crop and its labels, as `data.pipeline.train_dataset` takes it.

    settings: ViewSettings; `crop_scale` is the share of the image a crop shows. image_size:
    (height, width). patch: token side.
    """
    settings: ViewSettings
    image_size: tuple[int, int]
    patch: int
    keys = ("image", "label")        # what a step reads of a batch
    kept = ("image", "label")        # of these, what a cache of tokens stores as it is
    labelled = True                  # drawn from an image and its labels

    @property
    def least_side(self):
        """Of a photograph, the side at which the smallest crops keep their resolution."""
        return math.ceil(max(self.image_size) / math.sqrt(self.settings.crop_scale[0]))

    def __call__(self, image, rng, label):
        """image uint8 [H, W, 3], label uint8 [H, W] -> "image" uint8 [height, width, 3], "label"
        uint8 [height, width], 255 where nothing is labelled."""
        height, width = checked_size(image, self.patch)
        box = np.array(draw_box(rng, (0.0, 0.0, height, width), self.settings.crop_scale,
                                self.image_size[0] / self.image_size[1]))
        flip = rng.random() < self.settings.flip
        picture, origin = part_around(image, box, self.image_size)
        view = photometric(cut(picture, box - origin, flip, self.image_size), rng, self.settings)
        return {"image": view, "label": cut_label(label, box, flip, self.image_size)}


def cut_label(label, box, flip, size):
    """The part of a label map under a box, resized: uint8 [*size].

    Nearest neighbour; where that finds nothing labelled, a labelled pixel that falls into the cell
    fills it: strokes are a pixel or two wide, and every second of them would be lost in a crop at
    half the resolution.

    Args:
      label: uint8 [H, W]. box: (top, left, bottom, right) in pixels. flip: mirrored. size: (h, w).
    """
    places, cells = [], []
    for axis in (0, 1):
        start, stop = box[axis], box[axis + 2]
        centre = start + (np.arange(size[axis]) + 0.5) * (stop - start) / size[axis]
        places.append(np.clip(centre.astype(int), 0, label.shape[axis] - 1))
        middle = np.arange(label.shape[axis]) + 0.5
        cells.append(np.floor((middle - start) / (stop - start) * size[axis]).astype(int))
    found = label[np.ix_(*places)]
    rows, columns = np.nonzero(label != IGNORE_LABEL)
    y, x = cells[0][rows], cells[1][columns]
    inside = (y >= 0) & (y < size[0]) & (x >= 0) & (x < size[1])
    filled = np.full(size, IGNORE_LABEL, np.uint8)
    filled[y[inside], x[inside]] = label[rows[inside], columns[inside]]
    found = np.where(found == IGNORE_LABEL, filled, found)
    return found[:, ::-1].copy() if flip else found
