"""The model at work on images that are not predicted yet: batches of whole ones, then tiles."""

import concurrent.futures
import time

import jax
import numpy as np

from fs4_jax.affinity import dense_crf
from fs4_jax.cluster_names import mask_classes
from fs4_jax.data.images import UnreadableImage
from fs4_jax.data.pipeline import eval_batches, eval_shape
from fs4_jax.data.tiles import Tiles
from fs4_jax.evaluation.geometry import Subset
from fs4_jax.evaluation.protocols import Protocol
from fs4_jax.evaluation.readout import dense_probabilities
from fs4_jax.metrics import ProgressLine
from fs4_jax.models.encoder_files import fingerprint
from fs4_jax.run import restore_inference, segmenting_run
from fs4_jax.sharding import batch_sharding, round_up

_THREADS = 4                  # that read again, draw and write; Pillow lets go of Python's lock


class Model:
    """A workdir's newest checkpoint.

    Attributes:
      step: of the training. classes: MaskClasses. plan: what predictions depend on, a dict that
      JSON can hold. patch: of the encoder. size: that images are seen at, config.data.eval_size.
    """

    def __init__(self, workdir, *, crf=False):
        self.run = segmenting_run(workdir)
        config, method = self.run.config, self.run.method
        self._params, self.step = restore_inference(self.run, workdir)
        self.classes = mask_classes(workdir, config, supervised=method.supervised)
        self.patch = method.encoder.patch
        self.size = config.data.eval_size or config.data.image_size
        self._crf, self._cells = crf, {}
        self._segment = jax.jit(self._segment_batch)
        self.plan = {"weights": fingerprint(jax.device_get(self._params)), "step": int(self.step),
                     "ids": self.classes.ids.tolist(), "names": list(self.classes.names),
                     "size": np.array(self.size).tolist(), "crf": crf}

    def cells(self, seen):
        """Cells on a side of the answer to a square image of the size `seen`."""
        if seen not in self._cells:
            images = jax.ShapeDtypeStruct((self.run.mesh.size, *seen, 3), np.uint8)
            self._cells[seen] = jax.eval_shape(self._segment, self._params, images)[1].shape[1]
        return self._cells[seen]

    def rows(self, number):
        """How many images make a batch of at least `number`."""
        return round_up(number, self.run.mesh)

    def __call__(self, images, real):
        """(scores, probabilities), float32 [b, h, w, k] each, of images uint8 [b, H, W, 3]; real:
        indices of the rows that are images, the only ones that are refined."""
        put = jax.device_put(images, batch_sharding(self.run.mesh))
        scores, probabilities = map(np.asarray, self._segment(self._params, put))
        if not self._crf:
            return scores, probabilities
        refined = np.zeros(probabilities.shape, np.float32)
        refined[real] = dense_crf(images[real], probabilities[real])
        return refined, refined

    def _segment_batch(self, params, images):
        logits = self.run.method.predict(params, images)["logits"]
        if self._crf:                # as the evaluator does it, with its scale of logits
            scale = Protocol.logit_scale
            return logits, dense_probabilities(logits, images.shape[1:3], lambda x: scale * x)
        return logits, jax.nn.softmax(logits / self.run.method.temperature, axis=-1)


def predict_all(model, source, written, *, batch_size, tile=0):
    """Predicts what is not there.

    Args:
      model: a Model. source: the images. written: Predictions. batch_size: images (or tiles) at a
        time. tile: a longer side makes an image large; 0: none is.

    Returns:
      (images that are there now, [(name, reason)] of those that could not be read).
    """
    there = {i for i in range(len(source)) if written.is_there(i)}
    progress = ProgressLine(len(source), len(there), unit="image")
    if there:
        progress.note(f"{len(there)} of {len(source)} images are done already")
    done, skipped, named, since = len(there), [], 0, (len(there), time.monotonic())
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for answers in _answers(model, source, there, skipped, batch_size, tile):
            new = [answer for answer in answers if answer[0] not in there]
            list(pool.map(lambda answer: written.write(*answer), new))
            done += len(new)
            for _, reason in skipped[named:]:
                progress.note(f"skipped {reason}")
            named, now = len(skipped), time.monotonic()
            progress.update(done + named, {
                "images_per_second": (done - since[0]) / max(now - since[1], 1e-9)})
            since = since if since[0] > len(there) else (done, now)      # the first batch compiles
    progress.close()
    for _, reason in skipped[named:]:
        progress.note(f"skipped {reason}")
    return done, skipped


def _answers(model, source, there, skipped, batch_size, tile):
    """Yields lists of (index, scores, probabilities, extent, size), as `Predictions.write` takes.

    A batch with an image that is not there is computed whole, so that whatever is interrupted, each
    image has the batch, and the bits, that it would have had.
    """
    large = [i for i in range(len(source)) if tile and _longer_side(source, i) > tile]
    whole = sorted(set(range(len(source))) - set(large))
    for batch in eval_batches(
            Subset(source, whole), batch_size=model.rows(batch_size), image_size=model.size,
            patch=model.patch, on_unreadable="skip", with_labels=False, skipped=skipped,
            wanted=lambda batch: any(whole[i] not in there for i in batch)):
        rows = np.flatnonzero(batch["index"] >= 0)
        scores, probabilities = model(batch["image"], rows)
        yield [(whole[batch["index"][row]], scores[row], probabilities[row], batch["size"][row],
                batch["size"][row]) for row in rows]
    for i in large:
        if i in there:
            continue
        try:
            image = source.image(i)
        except UnreadableImage as error:
            skipped.append((source.example_name(i), str(error)))
            yield []
            continue
        scores, probabilities, extent = _by_tiles(model, image, tile, model.rows(batch_size))
        yield [(i, scores, probabilities, extent, np.array(image.shape[:2]))]


def _longer_side(source, i):
    try:
        return max(source.size(i))
    except UnreadableImage:
        return 0                    # named when its turn comes


def _by_tiles(model, image, side, batch_size):
    """(scores, probabilities, extent) of one image."""
    area = model.size if np.ndim(model.size) == 0 else int(np.prod(model.size) ** 0.5)
    seen = eval_shape(1, 1, area, model.patch)
    both = [Tiles(image, side, seen, model.cells(seen)) for _ in range(2)]
    for start in range(0, len(both[0]), batch_size):
        numbers = range(start, min(start + batch_size, len(both[0])))
        batch = np.zeros((batch_size, *seen, 3), np.uint8)
        for row, i in enumerate(numbers):
            batch[row] = both[0][i]
        for tiles, answers in zip(both, model(batch, np.arange(len(numbers)))):
            for i, answer in zip(numbers, answers):
                tiles.add(i, answer)
    return both[0].blended(), both[1].blended(), np.array(both[0].extent)
