"""What a model of scribbles sees: strokes, prediction, and its kernels around one pixel.

    python -m benchmarks.scribble_pictures --workdir=W --out=FILE.png [--number=4]

Of training images of a run with `scribble.regularizer.form=dfr`. The kernels are those of the
regularizer, brighter for larger, between the marked pixel and every other one of its window: with
colour and position alone, and with the deep features too.
"""

import jax
import numpy as np
from absl import app, flags, logging
from PIL import Image

from fs4_jax.config import ConfigError
from fs4_jax.data.views import resize_image
from fs4_jax.evaluation.pictures import colour_labels, contact_sheet, palette
from fs4_jax.models.decoder import resized
from fs4_jax.models.vit import normalize_images
from fs4_jax.run import checked_source, restore_inference, trained_run

_WORKDIR = flags.DEFINE_string("workdir", None, "A run of method scribble, form dfr.")
_OUT = flags.DEFINE_string("out", None, "The picture.")
_NUMBER = flags.DEFINE_integer("number", 4, "Images.", lower_bound=1)
_HEADINGS = ("image", "strokes", "prediction", "kernel: colour", "kernel: and features")


def main(_):
    logging.set_verbosity(logging.WARNING)
    run = trained_run(_WORKDIR.value)
    settings = run.config.scribble.regularizer
    if run.config.method != "scribble" or settings.form != "dfr":
        raise ConfigError(f"--workdir={_WORKDIR.value} is no run of config.method=scribble with "
                          "config.scribble.regularizer.form=dfr")
    params, _ = restore_inference(run, _WORKDIR.value)
    source = checked_source(run.config, "train")
    colours, tiles = palette(source.num_classes), []
    look = jax.jit(lambda images: looked_at(run.method, params, images))
    for i in np.linspace(0, len(source) - 1, _NUMBER.value).astype(int):
        example = source[int(i)]
        image = resize_image(example["image"], run.image_size)
        out = jax.device_get(look(image[None]))
        strokes = example["label"]
        place = stroke_pixel(strokes, out["colour"].shape[1:3])
        kernels = [kernel_picture(out["colour"][0] / settings.colour_sigma, None, place, settings),
                   kernel_picture(out["colour"][0] / settings.colour_sigma, out["deep"][0], place,
                                  settings)]
        drawn = np.where((strokes == 255)[..., None], example["image"] // 2 + 127,
                         colour_labels(strokes, colours))
        ids = out["logits"][0].argmax(-1).astype(np.uint8)
        tiles.append((example["name"], [example["image"], drawn, colour_labels(ids, colours),
                                        *kernels]))
    sheet = contact_sheet(tiles, headings=_HEADINGS, names=source.class_names, palette=colours,
                          picture_width=150)
    Image.fromarray(sheet).save(_OUT.value)
    print(_OUT.value)


def looked_at(method, params, images):
    """{"logits", "colour", "deep"} on the logits' grid."""
    images = normalize_images(images)
    levels = method._levels(params["encoder"], images)
    out = method.decoder.apply({"params": params["decoder"]}, levels, images)
    grid = out["logits"].shape[1:3]
    return {"logits": out["logits"], "colour": resized(images, grid),
            "deep": resized(out["features"], grid)}


def stroke_pixel(strokes, grid):
    """(row, column) on the grid, of the middle of the stroke of the rarest class."""
    kinds, counts = np.unique(strokes[strokes != 255], return_counts=True)
    if not len(kinds):
        return grid[0] // 2, grid[1] // 2
    rows, columns = np.nonzero(strokes == kinds[counts.argmin()])
    middle = len(rows) // 2
    return (rows[middle] * grid[0] // strokes.shape[0],
            columns[middle] * grid[1] // strokes.shape[1])


def kernel_picture(shallow, deep, place, settings):
    """Grey uint8 [h, w, 3]: the kernel to every pixel of the window; the pixel itself red."""
    h, w = shallow.shape[:2]
    row, column = np.meshgrid(np.arange(h) - place[0], np.arange(w) - place[1], indexing="ij")
    distance = (row ** 2 + column ** 2) / settings.position_sigma ** 2
    for cues in (shallow, deep):
        if cues is not None:
            distance = distance + np.sum((cues - cues[place]) ** 2, axis=-1)
    inside = np.maximum(abs(row), abs(column)) <= settings.radius * max(settings.dilations)
    kernel = np.exp(-0.5 * distance) * inside
    picture = np.repeat((40 * inside + 215 * kernel).astype(np.uint8)[..., None], 3, axis=-1)
    picture[place] = 255, 40, 40
    return picture


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir", "out"])
    app.run(main)
