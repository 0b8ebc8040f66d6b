"""A folder of images in, masks out: `python -m fs4_jax.predict --workdir=W --images=DIR --out=OUT`.

Writes OUT/masks/STEM.png (8-bit ids at the image's own size), OUT/overlays/STEM.jpg,
OUT/contact_sheet.jpg and OUT/classes.json (what each id means).
"""

import json
import pathlib
import sys

import jax
import numpy as np
from absl import app, flags, logging
from PIL import Image

_WORKDIR = flags.DEFINE_string("workdir", None, "A workdir that fs4_jax.main trained in.")
_IMAGES = flags.DEFINE_string("images", None, "Folder of images; subfolders are searched.")
_OUT = flags.DEFINE_string("out", None, "Folder to write into; made if missing.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Images at a time.", lower_bound=1)

_SHEET_PICTURES = 12
_SHEET_WIDTH = 320


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    from fs4_jax.errors import explained
    with explained():
        predict(_WORKDIR.value, _IMAGES.value, _OUT.value, batch_size=_BATCH_SIZE.value)


def predict(workdir, images, out, *, batch_size=8):
    """Segments every readable image of a folder with a workdir's newest checkpoint.

    Where the workdir holds eval.json, its matching turns clusters into classes: ids below the
    number of classes are classes, the ones after them clusters that no class was left for.

    Args:
      workdir: where a model was trained. images: folder. out: folder to write into.
      batch_size: images at a time.

    Returns:
      Number of images written.

    Raises:
      ConfigError, DataError: no checkpoint; no or empty folder; `out` would lie among the images.
    """
    from fs4_jax.config import recall_config
    from fs4_jax.data.folder import DataError, FolderSource
    from fs4_jax.data.pipeline import eval_batches
    from fs4_jax.evaluate import restore_inference
    from fs4_jax.evaluation.pictures import palette
    from fs4_jax.evaluation.upsample import upsample_argmax
    from fs4_jax.metrics import ProgressLine
    from fs4_jax.run import prepare
    from fs4_jax.sharding import batch_sharding, round_up

    source = FolderSource(images, key="images")
    out = pathlib.Path(out)
    if out.resolve().is_relative_to(pathlib.Path(images).resolve()):
        raise DataError(f"--out={out} lies inside of --images={images}: masks would be taken for "
                        "images the next time; choose another folder")
    config = recall_config(workdir)
    run = prepare(config, trained_in=workdir)
    params, step = restore_inference(run, workdir)
    ids, names = _classes(workdir, config.num_clusters)
    colours = palette(len(names))
    print(f"step {step} of {workdir}: {len(source)} images into {out}; "
          f"{'classes of eval.json' if (ids != np.arange(len(ids))).any() else 'ids'}: "
          f"{', '.join(names[:12])}{' ...' if len(names) > 12 else ''}", flush=True)

    segment = jax.jit(lambda params, image: run.method.predict(params, image)["logits"])
    upsample = jax.jit(upsample_argmax, static_argnames="shape")
    progress = ProgressLine(len(source))
    skipped, tiles, done = [], [], 0
    shown = set(np.linspace(0, len(source) - 1, _SHEET_PICTURES).astype(int).tolist())
    for batch in eval_batches(source, batch_size=round_up(batch_size, run.mesh),
                              image_size=config.data.eval_size or config.data.image_size,
                              patch=run.method.encoder.patch, on_unreadable="skip",
                              with_labels=False, skipped=skipped):
        logits = segment(params, jax.device_put(batch["image"], batch_sharding(run.mesh)))
        for row, index in enumerate(batch["index"]):
            if index < 0:
                continue
            label = ids[_label(upsample, logits[row:row + 1], batch["size"][row])]
            picture = _write(out, source, int(index), label, colours)
            if index in shown:
                tiles.append(picture)
            done += 1
        progress.update(done, {})
    progress.close()
    _finish(out, names, colours, tiles, skipped, done)
    return done


def _label(upsample, logits, size):
    """int [h, w] cluster ids of one image at its own size."""
    shape = tuple(int(-(-side // 64) * 64) for side in size)      # few compilations
    ids = np.asarray(upsample(logits, size[None], shape=shape))
    return ids[0, :size[0], :size[1]]


def _classes(workdir, num_clusters):
    """(mask id of each cluster [k], names by mask id)."""
    path = pathlib.Path(workdir) / "eval.json"
    if not path.exists():
        return np.arange(num_clusters), [f"cluster {k}" for k in range(num_clusters)]
    scores = json.loads(path.read_text())
    ids, names = np.array(scores["matching"]), list(scores["class_names"])
    for k in np.flatnonzero(ids < 0):
        ids[k] = len(names)
        names.append(f"cluster {k} (no class)")
    return ids, names


def _write(out, source, index, label, colours):
    """Writes one image's mask and overlay; returns its row of the contact sheet."""
    from fs4_jax.evaluation.pictures import colour_labels, overlay, save_indexed_png
    name = source.example_name(index)
    mask, over = out / "masks" / f"{name}.png", out / "overlays" / f"{name}.jpg"
    for path in (mask, over):
        path.parent.mkdir(parents=True, exist_ok=True)
    image = source[index]["image"]
    save_indexed_png(mask, label, colours)
    temporary = over.with_suffix(".jpg.tmp")
    Image.fromarray(overlay(image, label, colours)).save(temporary, "JPEG", quality=90)
    temporary.replace(over)
    size = (_SHEET_WIDTH, max(1, round(_SHEET_WIDTH * image.shape[0] / image.shape[1])))
    small = np.asarray(Image.fromarray(image).resize(size, Image.BILINEAR))
    ids = np.asarray(Image.fromarray(label.astype(np.uint8)).resize(size, Image.NEAREST))
    return name, [small, colour_labels(ids, colours), overlay(small, ids, colours)]


def _finish(out, names, colours, tiles, skipped, done):
    """Contact sheet, classes.json, and the closing line."""
    from fs4_jax.evaluation.pictures import contact_sheet
    out.mkdir(parents=True, exist_ok=True)
    classes = [{"id": i, "name": name, "colour": colours[i].tolist()}
               for i, name in enumerate(names)]
    (out / "classes.json").write_text(json.dumps(classes, indent=2) + "\n")
    if tiles:
        sheet = contact_sheet(tiles, headings=("image", "prediction", "overlay"), names=names,
                              palette=colours, across=2)
        Image.fromarray(sheet).save(out / "contact_sheet.jpg", quality=90)
    for name, reason in skipped:
        print(f"skipped {name}: {reason}", file=sys.stderr)
    print(f"{done} masks in {out}/masks, overlays in {out}/overlays, {out}/contact_sheet.jpg"
          f"{f'; {len(skipped)} unreadable images skipped' if skipped else ''}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir", "images", "out"])
    app.run(main)
