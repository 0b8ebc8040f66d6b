"""Images in, masks out: `python -m fs4_jax.predict --workdir=W --images=DIR --out=OUT`.

--images is a folder (its subfolders too), an image, or a pattern such as 'clips/*/frame_*.png';
frames come in the order of their numbers. Written, of each image that can be read:

    OUT/masks/STEM.png           class ids in 8 bits at the image's own size, with a palette
    OUT/overlays/STEM.jpg        the image, tinted
    OUT/probabilities/STEM.npz   --probabilities: float16 [h, w, classes] on the model's grid
    OUT/polygons/STEM.json       --polygons: its regions; OUT/annotations.json has all, as COCO does

and OUT/contact_sheet.jpg (twelve images at most), OUT/classes.json (name and colour of each id).
W is a workdir that fs4_jax.main trained in; its newest checkpoint is used. Where W was scored, ids
are classes, by the matching in W/eval.json; otherwise they are clusters. Names and merges that
were given in fs4_jax.view are used.

The same command again does what is not done yet: of new and changed images, and after an
interruption. Another model, other names or settings: all is made anew.
"""

from absl import app, flags


def main(argv):
    from fs4_jax.errors import command
    args = flags.FLAGS
    kinds = [kind for kind, wanted in (
        ("masks", args.masks), ("overlays", args.overlay), ("probabilities", args.probabilities),
        ("polygons", args.polygons)) if wanted]
    if not kinds:
        raise app.UsageError("nothing to write: leave --masks or --overlay as they are, or give "
                             "--probabilities or --polygons")
    with command(argv, stopped=f"what lies in {args.out} is whole, and the same command goes on "
                               "from there"):
        predict(args.workdir, args.images, args.out, batch_size=args.batch_size, kinds=kinds,
                tile=args.tile, crf=args.crf)


def predict(workdir, images, out, *, batch_size=8, kinds=("masks", "overlays"), tile=0, crf=False):
    """Segments every readable image with a workdir's newest checkpoint.

    Where the workdir holds eval.json, its matching turns clusters into classes: ids below the
    number of classes are classes, the ones after them clusters that no class was left for.

    Args:
      workdir: where a model was trained. images: folder, file or pattern. out: folder to write
        into.
      batch_size: images at a time. kinds: names of `predictions.KINDS`.
      tile: images with a longer side than this are seen in tiles of about so many pixels, which
        overlap; 0: every image is seen whole. crf: a dense CRF refines what was predicted, as
        config.eval.crf does.

    Returns:
      Number of images that OUT holds now; unreadable ones are named on stderr and left out.

    Raises:
      ConfigError, DataError: no checkpoint; nothing to read; an `out` that can not be written, or
        would mix with the images.
    """
    import pathlib

    from fs4_jax.data.images import DataError
    from fs4_jax.data.inputs import input_source
    from fs4_jax.predict_loop import Model, predict_all
    from fs4_jax.predictions import Predictions

    source, out = input_source(images), pathlib.Path(out)
    _check_out(images, source, out)
    model = Model(workdir, crf=crf)
    names = model.classes.names
    print(f"step {model.step} of {workdir} on {len(source)} images of {images}\n"
          f"{model.classes.meaning}: {', '.join(names[:30])}{' ...' if len(names) > 30 else ''}",
          flush=True)
    written = Predictions(source, out, model.classes, kinds,
                          plan={**model.plan, "tile": tile, "batch_size": batch_size})
    done, skipped = predict_all(model, source, written, batch_size=batch_size, tile=tile)
    if not done:
        raise DataError(f"none of the {len(source)} images in {images} can be read")
    written.finish()
    left_out = f"; {len(skipped)} of {len(source)} images unreadable, skipped" if skipped else ""
    places = ", ".join(f"{kind} in {out / kind}" for kind in kinds)
    sheet = f", a sample in {out / 'contact_sheet.jpg'}" if "masks" in kinds else ""
    print(f"{done} images: {places}{sheet}{left_out}")
    return done


def _check_out(images, source, out):
    """What is written must be possible, and not mix with what is read."""
    import os
    import pathlib

    from fs4_jax.data.images import DataError
    from fs4_jax.predictions import KINDS
    written = out.resolve()
    if os.path.isdir(images) and written.is_relative_to(pathlib.Path(images).resolve()):
        raise DataError(f"--out={out} lies inside of --images={images}: masks would be taken for "
                        "images the next time; choose another folder")
    # realpath: a link that leads to itself is an unreadable image, not an end.
    folders = {pathlib.Path(os.path.realpath(source.files(i)[0])).parent
               for i in range(len(source))}
    if any(folder.is_relative_to(written / kind) for kind in KINDS for folder in folders):
        raise DataError(f"--images={images} is where --out={out} is written: images would be "
                        "replaced while they are read; choose another folder")
    try:
        written.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--out={out} can not be made: {error.strerror}") from error
    if not os.access(written, os.W_OK):
        raise DataError(f"--out={out} can not be written: permission denied")


def define_flags():
    """The command's own: several commands may be imported into one process."""
    flags.DEFINE_string("workdir", None, "A workdir that fs4_jax.main trained in.")
    flags.DEFINE_string(
        "images", None, "Folder of images (jpg, png, webp, bmp; subfolders are searched), an "
        "image, or a quoted pattern of them: 'clips/*/*.png'.")
    flags.DEFINE_string(
        "out", None, "Folder to write into, outside of --images; made if missing. What is there "
        "already, of the same model and settings, is kept.")
    flags.DEFINE_integer("batch_size", 8, "Images at a time.", lower_bound=1)
    flags.DEFINE_boolean("masks", True, "Write masks, palette PNGs of class ids.")
    flags.DEFINE_boolean("overlay", True, "Write the images tinted by their classes.")
    flags.DEFINE_boolean("probabilities", False, "Write what the model believes of each class.")
    flags.DEFINE_boolean(
        "polygons", False, "Write regions as polygons, those with holes as run-length codes, in "
        "COCO's JSON (needs the extra coco).")
    flags.DEFINE_integer(
        "tile", 0, "Larger images are seen in overlapping tiles of about so many pixels a side, "
        "each at the size that the model was evaluated at, and blended; 0: whole.", lower_bound=0)
    flags.DEFINE_boolean("crf", False, "Refine by a dense CRF, as config.eval.crf does.")


if __name__ == "__main__":
    define_flags()
    flags.mark_flags_as_required(["workdir", "images", "out"])
    app.run(main)
