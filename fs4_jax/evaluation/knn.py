"""k nearest neighbours: what labelled tokens say of others, with nothing trained."""

import functools

import jax
import jax.numpy as jnp

from fs4_jax.clustering.kmeans import unit_length
from fs4_jax.evaluation.confusion import IGNORE_LABEL

_BLOCK = 4096


def token_labels(label, size, grid, num_classes):
    """The class most of a token's labelled pixels have, int32 [b, h, w]; 255 where none has one.

    Args:
      label: int [b, H, W], 255 = ignore and padding. size: int [b, 2], each label's own height
        and width. grid: (h, w) tokens that cover it. num_classes: of the labels.
    """
    h, w = grid
    across = jax.nn.one_hot(_bins(label.shape[2], size[:, 1], w), w)               # [b, W, w]
    down = jax.nn.one_hot(_bins(label.shape[1], size[:, 0], h), h)                 # [b, H, h]

    def votes(c):
        rows = jnp.einsum("bHW,bWw->bHw", (label == c).astype(jnp.float32), across)
        return jnp.einsum("bHw,bHh->bhw", rows, down)

    votes = jnp.moveaxis(jax.lax.map(votes, jnp.arange(num_classes)), 0, -1)
    return jnp.where(jnp.max(votes, axis=-1) > 0, jnp.argmax(votes, axis=-1), IGNORE_LABEL)


def _bins(length, own, number):
    """Which of `number` equal parts of its image's own side a pixel lies in, int [b, length]."""
    place = (jnp.arange(length) + 0.5) * number / own[:, None]
    return jnp.floor(place).astype(jnp.int32)               # beyond `number`: one_hot gives zeros


@functools.partial(jax.jit, static_argnames=("num_classes", "num_neighbours"))
def knn_scores(tokens, bank, bank_labels, *, num_classes, num_neighbours=20, temperature=0.07):
    """Votes of the nearest labelled tokens, weighted by exp(cosine / temperature).

    DINO's kNN classifier (Wu et al. 2018, arXiv 1805.01978, section 3.4), on patch tokens.

    Args:
      tokens: float [n, d]. bank: float [m, d], m >= num_neighbours. bank_labels: int [m].

    Returns:
      float32 [n, num_classes], rows sum to 1.
    """
    bank = unit_length(bank.astype(jnp.float32))

    def block(x):
        cosine = jnp.matmul(unit_length(x.astype(jnp.float32)), bank.T, precision="highest")
        nearest, index = jax.lax.top_k(cosine, num_neighbours)
        weight = jax.nn.softmax(nearest / temperature)
        return jnp.einsum("nk,nkc->nc", weight, jax.nn.one_hot(bank_labels[index], num_classes))

    n = len(tokens)
    padded = jnp.pad(tokens, ((0, -n % _BLOCK), (0, 0))).reshape(-1, _BLOCK, tokens.shape[-1])
    return jax.lax.map(block, padded).reshape(-1, num_classes)[:n]
