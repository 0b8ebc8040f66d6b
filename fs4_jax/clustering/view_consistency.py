"""In which directions places differ, measured by how much two views of one place differ."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

_RIDGE = 0.1              # of the mean variance: keeps directions that are all noise small


def scatter(cues1, cues2, valid):
    """Sums over pairs of the same place seen in two views, for `consistent_projection`.

    Args:
      cues1, cues2: float [b, h, w, d]. valid: bool [b, h, w].

    Returns:
      dict with a leading axis of 1: "count", "sum" [d], "total" [d, d], "within" [d, d].
    """
    d = cues1.shape[-1]
    cues1, cues2 = cues1.reshape(-1, d), cues2.reshape(-1, d)
    vote = valid.reshape(-1, 1).astype(jnp.float32)
    both = jnp.concatenate([cues1 * vote, cues2 * vote])
    difference = (cues1 - cues2) * vote
    # An accelerator's default would round to bfloat16 or TF32.
    square = functools.partial(jnp.matmul, precision="highest")
    sums = {"count": 2 * jnp.sum(vote), "sum": jnp.sum(both, axis=0),
            "total": square(both.T, both), "within": square(difference.T, difference)}
    return jax.tree.map(lambda x: x[None], sums)


def consistent_projection(sums, width):
    r"""The linear map in which places differ most, measured by how much two views of one differ.

    .. math:: \max_v\; v^\top S_t v / v^\top S_w v

    S_t scatters over all places and views, S_w over the two views of a place: discriminant
    analysis with every place its own class. What a change of light and framing changes (colour,
    noise) counts little; what tells places apart in spite of it counts much. Our reconstruction.

    Args:
      sums: the answers of `scatter`, concatenated. width: components wanted.

    Returns:
      {"kernel": [d, width], "bias": [width]} of a Dense: centred, unit variance between views;
      where d < width the rest is zero.
    """
    sums = {name: x.astype(np.float64).sum(0) for name, x in sums.items()}
    mean = sums["sum"] / sums["count"]
    total = sums["total"] / sums["count"] - np.outer(mean, mean)
    within = sums["within"] / sums["count"]
    scale = 1.0 / np.sqrt(np.maximum(np.diag(total), 1e-8))
    total, within = total * np.outer(scale, scale), within * np.outer(scale, scale)
    within += _RIDGE * np.trace(within) / len(within) * np.eye(len(within))
    values, vectors = scipy.linalg.eigh(total, within)
    kept = min(width, len(values))
    kernel = np.zeros((len(values), width))
    kernel[:, :kept] = scale[:, None] * vectors[:, ::-1][:, :kept]
    return {"kernel": kernel.astype(np.float32), "bias": (-mean @ kernel).astype(np.float32)}
