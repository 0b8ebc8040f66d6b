"""COCO-Stuff: images, stuffthingmaps and the field's curated lists, in any of its label sets."""

import hashlib
import pathlib
import warnings

import numpy as np

from fs4_jax.data.folder import PairSource, check_pairs, list_files, list_images, only
from fs4_jax.data.images import DataError
from fs4_jax.data.stored import stored_files
from fs4_jax.evaluation.confusion import IGNORE_LABEL

# Png id (category id - 1) -> coarse class: things 0..90, then stuff 91..181. protocols.md 2a: the
# one table of PiCIE, STEGO, CAUSE, EAGLE, SmooSeg, DepthG and PPAP (a test holds its hash).
FINE_TO_COARSE_27 = (
    [9] + [11] * 8 + [8] * 6 + [7] * 10 + [6] * 8 + [10] * 10 + [5] * 8 + [2] * 10 + [3] * 10 +
    [0] * 6 + [1] * 6 + [4] * 8 +
    [17, 17, 22, 20, 20, 22, 15, 25, 16, 13, 12, 12, 17, 17, 23, 15, 15, 17, 15, 21, 15, 25, 13,
     13, 13, 13, 13, 22, 26, 14, 14, 15, 22, 21, 21, 24, 20, 22, 15, 17, 16, 15, 22, 24, 21, 17,
     25, 16, 21, 17, 22, 16, 21, 21, 25, 21, 26, 21, 24, 20, 17, 14, 21, 26, 15, 23, 20, 21, 24,
     15, 24, 22, 25, 15, 20, 17, 17, 22, 14, 18, 18, 18, 18, 18, 18, 18, 26, 26, 19, 19, 24])

CLASS_NAMES_27 = (
    "electronic", "appliance", "food-thing", "furniture-thing", "indoor", "kitchen", "accessory",
    "animal", "outdoor", "person", "sports", "vehicle",
    "ceiling", "floor", "food-stuff", "furniture-stuff", "raw-material", "textile", "wall",
    "window", "building", "ground", "plant", "sky", "solid", "structural", "water")

# The official names by png id; masks never hold the 11 ids in UNUSED_IDS.
FINE_NAMES = tuple(" ".join(name.split()) for name in """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire
    hydrant, street sign, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow,
    elephant, bear, zebra, giraffe, hat, backpack, umbrella, shoe, eye glasses, handbag, tie,
    suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove,
    skateboard, surfboard, tennis racket, bottle, plate, wine glass, cup, fork, knife, spoon,
    bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair,
    couch, potted plant, bed, mirror, dining table, window, desk, toilet, door, tv, laptop, mouse,
    remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, blender, book,
    clock, vase, scissors, teddy bear, hair drier, toothbrush, hair brush, banner, blanket,
    branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other,
    ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt,
    door-stuff, fence, floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower,
    fog, food-other, fruit, furniture-other, grass, gravel, ground-other, hill, house, leaves,
    light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow,
    plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug,
    salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw,
    structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick,
    wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood, water-other,
    waterdrops, window-blind, window-other, wood
    """.split(","))
UNUSED_IDS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)

LABEL_SETS = ("27", "15", "171", "81", "182")
_NUM_THINGS = 91           # png ids 0..90; 12 of the coarse classes

# The curated lists (protocols.md 2a): of IIC, as PiCIE published them; STEGO and CAUSE use both.
LISTS = {"27": "Coco164kFull_Stuff_Coarse_7.txt", "15": "Coco164kFull_Stuff_Coarse_7.txt",
         "171": "Coco164kFull_Stuff_Coarse.txt", "81": "Coco164kFull_Stuff_Coarse.txt"}
LIST_SHA256 = {
    "train2017/Coco164kFull_Stuff_Coarse_7.txt":
        "3b837594a81880a70f177afab906fc45147d8b9c2c4f51132f784e41941812f9",
    "val2017/Coco164kFull_Stuff_Coarse_7.txt":
        "7c629734c88f1a74bba6311e01d4d9fe976df84f07cb4fc86452ce5116e51655"}


def label_set(name):
    """(class names, int16 [256] table of png ids) of a label set; 255 is ignored in all.

    "27": coarse things and stuff. "15": the coarse stuff classes, id - 12, things ignored (PiCIE's
    code keeps 12 things and 3 stuff classes here instead). "171": the fine ids in use, the 11
    unused ones ignored. "81": all stuff is 0, the 80 things in use are 1..80. "182": the png ids.

    Raises DataError for another name.
    """
    fine = np.arange(len(FINE_NAMES))
    used = ~np.isin(fine, UNUSED_IDS)
    things = used & (fine < _NUM_THINGS)
    names, classes = FINE_NAMES, fine
    if name in ("27", "15"):
        first = 0 if name == "27" else CLASS_NAMES_27.index("ceiling")
        names, coarse = CLASS_NAMES_27[first:], np.array(FINE_TO_COARSE_27)
        classes = np.where(coarse >= first, coarse - first, IGNORE_LABEL)
    elif name == "171":
        names = [FINE_NAMES[i] for i in fine[used]]
        classes = np.where(used, np.cumsum(used) - 1, IGNORE_LABEL)
    elif name == "81":
        names = ["stuff", *(FINE_NAMES[i] for i in fine[things])]
        stuff = np.where(fine >= _NUM_THINGS, 0, IGNORE_LABEL)
        classes = np.where(things, np.cumsum(things), stuff)
    elif name != "182":
        raise DataError(f"config.data.label_set is {name!r}; COCO-Stuff has "
                        f"{', '.join(LABEL_SETS)}")
    table = np.full(256, -1, np.int16)
    table[:len(fine)], table[IGNORE_LABEL] = classes, IGNORE_LABEL
    return tuple(names), table


def tree(root, split):
    """{"image": {id: path}, "label": {id: path}} of the official tree; see `CocoStuffSource`."""
    root, folder = pathlib.Path(root), f"{split}2017"
    return {"image": list_images(root / "images" / folder, key="data.root"),
            "label": list_files(root / "annotations" / folder, (".png",), "masks", "data.root")}


class CocoStuffSource(PairSource):
    """root/images/{train2017,val2017}/ID.jpg, root/annotations/{train2017,val2017}/ID.png.

    Masks are the official stuffthingmaps: 0..181 = category id - 1, 255 unlabelled. Where
    root/curated/{split}2017/ holds the label set's list (Coco164kFull_Stuff_Coarse_7.txt for 27
    and 15, Coco164kFull_Stuff_Coarse.txt for 171 and 81), only its ids are used; else all.

    Args:
      root: the tree, or what `fs4_jax.data.prepare` built of it. split: "train" or "val".
      labels: a label set, see `label_set`.
      curated: False leaves the list unread.
      other_list: what to do when the list is not the field's own, so that scores compare with
        nobody's: "warn", "raise" (DataError) or "accept".

    Raises:
      DataError: folders, masks or listed images that are not there; an unknown id when read.
    """

    def __init__(self, root, split="train", labels="27", *, curated=True, other_list="warn"):
        files = stored_files(root, "cocostuff", split) or tree(root, split)
        names, table = label_set(labels)
        folder = pathlib.Path(root, "images", f"{split}2017")
        images, chosen = files["image"], list_path(root, split, labels)
        if curated and chosen is not None and chosen.exists():
            check_list(chosen, other_list)
            images = only(images, chosen, folder)
        check_pairs(images, files["label"], folder,
                    pathlib.Path(root, "annotations", f"{split}2017"))
        super().__init__("cocostuff", images, files["label"], where=folder, class_names=names,
                         num_classes=len(names), table=table,
                         ids="is no COCO-Stuff id (0..181 = category id - 1, 255 = unlabelled); "
                         "the masks are stuffthingmaps_trainval2017")


def list_path(root, split, labels):
    """Where the curated list of a label set lies; None for one that has none."""
    return pathlib.Path(root, "curated", f"{split}2017", LISTS[labels]) if labels in LISTS else None


def check_list(path, other_list="warn"):
    """Compares a curated list with the field's own; True where they agree, None where unknown.

    Raises:
      DataError: they differ and `other_list` is "raise". A UserWarning where it is "warn".
    """
    if other_list not in ("warn", "raise", "accept"):
        raise ValueError(f"other_list is {other_list!r}; choose warn, raise or accept")
    expected, found = LIST_SHA256.get(f"{path.parent.name}/{path.name}"), sha256(path)
    if expected is None or found == expected:
        return None if expected is None else True
    message = (f"{path} is not the field's curated list: its sha256 is {found}, that one's "
               f"{expected}; scores on it compare with nobody's")
    if other_list == "raise":
        raise DataError(message)
    if other_list == "warn":
        warnings.warn(message, stacklevel=3)
    return False


def sha256(path):
    """Of a list, in hexadecimal; DataError where it can not be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: the list can not be read ({error.strerror})") from error
