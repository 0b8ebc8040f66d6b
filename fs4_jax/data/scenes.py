"""Scenes: an embedded data set of stylised pictures, drawn by NumPy from (seed, split, index).

Every class has a texture or a build of its own that survives a change of light; colours are drawn
per picture and tell little. So what finds the classes here without labels has looked at structure.
"""

import functools
import operator

import numpy as np
from scipy import ndimage

from fs4_jax.data import scribbles
from fs4_jax.data.scene_textures import (
    ANIMAL,
    BUILDING,
    CLASS_NAMES,
    CONTRAST,
    GRASS,
    ROAD,
    ROCK,
    SAND,
    SKY,
    TREE,
    UNITS,
    VEHICLE,
    WATER,
    texture_tile,
)

MOST_THINGS = 5
LABEL_SETS = {"classes": CLASS_NAMES, "objects": (
    "background", *(f"object {i + 1}" for i in range(MOST_THINGS)))}
SPLITS = ("train", "val")
# The hue a class leans to; less than half of the regions follow it.
HUES = (0.58, 0.55, 0.27, 0.12, 0.62, 0.06, 0.05, 0.33, 0.0, 0.08)


def _box(y, x, top, bottom, left, right, radius=0.0):
    """Signed distance to a rounded box; y is [h, 1], x is [1, w], all in units."""
    dy = np.abs(y - (top + bottom) / 2) - (bottom - top) / 2 + radius
    dx = np.abs(x - (left + right) / 2) - (right - left) / 2 + radius
    corner = np.hypot(np.maximum(dy, 0), np.maximum(dx, 0))
    return corner + np.minimum(np.maximum(dy, dx), 0) - radius


class _Canvas:
    """What a picture is painted on: colour, label and the picture's own palette and light."""

    def __init__(self, rng, image_size):
        self.rng, self.image_size, self.unit = rng, image_size, image_size / UNITS
        self.rgb = np.zeros((image_size, image_size, 3), np.float32)
        self.label = np.zeros((image_size, image_size), np.uint8)
        self.objects = np.zeros((image_size, image_size), np.uint8)
        self.thing = 0          # the object that is being painted, 0: the ground
        self.axis = ((np.arange(image_size) + 0.5) / self.unit).astype(np.float32)
        self.palette = (rng.random() + np.array([0, 0.06, 0.12, 0.45, 0.55])) % 1.0
        self.side = rng.choice((-1.0, 1.0))  # where the light comes from

    def colour(self, kind, low=0.4, high=0.92):
        """float32 [3]: a colour for a region; leans to the class's hue in some cases only."""
        rng = self.rng
        hue = HUES[kind] if rng.random() < 0.4 else rng.choice(self.palette)
        saturation, value = rng.uniform((0.08, low), (0.55, high))
        hues = hue + rng.normal(0, 0.04) + np.array([0, 2 / 3, 1 / 3])  # HSV to red, green, blue
        ramp = np.abs(hues % 1.0 * 6.0 - 3.0) - 1.0
        return (value * (1 - saturation + saturation * np.clip(ramp, 0, 1))).astype(np.float32)

    def window(self, top, bottom, left, right):
        """(slices, y [h, 1], x [1, w]) of a box in units, one pixel wider, cut to the picture."""
        low = np.array((top, left)) * self.unit - 1
        high = np.array((bottom, right)) * self.unit + 2
        ends = np.clip((low, high), 0, self.image_size).astype(int)
        cut = slice(*ends[:, 0]), slice(*ends[:, 1])
        return cut, self.axis[cut[0], None], self.axis[None, cut[1]]

    def texture(self, kind, cut, rows=None):
        """float32 [h, w]: a random piece of the class's texture under the slices `cut`."""
        tile = texture_tile(kind, int(self.rng.integers(3)), self.image_size)
        top, left = (self.rng.random(2) * self.image_size).astype(int)
        flip = self.rng.random() < 0.5 and kind != ROCK  # rock is lit from one side
        piece = tile[top + (rows if rows is not None else np.arange(self.image_size))[cut[0]]]
        piece = piece[:, left + cut[1].start : left + cut[1].stop]
        return piece[:, ::-1] if flip else piece

    def paint(self, cut, distance, colour, kind):
        """Lays colour ([3] or [h, w, 3]) where the distance (units) is negative; soft edge."""
        cover = np.clip(0.5 - distance * self.unit, 0, 1)
        target = self.rgb[cut]
        target += cover[..., None] * (colour - target)
        self.label[cut][cover > 0.5] = kind
        self.objects[cut][cover > 0.5] = self.thing

    def shadow(self, y, x, ry, rx, strength=0.4):
        """Darkens an ellipse softly; labels stay."""
        cut, yy, xx = self.window(y - ry, y + ry, x - rx, x + rx)
        fade = np.clip(1 - ((yy - y) / ry) ** 2 - ((xx - x) / rx) ** 2, 0, 1)
        self.rgb[cut] *= (1 - strength * np.sqrt(fade))[..., None]


def _sky(canvas, horizon):
    cut, y, _ = canvas.window(0, horizon + 12, 0, UNITS)
    top, low = canvas.colour(SKY, 0.55, 0.85), canvas.colour(SKY, 0.65, 0.95)
    ramp = np.clip(y / (horizon + 12), 0, 1)[..., None]
    cloud = np.clip(0.45 * canvas.texture(SKY, cut) - 0.1, 0, 0.5)[..., None]
    colour = top + ramp * (low - top)
    canvas.rgb[cut] = colour + cloud * (0.35 * low + 0.62 - colour)
    canvas.label[cut] = SKY


def _ground(canvas, kind, edge, rows):
    """Fills everything below `edge` (units, [1, w]) with a material."""
    cut, y, _ = canvas.window(edge.min(), UNITS, 0, UNITS)
    piece = canvas.texture(kind, cut, None if kind == SAND else rows)  # grains do not flatten
    tone = (0.9 + 0.2 * y / UNITS) * (1 + CONTRAST[kind] * piece)
    canvas.paint(cut, edge - y, canvas.colour(kind) * tone[..., None], kind)


def _edge(canvas, height, tilt, wave):
    """float32 [1, w]: a wavy line across the picture, in units."""
    x, rng = canvas.axis[None], canvas.rng
    line = height + rng.uniform(-tilt, tilt) * (x / UNITS - 0.5)
    for period, part in ((70.0, 0.7), (27.0, 0.3)):
        line = line + wave * part * np.sin(x * (2 * np.pi / period) + rng.uniform(0, 6.28))
    return line.astype(np.float32)


def _building(canvas, base, centre):
    rng = canvas.rng
    width, height = rng.uniform(24, 42), rng.uniform(30, 58)
    top, left, right = max(base - height, 2.0), centre - width / 2, centre + width / 2
    cut, y, x = canvas.window(top, base, left, right)
    wall = canvas.colour(BUILDING, 0.5)
    period_y, period_x = rng.uniform(8.5, 10.5), rng.uniform(7.5, 9.0)
    across = np.abs((x - left) % period_x - period_x / 2) - 0.28 * period_x
    down = np.abs((y - top - 1.5) % period_y - period_y / 2) - 0.3 * period_y
    pane = np.clip(0.5 - across * canvas.unit, 0, 1) * np.clip(0.5 - down * canvas.unit, 0, 1)
    pane = pane * ((x > left + 1) & (x < right - 1) & (y > top + 2.0))
    lit = 1.06 - 0.3 * ((x - centre) * canvas.side < -0.2 * width) - 0.1 * (y - top) / height
    lit = lit * (1 - 0.3 * (y < top + 1.6)) * (1 - rng.uniform(0.5, 0.7) * pane)
    canvas.paint(cut, _box(y, x, top, base, left, right), wall * lit[..., None], BUILDING)


def _tree(canvas, base, centre):
    rng = canvas.rng
    radius, trunk = rng.uniform((12, 4), (19, 9))
    cy, reach = base - trunk - radius, 1.5 * radius
    cut, y, x = canvas.window(cy - reach, base, centre - reach, centre + reach)
    canvas.shadow(base, centre, 3.0, radius * 0.9)
    bark, stem = canvas.colour(TREE, 0.25, 0.45), np.abs(x - centre) - 1.8
    canvas.paint(cut, np.maximum(stem, np.maximum(cy - y, y - base)), bark, TREE)
    if rng.random() < 0.3:
        tip, foot = cy - 1.4 * radius, base - trunk
        layer = (y - tip) / (foot - tip)
        half = radius * (0.8 * layer + 0.16 * ((layer * 3) % 1) + 0.03)
        crown = np.maximum(np.abs(x - centre) - half, np.maximum(tip - y, y - foot)) * 0.9
    else:
        crown = np.hypot(y - cy, x - centre) - 0.85 * radius
        for angle in np.arange(5) * 1.2566 + rng.uniform(0, 6.28):
            oy, ox = cy + 0.55 * radius * np.sin(angle), centre + 0.65 * radius * np.cos(angle)
            crown = np.minimum(crown, np.hypot(y - oy, x - ox) - rng.uniform(0.5, 0.7) * radius)
    shade = 1 + 0.22 * ((x - centre) * canvas.side - (y - cy)) / radius
    tone = np.clip(shade, 0.5, 1.3) * (1 + CONTRAST[TREE] * canvas.texture(TREE, cut))
    canvas.paint(cut, crown, canvas.colour(TREE, 0.35, 0.8) * tone[..., None], TREE)


def _vehicle(canvas, base, centre):
    rng = canvas.rng
    scale, way, half = rng.uniform(1.05, 1.5), rng.choice((-1.0, 1.0)), 18.0
    # A van or a car: roof, middle, half length and slope of the cabin, distance of the posts.
    builds = (-20, -2, 15.5, 0.12, 8.6), (-18, -1, 14.5, 0.55, 40.0)
    roof, middle, reach, slope, period = builds[int(rng.random() < 0.6)]
    cut, y, x = canvas.window(base - 21 * scale, base, centre - 19 * scale, centre + 19 * scale)
    canvas.shadow(base, centre, 3.5 * scale, (half + 2) * scale, 0.55)
    # From here in the vehicle's own frame: the ground is y = 0, up is negative, the nose at +x.
    y, x = (y - base) / scale, (x - centre) * way / scale
    paint, glass = canvas.colour(VEHICLE, 0.55), canvas.colour(SKY, 0.12, 0.3)
    sides = np.abs(x - middle) - reach - slope * (y + 10)
    cabin = np.maximum(_box(y, x, roof, -8, -half, half, 2.0), sides)
    shape = np.minimum(_box(y, x, -11.0, -2.6, -half, half, 2.5), cabin) * scale
    gloss = 1.12 - 0.28 * np.clip((y + 12) / 9, -0.4, 1) - 0.12 * (np.abs(y + 7.2) < 0.7)
    canvas.paint(cut, shape, paint * (gloss + 0 * x)[..., None], VEHICLE)
    posts = np.abs((x - middle) % period - period / 2) - period / 2 + 0.8
    window = np.maximum(_box(y, x, roof + 1.8, -11.0, -half, half), np.maximum(sides + 2.5, posts))
    streak = 1 + 1.5 * (np.abs((x + y * 0.8) % 11 - 5) < 1.2)
    canvas.paint(cut, window * scale, glass * streak[..., None], VEHICLE)
    for wheel in (-half * 0.58, half * 0.58):
        tyre = np.hypot(y + 3.8, x - wheel)
        canvas.paint(cut, (tyre - 4.3) * scale, np.float32([0.07, 0.07, 0.08]), VEHICLE)
        canvas.paint(cut, (tyre - 1.9) * scale, np.float32([0.72, 0.72, 0.74]), VEHICLE)


def _animal(canvas, base, centre):
    rng = canvas.rng
    scale, way = rng.uniform(1.0, 1.5), rng.choice((-1.0, 1.0))
    leg, neck = rng.uniform(6, 10), rng.uniform(3, 9)
    height = leg + neck + 17
    cut, y, x = canvas.window(base - height * scale, base, centre - 20 * scale, centre + 20 * scale)
    canvas.shadow(base, centre, 3.0 * scale, 16 * scale, 0.5)
    coat = canvas.texture(ANIMAL, cut)
    # The animal's own frame, as the vehicle's; v is the height below the middle of the body.
    v, x = (y - base) / scale + leg + 5.5, (x - centre) * way / scale
    parts = [
        np.hypot(v, x * 6.8 / 12.5) - 6.8,
        np.hypot(v + neck + 4.5, (x - 14.5 - 0.35 * neck) * 0.6) - 3.0,  # head
        np.maximum(np.abs(x - 9.8 + 0.35 * v) - 3.0, np.abs(v + 3 + neck / 2) - neck / 2 - 3),
        np.maximum(np.abs(x + 12.6 + 0.2 * v) - 0.9, np.abs(v) - 6),  # tail
    ]
    parts += [_box(v, x, 0.0, leg + 5.5, at - 1.5, at + 1.5) for at in (-9.5, -5.0, 5.5, 9.5)]
    shape = functools.reduce(np.minimum, parts) * scale
    tone = (1.08 - 0.2 * np.clip(v / 7, -0.6, 1)) * (1 + CONTRAST[ANIMAL] * coat)
    canvas.paint(cut, shape, canvas.colour(ANIMAL, 0.45, 0.8) * tone[..., None], ANIMAL)


def _lay_ground(canvas, horizon):
    """Sky and mountains if there is a horizon (> 0), then bands of one to three materials."""
    rng = canvas.rng
    # Textures shrink towards the horizon.
    span = np.clip((canvas.axis - max(horizon, 0)) / (UNITS - max(horizon, 0)), 0, 1)
    rows = np.cumsum(1.4 - 0.4 * span).astype(np.int64)
    if horizon > 0:
        _sky(canvas, horizon)
        if rng.random() < 0.5:  # mountains
            height = rng.uniform(0.3, 1.0, rng.integers(5, 9)) * rng.uniform(18, 36)
            height[rng.integers(0, 2) :: 2] *= 0.55
            at = np.linspace(-5, UNITS + 5, len(height))
            ridge = np.interp(canvas.axis, at, np.maximum(horizon - height, 3.0))[None]
            _ground(canvas, ROCK, ridge.astype(np.float32), rows)
        count, kinds = rng.choice((1, 2, 3), p=(0.2, 0.6, 0.2)), [WATER, GRASS, SAND, ROAD]
    else:
        count, kinds = rng.integers(2, 4), [WATER, GRASS, SAND, ROAD, ROCK, ROCK]
    kinds = list(dict.fromkeys(rng.permutation(kinds)))[:count]
    cuts = np.sort(rng.dirichlet(np.full(count, 8.0))).cumsum() * (UNITS - horizon) + horizon
    edges = [_edge(canvas, horizon, 6, 1.0) if horizon > 0 else np.full((1, len(rows)), -1.0)]
    edges += [_edge(canvas, at, 40, 3.5) for at in cuts[:-1]]
    for kind, edge in zip(kinds, edges):
        _ground(canvas, int(kind), edge, rows)


def _place_things(canvas, horizon):
    """Buildings, trees, vehicles and animals, the far ones first."""
    rng = canvas.rng
    far, near = horizon if horizon > 0 else 34.0, 94.0
    kinds = rng.choice(4, rng.integers(2, MOST_THINGS + 1), p=(0.24, 0.27, 0.24, 0.25))
    draws = [(_building, _tree, _vehicle, _animal)[kind] for kind in kinds]
    slots = (rng.permutation(len(draws)) + rng.uniform(0.2, 0.8, len(draws))) / len(draws) * UNITS
    things = []
    for draw, centre in zip(draws, slots):
        for _ in range(4):
            low, high = (far + 1, far + 14) if draw is _building else (far + 6, near)
            base = rng.uniform(low, max(low + 1, high))
            # Nothing stands on water; a place that stays wet after four tries is left empty.
            at = tuple((np.clip((base, centre), 0, UNITS - 1) * canvas.unit).astype(int))
            if canvas.label[at] not in (WATER, SKY):
                things.append((base, centre, draw))
                break
    for base, centre, draw in sorted(things, key=lambda thing: thing[0]):
        canvas.thing += 1
        draw(canvas, base, centre)


def _light(canvas):
    """uint8 [H, W, 3]: the picture after light, lens and sensor."""
    rng, axis = canvas.rng, canvas.axis / UNITS - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    slope = rng.uniform(0, 0.45) * (np.sin(angle) * axis[:, None] + np.cos(angle) * axis[None])
    vignette = rng.uniform(0, 0.5) * (axis[:, None] ** 2 + axis[None] ** 2)
    gains = rng.uniform(0.75, 1.15) * np.exp(rng.normal(0, 0.1, 3))
    rgb = canvas.rgb * ((1 + slope - vignette)[..., None] * gains).astype(np.float32)
    rgb = np.clip(rgb, 0.0, 1.0) ** np.float32(rng.uniform(0.75, 1.3))
    blur = rng.uniform(0, 0.16) * min(canvas.unit, 1.5)
    kernel = np.array([blur, 1 - 2 * blur, blur])
    rgb = ndimage.correlate1d(ndimage.correlate1d(rgb, kernel, 0), kernel, 1)
    rgb = rgb + rng.uniform(0.002, 0.008) * rng.standard_normal(rgb.shape, np.float32)
    return np.clip(rgb * 255 + 0.5, 0, 255).astype(np.uint8)


def _check(seed, split, image_size):
    if split not in SPLITS or seed < 0 or image_size < 32:
        raise ValueError(f"scenes need seed >= 0, split in {SPLITS} and image_size >= 32, "
                         f"not {seed=}, {split=}, {image_size=}")  # fmt: skip


def render_scene(seed, split, index, image_size=96, labels="classes"):
    """Draws one scene, a pure function of its arguments, the same to the bit on one machine.

    Args:
      seed, split, index: int >= 0, "train" or "val", int >= 0; no two splits share a scene.
      image_size: side in pixels, at least 32; shapes and textures scale with it.
      labels: "classes", or "objects": each building, tree, vehicle and animal by itself.

    Returns:
      image uint8 [H, W, 3], label uint8 [H, W] (no ignored pixel): classes in 0..9, or objects in
      1..5 from the far ones to the near ones, 0 where there is none.
    """
    _check(seed, split, image_size)
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    canvas = _Canvas(rng, image_size)
    horizon = rng.uniform(0.2, 0.6) * UNITS if rng.random() < 0.75 else -1.0
    _lay_ground(canvas, horizon)
    _place_things(canvas, horizon)
    return _light(canvas), canvas.objects if labels == "objects" else canvas.label


class SceneSource:
    """Random access to `num_images` scenes of `image_size` pixels; picklable without its cache.

    cache keeps pictures in memory once drawn (37 kB each at 96 pixels). annotation is None,
    "scribbles" or "points"; the latter two add the key "scribble", uint8 [H, W] with 255 where
    nothing is annotated; ratio is the length of the scribbles, 0..1. labels: as `render_scene`.
    The arrays are read-only.
    """

    name = "scenes"

    def __init__(self, num_images, *, seed=0, split="train", image_size=96, cache=True,
                 annotation=None, ratio=1.0, labels="classes"):  # fmt: skip
        _check(seed, split, image_size)
        self.labels, self.class_names = labels, LABEL_SETS[labels]
        self.num_classes = len(self.class_names)
        self.num_images, self.image_size = num_images, image_size
        self.seed, self.split = seed, split
        self._annotate = scribbles.annotator(annotation, ratio=ratio)
        self._cache = {} if cache else None

    def __len__(self):
        return self.num_images

    def __getstate__(self):
        return {**self.__dict__, "_cache": None if self._cache is None else {}}

    def __getitem__(self, i):
        i = operator.index(i)
        if not 0 <= i < self.num_images:
            raise IndexError(f"scene {i} of {self.num_images}")
        if self._cache is not None and i in self._cache:
            return dict(self._cache[i])
        image, label = render_scene(self.seed, self.split, i, self.image_size, self.labels)
        example = {"name": self.example_name(i), "image": image, "label": label}
        if self._annotate is not None:
            rng = np.random.default_rng((self.seed, SPLITS.index(self.split), i, 1))
            example["scribble"] = self._annotate(label, rng)
        for array in list(example.values())[1:]:
            array.flags.writeable = False  # shared with the cache
        if self._cache is not None:
            self._cache[i] = example
        return dict(example)

    def check(self, min_side=1):
        """Nothing can be wrong with pictures that are drawn, at 32 pixels or more."""

    def size(self, i):
        """(H, W) of an example, without drawing it."""
        return self.image_size, self.image_size

    def example_name(self, i):
        """For example "scene_train_000012"."""
        return f"scene_{self.split}_{i:06d}"
