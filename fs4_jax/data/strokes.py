"""The sparse labels that a model is trained with: somebody's own, or drawn from masks."""

import collections
import concurrent.futures
import dataclasses
import sys
import threading

import numpy as np

from fs4_jax.data.images import DataError, UnreadableImage
from fs4_jax.data.scribbles import annotator
from fs4_jax.evaluation.confusion import IGNORE_LABEL

KINDS = ("given", "scribbles", "points")
_THREADS = 8
_COUNTED = 2000        # images whose strokes are looked at before the start
_REMEMBERED = 1024     # strokes are kept for: drawing them takes 20 ms an image
_FEW = 5               # names in a message


class StrokeSource:
    """A source of images and the labels that training may see.

    Args:
      source: of images and masks; see `make_source`.
      kind: "given": the masks are what was drawn, 255 where nobody did (full masks are full
        supervision); "scribbles" or "points": drawn from the masks, the same at every visit.
      ratio: of the length of scribbles, 0 to 1. width: of scribbles, (least, most) pixels.
      seed: of what is drawn.
    """

    def __init__(self, source, kind="given", *, ratio=1.0, width=(1, 3), seed=0):
        if kind not in KINDS:
            raise DataError(f"config.scribble.annotation is {kind!r}; choose one of "
                            f"{', '.join(KINDS)}")
        if not 0 <= ratio <= 1:
            raise DataError(f"config.scribble.ratio={ratio}: choose from 0 to 1")
        width = tuple(width)
        if len(width) != 2 or not 1 <= width[0] <= width[1]:
            raise DataError(f"config.scribble.width={width}: give (least, most) pixels, from 1 on")
        if not source.num_classes:
            raise DataError(f"{source.name} has no labels, and config.method=scribble learns from "
                            "strokes: give config.data.labels=DIR, PNGs of the images' names and "
                            "sizes whose pixels are class ids, 255 where nothing is drawn")
        self._source, self._seed = source, seed
        self._annotate = None if kind == "given" else annotator(kind, ratio=ratio, width=width)
        self._drawn, self._lock = collections.OrderedDict(), threading.Lock()
        self.name, self.num_classes = source.name, source.num_classes
        self.class_names = tuple(source.class_names) or tuple(
            f"class {i}" for i in range(source.num_classes))
        self.labels = kind if kind == "given" else f"{kind} ratio={ratio} width={width} seed={seed}"

    def __len__(self):
        return len(self._source)

    def __getstate__(self):      # for processes that decode
        return {**self.__dict__, "_drawn": collections.OrderedDict(), "_lock": None}

    def __setstate__(self, state):
        self.__dict__ = {**state, "_lock": threading.Lock()}

    def example_name(self, i):
        return self._source.example_name(i)

    def size(self, i):
        return self._source.size(i)

    def __getitem__(self, i):
        example = self._source[i]
        return {**example, "label": self._strokes(i, example["label"])}

    def _strokes(self, i, label):
        if self._annotate is None:
            return label
        with self._lock:
            found = self._drawn.get(i)
        if found is None:
            found = self._annotate(label, np.random.default_rng((self._seed, i)))
            with self._lock:
                self._drawn[i] = found
                while len(self._drawn) > _REMEMBERED:
                    self._drawn.popitem(last=False)
        return found

    def check(self, min_side=1):
        """The images as `PairSource.check` does, then what is drawn on (at most 2,000 of) them.

        Says how much is labelled; warns of images without a stroke and of classes that nobody has
        drawn, by name.

        Raises:
          DataError: no stroke at all; a stroke of an unknown class, or larger than its image.
        """
        self._source.check(min_side=min_side)
        found = self.statistics()
        if not found.pixels.sum():
            raise DataError(f"none of the {found.images} images of {self.name} has a stroke: every "
                            "pixel is 255. The labels of training are config.data.labels")
        print(f"labels of training: {100 * found.share:.2f} % of the pixels of {found.images} "
              f"images ({self.labels})")
        if found.bare:
            print(f"warning: {len(found.bare)} of {found.images} images have no stroke: they "
                  f"teach by the regularizer alone; {_few(found.bare)}", file=sys.stderr)
        never = [self.class_names[k] for k in np.flatnonzero(found.pixels == 0)]
        if never:
            print(f"warning: nobody has drawn {_few(never)}: the model will never predict it",
                  file=sys.stderr)

    def statistics(self):
        """Statistics of what is drawn; unreadable images are left out."""
        chosen = np.unique(np.linspace(0, len(self) - 1, _COUNTED).astype(int)).tolist()

        def count(i):
            try:
                label = self[i]["label"]
            except UnreadableImage:
                return None
            return np.bincount(label.ravel(), minlength=256)

        pixels, bare, images = np.zeros(256, np.int64), [], 0
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            for i, counts in zip(chosen, pool.map(count, chosen)):
                if counts is not None:
                    images, pixels = images + 1, pixels + counts
                    if counts.sum() == counts[IGNORE_LABEL]:
                        bare.append(self.example_name(i))
        labelled = pixels[:self.num_classes]
        return Statistics(images, labelled, float(labelled.sum() / max(pixels.sum(), 1)), bare)


@dataclasses.dataclass(frozen=True)
class Statistics:
    """images: looked at. pixels: int64 [num_classes], labelled ones. share: labelled, of all
    pixels, 0 to 1. bare: names of the images without any."""
    images: int
    pixels: np.ndarray
    share: float
    bare: list


def _few(names):
    return f"{', '.join(names[:_FEW])}{', ...' if len(names) > _FEW else ''}"
