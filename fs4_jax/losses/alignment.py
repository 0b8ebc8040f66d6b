"""AlignSeg's losses: prototypes agree with the image, and with those of its other crops.

Liu et al., TPAMI 2024 (doi 10.1109/TPAMI.2024.3432326); the equations are those of the released
code, but for the mixture's, which is ours (docs/alignseg.md).
"""

import jax
import jax.numpy as jnp

from fs4_jax.clustering.kmeans import unit_length


def soft_assignment(tokens, prototypes):
    r"""softmax over prototypes of relu(cosine), without a temperature: float32 [b, n, k].

    Flat by construction: with k = 5 each entry lies in [1 / (1 + 4 e), e / (e + 4)].

    Args:
      tokens: float [b, n, d]. prototypes: float [b, k, d]; both are made unit length here.
    """
    return jax.nn.softmax(jax.nn.relu(cosines(tokens, prototypes)))


def cosines(tokens, prototypes):
    """float32 [b, n, k] of tokens [b, n, d] and prototypes [b, k, d]."""
    tokens, prototypes = (unit_length(x.astype(jnp.float32)) for x in (tokens, prototypes))
    # An accelerator's default would round to bfloat16 or TF32, and the losses are flat.
    return jnp.einsum("bnd,bkd->bnk", tokens, prototypes, precision="highest")


def prototype_image_loss(tokens, prototypes, masks, *, pressure, reduction="mean"):
    r"""Patches of two crops that correlate are assigned alike, others are not.

    .. math:: c = n(F_g) n(F_i)^T, \quad c'' = c - \mathrm{mean}_m c + \mathrm{mean}\, c, \quad
              L = -\sum_{(n, m)\ \mathrm{foreground}} (a_g a_i^T)_{nm} (c''_{nm} - b_0)

    The sum over m is taken first, so that no [n, m] matrix is made: c'' is a product of tokens,
    less their mean, and a constant.

    Args:
      tokens: ([b, n, d], [b, m, d]), of the global and the local crop; no gradient reaches them.
      prototypes: ([b, k, d], [b, k, d]), adapted to each. masks: bool ([b, n], [b, m]).
      pressure: b_0, the correlation at which nothing is asked.
      reduction: "sum" as released (it grows with the batch and the foreground) or "mean", over
        the pairs (0 where there are none).

    Returns:
      float32 scalar, without the release's factor of 0.15.
    """
    soft = [soft_assignment(*pair) * mask[..., None].astype(jnp.float32)
            for pair, mask in zip(zip(tokens, prototypes), masks)]
    fg, fi = (jax.lax.stop_gradient(unit_length(x.astype(jnp.float32))) for x in tokens)
    mean = jnp.mean(fi, axis=1, keepdims=True)
    level = jnp.mean(jnp.einsum("bnd,bed->bne", fg, mean, precision="highest")) - pressure
    pulled = jnp.einsum("bmd,bmk->bdk", fi - mean, soft[1], precision="highest")
    pulled = jnp.einsum("bnd,bdk->bnk", fg, pulled, precision="highest")
    pulled = pulled + level * jnp.sum(soft[1], axis=1, keepdims=True)
    loss = -jnp.sum(soft[0] * pulled)
    if reduction == "sum":
        return loss
    pairs = jnp.sum(jnp.sum(masks[0], axis=1) * jnp.sum(masks[1], axis=1).astype(jnp.float32))
    return loss / jnp.maximum(pairs, 1)


def prototype_contrast(first, second, temperature=1.0):
    r"""NT-Xent over the prototypes of two crops of an image (SimCLR's loss, inside one image).

    .. math:: Z = [n(Q_g); n(Q_i)], \quad
              L = \mathrm{mean}_r\; -\log \frac{e^{z_r z_{r'} / T}}{\sum_{s \ne r} e^{z_r z_s / T}}

    r' is the same prototype in the other crop; the 2k - 2 others are negatives.

    Args:
      first, second: float [b, k, d]. temperature: > 0.

    Returns:
      float32 scalar, the mean over rows and images: log(2k - 1) where all prototypes are alike.
    """
    z = unit_length(jnp.concatenate([first, second], axis=1).astype(jnp.float32))
    number, k = z.shape[1], first.shape[1]
    scores = jnp.einsum("brd,bsd->brs", z, z, precision="highest") / temperature
    positive = jnp.roll(jnp.eye(number, dtype=bool), k, axis=1)
    others = jnp.where(jnp.eye(number, dtype=bool), -jnp.inf, scores)
    hits = jnp.sum(jnp.where(positive, scores, 0.0), axis=-1)
    return jnp.mean(jax.nn.logsumexp(others, axis=-1) - hits)


def mixture_loss(tokens, prototypes, weight, temperature):
    r"""How badly prototypes explain an image's tokens: the mixture's negative log likelihood.

    .. math:: L = -\mathrm{mean}_b \sum_n w_n\, \tau \log \tfrac{1}{k}
              \sum_k e^{f_n \cdot q_k / \tau}, \quad \textstyle\sum_n w_n = 1

    Ours (docs/alignseg.md); `clustering.image_mixture.settle` goes down it.

    Args: as of `settle`; no gradient reaches the tokens.

    Returns:
      float32 scalar in [-1, 1]: minus the weighted mean of the nearest prototype's cosine, softly.
    """
    near = cosines(jax.lax.stop_gradient(tokens), prototypes)
    nearest = temperature * (jax.nn.logsumexp(near / temperature, axis=-1)
                             - jnp.log(float(near.shape[-1])))
    weight = weight / jnp.sum(weight, axis=1, keepdims=True)
    return -jnp.mean(jnp.sum(weight * nearest, axis=1))


def paired_crops(crops, released=False):
    """Local crops [b, v, ...], each beside its own image's global crop.

    released: the pairing of the released code: crops run through the encoder crop after crop and
    are then read image after image, so that image i meets crops of images v i, v i + 1, ... (mod
    b).
    """
    return jnp.swapaxes(crops, 0, 1).reshape(crops.shape) if released else crops
