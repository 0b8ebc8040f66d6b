"""What the training loop asks of a method, and what methods have in common.

Everything is a function of its arguments.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fs4_jax import distributed


class Method(Protocol):
    """A method; see `FS4` for the first of them.

    encoder: the Linen module. title: as people write its name. frozen: the keys of `params` that
    are not trained. has_classes: whether `predict` gives logits of config.num_clusters classes; if
    not, it is looked at through k-means of its tokens. supervised: whether classes are the labels'
    own: then nothing is fitted, and it has no `fit`. temperature: of a method with classes; the
    softmax of logits over it are its probabilities.
    """
    encoder: Any
    title: str
    frozen: tuple[str, ...]
    has_classes: bool
    supervised: bool
    temperature: float

    def make_views(self, data, image_size) -> Any:
        """What `data.pipeline.train_dataset` makes of an image; data: config.data."""

    def init(self, key, images) -> tuple[Any, Any]:
        """(params, extra) for images of this shape; jitted by the caller."""

    def loss(self, params, teacher, extra, batch, key, step) -> tuple[Any, tuple[dict, Any]]:
        """(loss, (metrics, extra after the step)): float32 scalars; "loss_*" are its terms."""

    def update_teacher(self, teacher, trained, step) -> Any:
        """The teacher after a step."""

    def fit(self, params, extra, batches, key) -> tuple[Any, Any]:
        """(params, extra) started from the data: batches yields device-ready train batches."""

    def refit(self, params, teacher, extra, batches, key) -> Any:
        """extra, fitted anew with what has been learnt so far (a bootstrap round). A method
        without rounds has no `refit`."""

    def finish(self, params, batches, key) -> Any:
        """params, with what predicting needs and no step trains; called before an evaluation and
        before the last checkpoint. A method without such has no `finish`."""

    def inference_params(self, params, teacher) -> Any:
        """The parameters that predict."""

    def keep(self, params, batch) -> dict:
        """What a frozen encoder sees of a batch's views, [b, ...] each, read by `loss` in their
        place; `kept` are their names. A method that always trains its encoder has neither."""

    def predict(self, params, images) -> dict:
        """images uint8 [b, H, W, 3] -> "logits" [b, h, w, k] if it has classes, "embedding"
        [b, h, w, c], "patch_tokens" [b, h, w, d]. A method whose images have segments of their
        own gives "segments" [b, h, w, num_segments] too: protocols that match image by image
        score these."""

    def classify(self, params, embedding) -> Any:
        """logits [..., k] of embeddings [..., c], wherever and however they were sampled. A
        method without classes, or whose classes depend on the image, has no `classify`."""


def encode(encoder, params, images, key=None, **wanted):
    """An encoder's outputs for normalised images; drop path acts when a key is given.

    Args:
      encoder: a Linen module. params: its own. images: float [b, H, W, 3]. wanted: as for `ViT`.
    """
    rngs = {} if key is None else {"dropout": key}
    return encoder.apply({"params": params}, images, train=key is not None, rngs=rngs, **wanted)


def running_mean(mean, new, momentum):
    """A teacher after a step: momentum times what it was, the rest of what was trained."""
    return jax.tree.map(lambda t, s: t + (1 - momentum) * (s - t), mean, new)


def early_momentum(step, most):
    """A momentum that is lower at the start, where the mean knows nothing yet."""
    step = step.astype(jnp.float32)
    return jnp.minimum(most, (1 + step) / (10 + step))


def gather(step, params, batches):
    """Runs step(params, batch), jitted, over batches; every leaf concatenated on the host, all of
    it on each process."""
    parts = [distributed.to_host(step(params, batch)) for batch in batches]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
