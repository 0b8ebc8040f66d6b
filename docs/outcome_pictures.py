"""Pictures of what comes out of a trained model: predictions, their scores, files, the viewer."""

import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import zipfile

import jax
import numpy as np
import scipy.ndimage
from picture_parts import (
    COLOURS,
    DOCS,
    SEEN,
    SIDE,
    UNNAMED,
    grey,
    images_of,
    painted,
    save,
    scenes_of,
    screenshot,
    segmenter,
)
from PIL import Image, ImageDraw

from fs4_jax.data.scenes import CLASS_NAMES
from fs4_jax.evaluation.confusion import IGNORE_LABEL
from fs4_jax.evaluation.matching import match_many_to_one
from fs4_jax.evaluation.pictures import colour_labels, contact_sheet, overlay, palette


def scenes(_):
    tiles = [("", [one["image"], painted(one["label"])]) for one in scenes_of()]
    save("scenes.png", contact_sheet(tiles, headings=("picture", "truth"), picture_width=110,
                                     names=CLASS_NAMES, palette=COLOURS, across=3))


def start(workdirs):
    segment = segmenter(workdirs.demo)
    classes = segment.classes()
    colours, tiles = palette(len(classes.names)), []
    for one in scenes_of():
        ids = classes.ids[segment(one["image"])]
        tiles.append(("", [one["image"], overlay(one["image"], ids, colours),
                           colour_labels(ids, colours), painted(one["label"])]))
    save("start.png", contact_sheet(tiles, headings=("picture", "overlay", "model", "truth"),
                                    names=classes.names, palette=colours, picture_width=105,
                                    across=2))


def viewer(workdirs):
    from fs4_jax.view import make_gallery
    from fs4_jax.viewer.server import make_server
    with make_server(make_gallery(workdirs.demo)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        screenshot("viewer.png", f"http://127.0.0.1:{server.server_port}/",
                   "body:not([data-loading]) li small", (960, 560))
        server.shutdown()


def failures(workdirs):
    """The scenes of val of which the fewest pixels are right, and what is taken for what."""
    segment, everything = segmenter(workdirs.demo), tuple(range(192))
    ids = segment.classes().ids
    found = []
    for one in scenes_of(everything):
        guess = ids[segment(one["image"])]
        found.append((percent_right(guess, one["label"]), one, guess))
    found.sort(key=lambda row: row[0])
    tiles = []
    for right, one, guess in found[:6]:
        told = ", ".join(f"{CLASS_NAMES[true]} for {CLASS_NAMES[taken]} on {share:.0f} %"
                         for share, true, taken in mistakes(guess, one["label"])[:2])
        tiles.append((f"{right:.0f} % right; takes {told}",
                      [one["image"], overlay(one["image"], guess, COLOURS), painted(guess),
                       painted(one["label"])]))
    save("failures.png", contact_sheet(
        tiles, headings=("picture", "overlay", "prediction", "truth"), names=CLASS_NAMES,
        palette=COLOURS, picture_width=SIDE, across=2))


def mistakes(guess, label):
    """(percent of the pixels, true class, class they are taken for), the most first."""
    wrong = (guess != label) & (label != IGNORE_LABEL) & (guess < len(CLASS_NAMES))
    counts = np.bincount(label[wrong].astype(int) * 256 + guess[wrong], minlength=256 * 256)
    return [(100 * counts[i] / label.size, i // 256, i % 256)
            for i in np.argsort(-counts, kind="stable")[:5].tolist() if counts[i]]


def percent_right(ids, label):
    labelled = label != IGNORE_LABEL
    return 100 * float(np.mean(ids[labelled] == label[labelled]))


def protocols(workdirs):
    """One prediction under three matches."""
    segment = segmenter(workdirs.demo)
    scores = json.loads((pathlib.Path(workdirs.demo) / "eval.json").read_text())
    counts = np.array(scores["confusion"])
    matches = np.array(scores["matching"]), match_many_to_one(counts)
    tiles = []
    for one in scenes_of(SEEN[:4]):
        clusters = segment(one["image"])
        own = np.zeros_like(counts)
        np.add.at(own, (clusters, one["label"]), 1)
        seen = [match[clusters] for match in (*matches, match_many_to_one(own))]
        tiles.append((" / ".join(f"{percent_right(ids, one['label']):.0f}" for ids in seen)
                      + " % of the pixels right under the three matches",
                      [one["image"], colour_labels(clusters, UNNAMED),
                       *(colour_labels(ids, COLOURS) for ids in seen), painted(one["label"])]))
    save("protocols.png", contact_sheet(
        tiles, names=CLASS_NAMES, palette=COLOURS, picture_width=112,
        headings=("picture", "clusters", "hungarian", "many-to-one", "per image", "truth")))


def predict(workdirs):
    """What lies in the folders of `fs4_jax.predict`."""
    with tempfile.TemporaryDirectory() as folder:
        given, out = pathlib.Path(folder, "images"), pathlib.Path(folder, "out")
        given.mkdir()
        for one in scenes_of(SEEN[1:3]):
            Image.fromarray(one["image"]).save(given / f"{one['name']}.png")
        command("predict", f"--workdir={workdirs.demo}", f"--images={given}", f"--out={out}",
                "--probabilities", "--polygons")
        tiles = [(one["name"], [
            one["image"],
            np.asarray(Image.open(out / "masks" / f"{one['name']}.png").convert("RGB")),
            np.asarray(Image.open(out / "overlays" / f"{one['name']}.jpg")),
            grey(np.load(out / "probabilities" / f"{one['name']}.npz")["probabilities"]
                 .astype(np.float32).max(-1), 0, 1),
            outlines(one["image"], json.loads(
                (out / "polygons" / f"{one['name']}.json").read_text())["annotations"])])
            for one in scenes_of(SEEN[1:3])]
    save("predict.png", contact_sheet(
        tiles, headings=("image", "masks/", "overlays/", "probabilities/, the largest",
                         "polygons/"), names=CLASS_NAMES, palette=COLOURS, picture_width=168))


def outlines(image, annotations, scale=4):
    """An image with the outlines of COCO's regions in their classes' colours."""
    picture = Image.fromarray(image // 2 + 120).resize((scale * SIDE,) * 2, Image.NEAREST)
    draw = ImageDraw.Draw(picture)
    from pycocotools import mask as coco
    for one in annotations:
        colour, region = tuple(COLOURS[one["category_id"] - 1].tolist()), one["segmentation"]
        if isinstance(region, list):
            corners = scale * np.array(region[0] + region[0][:4])
            draw.line(corners.tolist(), colour, 2 * scale)
        else:                                   # has holes: a run-length code
            mask = coco.decode(region).repeat(scale, 0).repeat(scale, 1).astype(bool)
            edge = mask & ~scipy.ndimage.binary_erosion(mask, iterations=scale)
            draw.bitmap((0, 0), Image.fromarray(edge), colour)
    return np.asarray(picture)


def export(workdirs):
    """The same classes from the model, the StableHLO file and the ONNX file."""
    images = images_of(SEEN[:4])
    with tempfile.TemporaryDirectory() as folder:
        stablehlo, onnx = (str(pathlib.Path(folder, name)) for name in ("model.zip", "model.onnx"))
        for form, file in (("stablehlo", stablehlo), ("onnx", onnx)):
            command("export", f"--workdir={workdirs.demo}", f"--format={form}", f"--out={file}")
        with zipfile.ZipFile(stablehlo) as archive:
            model = jax.export.deserialize(bytearray(archive.read("model.jax_export")))
        import onnxruntime
        answers = [np.asarray(model.call(images)["class_ids"]),
                   onnxruntime.InferenceSession(onnx).run(["class_ids"], {"image": images})[0]]
    segment, tiles = segmenter(workdirs.demo), []
    ids = segment.classes().ids
    for i, image in enumerate(images):
        seen = [ids[segment(image)], *(answer[i] for answer in answers)]
        differ = (seen[1] != seen[0]) | (seen[2] != seen[0])
        tiles.append((f"{differ.sum()} of {differ.size:,} pixels differ",
                      [image, *map(painted, seen), 255 * differ[..., None].repeat(3, -1).astype(
                          np.uint8)]))
    save("export.png", contact_sheet(
        tiles, headings=("image", "the workdir", "model.zip", "model.onnx", "differences"),
        names=CLASS_NAMES, palette=COLOURS, picture_width=SIDE, across=2))


def command(module, *arguments):
    subprocess.run([sys.executable, "-m", f"fs4_jax.{module}", *arguments], check=True,
                   cwd=DOCS.parent, stdout=subprocess.DEVNULL)
