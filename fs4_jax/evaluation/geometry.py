"""What a protocol shows the model and where it counts: resized, cropped images and labels."""

import numpy as np
from PIL import Image

_FILTERS = {"nearest": Image.NEAREST, "bilinear": Image.BILINEAR}


def short_side_shape(height, width, short):
    """(height, width) with the short side `short` and the long one int(short long / short side).

    torchvision's Resize(int), whose integer part is taken of the exact quotient.
    """
    if height <= width:
        return short, short * width // height
    return short * height // width, short


def center_crop(array, side):
    """The middle side x side of [h, w, ...]; odd margins as torchvision rounds them (to even)."""
    top, left = (int(round((length - side) / 2.0)) for length in array.shape[:2])
    return array[top:top + side, left:left + side]


def resize(array, shape, kind):
    """[h, w] or [h, w, 3] uint8 at (height, width), by Pillow as the field's loaders do."""
    if array.shape[:2] == tuple(shape):
        return array
    return np.asarray(Image.fromarray(array).resize(shape[::-1], _FILTERS[kind]))


class ProtocolSource:
    """A source whose examples are what a protocol sees and counts; see `Protocol`.

    Args:
      source: see `data.pipeline.make_source`.
      protocol: a Protocol whose geometry is "short" or "square".
      patch: of the encoder. A side that is no multiple of it becomes the next one that is (322
        for 320 and patch 14, as CAUSE does).
    """

    def __init__(self, source, protocol, patch):
        self._source, self._protocol = source, protocol
        self.side = -(-protocol.size // patch) * patch

    def __len__(self):
        return len(self._source)

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __getitem__(self, i):
        example = self._source[i]
        answer = {**example, "image": self._view(example["image"], self._protocol.image_filter)}
        if example.get("label") is not None:
            answer["label"] = self._label(example["label"])
        return answer

    def size(self, i):
        return self.side, self.side

    def _view(self, array, kind):
        if self._protocol.geometry == "square":
            return resize(array, (self.side, self.side), kind)
        return center_crop(resize(array, short_side_shape(*array.shape[:2], self.side), kind),
                           self.side)

    def _label(self, label):
        if self._protocol.geometry == "square":
            side = self._protocol.scored_at
            return resize(label, (side, side), "nearest") if side else label
        return self._view(label, "nearest")


def sample(source, number):
    """At most `number` examples of a source, evenly spread over it."""
    chosen = np.linspace(0, len(source) - 1, min(len(source), number)).astype(int)
    return Subset(source, np.unique(chosen))


class Subset:
    """Some examples of a source, in an order of their own."""

    def __init__(self, source, indices):
        self._source, self._indices = source, indices

    def __len__(self):
        return len(self._indices)

    def __getitem__(self, i):
        return self._source[int(self._indices[i])]

    def __getattr__(self, name):
        return getattr(self._source, name)

    def size(self, i):
        return self._source.size(int(self._indices[i]))

    def example_name(self, i):
        return self._source.example_name(int(self._indices[i]))
