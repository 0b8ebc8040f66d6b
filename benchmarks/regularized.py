"""Regularized losses, loss and gradient of one image, against the field's ways (extra `bench`).

    python -m benchmarks.regularized --images=DIR [--sizes=128,256] [--number=3] [--num_classes=21]

Dense: DenseCRF's kernel in rloss' setting (sigma 15 in 0..255, 100 pixels of a crop of 513).
  ours, exact             `dense_crf_loss(leaf_size=1)`
  ours, leaves of n       `dense_crf_loss(leaf_size=n)`
  pydensecrf2             the permutohedral lattice built and one filtering, all that rloss does
Accuracy is that of the gradient, which a softmax centres over the classes: relative L2 distance to
the exact one, for the lattice after the one factor that suits it best too. Windowed: radius 5
(GatedCRF) against torch's unfold. Same photographs, same cores, the functions take turns; medians.
"""

import pathlib

import jax
import numpy as np
from absl import app, flags
from PIL import Image

from benchmarks.timing import median_of_each
from fs4_jax.losses.regularized import dense_crf_loss, gated_crf_loss

_IMAGES = flags.DEFINE_string("images", None, "Folder of photographs.")
_SIZES = flags.DEFINE_list("sizes", ["128", "256"], "Sides of the square images.")
_NUMBER = flags.DEFINE_integer("number", 3, "How many photographs.", lower_bound=1)
_CLASSES = flags.DEFINE_integer("num_classes", 21, "Of the assignment.", lower_bound=2)
_LEAVES = flags.DEFINE_list("leaves", ["8", "16", "32"], "Leaf sizes.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Calls of each function and photograph.")

_COLOUR_SIGMA, _SHARE = 15.0, 100 / 513
_RADIUS, _NEAR_SIGMA, _NEAR_COLOUR = 5, 6.0, 0.1


def main(_):
    files = sorted(p for p in pathlib.Path(_IMAGES.value).rglob("*")
                   if p.suffix.lower() in (".jpg", ".png"))
    for size in map(int, _SIZES.value):
        rows = {}
        for i in np.linspace(0, len(files) - 1, _NUMBER.value).astype(int):
            with Image.open(files[i]) as file:
                image = np.array(file.convert("RGB").resize((size, size)), np.float32)
            assignment = smooth_assignment(np.random.default_rng(i), size, _CLASSES.value)
            for name, row in {**dense(image, assignment), **windowed(image, assignment)}.items():
                rows.setdefault(name, []).append(row)
        for name, values in rows.items():
            seconds, error, scaled = np.median(np.array(values, float), axis=0)
            print(f"{size} x {size}  {name:24s} {1e3 * seconds:8.1f} ms   gradient off by "
                  f"{100 * error:5.2f} % ({100 * scaled:5.2f} % at its best scale)", flush=True)


def smooth_assignment(rng, size, num_classes):
    """Softmax probabilities [size, size, k] that change over an eighth of the image."""
    coarse = rng.normal(size=(num_classes, 8, 8)).astype(np.float32) * 3
    logits = np.stack([np.asarray(Image.fromarray(x).resize((size, size), Image.BILINEAR))
                       for x in coarse], axis=-1)
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


def dense(image, assignment):
    """{name: (seconds, error, error at the best scale)} of the fully connected loss."""
    a, rgb, sigma = assignment[None], image[None], _SHARE * len(image)

    def ours(leaf_size):
        loss = jax.jit(jax.value_and_grad(lambda a, rgb: dense_crf_loss(
            a, rgb, colour_sigma=_COLOUR_SIGMA, position_sigma=sigma, normalized=False,
            leaf_size=leaf_size)))
        return lambda: jax.block_until_ready(loss(a, rgb))

    functions = {"ours, exact": ours(1)}
    functions |= {f"ours, leaves of {n}": ours(int(n)) for n in _LEAVES.value}
    gradients = {name: -0.5 * np.asarray(f()[1][0]) for name, f in functions.items()}
    functions["pydensecrf2"] = lambda: lattice(image, assignment, sigma)
    gradients["pydensecrf2"] = functions["pydensecrf2"]()
    exact = centred(gradients["ours, exact"])
    seconds = median_of_each(list(functions.values()), _REPEATS.value)
    return {name: (each, *errors(centred(gradients[name]), exact))
            for each, name in zip(seconds, functions)}


def centred(gradient):
    gradient = gradient.astype(np.float64)
    return gradient - gradient.mean(-1, keepdims=True)


def errors(got, exact):
    scale = np.sum(got * exact) / np.sum(got * got)
    return [np.linalg.norm(factor * got - exact) / np.linalg.norm(exact) for factor in (1, scale)]


def lattice(image, assignment, sigma, weight=1e-2):
    """The kernel times the assignment, from one step of pydensecrf2's inference, [h, w, k].

    Up to a constant of each pixel: Q after the step is softmax(log p + weight W p). The weight
    keeps it from underflowing.
    """
    import pydensecrf.densecrf as dcrf
    h, w, k = assignment.shape
    crf = dcrf.DenseCRF2D(w, h, k)
    logs = np.log(np.maximum(assignment, 1e-20)).transpose(2, 0, 1).reshape(k, -1)
    crf.setUnaryEnergy(np.ascontiguousarray(-logs, np.float32))
    crf.addPairwiseBilateral(sxy=sigma, srgb=_COLOUR_SIGMA, rgbim=image.astype(np.uint8),
                             compat=weight, normalization=dcrf.NO_NORMALIZATION)
    q, first, second = crf.startInference()
    crf.stepInference(q, first, second)
    message = np.log(np.maximum(np.array(q), 1e-30)) - logs
    return message.reshape(k, h, w).transpose(1, 2, 0) / weight


def windowed(image, assignment):
    """{name: (seconds, nan, nan)} of the windowed loss; both gradients must agree."""
    colour = (image / 255 - 0.45) / 0.225
    loss = jax.jit(jax.value_and_grad(lambda a, colour: gated_crf_loss(
        a, colour, radius=_RADIUS, position_sigma=_NEAR_SIGMA, colour_sigma=_NEAR_COLOUR)))

    def ours():
        return jax.block_until_ready(loss(assignment[None], colour[None]))

    def theirs():
        return unfolded(colour, assignment)

    mine, peer = (centred(np.asarray(f()[1][0])) for f in (ours, theirs))
    if np.linalg.norm(mine - peer) > 1e-3 * np.linalg.norm(peer):
        raise AssertionError("the two windowed losses are not the same")
    seconds = median_of_each([ours, theirs], _REPEATS.value)
    return {f"{name}, window {_RADIUS}": (each, np.nan, np.nan)
            for name, each in zip(("ours", "torch unfold"), seconds)}


def unfolded(colour, assignment):
    """(loss, gradient [1, h, w, k]) by torch's unfold, as GatedCRF's users write it."""
    import torch
    import torch.nn.functional as F
    side = 2 * _RADIUS + 1
    a = torch.tensor(assignment.transpose(2, 0, 1)[None], requires_grad=True)
    h, w = assignment.shape[:2]
    place = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")).float()
    cues = torch.cat([place / _NEAR_SIGMA, torch.tensor(colour.transpose(2, 0, 1)) / _NEAR_COLOUR])

    def neighbours(x):
        return F.unfold(x, side, padding=_RADIUS).view(1, x.shape[1], side * side, h, w)

    kernel = torch.exp(-0.5 * ((neighbours(cues[None]) - cues[None, :, None]) ** 2).sum(1))
    kernel = kernel * neighbours(torch.ones(1, 1, h, w))[:, 0]
    kernel[:, side * side // 2] = 0
    agree = (neighbours(a) * a[:, :, None]).sum(1)
    loss = (kernel * (1 - agree)).sum() / kernel.sum()
    loss.backward()
    return loss, a.grad.numpy().transpose(0, 2, 3, 1)


if __name__ == "__main__":
    flags.mark_flags_as_required(["images"])
    app.run(main)
