"""Scribbles and points: sparse annotation drawn from a full label map."""

import functools

import numpy as np
from scipy import ndimage

from fs4_jax.evaluation.confusion import IGNORE_LABEL

# Headings tried at each step of a stroke, relative to the last one.
_TURNS = np.array([0.0, -0.25, 0.25, -0.5, 0.5])


def _regions(label, min_area):
    """Yields (class id, slices, mask, depth) of connected regions; the mask is cut to slices.

    depth [h, w] is the distance in pixels to the nearest pixel outside; beyond the picture is
    outside.
    """
    for kind in np.unique(label):
        if kind == IGNORE_LABEL:
            continue
        parts, _ = ndimage.label(label == kind)
        for number, cut in enumerate(ndimage.find_objects(parts), 1):
            mask = parts[cut] == number
            if mask.sum() >= min_area:
                yield kind, cut, mask, ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]


def _walk(depth, start, heading, margin, rng):
    """Points float [n, 2] of an arm that leaves `start` and keeps `margin` from the border."""
    height, width = depth.shape
    points, here = [], start
    bend, first = rng.normal(0, 0.03), heading
    for _ in range(height + width):
        angles = heading + bend + _TURNS
        ahead = here + np.stack([np.sin(angles), np.cos(angles)], -1)
        probe = here + 3.0 * (ahead - here)
        row, column = np.clip(np.rint([ahead, probe]), 0, (height - 1, width - 1)).astype(int).T
        rooms = depth[row, column].T  # [2, turns]: one step ahead, three steps ahead
        # Straight on while there is room, else towards the middle of the region.
        score = np.minimum(rooms[1], 2 * margin + 3) - 0.8 * np.abs(_TURNS)
        # Never back the way it came: an arm neither circles nor crosses itself.
        score[(rooms[0] < margin) | (np.abs(angles - first) > 1.4)] = -np.inf
        best = int(np.argmax(score))
        inside = np.all((ahead[best] >= 0) & (ahead[best] <= (height - 1, width - 1)))
        if not inside or score[best] == -np.inf:
            break
        heading, here = angles[best], ahead[best]
        points.append(here)
    return np.array(points).reshape(-1, 2)


def _stroke(mask, depth, rng, ratio, width):
    """bool [h, w]: one stroke inside the mask, through a deep pixel, along its longer axis."""
    radius = min(width / 2, max(depth.max() - 1, 0.5))
    deep = np.argwhere(depth >= max(0.6 * depth.max(), 1.0))
    start = deep[rng.integers(len(deep))].astype(float)
    pixels = np.argwhere(mask)
    spread = np.cov(pixels.T) if len(pixels) > 1 else np.eye(2)
    axis = np.linalg.eigh(spread)[1][:, -1]
    heading = np.arctan2(axis[0], axis[1]) + rng.normal(0, 0.2)
    arms = [_walk(depth, start, heading + turn, radius + 0.5, rng) for turn in (np.pi, 0.0)]
    kept = [arm[: int(round(ratio * len(arm)))] for arm in arms]
    line = np.concatenate([kept[0][::-1], start[None], kept[1]])
    drawn = np.ones(mask.shape, bool)
    rows, columns = np.rint(line).astype(int).T
    drawn[rows, columns] = False
    return (ndimage.distance_transform_edt(drawn) <= max(radius - 0.5, 0)) & mask


def scribbles(label, rng, *, ratio=1.0, width=(1, 3), min_area=16):
    """Draws one stroke inside each connected region of a class.

    Args:
      label: uint8 [H, W], 255 = no class.
      rng: np.random.Generator; equal states give equal strokes.
      ratio: length kept of each full stroke, 0..1, shortened from both ends (ScribbleSup's
        protocol); 0 leaves the one spot the stroke starts from. Smaller is a subset of larger.
      width: (least, most) pixels across a stroke, drawn for each; thinner where a region is.
      min_area: regions of fewer pixels stay bare, as a person would leave them.

    Returns:
      uint8 [H, W]: the class under the strokes, 255 elsewhere.
    """
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"ratio of scribbles must lie in 0..1, not {ratio}")
    least, most = width
    if not 1 <= least <= most:
        raise ValueError(f"width of scribbles must be (least, most), from 1 pixel on, not {width}")
    sparse = np.full_like(label, IGNORE_LABEL)
    for kind, cut, mask, depth in _regions(label, min_area):
        across = int(rng.integers(least, most + 1))
        sparse[cut][_stroke(mask, depth, rng, ratio, across)] = kind
    return sparse


def points(label, rng, *, count=1, min_area=16):
    """Marks `count` pixels (fewer in tiny regions) in each connected region of a class.

    Args and result are those of `scribbles`; the pixels lie in the deeper half of the region.
    """
    if count < 1:
        raise ValueError(f"count of points must be at least 1, not {count}")
    sparse = np.full_like(label, IGNORE_LABEL)
    for kind, cut, _, depth in _regions(label, min_area):
        deep = np.argwhere(depth >= max(0.5 * depth.max(), 1.0))
        chosen = deep[rng.permutation(len(deep))[:count]]
        sparse[cut][chosen[:, 0], chosen[:, 1]] = kind
    return sparse


def annotator(kind, *, ratio=1.0, width=(1, 3)):
    """The function (label, rng) -> uint8 [H, W] for None (then None), "scribbles" or "points"."""
    if kind is None:
        return None
    if kind == "scribbles":
        return functools.partial(scribbles, ratio=ratio, width=width)
    if kind == "points":
        return points
    raise ValueError(f"annotation must be None, 'scribbles' or 'points', not {kind!r}")
