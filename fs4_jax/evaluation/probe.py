"""The linear probe: how much of the classes a linear layer finds in features, given labels.

It reads labels of the training split, so its score is not one of label-free segmentation.
"""

import jax
import jax.numpy as jnp
import optax

from fs4_jax.evaluation.confusion import IGNORE_LABEL
from fs4_jax.evaluation.upsample import upsample_maps

PROBE_TITLES = {"linear": "linear probe, labelled", "knn": "neighbours, labelled"}


def init_probe(width, num_classes):
    """{"kernel" [width, num_classes], "bias" [num_classes]}, zeros: the loss is convex."""
    return {"kernel": jnp.zeros((width, num_classes)), "bias": jnp.zeros(num_classes)}


def apply_probe(probe, features):
    """Class logits float32 [..., num_classes] of features [..., width]."""
    return jnp.matmul(features.astype(jnp.float32), probe["kernel"],
                      precision="highest") + probe["bias"]


def probe_loss(probe, features, label, size):
    """Mean cross entropy over the labelled pixels, logits upsampled to the labels.

    Args:
      probe: of `init_probe`.
      features: float [b, h, w, width].
      label: int [b, H, W]; 255 does not vote.
      size: int [b, 2], each label's own height and width within [H, W].

    Returns:
      float32 scalar, 0 where nothing is labelled.
    """
    logits = upsample_maps(apply_probe(probe, features), size, label.shape[1:])
    votes = label != IGNORE_LABEL
    label = jnp.where(votes, label, 0).astype(jnp.int32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return jnp.sum(losses * votes) / jnp.maximum(jnp.sum(votes), 1)


def fit_probe(batches, num_classes, *, learning_rate=5e-3):
    """A probe trained by Adam on batches, one step each.

    STEGO trains its probe beside the model, on features that get no gradient from it (Adam,
    5e-3); here it is trained when the features no longer change, which is our reading. Channels
    are standardised by the first batch, and the layer returned is the one on features as they
    are: the same function, but one that Adam reaches in a few hundred steps whatever the features'
    scale (a random encoder's tokens hardly differ).

    Args:
      batches: yields (features [b, h, w, width], label [b, H, W], size [b, 2]).
      num_classes: of the probe.
      learning_rate: a number, or a schedule of optax.

    Returns:
      (probe, last loss).

    Raises:
      ValueError: no batches.
    """
    optimizer = optax.adam(learning_rate)
    probe = state = loss = scale = None

    @jax.jit
    def step(probe, state, scale, features, label, size):
        mean, std = scale
        features = (features.astype(jnp.float32) - mean) / std
        loss, grads = jax.value_and_grad(probe_loss)(probe, features, label, size)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(probe, updates), state, loss

    for features, label, size in batches:
        if probe is None:
            probe = init_probe(features.shape[-1], num_classes)
            state, scale = optimizer.init(probe), _scale(features)
        probe, state, loss = step(probe, state, scale, features, label, size)
    if probe is None:
        raise ValueError("a probe needs batches to be fitted to")
    return _folded(probe, *scale), float(loss)


def _scale(features):
    """(mean [width], standard deviation [width]) of a batch's channels, in float32."""
    features = features.astype(jnp.float32)
    return jnp.mean(features, axis=(0, 1, 2)), jnp.std(features, axis=(0, 1, 2)) + 1e-6


def _folded(probe, mean, std):
    """The probe on features that are not standardised."""
    kernel = probe["kernel"] / std[:, None]
    return {"kernel": kernel,
            "bias": probe["bias"] - jnp.matmul(mean, kernel, precision="highest")}
