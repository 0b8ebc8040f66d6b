"""Masks as COCO annotations: a region each, its outline as a polygon, or as runs of pixels."""

import numpy as np
import scipy.ndimage

from fs4_jax.evaluation.confusion import IGNORE_LABEL


def coco_annotations(label):
    """The regions of a mask: list of dicts as COCO has them, ids left to the caller.

    A region is what hangs together over sides (4 neighbours) with one id. Its "segmentation" is a
    polygon along the pixels' borders, or a run-length code where it has holes, which COCO's
    polygons can not have. "category_id" is the mask id plus 1: COCO counts from 1.

    Args:
      label: uint8 [H, W]; 255 is no region.

    Raises:
      ImportError: without pycocotools (extra "coco").
    """
    from pycocotools import mask as coco
    found = []
    for i in np.unique(label[label != IGNORE_LABEL]):
        numbered, _ = scipy.ndimage.label(label == i)
        for number, place in enumerate(scipy.ndimage.find_objects(numbered), start=1):
            region = numbered[place] == number
            top, left = place[0].start, place[1].start
            corners = outline(region)
            if corners is not None:
                segmentation = [(corners + [left, top]).ravel().tolist()]
            else:
                whole = np.zeros(label.shape, np.uint8, order="F")
                whole[place] = region
                code = coco.encode(whole)
                segmentation = {"size": list(label.shape), "counts": code["counts"].decode()}
            found.append({
                "category_id": int(i) + 1, "iscrowd": 0, "area": int(region.sum()),
                "bbox": [left, top, region.shape[1], region.shape[0]],
                "segmentation": segmentation})
    return found


def outline(region):
    """The closed outline of a region that hangs together over sides; None where it has holes.

    Args:
      region: bool [h, w].

    Returns:
      int [n, 2], corners (x, y) of pixels, clockwise; the first is not repeated at the end.
    """
    h, w = region.shape
    padded, following = np.pad(region, 1), {}
    # of a pixel: its neighbour's place, the corners of the side between them, clockwise
    for (down, right), begin, end in (((-1, 0), (0, 0), (1, 0)), ((0, 1), (1, 0), (1, 1)),
                                      ((1, 0), (1, 1), (0, 1)), ((0, -1), (0, 1), (0, 0))):
        neighbour = padded[1 + down:1 + down + h, 1 + right:1 + right + w]
        rows, columns = np.nonzero(region & ~neighbour)
        for x, y in zip(columns.tolist(), rows.tolist()):
            following.setdefault((x + begin[0], y + begin[1]), []).append(
                (x + end[0], y + end[1]))
    start = here = next(iter(following))         # of the first pixel, where no other one touches
    before, corners = None, [start]
    while before is None or here != start:
        # Where two pixels touch at a corner, turn right: they hang together elsewhere, if at all.
        step = max(following[here], key=lambda to: 0 if before is None else _turn(before, here, to))
        following[here].remove(step)
        if before is not None and _turn(before, here, step):
            corners.append(here)
        before, here = here, step
    return None if any(following.values()) else np.array(corners)


def _turn(a, b, c):
    """1: right, -1: left, 0: straight on, from a over b to c."""
    turn = (b[0] - a[0]) * (c[1] - b[1]) - (b[1] - a[1]) * (c[0] - b[0])
    return (turn > 0) - (turn < 0)
