"""A folder of images in, masks out: `python -m fs4_jax.predict --workdir=W --images=DIR --out=OUT`.

Writes OUT/masks/STEM.png (8-bit ids at the image's own size), OUT/overlays/STEM.jpg,
OUT/contact_sheet.jpg (twelve images at most) and OUT/classes.json (name and colour of each id).
W is a workdir that fs4_jax.main trained in; its newest checkpoint is used. Where W was scored,
ids are classes, by the matching in W/eval.json; otherwise they are clusters.
"""

import concurrent.futures
import functools
import json
import os
import pathlib
import sys
import time

import jax
import numpy as np
from absl import app, flags, logging
from PIL import Image


_TILE = 256                   # pixels of a mask at once, squared: memory does not grow with images
_THREADS = 4                  # that read again, draw and write; Pillow lets go of Python's lock
_SHEET_PICTURES = 12
_SHEET_SIZE = (320, 480)      # width, largest height


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    from fs4_jax.errors import explained
    args = flags.FLAGS
    with explained():
        try:
            predict(args.workdir, args.images, args.out, batch_size=args.batch_size)
        except KeyboardInterrupt:
            print(f"\nstopped; what lies in {args.out} is whole, but not all of it",
                  file=sys.stderr)
            sys.exit(130)


def predict(workdir, images, out, *, batch_size=8):
    """Segments every readable image of a folder with a workdir's newest checkpoint.

    Where the workdir holds eval.json, its matching turns clusters into classes: ids below the
    number of classes are classes, the ones after them clusters that no class was left for.

    Args:
      workdir: where a model was trained. images: folder. out: folder to write into.
      batch_size: images at a time.

    Returns:
      Number of images written; unreadable ones are named on stderr and left out.

    Raises:
      ConfigError, DataError: no checkpoint; no or empty folder, or nothing readable in it; an
        `out` that can not be written, or would mix with the images.
    """
    from fs4_jax.config import ConfigError
    from fs4_jax.data.folder import DataError
    from fs4_jax.data.pipeline import eval_batches
    from fs4_jax.metrics import ProgressLine
    from fs4_jax.run import restore_inference, trained_run
    from fs4_jax.sharding import batch_sharding, round_up

    source, out = _source(images, out), pathlib.Path(out)
    run = trained_run(workdir)
    config = run.config
    if not run.method.has_classes:
        raise ConfigError(f"--workdir={workdir} holds an encoder ({run.method.title}), which has "
                          "no classes: train FS^4 on top of it with --config=configs/folder.py "
                          f"--config.encoder.weights={workdir}, and predict with that")
    params, step = restore_inference(run, workdir)
    ids, names, meaning = _classes(workdir, config, run.method.supervised)
    print(f"step {step} of {workdir} on {len(source)} images of {images}\n{meaning}: "
          f"{', '.join(names[:30])}{' ...' if len(names) > 30 else ''}", flush=True)

    segment = jax.jit(lambda params, image: run.method.predict(params, image)["logits"])
    writer = _Writer(source, out, ids, names)
    progress = ProgressLine(len(source), unit="image")
    since, done, skipped, named = (0, time.monotonic()), 0, [], 0
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for batch in eval_batches(source, batch_size=round_up(batch_size, run.mesh),
                                  image_size=config.data.eval_size or config.data.image_size,
                                  patch=run.method.encoder.patch, on_unreadable="skip",
                                  with_labels=False, skipped=skipped):
            image = jax.device_put(batch["image"], batch_sharding(run.mesh))
            logits = jax.device_get(segment(params, image))
            rows = np.flatnonzero(batch["index"] >= 0)
            list(pool.map(writer.write, batch["index"][rows], logits[rows], batch["size"][rows]))
            done += len(rows)
            for _, reason in skipped[named:]:
                progress.note(f"skipped {reason}")
            named = len(skipped)
            now = time.monotonic()
            progress.update(done + named, {
                "images_per_second": (done - since[0]) / (now - since[1])})
            since = since if since[0] else (done, now)      # the first batch compiles
    progress.close()
    for _, reason in skipped[named:]:
        print(f"skipped {reason}", file=sys.stderr)
    if not done:
        raise DataError(f"none of the {len(source)} images in {images} can be read")
    writer.finish()
    left_out = f"; {len(skipped)} of {len(source)} images unreadable, skipped" if skipped else ""
    print(f"{done} masks in {out / 'masks'}, overlays in {out / 'overlays'}, a sample in "
          f"{out / 'contact_sheet.jpg'}{left_out}")
    return done


def _source(images, out):
    """The images, once it is clear that what is written will not mix with them."""
    from fs4_jax.data.folder import DataError, FolderSource
    try:
        source = FolderSource(images, key="images")
    except DataError as error:
        raise DataError(str(error).replace("config.images", "--images")) from error
    read, written = pathlib.Path(images).resolve(), pathlib.Path(out).resolve()
    if written.is_relative_to(read):
        raise DataError(f"--out={out} lies inside of --images={images}: masks would be taken for "
                        "images the next time; choose another folder")
    if any(read.is_relative_to(written / kind) for kind in ("masks", "overlays")):
        raise DataError(f"--images={images} is where --out={out} is written: images would be "
                        "replaced while they are read; choose another folder")
    try:
        written.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out={out} can not be made: {error.strerror}") from error
    if not os.access(written, os.W_OK):
        raise DataError(f"--out={out} can not be written: permission denied")
    return source


def _classes(workdir, config, supervised):
    """(uint8 [k] mask id of each cluster, names by mask id, a line that says what ids are)."""
    path, num_clusters = pathlib.Path(workdir) / "eval.json", config.num_clusters
    scores = json.loads(path.read_text()) if path.exists() else {}
    if supervised:
        names = list(config.data.class_names or scores.get("class_names", ())) or \
            [f"class {k}" for k in range(num_clusters)]
        return np.arange(num_clusters, dtype=np.uint8), names, "mask ids are the labels' classes"
    if "matching" not in scores:
        why = (f"protocol {scores['protocol']} of {path} matches no clusters" if scores else
               f"no labels were scored in {workdir}")
        return (np.arange(num_clusters, dtype=np.uint8),
                [f"cluster {k}" for k in range(num_clusters)], f"{why}: mask ids are clusters")
    ids, names = np.array(scores["matching"]), list(scores["class_names"])
    for k in np.flatnonzero(ids < 0):
        ids[k] = len(names)
        names.append(f"cluster {k} (no class)")
    return ids.astype(np.uint8), names, (
        f"mask ids are classes, as {path} matched them (split {scores['split']}, "
        f"{scores['num_images']} images)")


class _Writer:
    """Writes masks and overlays, keeps small copies of a few for the contact sheet.

    Args:
      source: the images. out: folder. ids: uint8 [k], mask id of each cluster. names: by id.
    """

    def __init__(self, source, out, ids, names):
        from fs4_jax.evaluation.pictures import palette
        from fs4_jax.evaluation.upsample import upsample_argmax
        self._source, self._out, self._ids, self._names = source, out, ids, names
        self._colours = palette(len(names))
        self._upsample = jax.jit(functools.partial(upsample_argmax, shape=(_TILE, _TILE)))
        chosen = np.linspace(0, len(source) - 1, _SHEET_PICTURES).astype(int)
        self._shown, self._tiles = set(chosen.tolist()), {}

    def write(self, index, logits, size):
        """Mask and overlay of image `index`; logits float [h, w, k], size int [2]."""
        from fs4_jax.evaluation.pictures import save_indexed_png
        name, label = self._source.example_name(index), self._label(logits, size)
        save_indexed_png(self._path("masks", f"{name}.png"), label, self._colours)
        image = self._source.image(index)     # again: a batch of whole photographs is too much
        picture = Image.fromarray(self._overlay(image, label))
        _save_jpeg(picture, self._path("overlays", f"{name}.jpg"))
        if index in self._shown:
            self._tiles[int(index)] = name, self._tile(image, label)

    def finish(self):
        """Writes the contact sheet and classes.json."""
        from fs4_jax.evaluation.pictures import contact_sheet
        tiles = [tile for _, tile in sorted(self._tiles.items())]
        if tiles:
            sheet = contact_sheet(tiles, headings=("image", "prediction", "overlay"),
                                  names=self._names, palette=self._colours, across=2)
            _save_jpeg(Image.fromarray(sheet), self._path("contact_sheet.jpg"))
        classes = [{"id": i, "name": name, "colour": self._colours[i].tolist()}
                   for i, name in enumerate(self._names)]
        path = self._path("classes.json")
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(classes, indent=2) + "\n")
        os.replace(partial, path)

    def _path(self, *parts):
        from fs4_jax.data.folder import DataError
        path = self._out.joinpath(*parts)
        if not path.resolve().is_relative_to(self._out.resolve()):     # by a link in an old OUT
            raise DataError(f"{path} leads out of --out={self._out}: remove that link")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _label(self, logits, size):
        """uint8 [h, w] mask ids at the image's own size, made of tiles: compiled once for all."""
        label = np.empty(size, np.uint8)
        logits, size = jax.device_put((logits[None], size[None]))
        for row in range(0, label.shape[0], _TILE):
            tiles = [self._upsample(logits, size, origin=(row, column))[0]
                     for column in range(0, label.shape[1], _TILE)]
            part = label[row:row + _TILE]
            clusters = np.concatenate(jax.device_get(tiles), axis=1)
            part[:] = self._ids[clusters[:part.shape[0], :part.shape[1]]]
        return label

    def _overlay(self, image, label):
        """`pictures.overlay` in bands of rows: its float64 copies of a large image are many."""
        from fs4_jax.evaluation.pictures import overlay
        picture = np.empty_like(image)
        for row in range(0, len(image), _TILE):
            above = min(row, 1)               # lines are drawn below the row they differ from
            band = slice(row - above, row + _TILE)
            picture[row:row + _TILE] = overlay(image[band], label[band], self._colours)[above:]
        return picture

    def _tile(self, image, label):
        """Small copies of image, prediction and overlay, on white where they are narrow."""
        from fs4_jax.evaluation.pictures import colour_labels, overlay
        width, largest = _SHEET_SIZE
        scale = min(width / image.shape[1], largest / image.shape[0])
        size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
        small = np.asarray(Image.fromarray(image).resize(size, Image.BILINEAR))
        ids = np.asarray(Image.fromarray(label).resize(size, Image.NEAREST))
        pictures = [small, colour_labels(ids, self._colours), overlay(small, ids, self._colours)]
        pad = ((0, 0), (0, width - size[0]), (0, 0))
        return [np.pad(picture, pad, constant_values=255) for picture in pictures]


def _save_jpeg(picture, path):
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    picture.save(partial, "JPEG", quality=90)
    os.replace(partial, path)


def define_flags():
    """The command's own: several commands may be imported into one process."""
    flags.DEFINE_string("workdir", None, "A workdir that fs4_jax.main trained in.")
    flags.DEFINE_string(
        "images", None, "Folder of images (jpg, png, webp, bmp); subfolders are searched.")
    flags.DEFINE_string(
        "out", None, "Folder to write into, outside of --images; made if missing. Files of an "
        "earlier run are replaced.")
    flags.DEFINE_integer("batch_size", 8, "Images at a time.", lower_bound=1)


if __name__ == "__main__":
    define_flags()
    flags.mark_flags_as_required(["workdir", "images", "out"])
    app.run(main)
