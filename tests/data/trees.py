"""Tiny trees in the official layouts of the data sets, for tests to read."""

import numpy as np
import scipy.io
from PIL import Image

from tests.data.files import picture

SCRIBBLES = """<annotation><folder>VOC2012</folder><filename>{0}.jpg</filename>
<size><width>20</width><height>12</height><depth>3</depth></size>
<polygon><tag>background</tag><point><X>2</X><Y>2</Y></point><point><X>19</X><Y>2</Y></point>
</polygon>
<polygon><tag>plane</tag><point><X>4</X><Y>6</Y></point><point><X>10</X><Y>6</Y></point>
<point><X>10</X><Y>11</Y></point></polygon>
<polygon><tag>person</tag><point><X>17</X><Y>9</Y></point></polygon></annotation>"""


def save(path, values, **options):
    """A picture of an array; "P" masks get a palette, as VOC's have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values))
    if options.pop("palette", False):
        image.putpalette([i * 7 % 256 for i in range(768)])
    image.save(path, **options)


def save_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def stripes(ids, height=12, width=20):
    """uint8 [height, width]: vertical stripes of ids, from the left."""
    return np.asarray(ids, np.uint8)[np.arange(width) * len(ids) // width][None].repeat(height, 0)


def write_cocostuff(root, numbers=(3, 2)):
    for split, number in zip(("train", "val"), numbers):
        for i in range(number):
            save(root / f"images/{split}2017/{i:012d}.jpg", picture())
            save(root / f"annotations/{split}2017/{i:012d}.png", stripes([0, i, 148, 181, 255]))


def write_voc(root):
    lists = {"train": ["2007_000001", "2007_000003"], "val": ["2007_000002"],
             "trainaug": ["2007_000001", "2007_000003", "2008_000004"]}
    for i, stem in enumerate(sorted({stem for stems in lists.values() for stem in stems})):
        save(root / f"JPEGImages/{stem}.jpg", picture())
        label = stripes([0, 1, i + 2, 20, 255])
        save(root / f"SegmentationClassAug/{stem}.png", label)
        save_text(root / f"scribble_annotation/pascal_2012/{stem}.xml", SCRIBBLES.format(stem))
        if not stem.startswith("2008"):
            save(root / f"SegmentationClass/{stem}.png", label, palette=True)
    save(root / "JPEGImages/2012_000009.jpg", picture())       # of no segmentation list
    for split, stems in lists.items():
        save_text(root / f"ImageSets/Segmentation/{split}.txt", "".join(f"{s}\n" for s in stems))


def write_cityscapes(root):
    for split, city in (("train", "aachen"), ("train", "zurich"), ("val", "lindau")):
        stem = f"{split}/{city}/{city}_000000_000019"
        save(root / f"leftImg8bit/{stem}_leftImg8bit.png", picture())
        save(root / f"gtFine/{stem}_gtFine_labelIds.png", stripes([0, 6, 7, 8, 9, 26, 33, 255]))
        save(root / f"gtFine/{stem}_gtFine_instanceIds.png", np.full((12, 20), 24001, np.uint16))
        save(root / f"gtFine/{stem}_gtFine_color.png", picture())
        save_text(root / f"gtFine/{stem}_gtFine_polygons.json", "{}")


def write_potsdam(root):
    names = {"labelled_train": ["0_0_0", "0_0_1"], "labelled_test": ["1_0_0"],
             "unlabelled_train": ["2_0_0"]}
    for folder in ("imgs", "gt"):
        (root / folder).mkdir(parents=True)
    for split, stems in names.items():
        save_text(root / f"{split}.txt", "".join(f"{stem}\n" for stem in stems))
        for stem in stems:
            infrared = np.full((12, 20, 1), 99, np.uint8)
            scipy.io.savemat(root / f"imgs/{stem}.mat",
                             {"img": np.concatenate([picture(), infrared], -1)})
            if split != "unlabelled_train":
                label = stripes([0, 1, 2, 3, 4, 5, 255]).astype(np.int32)
                scipy.io.savemat(root / f"gt/{stem}.mat", {"gt": label})


def write_camvid(root):
    for split, number in (("train", 3), ("val", 2)):
        for i in range(number):
            save(root / f"{split}/images/0001TP_{i:06d}.png", picture())
            save(root / f"{split}/labels/0001TP_{i:06d}.png", stripes([0, 10, 11, i]))


WRITERS = {"cocostuff": write_cocostuff, "voc": write_voc, "cityscapes": write_cityscapes,
           "potsdam": write_potsdam, "camvid": write_camvid}
