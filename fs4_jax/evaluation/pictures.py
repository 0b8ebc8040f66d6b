"""Labels as colours: a stable palette, overlays, contact sheets, PNG files of ids."""

import functools
import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fs4_jax.evaluation.confusion import IGNORE_LABEL
from fs4_jax.whole_files import write_whole

IGNORE_COLOUR = (52, 54, 60)
_HATCH_COLOUR = (84, 87, 95)
# Okabe and Ito's colours, safe for the colour blind, then six that differ from them in lightness.
_HAND_PICKED = (
    (0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0),
    (240, 228, 66), (84, 62, 158), (138, 31, 74), (139, 137, 46), (172, 232, 205), (122, 78, 52))
_INK, _MUTED, _PAPER = (27, 31, 36), (102, 112, 128), (255, 255, 255)


@functools.lru_cache(maxsize=8)
def _colours(n):
    """The first n colours: each next one is the candidate farthest from all those before it."""
    levels = np.linspace(24, 248, 17)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lab = _oklab(grid)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    keep = (np.abs(lab[:, 0] - 0.64) < 0.28) & (chroma > 0.045) & (chroma < 0.19)   # not neon
    grid, lab = grid[keep], lab[keep]
    chosen = list(_HAND_PICKED)
    if n > len(chosen) + len(grid):
        raise ValueError(f"there are colours for {len(chosen) + len(grid)} ids, {n} asked for")
    apart = [IGNORE_COLOUR, (255, 255, 255), *chosen]
    distance = np.min([np.sum((lab - _oklab(c)) ** 2, -1) for c in apart], axis=0)
    while len(chosen) < n:
        best = int(np.argmax(distance))
        chosen.append(tuple(grid[best]))
        distance = np.minimum(distance, np.sum((lab - lab[best]) ** 2, -1))
    return np.round(np.array(chosen[:n])).astype(np.uint8).reshape(n, 3)


def _oklab(rgb):
    """OKLab (Ottosson 2020), where distance is close to perceived difference, of rgb 0..255."""
    rgb = np.asarray(rgb, np.float64) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lms = linear @ np.array([[0.4122214708, 0.2119034982, 0.0883024619],
                             [0.5363325363, 0.6806995451, 0.2817188376],
                             [0.0514459929, 0.1073969566, 0.6299787005]])
    return np.cbrt(lms) @ np.array([[0.2104542553, 1.9779984951, 0.0259040371],
                                    [0.7936177850, -2.4285922050, 0.7827717662],
                                    [-0.0040720468, 0.4505937099, -0.8086757660]])


def palette(n):
    """n colours that are easy to tell apart, uint8 [n, 3]; palette(n)[:m] is palette(m)."""
    return _colours(int(n)).copy()


def colour_labels(label, palette):
    """Paints labels.

    Args:
      label: int [H, W]; ids below 0 are not labelled, nor is 255 (in uint8, or where the
        palette has at most 255 colours).
      palette: uint8 [n, 3].

    Returns:
      uint8 [H, W, 3]; what is not labelled is hatched in dark grey.

    Raises:
      ValueError: an id has no colour.
    """
    ids, ignored = _ids(label, palette)
    picture = np.asarray(palette, np.uint8)[ids]
    rows, columns = np.indices(ids.shape, sparse=True)
    hatch = np.where(((rows + columns) % 12 < 3)[..., None], _HATCH_COLOUR, IGNORE_COLOUR)
    return np.where(ignored[..., None], hatch, picture).astype(np.uint8)


def _ids(label, palette):
    """(ids with 0 where there is no label, bool where there is none)."""
    label = np.asarray(label)
    ids = label.astype(np.int64)
    ignored = ids < 0
    if label.dtype == np.uint8 or len(palette) <= IGNORE_LABEL:
        ignored |= ids == IGNORE_LABEL
    ids = np.where(ignored, 0, ids)
    if ids.size and ids.max() >= len(palette):
        raise ValueError(f"label has id {ids.max()}, the palette has {len(palette)} colours")
    return ids, ignored


def overlay(image, label, palette, alpha=0.5):
    """A photograph tinted by its labels, with thin light lines between segments.

    Args:
      image: uint8 [H, W, 3].
      label: int [H, W]; what is not labelled (see `colour_labels`) keeps the photograph.
      palette: uint8 [n, 3].
      alpha: 0 (photograph) .. 1 (colours).

    Returns:
      uint8 [H, W, 3].

    Raises:
      ValueError: the sizes differ, or an id has no colour.
    """
    if image.shape[:2] != label.shape:
        raise ValueError(f"image is {image.shape[:2]}, label is {label.shape}: resize one")
    ids, ignored = _ids(label, palette)
    weight = np.where(ignored, 0.0, alpha)[..., None]
    picture = (1 - weight) * image + weight * np.asarray(palette, np.uint8)[ids]
    segment = np.where(ignored, -1, ids)
    edge = np.zeros(segment.shape, bool)
    edge[:, 1:] |= segment[:, 1:] != segment[:, :-1]
    edge[1:] |= segment[1:] != segment[:-1]
    picture[edge] = 0.25 * picture[edge] + 0.75 * 255
    return np.round(picture).astype(np.uint8)


def colour_tokens(tokens):
    """What lies apart in tokens, as colours: their first three principal components.

    Args:
      tokens: float [n, h, w, d] of n images, d >= 3; the components are of all of them.

    Returns:
      uint8 [n, h, w, 3].
    """
    flat = np.asarray(tokens, np.float64).reshape(-1, np.shape(tokens)[-1])
    flat = flat - flat.mean(0)
    _, vectors = np.linalg.eigh(flat.T @ flat)
    components = flat @ vectors[:, :-4:-1]
    low, high = np.percentile(components, (1, 99), axis=0)
    colours = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.round(255 * colours).astype(np.uint8).reshape(*np.shape(tokens)[:-1], 3)


def encode_indexed_png(label, palette):
    """An 8-bit PNG, as bytes, whose pixel values are the ids; see `save_indexed_png`."""
    label = np.asarray(label)
    ids = label if label.dtype == np.uint8 else np.where(label < 0, IGNORE_LABEL,
                                                        label.astype(np.int64))
    if ids.size and ids.max() > 255:
        raise ValueError(f"label has id {ids.max()}; an indexed PNG holds ids 0 to 255")
    colours = np.full((256, 3), IGNORE_COLOUR, np.uint8)
    colours[:min(len(palette), IGNORE_LABEL)] = palette[:IGNORE_LABEL]
    picture = Image.fromarray(ids.astype(np.uint8))
    picture.putpalette(colours.tobytes())   # 256 entries: Pillow packs shorter ones into 4 bits
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def save_indexed_png(path, label, palette):
    """Writes labels as a PNG that viewers show in colours and np.asarray(Image.open) as ids.

    Args:
      path: the file; it appears whole or not at all.
      label: int [H, W], 0..255; ids below 0 become 255.
      palette: uint8 [n, 3].

    Raises:
      ValueError: an id is above 255.
    """
    write_whole(path, encode_indexed_png(label, palette))


def legend(names, palette, width, *, size=13):
    """Swatches with names, flowing over as many rows as they need; uint8 [h, width, 3]."""
    font, swatch = ImageFont.load_default(size), size + 1
    places, x, y = [], 0, 0
    for name in names:
        text = _fit(str(name), font, width - swatch - 8)
        advance = swatch + 6 + int(font.getlength(text)) + 16
        if x and x + advance - 16 > width:
            x, y = 0, y + swatch + 8
        places.append((x, y, text))
        x += advance
    canvas = Image.new("RGB", (width, y + swatch + 4), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for (x, y, text), colour in zip(places, palette):
        draw.rectangle((x, y + 1, x + swatch - 1, y + swatch), tuple(map(int, colour)))
        draw.text((x + swatch + 6, y + 1 + swatch / 2), text, _INK, font, anchor="lm")
    return np.asarray(canvas)


def contact_sheet(tiles, *, headings=("image", "truth", "prediction"), names=(), palette=None,
                  picture_width=240, across=1, margin=12):
    """Rows of pictures on white paper, with captions, and a legend of the classes at the end.

    Args:
      tiles: list of (caption, [uint8 [H, W, 3], ...]); each its own size and aspect.
      headings: names of a tile's columns, written once at the top; () for none.
      names, palette: the legend, strings and uint8 [len(names), 3]; none if empty.
      picture_width: width of each picture in pixels; heights follow the aspect.
      across: tiles side by side.
      margin: pixels between things.

    Returns:
      uint8 [H, W, 3].

    Raises:
      ValueError: there are no pictures, or fewer colours than names.
    """
    columns = max((len(pictures) for _, pictures in tiles), default=0)
    if not columns:
        raise ValueError("a contact sheet needs at least one picture")
    if len(names) and (palette is None or len(palette) < len(names)):
        raise ValueError(f"the legend has {len(names)} names and fewer colours")
    tile_width = columns * (picture_width + 4) - 4
    width = across * (tile_width + 2 * margin)
    blocks = [_headings(headings, columns, picture_width, across, width, margin)]
    for start in range(0, len(tiles), across):
        row = [_tile(*tile, picture_width, tile_width) for tile in tiles[start:start + across]]
        block = np.full((max(map(len, row)) + margin, width, 3), _PAPER, np.uint8)
        for i, tile in enumerate(row):
            left = margin + i * (tile_width + 2 * margin)
            block[:len(tile), left:left + tile_width] = tile
        blocks.append(block)
    if len(names):
        key = legend(names, palette, width - 2 * margin)
        blocks.append(np.pad(key, ((4, margin), (margin, margin), (0, 0)), constant_values=255))
    return np.concatenate(blocks)


def _headings(headings, columns, picture_width, across, width, margin):
    canvas = Image.new("RGB", (width, margin + (18 if headings else 0)), _PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for i in range(across):
        for j, heading in enumerate(headings[:columns]):
            left = margin + i * (width // across) + j * (picture_width + 4)
            draw.text((left, margin), heading, _INK, font, anchor="lt")
    return np.asarray(canvas)


def _tile(caption, pictures, picture_width, tile_width):
    """One row of pictures of equal width with its caption below."""
    pictures = [Image.fromarray(np.ascontiguousarray(p)) for p in pictures]
    pictures = [p.resize((picture_width, max(1, round(p.height * picture_width / p.width))),
                         Image.BILINEAR) for p in pictures]
    height = max((p.height for p in pictures), default=0)
    canvas = Image.new("RGB", (tile_width, height + 18), _PAPER)
    for i, picture in enumerate(pictures):
        canvas.paste(picture, (i * (picture_width + 4), 0))
    font = ImageFont.load_default(11)
    ImageDraw.Draw(canvas).text((0, height + 4), _fit(str(caption), font, tile_width), _MUTED,
                                font, anchor="lt")
    return np.asarray(canvas)


def _fit(text, font, width):
    """The text on one line, its end cut where it is wider than `width` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
