"""A trained model as one function of images, with what others need to know to use it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fs4_jax
from fs4_jax.cluster_names import mask_classes
from fs4_jax.config import ConfigError
from fs4_jax.data.pipeline import eval_shape
from fs4_jax.evaluation.pictures import palette
from fs4_jax.evaluation.upsample import upsample_all
from fs4_jax.models.vit import IMAGENET_MEAN, IMAGENET_STD
from fs4_jax.run import restore_inference, segmenting_run

NEVER = -1e4            # logit of a class that no cluster stands for; float16 holds it


@dataclasses.dataclass(frozen=True)
class Standalone:
    """segment: images uint8 [b, H, W, 3], RGB -> {"class_ids": uint8 [b, H, W], "logits": float32
    [b, H, W, classes]}; parameters and normalisation are inside. size: (H, W). about: a dict that
    JSON can hold: input, outputs, classes, where it comes from. meaning: what ids are, a line.
    """
    segment: Any
    size: tuple[int, int]
    about: dict
    meaning: str


def standalone_model(workdir, size=0, dtype=None):
    """The Standalone of a workdir's newest checkpoint.

    Args:
      workdir: of a method with classes. size: of its images, (height, width) or one side of a
        square; 0: as the workdir was evaluated. dtype: of the encoder's computation; None: the
        run's.

    Raises:
      ConfigError: no checkpoint, a method without classes, a size that is no multiple of the
        encoder's patch.
    """
    run = segmenting_run(workdir)
    method, data = run.method, run.config.data
    if dtype is not None:
        encoder = dataclasses.replace(method.encoder, dtype=dtype)
        method = dataclasses.replace(method, encoder=encoder)
    params, step = restore_inference(run, workdir)
    params = jax.device_get(params)
    size = _checked(size, data.eval_size or data.image_size, method.encoder.patch)
    classes = mask_classes(workdir, run.config, supervised=method.supervised)

    def segment(images):
        logits = upsample_all(method.predict(params, images)["logits"], size)
        logits = class_logits(logits, classes.ids, len(classes.names))
        return {"class_ids": jnp.argmax(logits, axis=-1).astype(jnp.uint8), "logits": logits}

    about = _about(method, run.config.encoder.variant, step, size, classes.names)
    return Standalone(segment, size, about, classes.meaning)


def class_logits(logits, ids, num_classes):
    """Logits of mask ids from those of clusters.

    Args:
      logits: float [..., k]. ids: int [k], the mask id of each cluster. num_classes: mask ids.

    Returns:
      float [..., num_classes]: of each id the largest of its clusters', NEVER where it has none.
    """
    members = [np.flatnonzero(np.asarray(ids) == i).tolist() for i in range(num_classes)]
    if members == [[k] for k in range(logits.shape[-1])]:
        return logits
    never = jnp.full_like(logits[..., 0], NEVER)
    parts = [jnp.max(jnp.stack([logits[..., k] for k in some], axis=-1), axis=-1) if some
             else never for some in members]
    return jnp.stack(parts, axis=-1)


def _checked(given, trained, patch):
    size = given or trained
    size = tuple(size) if np.ndim(size) else (size, size) if given else eval_shape(
        1, 1, size, patch)
    if any(side < patch or side % patch for side in size):
        near = ",".join(str(max(1, round(side / patch)) * patch) for side in size)
        raise ConfigError(f"--size={','.join(map(str, size))} is no multiple of the encoder's "
                          f"patch, {patch} pixels: take --size={near}")
    return size


def _about(method, variant, step, size, names):
    colours = palette(len(names)).tolist()
    return {
        "format": "fs4_jax segmentation model 1",
        "made_by": f"fs4_jax {fs4_jax.__version__}, jax {jax.__version__}",
        "method": method.title, "encoder": variant, "step": int(step),
        "dtype": jnp.dtype(method.encoder.dtype).name,
        "input": {"name": "image", "shape": ["batch", *size, 3], "dtype": "uint8",
                  "colour": "RGB, 0 to 255",
                  "resize": "to this size, bilinear with antialiasing (Pillow's BILINEAR)",
                  "normalization": {"where": "inside the model", "mean": list(IMAGENET_MEAN),
                                    "std": list(IMAGENET_STD)}},
        "outputs": {"class_ids": {"shape": ["batch", *size], "dtype": "uint8"},
                    "logits": {"shape": ["batch", *size, len(names)], "dtype": "float32"}},
        "classes": [{"id": i, "name": name, "colour": colour}
                    for i, (name, colour) in enumerate(zip(names, colours))]}
