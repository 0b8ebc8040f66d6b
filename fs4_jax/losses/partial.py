"""Cross entropy over the pixels that somebody has labelled."""

import jax
import jax.numpy as jnp

from fs4_jax.evaluation.confusion import IGNORE_LABEL


def partial_cross_entropy(logits, label):
    r"""Mean cross entropy of labelled pixels (Tang et al. 2018, arXiv 1803.09569, pCE).

    .. math:: L = - \sum_{i \in \Omega} \log \mathrm{softmax}(s_i)_{y_i} / |\Omega|

    The mean is over the labelled pixels of the whole batch, not of each image. rloss' PyTorch
    example divides by the size of the batch once more (methods.md 4.2); this does not.

    Args:
      logits: float [b, h, w, k]; upsampled bilinearly where the labels are finer.
      label: int [b, H, W], 255 where nobody has labelled.

    Returns:
      float32 scalar; 0 where the batch has no labelled pixel.
    """
    logits = logits.astype(jnp.float32)
    shape = (label.shape[0], *label.shape[1:3], logits.shape[-1])
    logits = jax.image.resize(logits, shape, "linear", antialias=False)
    labelled = label != IGNORE_LABEL
    wanted = jnp.where(labelled, label, 0).astype(jnp.int32)
    right = jnp.take_along_axis(logits, wanted[..., None], axis=-1)[..., 0]
    each = jax.nn.logsumexp(logits, axis=-1) - right
    return jnp.sum(jnp.where(labelled, each, 0.0)) / jnp.maximum(jnp.sum(labelled), 1)
