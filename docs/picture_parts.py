"""What the pictures of the pages are made with: scenes, charts, screenshots, PNG files."""

import functools
import io
import pathlib
import shutil
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fs4_jax.data.scenes import CLASS_NAMES, SceneSource
from fs4_jax.evaluation.pictures import colour_labels, palette
from fs4_jax.segmenter import Segmenter

SIDE = 96                               # of a scene, pixels
SEEN = (0, 1, 3, 5, 8, 11)              # scenes of val
COLOURS = palette(len(CLASS_NAMES))     # of classes
UNNAMED = palette(2 * len(CLASS_NAMES))[len(CLASS_NAMES):]      # of clusters: no class's
DOCS = pathlib.Path(__file__).resolve().parent
INK, MUTED, LINE = (27, 31, 36), (102, 112, 128), (216, 220, 226)
BLUE, ORANGE, GREEN, PALE = (37, 99, 201), (217, 115, 13), (15, 138, 112), (150, 184, 240)
_DRAWN, _SHOWN = 4, 2           # pixels of a chart's unit, when it is drawn and in the file


class Chart:
    """White paper of width x height units, y downwards, drawn smoothly; `pixels` at the end."""

    def __init__(self, width, height):
        self.height = height
        self._image = Image.new("RGB", (_DRAWN * width, _DRAWN * height), (255, 255, 255))
        self._draw = ImageDraw.Draw(self._image)

    def text(self, x, y, what, *, anchor="lm", colour=INK, size=12):
        """anchor: as Pillow's, "lm" | "mm" | "rm": what of the text lies at (x, y)."""
        self._draw.text((_DRAWN * x, _DRAWN * y), what, colour,
                        ImageFont.load_default(_DRAWN * size), anchor=anchor,
                        stroke_width=2 * _DRAWN, stroke_fill=(255, 255, 255))

    def line(self, points, colour=LINE, width=1.0):
        self._draw.line([(_DRAWN * x, _DRAWN * y) for x, y in points], colour,
                        round(_DRAWN * width), joint="curve")

    def bar(self, x1, y1, x2, y2, colour, radius=0.0):
        self._draw.rounded_rectangle((_DRAWN * x1, _DRAWN * y1, _DRAWN * x2 - 1, _DRAWN * y2 - 1),
                                     _DRAWN * radius, colour)

    def dot(self, x, y, radius, colour):
        self.bar(x - radius, y - radius, x + radius, y + radius, colour, radius)

    @property
    def pixels(self):
        size = tuple(side * _SHOWN // _DRAWN for side in self._image.size)
        return self._image.resize(size, Image.BOX)


def save(name, pixels, suiting=200):
    """A PNG of few colours: a page is no place for megabytes. pixels: uint8 [H, W, 3].

    Those of classes and clusters as they are, so that small things keep them, and `suiting` more.
    """
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    suits = np.reshape(picture.quantize(suiting).getpalette()[:3 * suiting], (-1, 3))
    suits[suits.min(1) >= 248] = 255                # paper is white
    few = Image.new("P", (1, 1))
    few.putpalette(np.concatenate([suits, COLOURS, UNNAMED]).reshape(-1).tolist())
    picture.quantize(palette=few, dither=Image.Dither.NONE).save(DOCS / name, optimize=True)
    print(DOCS / name, f"{(DOCS / name).stat().st_size / 1000:.0f} kB", flush=True)


def screenshot(name, url, ready, size):
    """What Chromium shows of a page once `ready` is there; left out, with a word, without it."""
    try:
        from playwright import sync_api
    except ImportError:
        print(f"{name} left out: it needs playwright", file=sys.stderr)
        return
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=[
            "--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        page.goto(url, timeout=120_000)
        page.locator(ready).first.wait_for(state="attached", timeout=120_000)
        page.wait_for_timeout(2000)             # thumbnails
        pixels = page.screenshot()
        browser.close()
    save(name, Image.open(io.BytesIO(pixels)).convert("RGB"), suiting=100)


@functools.cache
def scenes_of(chosen=SEEN):
    source = SceneSource(192, split="val", image_size=SIDE)
    return [source[i] for i in chosen]


def images_of(chosen=SEEN):
    return np.stack([one["image"] for one in scenes_of(chosen)])


@functools.cache
def segmenter(workdir):
    return Segmenter(workdir)


def blocks(grid):
    """A token grid [h, w, ...] as squares, [96, 96, ...]."""
    return grid.repeat(SIDE // grid.shape[0], 0).repeat(SIDE // grid.shape[1], 1)


def grey(values, low, high):
    """Numbers [h, w] as squares from black (low) to white (high), uint8 [96, 96, 3]."""
    share = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    return blocks(np.round(255 * share[..., None]).astype(np.uint8)).repeat(3, -1)


def painted(label):
    return colour_labels(label, COLOURS)
