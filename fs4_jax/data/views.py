"""Two views of an image whose places correspond exactly: what was drawn is what is returned."""

import dataclasses
import math

import numpy as np
from PIL import Image, ImageFilter

from fs4_jax.data.images import DataError

_LUMA = np.array([0.299, 0.587, 0.114])
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)
_MAX_ASPECT = 4 / 3


@dataclasses.dataclass(frozen=True)
class ViewSettings:
    """How strongly views differ.

    crops: "random", or "five": view 1 is cut from one of torchvision's five_crop windows of half
    the height and width (four corners, middle), as STEGO trains. crop_scale: share of the image's
    area that view 1 shows of "random" crops, (least, most). view2_scale: share of view 1 that view
    2 shows. flip: probability, for each view. brightness, contrast, saturation:
    factors are drawn from 1 +- strength. hue: largest turn, in half circles (0 to 1). grey, blur:
    probabilities.
    """
    crops: str = "random"
    crop_scale: tuple[float, float] = (0.3, 1.0)
    view2_scale: tuple[float, float] = (0.5, 1.0)
    flip: float = 0.5
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grey: float = 0.1
    blur: float = 0.3

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "crops":
                if value not in ("random", "five"):
                    raise DataError(f"config.data.crops is {value!r}; choose random or five")
            elif field.name.endswith("_scale"):
                if len(value) != 2 or not 0 < value[0] <= value[1] <= 1:
                    raise DataError(f"config.data.{field.name}={value}: give two shares of an "
                                    "area, least,most, above 0 and up to 1")
            elif not 0 <= value <= 1:
                raise DataError(f"config.data.{field.name}={value}: choose from 0 to 1")

    @property
    def least_share(self):
        """Share of the image's area that the smallest view 2 shows."""
        return (self.crop_scale[0] if self.crops == "random" else 0.25) * self.view2_scale[0]

    @classmethod
    def from_config(cls, data):
        """The settings that stand in config.data under the same names."""
        return cls(**{field.name: data[field.name] for field in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True)
class TwoViews:
    """`two_views` with its settings, as `data.pipeline.train_dataset` takes it.

    image_size: (height, width). patch: token side.
    """
    settings: ViewSettings
    image_size: tuple[int, int]
    patch: int
    keys = ("view1", "view2", "correspondence", "valid")       # what a step reads of a batch
    kept = ("correspondence", "valid")         # of these, what is kept as it is with cached tokens

    @property
    def least_side(self):
        """Of a photograph, the side at which the smallest crops keep the views' resolution."""
        return math.ceil(max(self.image_size) / math.sqrt(self.settings.least_share))

    def __call__(self, image, rng):
        return two_views(image, rng, self.settings, image_size=self.image_size, patch=self.patch)


def two_views(image, rng, settings, *, image_size, patch):
    """Two photometric draws; the second view shows a known part of the first.

    Args:
      image: uint8 [H, W, 3]. rng: np.random.Generator, the only source of chance.
      settings: ViewSettings. image_size: (height, width) of both views. patch: token side.

    Returns:
      dict "view1", "view2" uint8 [height, width, 3]; "correspondence" float32 [h, w, 2], where
      (row, column) each token of view 1 lies on view 2's token grid, the centre of token (r, c)
      being (r, c); "valid" bool [h, w], whether that lies inside view 2.

    Raises:
      DataError: an image with a side shorter than the patch.
    """
    height, width = checked_size(image, patch)
    if settings.crops == "five":
        box1 = _middle(five_crops(height, width)[rng.integers(5)], image_size[0] / image_size[1])
    else:
        box1 = draw_box(rng, (0.0, 0.0, height, width), settings.crop_scale,
                         image_size[0] / image_size[1])
    box2 = draw_box(rng, box1, settings.view2_scale, (box1[2] - box1[0]) / (box1[3] - box1[1]))
    flip1, flip2 = rng.random(2) < settings.flip
    picture, origin = part_around(image, box1, image_size)
    views = [photometric(cut(picture, box - origin, flip, image_size), rng, settings)
             for box, flip in ((np.array(box1), flip1), (np.array(box2), flip2))]
    return {"view1": views[0], "view2": views[1],
            **correspondence(box1, box2, flip1, flip2, (image_size[0] // patch,
                                                        image_size[1] // patch))}


def checked_size(image, patch):
    """(height, width) of an image [H, W, 3]; DataError where it is smaller than a patch."""
    height, width = image.shape[:2]
    if min(height, width) < patch:
        raise DataError(f"an image of {width} x {height} pixels is smaller than the encoder's "
                        f"patch of {patch}: no config.data.image_size can mend that; leave it out, "
                        "or choose a config.encoder.variant with a smaller patch")
    return height, width


def correspondence(box1, box2, flip1, flip2, grid):
    """Where the tokens of one view lie in another of the same image.

    Args:
      box1, box2: (top, left, bottom, right), what the views show of the image. flip1, flip2: bool,
        whether they are mirrored. grid: (h, w) tokens of both.

    Returns:
      "correspondence" float32 [h, w, 2] and "valid" bool [h, w]: see `two_views`.
    """
    rows = _correspond_along(box1[0::2], box2[0::2], False, False, grid[0])
    columns = _correspond_along(box1[1::2], box2[1::2], flip1, flip2, grid[1])
    place = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)
    valid = ((place > -0.5) & (place < np.array(grid) - 0.5)).all(-1)
    return {"correspondence": place.astype(np.float32), "valid": valid}


def resize_image(image, size):
    """uint8 [H, W, 3] to (height, width), bilinear with antialiasing (Pillow's)."""
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.BILINEAR))


def five_crops(height, width):
    """The windows (top, left, bottom, right) of torchvision's five_crop at half the image's sides.

    In its order: top left, top right, bottom left, bottom right, middle (odd margins round to
    even). Sides are int(side / 2), at least a pixel.
    """
    h, w = max(1, height // 2), max(1, width // 2)
    corners = [(0, 0), (0, width - w), (height - h, 0), (height - h, width - w),
               (round((height - h) / 2), round((width - w) / 2))]
    return [(top, left, top + h, left + w) for top, left in corners]


def _middle(box, aspect):
    """The largest box of an aspect (height : width) in the middle of a box, as floats."""
    top, left, bottom, right = box
    height = min(bottom - top, (right - left) * aspect)
    width = height / aspect
    top, left = (top + bottom - height) / 2, (left + right - width) / 2
    return top, left, top + height, left + width


def draw_box(rng, box, scale, aspect):
    """A box (top, left, bottom, right) inside a box.

    Its share of the area is drawn from `scale`, its height : width from 3/4 to 4/3 times `aspect`;
    a side that would stick out is cut to the box's.
    """
    top, left, bottom, right = box
    area = rng.uniform(*scale) * (bottom - top) * (right - left)
    aspect = aspect * _MAX_ASPECT ** rng.uniform(-1, 1)
    height = min(np.sqrt(area * aspect), bottom - top)
    width = min(np.sqrt(area / aspect), right - left)
    down, along = rng.random(2)
    top += down * (bottom - top - height)
    left += along * (right - left - width)
    return top, left, min(top + height, bottom), min(left + width, right)


def part_around(image, box, image_size):
    """(the part of an image that resizing a box reads, as a picture; where it begins, twice).

    To hand a whole image over to Pillow takes as long as a tenth of all the rest.
    """
    reach = [math.ceil(2 * max(1.0, (box[i + 2] - box[i]) / image_size[i])) + 2 for i in (0, 1)]
    top, left = (max(0, math.floor(box[i]) - reach[i]) for i in (0, 1))
    bottom, right = (math.ceil(box[i + 2]) + reach[i] for i in (0, 1))
    return Image.fromarray(image[top:bottom, left:right]), np.array([top, left, top, left])


def cut(picture, box, flip, image_size):
    top, left, bottom, right = box
    view = picture.resize(image_size[::-1], Image.BILINEAR, box=(left, top, right, bottom),
                          reducing_gap=2.0)
    return view.transpose(Image.FLIP_LEFT_RIGHT) if flip else view


def _correspond_along(span1, span2, flip1, flip2, tokens):
    """Along one axis: view 2's token coordinates of view 1's token centres, [tokens]."""
    centre = (np.arange(tokens) + 0.5) / tokens
    centre = centre[::-1] if flip1 else centre
    place = span1[0] + centre * (span1[1] - span1[0])
    inside = (place - span2[0]) / (span2[1] - span2[0])
    inside = 1 - inside if flip2 else inside
    return inside * tokens - 0.5


def photometric(view, rng, settings):
    """Blur, then one affine map of the colours: hue, saturation, contrast, brightness."""
    draw = rng.uniform(-1, 1, 4)
    chance_grey, chance_blur, radius = rng.random(3)
    if chance_blur < settings.blur:
        view = view.filter(ImageFilter.GaussianBlur(float(0.2 + 1.3 * radius)))
    if max(settings.brightness, settings.contrast, settings.saturation, settings.hue,
           settings.grey) == 0:
        return np.asarray(view)
    angle = np.pi * settings.hue * draw[0]
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)],
                     [0, np.sin(angle), np.cos(angle)]])
    saturation = 0.0 if chance_grey < settings.grey else 1 + settings.saturation * draw[1]
    grey = np.tile(_LUMA, (3, 1))
    colour = (grey + saturation * (np.eye(3) - grey)) @ _FROM_YIQ @ turn @ _TO_YIQ
    brightness, contrast = 1 + settings.brightness * draw[2], 1 + settings.contrast * draw[3]
    # Contrast turns about the mean luminance, which a thumbnail knows well enough.
    mean = float(np.asarray(view.reduce(max(1, min(view.size) // 8))).mean((0, 1)) @ _LUMA)
    matrix = brightness * contrast * colour
    offset = brightness * (1 - contrast) * mean
    rows = np.concatenate([matrix, np.full((3, 1), offset)], axis=1)
    return np.asarray(view.convert("RGB", tuple(rows.reshape(-1).tolist())))
