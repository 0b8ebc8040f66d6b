"""A trained model for single images, in Python: `Segmenter("W")(image)`."""

import pathlib

import jax
import numpy as np

from fs4_jax.cluster_names import mask_classes
from fs4_jax.data.pipeline import eval_shape
from fs4_jax.data.views import resize_image
from fs4_jax.evaluation.upsample import upsample_argmax
from fs4_jax.run import restore_inference, segmenting_run
from fs4_jax.sharding import batch_sharding

_BUCKET = 128        # answers are padded to multiples: few compilations


class Segmenter:
    """Segments images one at a time; for folders `fs4_jax.predict` is faster.

    Attributes:
      run: the Run. step: of the training. workdir: its path. num_clusters: K.

    Args:
      workdir: where a model was trained.
      step: of which checkpoint; None: the newest.

    Raises:
      ConfigError: no run, no such checkpoint, a model without classes.
    """

    def __init__(self, workdir, *, step=None):
        self.workdir, self.run = pathlib.Path(workdir), segmenting_run(workdir)
        self._params, self.step = restore_inference(self.run, workdir, step)
        self.num_clusters = self.run.config.num_clusters
        self._predict = jax.jit(self.run.method.predict)
        self._upsample = jax.jit(upsample_argmax, static_argnames="shape")

    def classes(self, *, renamed=True):
        """The MaskClasses of the workdir: what clusters are in masks, and are called."""
        return mask_classes(self.workdir, self.run.config, renamed=renamed,
                            supervised=self.run.method.supervised)

    def outputs(self, image):
        """What the method's `predict` gives of an image uint8 [H, W, 3]: {name: [h, w, ...]}."""
        config, mesh = self.run.config, self.run.mesh
        shape = eval_shape(*image.shape[:2], config.data.eval_size or config.data.image_size,
                           self.run.method.encoder.patch)
        # A row for each device: all of them have the parameters.
        rows = np.broadcast_to(resize_image(image, shape), (mesh.size, *shape, 3))
        out = self._predict(self._params, jax.device_put(rows, batch_sharding(mesh)))
        return {name: np.asarray(value[0]) for name, value in out.items()}

    def __call__(self, image, size=None):
        """Clusters uint8 [h, w] of an image uint8 [H, W, 3], at `size` (h, w) or its own."""
        size = tuple(size or image.shape[:2])
        padded = tuple(-(-n // _BUCKET) * _BUCKET for n in size)
        ids = self._upsample(self.outputs(image)["logits"][None], np.array([size], np.int32),
                             shape=padded)
        return np.asarray(ids)[0, :size[0], :size[1]].astype(np.uint8)
