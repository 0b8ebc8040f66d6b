"""The data path (decode, two augmented views, batch) against torch's DataLoader, in one run.

    python -m benchmarks.loader --images=DIR [--workers=2]

Both read the same JPEG files with the same number of worker processes and make batches of two
224 x 224 views: random resized crop, mirror, brightness, contrast and saturation. Ours also
computes where the views correspond; what the peer has no like of (hue, blur) is off. Alternating
runs, medians. The peer's transforms are Pillow's, as torchvision's are on images; the DataLoader
is torch's own (extra `bench`). Workers of 0: in the process itself, where ours decodes in threads.
"""

import dataclasses
import pathlib
import time

import numpy as np
from absl import app, flags
from PIL import Image, ImageEnhance

from fs4_jax.config import default_config
from fs4_jax.data.folder import FolderSource
from fs4_jax.data.pipeline import train_dataset
from fs4_jax.data.views import TwoViews, ViewSettings

_IMAGES = flags.DEFINE_string("images", None, "Folder of images.")
_WORKERS = flags.DEFINE_list("workers", ["0", "2"], "Numbers of worker processes to try.")
_BATCHES = flags.DEFINE_integer("batches", 12, "Timed batches of a run.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Images of a batch.", lower_bound=1)
_RUNS = flags.DEFINE_integer("runs", 3, "Runs of each.", lower_bound=1)

_SIDE = 224


class _PeerViews:
    """The peer's map-style dataset; Pillow's transforms, one generator an example."""

    def __init__(self, paths, settings):
        self._paths, self._settings = paths, settings

    def __len__(self):
        return len(self._paths)

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        with Image.open(self._paths[i]) as file:
            image = file.convert("RGB")
        return [self._view(image, rng) for _ in range(2)]

    def _view(self, image, rng):
        settings, (width, height) = self._settings, image.size
        side = np.sqrt(rng.uniform(*settings.crop_scale) * width * height)
        w, h = min(side, width), min(side, height)
        x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
        view = image.resize((_SIDE, _SIDE), Image.BILINEAR, box=(x, y, x + w, y + h))
        if rng.random() < 0.5:
            view = view.transpose(Image.FLIP_LEFT_RIGHT)
        for enhance, strength in ((ImageEnhance.Brightness, settings.brightness),
                                  (ImageEnhance.Contrast, settings.contrast),
                                  (ImageEnhance.Color, settings.saturation)):
            view = enhance(view).enhance(rng.uniform(1 - strength, 1 + strength))
        return np.array(view)


def main(_):
    from torch.utils.data import DataLoader

    settings = dataclasses.replace(ViewSettings.from_config(default_config().data), hue=0.0,
                                   grey=0.0, blur=0.0)
    source = FolderSource(_IMAGES.value, key="images")
    paths = sorted(p for p in pathlib.Path(_IMAGES.value).rglob("*")
                   if p.suffix.lower() in (".jpg", ".jpeg"))

    def ours(workers):
        return iter(train_dataset(source, TwoViews(settings, (_SIDE, _SIDE), 14), seed=0,
                                  batch_size=_BATCH_SIZE.value, num_workers=workers))

    def peer(workers):
        def forever():
            while True:
                yield from DataLoader(_PeerViews(paths, settings), _BATCH_SIZE.value, shuffle=True,
                                      drop_last=True, num_workers=workers,
                                      persistent_workers=workers > 0)
        return forever()

    print(f"{len(paths)} JPEGs, batches of {_BATCH_SIZE.value}, two views of {_SIDE} pixels")
    for workers in map(int, _WORKERS.value):
        rates = {"fs4_jax": [], "torch DataLoader": []}
        for _ in range(_RUNS.value):
            for name, make in (("fs4_jax", ours), ("torch DataLoader", peer)):
                rates[name].append(images_per_second(make(workers)))
        median = {name: float(np.median(x)) for name, x in rates.items()}
        print(f"workers={workers}: " + ", ".join(f"{k} {v:.1f} images/s" for k, v in
                                                 median.items())
              + f"; ratio {median['fs4_jax'] / median['torch DataLoader']:.2f}")


def images_per_second(batches):
    """Of _BATCHES batches after four, which fill what is read ahead."""
    for _ in range(4):
        next(batches)
    began = time.perf_counter()
    for _ in range(_BATCHES.value):
        next(batches)
    return _BATCHES.value * _BATCH_SIZE.value / (time.perf_counter() - began)


if __name__ == "__main__":
    flags.mark_flags_as_required(["images"])
    app.run(main)
