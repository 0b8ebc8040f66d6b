"""Pixel clustering: swapped prediction of Sinkhorn assignments across two views."""

import jax
import jax.numpy as jnp

from fs4_jax.clustering import sinkhorn


def sample_at(maps, position):
    """Reads maps at fractional grid positions, bilinearly, clamped at the border.

    Args:
      maps: float [b, h, w, d].
      position: float [b, ..., 2], (row, column); the centre of token (r, c) is (r, c).

    Returns:
      float [b, ..., d].
    """
    b, h, w, d = maps.shape
    flat = maps.reshape(b, h * w, d)
    row = jnp.clip(position[..., 0], 0, h - 1).reshape(b, -1)
    column = jnp.clip(position[..., 1], 0, w - 1).reshape(b, -1)
    top, left = jnp.floor(row), jnp.floor(column)
    down, right = row - top, column - left
    answer = 0.0
    # On the last row and column both corners coincide; the second one's weight is 0 there.
    for r, weight_r in ((top, 1 - down), (jnp.minimum(top + 1, h - 1), down)):
        for c, weight_c in ((left, 1 - right), (jnp.minimum(left + 1, w - 1), right)):
            index = (r * w + c).astype(jnp.int32)
            corner = jnp.take_along_axis(flat, index[..., None], axis=1)
            answer = answer + corner * (weight_r * weight_c)[..., None]
    return answer.reshape(position.shape[:-1] + (d,))


def swapped_prediction(student1, student2, teacher1, teacher2, valid, *, epsilon, num_iters,
                       marginal_relaxation=1.0, prior=None, balanced=True):
    r"""Each view predicts the other view's assignment of the same places.

    .. math:: L = \tfrac12 [ CE(q_1, \mathrm{softmax}(s_2)) + CE(q_2, \mathrm{softmax}(s_1)) ],
              \quad [q_1; q_2] = \mathrm{sinkhorn}([t_1; t_2])

    SwAV's loss (arXiv 2006.09882, equation 2) on pixels; that FS^4 clusters this way is our
    reconstruction (methods.md 1.3, B). The assignment is balanced over the whole batch of both
    views, all devices included; no gradient reaches it.

    Args:
      student1, student2: float [n, k], logits (cosine / temperature) of n places in both views.
      teacher1, teacher2: float [n, k], the teacher's scores at the same places, in cosines.
      valid: bool [n]; a place seen in one view only does not take part.
      epsilon, num_iters, marginal_relaxation, prior: as for `sinkhorn`.
      balanced: False replaces Sinkhorn by a softmax of the teacher's scores / epsilon.

    Returns:
      (per-place losses float32 [n], 0 where not valid; assignments q float32 [2, n, k]).
    """
    # Views side by side, so that a device keeps the rows it has.
    scores = jnp.stack([teacher1, teacher2], axis=1).reshape(-1, teacher1.shape[-1])
    both = jnp.repeat(valid, 2)
    assignment = sinkhorn(scores, epsilon, num_iters if balanced else 0, prior=prior,
                          marginal_relaxation=marginal_relaxation, valid=both)
    q1, q2 = jnp.unstack(assignment.reshape(-1, 2, scores.shape[-1]), axis=1)
    losses = 0.5 * (_cross_entropy(q1, student2) + _cross_entropy(q2, student1))
    return jnp.where(valid, losses, 0.0), jnp.stack([q1, q2])


def _cross_entropy(target, logits):
    return -jnp.sum(target * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)
