"""Multi-crop: two large and several small views of an image, as DINO trains on."""

import dataclasses
import math

import numpy as np
from PIL import Image, ImageOps

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


@dataclasses.dataclass(frozen=True)
class MultiCrop:
    """Views of an image for self-distillation (Caron et al. 2021, DINO, section 3.1).

    settings: ViewSettings: what photometric draws there are, and flip; `crop_scale` is the share
    of the image a global crop shows. image_size: (height, width) of a global crop. num_local,
    local_size, local_scale: of the local crops; 0 makes none. solarize: probability, of the second
    global crop alone. patch: token side; global and local sizes are multiples of it.
    """
    settings: ViewSettings
    image_size: tuple[int, int]
    patch: int
    num_local: int = 6
    local_size: tuple[int, int] = (96, 96)
    local_scale: tuple[float, float] = (0.05, 0.4)
    solarize: float = 0.2
    labelled = False           # drawn from the image alone

    def __post_init__(self):
        least, most = self.local_scale
        if not 0 < least <= most <= 1:
            raise DataError(f"config.dino.local_scale={self.local_scale}: give two shares of an "
                            "area, least,most, above 0 and up to 1")
        if any(side % self.patch for side in self.local_size):
            raise DataError(f"config.dino.local_size={self.local_size} is no multiple of the "
                            f"encoder's patch, {self.patch} pixels")
        if not 0 <= self.solarize <= 1:
            raise DataError(f"config.dino.solarize={self.solarize}: choose from 0 to 1")

    @property
    def keys(self):
        """What a training step reads of a batch."""
        keys = ("global", "correspondence", "valid")
        return keys + ("local",) if self.num_local else keys

    @property
    def least_side(self):
        """Of a photograph, the side at which the smallest crops keep the views' resolution."""
        sides = [max(self.image_size) / math.sqrt(self.settings.crop_scale[0])]
        if self.num_local:
            sides.append(max(self.local_size) / math.sqrt(self.local_scale[0]))
        return math.ceil(max(sides))

    def __call__(self, image, rng):
        """image uint8 [H, W, 3] -> "global" uint8 [2, height, width, 3], where the first one's
        tokens lie in the second ("correspondence", "valid": see `views.two_views`) and "local"
        uint8 [num_local, local height, local width, 3] (no such key without them)."""
        checked_size(image, self.patch)
        views, boxes, flips = zip(*(self._view(image, rng, self.image_size,
                                               self.settings.crop_scale) for _ in range(2)))
        views = list(views)
        if rng.random() < self.solarize:
            views[1] = np.asarray(ImageOps.solarize(Image.fromarray(views[1]), 128))
        grid = tuple(side // self.patch for side in self.image_size)
        example = {"global": np.stack(views), **correspondence(*boxes, *flips, grid)}
        if self.num_local:
            local = [self._view(image, rng, self.local_size, self.local_scale)[0]
                     for _ in range(self.num_local)]
            example["local"] = np.stack(local)
        return example

    def _view(self, image, rng, size, scale):
        """(view uint8 [*size, 3], its box, whether it is mirrored)."""
        height, width = image.shape[:2]
        box = draw_box(rng, (0.0, 0.0, height, width), scale, size[0] / size[1])
        flip = rng.random() < self.settings.flip
        picture, origin = part_around(image, box, size)
        view = photometric(cut(picture, np.array(box) - origin, flip, size), rng, self.settings)
        return view, box, flip
