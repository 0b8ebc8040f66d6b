"""Makes the pictures of the pages in docs/ that need a trained model.

    bash launch/demo.sh
    python -m fs4_jax.main --config=configs/pretrain.py:scenes --workdir=workdirs/encoder
    python docs/pictures.py --demo=workdirs/demo --encoder=workdirs/encoder

The last two are screenshots: they need Chromium and playwright (extra `test`), and are left out,
with a word, where these are not.
"""

import pathlib
import shutil
import sys
import tempfile
import threading

import jax
import numpy as np
from absl import app, flags, logging
from PIL import Image

from fs4_jax.clustering import choose_k
from fs4_jax.data.scenes import CLASS_NAMES, SceneSource
from fs4_jax.evaluation.pictures import (
    colour_labels,
    colour_tokens,
    contact_sheet,
    overlay,
    palette,
)
from fs4_jax.models import make_encoder, normalize_images
from fs4_jax.run import encoder_of_workdir
from fs4_jax.segmenter import Segmenter

_DEMO = flags.DEFINE_string("demo", "workdirs/demo", "A workdir of configs/demo.py.")
_ENCODER = flags.DEFINE_string("encoder", "workdirs/encoder",
                               "A workdir of configs/pretrain.py:scenes.")
_ONLY = flags.DEFINE_list("only", [], "Names of the pictures to make; all of them.")
_OUT = pathlib.Path(__file__).parent
_SEEN = (0, 1, 3, 5, 8, 11)            # scenes of val


def main(_):
    logging.set_verbosity(logging.WARNING)
    scenes = [SceneSource(12, split="val", image_size=96)[i] for i in _SEEN]
    for make in (data_sets, start, encoders, choosing_k, viewer):
        if not _ONLY.value or make.__name__ in _ONLY.value:
            make(scenes)


def data_sets(scenes):
    colours = palette(len(CLASS_NAMES))
    tiles = [("", [one["image"], colour_labels(one["label"], colours)]) for one in scenes]
    save("scenes.png", contact_sheet(tiles, headings=("picture", "truth"), picture_width=110,
                                     names=CLASS_NAMES, palette=colours, across=3))


def start(scenes):
    segment = Segmenter(_DEMO.value)
    classes = segment.classes()
    colours, tiles = palette(len(classes.names)), []
    for one in scenes:
        ids = classes.ids[segment(one["image"])]
        tiles.append(("", [one["image"], overlay(one["image"], ids, colours),
                           colour_labels(ids, colours), colour_labels(one["label"], colours)]))
    save("start.png", contact_sheet(tiles, headings=("picture", "overlay", "model", "truth"),
                                    names=classes.names, palette=colours, picture_width=105,
                                    across=2))


def encoders(scenes):
    images = np.stack([one["image"] for one in scenes])
    encoder, trained = encoder_of_workdir(_ENCODER.value)
    random = make_encoder("mu/8", image_size=96)
    untrained = random.init(jax.random.key(0), normalize_images(images))["params"]
    looks = [colour_tokens(model.apply({"params": params}, normalize_images(images))
                           ["patch_tokens"])
             for model, params in ((random, untrained), (encoder, trained))]
    tiles = [("", row) for row in zip(images, *looks, strict=True)]
    save("encoders.png", contact_sheet(tiles, headings=("picture", "random weights", "trained"),
                                       picture_width=110, across=2))


def choosing_k(scenes):
    encoder, params = encoder_of_workdir(_ENCODER.value)
    images = [SceneSource(96, split="val", image_size=96)[i]["image"] for i in range(96)]
    tokens = np.asarray(jax.jit(lambda x: encoder.apply(
        {"params": params}, normalize_images(x))["patch_tokens"])(np.stack(images)))
    points = choose_k.sample_points(tokens, 5000, 0)
    measured = list(choose_k.measure(points, (4, 6, 8, 10, 12, 16), 3))
    best, reason = choose_k.recommend(measured)
    with tempfile.TemporaryDirectory() as folder:
        page = pathlib.Path(folder, "choose_k.html")
        page.write_text(choose_k.page(measured, best, reason, "tokens of 96 rendered scenes"))
        screenshot("choosing_k.png", page.as_uri(), "body", (1000, 520))


def viewer(scenes):
    from fs4_jax.view import make_gallery
    from fs4_jax.viewer.server import make_server
    with make_server(make_gallery(_DEMO.value)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        screenshot("viewer.png", f"http://127.0.0.1:{server.server_port}/",
                   "body:not([data-loading]) li small", (960, 560))
        server.shutdown()


def screenshot(name, url, ready, size):
    try:
        from playwright import sync_api
    except ImportError:
        print(f"{name} left out: it needs playwright", file=sys.stderr)
        return
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=[
            "--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        page.goto(url, timeout=120_000)
        page.locator(ready).first.wait_for(state="attached", timeout=120_000)
        page.wait_for_timeout(2000)             # thumbnails
        page.screenshot(path=_OUT / name)
        browser.close()
    print(_OUT / name)


def save(name, pixels):
    """A PNG of 128 colours: a page is no place for megabytes."""
    Image.fromarray(pixels).quantize(128, dither=Image.Dither.NONE).save(_OUT / name,
                                                                         optimize=True)
    print(_OUT / name)


if __name__ == "__main__":
    app.run(main)
