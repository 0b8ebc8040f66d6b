"""The dense CRF against pydensecrf2 (extra `bench`): seconds an image and agreement, in one run.

    python -m benchmarks.crf --images=DIR [--number=8]

Photographs at 320 x 320, 27 classes, STEGO's settings, both on the same cores, taking turns;
medians over the images after a warm-up. Ours counts everything, the building of the lattice too.
"""

import pathlib
import time

import jax
import numpy as np
from absl import app, flags
from PIL import Image

from fs4_jax.affinity import dense_crf
from tests.affinity.crf_test import colour_probabilities

_IMAGES = flags.DEFINE_string("images", None, "Folder of photographs.")
_NUMBER = flags.DEFINE_integer("number", 8, "How many of them.", lower_bound=2)


def main(_):
    files = sorted(p for p in pathlib.Path(_IMAGES.value).rglob("*")
                   if p.suffix.lower() in (".jpg", ".png"))
    rng = np.random.default_rng(0)
    ours, theirs, agreements = [], [], []
    for i in np.linspace(0, len(files) - 1, _NUMBER.value).astype(int):
        with Image.open(files[i]) as file:
            image = np.array(file.convert("RGB").resize((320, 320)))
        p = colour_probabilities(image, rng)
        jax.block_until_ready(dense_crf(image, p))           # compiles for a size of lattice
        mine, seconds = timed(lambda: np.asarray(dense_crf(image, p)))
        ours.append(seconds)
        peer, seconds = timed(lambda: pydensecrf(image, p))
        theirs.append(seconds)
        agreements.append(float(np.mean(mine.argmax(-1) == peer.argmax(-1))))
        print(f"{files[i].name}: fs4_jax {ours[-1]:.2f} s, pydensecrf2 {theirs[-1]:.2f} s, "
              f"{100 * agreements[-1]:.3f} % of the pixels agree", flush=True)
    print(f"median fs4_jax {np.median(ours):.2f} s, pydensecrf2 {np.median(theirs):.2f} s: "
          f"{np.median(theirs) / np.median(ours):.2f} x as fast; least agreement "
          f"{100 * min(agreements):.3f} %")


def timed(function):
    began = time.perf_counter()
    answer = function()
    return answer, time.perf_counter() - began


def pydensecrf(image, p):
    import pydensecrf.densecrf as dcrf
    from pydensecrf.utils import unary_from_softmax
    h, w, k = p.shape
    crf = dcrf.DenseCRF2D(w, h, k)
    crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(
        np.ascontiguousarray(p.transpose(2, 0, 1)))))
    crf.addPairwiseGaussian(sxy=1, compat=3)
    crf.addPairwiseBilateral(sxy=67, srgb=3, rgbim=image, compat=4)
    return np.array(crf.inference(10)).reshape(k, h, w).transpose(1, 2, 0)


if __name__ == "__main__":
    flags.mark_flags_as_required(["images"])
    app.run(main)
