"""One large and several small crops of an image that overlap it, as AlignSeg trains on."""

import dataclasses
import math

import numpy as np

from fs4_jax.data.images import DataError
from fs4_jax.data.views import (
    ViewSettings,
    checked_size,
    correspondence,
    cut,
    draw_box,
    part_around,
    photometric,
)

_MOST_DRAWS = 1000


@dataclasses.dataclass(frozen=True)
class AlignedCrops:
    """Crops of an image, all resized to one size (methods.md 2.3).

    settings: ViewSettings: what photometric draws there are, and flip. image_size: (height, width)
    of every crop. patch: token side. num_local: local crops. global_scale, local_scale: shares of
    the image's area that a crop shows, (least, most). intersection: share of the image's area; a
    local crop that has no more than that in common with the global one is drawn again.
    """
    settings: ViewSettings
    image_size: tuple[int, int]
    patch: int
    num_local: int = 2
    global_scale: tuple[float, float] = (0.5, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.25)
    intersection: float = 0.05
    keys = ("crops", "correspondence", "valid")     # what a step or the fit reads of a batch
    kept = ("correspondence", "valid")        # of these, what a cache of tokens stores as it is
    labelled = False            # drawn from the image alone

    def __post_init__(self):
        for name in ("global_scale", "local_scale"):
            scale = getattr(self, name)
            if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
                raise DataError(f"config.alignseg.{name}={scale}: give two shares of an area, "
                                "least,most, above 0 and up to 1")
        if not 0 <= self.intersection < min(self.local_scale[1], self.global_scale[0]):
            raise DataError(f"config.alignseg.intersection={self.intersection} is not below the "
                            f"crops: config.alignseg.local_scale={self.local_scale}, global_scale="
                            f"{self.global_scale}: they could not have that in common")

    @property
    def least_side(self):
        """Of a photograph, the side at which the smallest crops keep their resolution."""
        least = min(self.local_scale[0], self.global_scale[0])
        return math.ceil(max(self.image_size) / math.sqrt(least))

    def __call__(self, image, rng):
        """image uint8 [H, W, 3] -> "crops" uint8 [1 + num_local, height, width, 3], the global one
        first; "correspondence" float32 [num_local, h, w, 2] and "valid" bool [num_local, h, w]:
        where each token of a local crop lies in the global one, as in `views.two_views`.

        Raises DataError where no local crop is found that overlaps it enough.
        """
        whole = (0.0, 0.0, *checked_size(image, self.patch))
        first = self._box(rng, whole, self.global_scale)
        boxes = [first] + [self._overlapping(rng, whole, first) for _ in range(self.num_local)]
        views, flips = zip(*(self._view(image, rng, box) for box in boxes))
        grid = tuple(side // self.patch for side in self.image_size)
        places = [correspondence(box, first, flip, flips[0], grid)
                  for box, flip in zip(boxes[1:], flips[1:])]
        return {"crops": np.stack(views)} | {
            name: np.stack([place[name] for place in places]) for name in self.kept}

    def _box(self, rng, whole, scale):
        return draw_box(rng, whole, scale, self.image_size[0] / self.image_size[1])

    def _overlapping(self, rng, whole, other):
        least = self.intersection * whole[2] * whole[3]
        for _ in range(_MOST_DRAWS):
            box = self._box(rng, whole, self.local_scale)
            if common_area(box, other) > least:
                return box
        raise DataError(f"{_MOST_DRAWS} crops of config.alignseg.local_scale={self.local_scale} "
                        f"had no more than {self.intersection} of the image in common with the "
                        "global one: lower config.alignseg.intersection")

    def _view(self, image, rng, box):
        picture, origin = part_around(image, box, self.image_size)
        flip = rng.random() < self.settings.flip
        view = cut(picture, np.array(box) - origin, flip, self.image_size)
        return photometric(view, rng, self.settings), flip


def common_area(a, b):
    """Area that two boxes (top, left, bottom, right) have in common, 0 or more."""
    height, width = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    return max(height, 0.0) * max(width, 0.0)
