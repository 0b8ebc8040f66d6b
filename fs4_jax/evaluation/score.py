"""Scores anybody's masks: `python -m fs4_jax.evaluation.score --predictions=DIR --labels=DIR ...`.

  python -m fs4_jax.evaluation.score --predictions=OUT/masks --labels=MASKS --num_classes=11

Both folders hold 8- or 16-bit PNG masks of the same names (subfolders are searched); any tool may
have written them. The predictions hold cluster or class ids, the labels class ids. A match found
on one split is applied to another with --json=FILE there and --matching=FILE here.
"""

import concurrent.futures
import json
import pathlib
import sys

import numpy as np
from absl import app, flags
from PIL import Image

from fs4_jax.evaluation.matching import MATCHINGS, read_matching, score_matching
from fs4_jax.evaluation.per_image import PER_IMAGE
from fs4_jax.evaluation.protocols import MEASURES, measures

_THREADS = 4
_SHOWN = 10                  # names in an error


class MaskError(ValueError):
    """A mask that can not be scored; the message names the file."""


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    args = flags.FLAGS
    try:
        scores = score_folders(
            args.predictions, args.labels, num_classes=args.num_classes,
            num_clusters=args.num_clusters, ignore=args.ignore, protocol=args.protocol,
            matching=args.matching and read_matching(args.matching), progress=True)
        names = args.class_names or [f"class {i}" for i in range(args.num_classes)]
        if len(names) != args.num_classes:
            raise MaskError(f"--class_names gives {len(names)} names for --num_classes="
                            f"{args.num_classes}")
        if args.json:
            pathlib.Path(args.json).write_text(json.dumps(scores, indent=2) + "\n")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(format_scores(scores, names))


def score_folders(predictions, labels, *, num_classes, num_clusters=None, ignore=255,
                  protocol="hungarian", matching=None, progress=False):
    """Scores a folder of predicted masks against a folder of true ones.

    Args:
      predictions, labels: folders of PNG masks with the same names.
      num_classes: class ids are 0 .. num_classes - 1.
      num_clusters: predicted ids are 0 .. num_clusters - 1; None: as many as are found.
      ignore: label id that does not vote; as a prediction it is an error.
      protocol: "hungarian", "many-to-one", "identity" (one match over the folder, exact integer
        counts), "per-image-m2o", "per-image-hungarian" or "objects" (label ids are each image's
        objects, 0 the background).
      matching: class of each cluster, found before; None: found here.
      progress: True draws a progress line.

    Returns:
      dict: "protocol", "num_images", "miou", "accuracy" (percent; None where nothing is
      labelled; "mbo", "fg_ari" in their place for "objects"), "per_class_iou" [num_classes] (None
      where a class is in neither; empty for "objects"), "matching"
      [clusters] (-1 unmatched; None for per-image protocols).

    Raises:
      MaskError: missing, unreadable or mis-sized masks, ids out of range; names files and ids.
    """
    from fs4_jax.metrics import ProgressLine        # jax, which --help does without
    if matching is not None and protocol in PER_IMAGE:
        raise MaskError(f"--matching has no place in --protocol={protocol}: every image has its "
                        "own")
    pairs = _pairs(pathlib.Path(predictions), pathlib.Path(labels))

    def count(pair):
        return count_pair(*pair, num_classes=num_classes, num_clusters=num_clusters,
                          ignore=ignore)

    line = ProgressLine(len(pairs), unit="mask") if progress else None
    images = PER_IMAGE[protocol](num_classes) if protocol in PER_IMAGE else None
    total = np.zeros((0, num_classes), np.int64)
    unassigned = np.zeros(num_classes, np.int64)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for done, (counts, lost) in enumerate(pool.map(count, pairs), 1):
            if images is not None:
                images.add(counts, lost)
            else:
                total, unassigned = _sum(total, counts), unassigned + lost
            if line:
                line.update(done, {})
    if line:
        line.close()
    if images is not None:
        return _answer(images.scores(), protocol, len(pairs))
    total = _sum(total, np.zeros((num_clusters or num_classes, num_classes), np.int64))
    if matching is None:
        matching = MATCHINGS[protocol](total)
    elif len(matching) < len(total):
        raise MaskError(f"--matching knows {len(matching)} clusters, the predictions hold ids up "
                        f"to {len(total) - 1}")
    total = _sum(total, np.zeros((len(matching), num_classes), np.int64))
    # What has no cluster is a row that no class is matched to.
    scores = score_matching(np.concatenate([total, unassigned[None]]), np.append(matching, -1))
    return _answer(scores, protocol, len(pairs))


def count_pair(prediction, label, *, num_classes, num_clusters, ignore):
    """Counts of one image: (int64 [clusters, num_classes], int64 [num_classes] without one)."""
    predicted, true = read_mask(prediction), read_mask(label)
    if predicted.shape != true.shape:
        raise MaskError(f"{prediction} is {_size(predicted)}, its label {label} {_size(true)}: "
                        "resize the prediction (nearest) to the label's size")
    votes = true != ignore
    predicted, true = predicted[votes].astype(np.int64), true[votes].astype(np.int64)
    if true.size and true.max() >= num_classes:
        raise MaskError(f"{label} holds id {true.max()}, but --num_classes={num_classes} allows "
                        f"0..{num_classes - 1} and --ignore={ignore}")
    lost = predicted == ignore
    if num_clusters is not None and ignore < num_clusters:
        lost[:] = False                       # the id is a cluster's
    missing = np.bincount(true[lost], minlength=num_classes)
    predicted, true = predicted[~lost], true[~lost]
    found = int(predicted.max()) + 1 if predicted.size else 0
    if num_clusters is not None and found > num_clusters:
        raise MaskError(f"{prediction} holds id {found - 1}, but --num_clusters={num_clusters} "
                        f"allows 0..{num_clusters - 1}")
    counts = np.bincount(predicted * num_classes + true, minlength=found * num_classes)
    return counts.reshape(found, num_classes), missing


def read_mask(path):
    """uint8 or uint16 [h, w] ids of a PNG: palette, grey, 1-bit or 16-bit."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L", "1", "I;16", "I;16B", "I"):
                raise MaskError(f"{path} is a picture of mode {image.mode}, not a mask of ids: "
                                "save ids as 8- or 16-bit grey or with a palette")
            ids = np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise MaskError(f"{path} can not be read as a mask: {error}") from error
    if ids.min(initial=0) < 0 or ids.max(initial=0) > 65535:
        raise MaskError(f"{path} holds ids outside of 0..65535")
    return ids.astype(np.uint8 if ids.dtype == bool else np.uint16 if ids.dtype != np.uint8
                      else np.uint8)


def _pairs(predictions, labels):
    """[(prediction, label)] of the labels' names, in their order."""
    found = {}
    for key, folder in (("predictions", predictions), ("labels", labels)):
        if not folder.is_dir():
            raise MaskError(f"--{key}={folder} is not a folder")
        found[key] = {path.relative_to(folder).with_suffix("").as_posix(): path
                      for path in sorted(folder.rglob("*")) if path.suffix.lower() == ".png"}
        if not found[key]:
            raise MaskError(f"--{key}={folder} holds no PNG masks")
    missing = [name for name in found["labels"] if name not in found["predictions"]]
    extra = [name for name in found["predictions"] if name not in found["labels"]]
    if extra:
        print(f"not scored, for --labels has no mask of their name: {_names(extra)}",
              file=sys.stderr)
    if missing:
        raise MaskError(f"{len(missing)} of the {len(found['labels'])} labels have no prediction "
                        f"in {predictions}: {_names(missing)}")
    return [(found["predictions"][name], path) for name, path in found["labels"].items()]


def _sum(a, b):
    """The sum of counts with as many rows as the longer one has."""
    if len(a) < len(b):
        a, b = b, a
    a = a.copy()
    a[:len(b)] += b
    return a


def _answer(scores, protocol, num_images):
    matching = scores.matching
    return {"protocol": protocol, "num_images": num_images,
            **{name: _number(getattr(scores, name)) for name in measures(protocol)},
            "per_class_iou": [_number(x) for x in scores.per_class_iou],
            "matching": None if matching is None else matching[:-1].tolist()}


def format_scores(scores, names):
    """The table that is printed: per-class IoU, then mIoU and accuracy, or mBO and FG-ARI."""
    width = max(map(len, [*names, "accuracy"]))
    lines = [f"{name:{width}s}  {'    -' if iou is None else f'{iou:5.1f} %'}"
             for name, iou in zip(names, scores["per_class_iou"])]
    for key, title in MEASURES.items():
        if key not in scores:
            continue
        value = scores[key]
        lines.append(f"{title:{width}s}  {'    -' if value is None else f'{value:8.4f} %'}")
    lines.append(f"{scores['num_images']} images, protocol {scores['protocol']}")
    return "\n".join(lines)


def _number(value):
    return None if np.isnan(value) else float(value)


def _size(ids):
    return f"{ids.shape[1]} x {ids.shape[0]}"


def _names(names):
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def define_flags():
    """The command's own: several commands may be imported into one process."""
    flags.DEFINE_string("predictions", None, "Folder of predicted masks (PNG).")
    flags.DEFINE_string("labels", None, "Folder of true masks (PNG).")
    flags.DEFINE_integer("num_classes", None, "Class ids are 0 .. num_classes - 1.",
                         lower_bound=1)
    flags.DEFINE_integer(
        "num_clusters", None, "Predicted ids are 0 .. num_clusters - 1; by default as many as are "
        "found, at least num_classes.", lower_bound=1)
    flags.DEFINE_integer(
        "ignore", 255, "Label id that does not vote. A predicted pixel of this id has no cluster "
        "and counts as an error.")
    flags.DEFINE_enum("protocol", "hungarian", [*MATCHINGS, *PER_IMAGE],
                      "How clusters become classes.")
    flags.DEFINE_list("class_names", None, "For the table: a,b,c")
    flags.DEFINE_string("matching", None, "A JSON file with a `matching` found before.")
    flags.DEFINE_string("json", None, "File to write the scores to.")


if __name__ == "__main__":
    define_flags()
    flags.mark_flags_as_required(["predictions", "labels", "num_classes"])
    app.run(main)
