"""Sinkhorn assignment: soft labels whose cluster sizes follow a prior (optimal transport)."""

import jax
import jax.numpy as jnp

_TINY = 1e-30  # keeps an empty cluster's column sum out of a division by zero


def sinkhorn(scores, epsilon=0.05, num_iters=3, *, prior=None, marginal_relaxation=1.0,
             valid=None):
    r"""Assigns n points to k clusters so that the clusters' masses follow `prior`.

    .. math:: Q = \mathrm{diag}(u)\, e^{S/\epsilon}\, \mathrm{diag}(v), \qquad
              v = (n\,\pi / K^\top u)^{\rho}, \quad u = 1 / (K v)

    The form of SwAV (Caron et al. 2020, arXiv 2006.09882, appendix A.1), kept as two scaling
    vectors: one read of the matrix per half step instead of a read and a write. Rows are
    shifted by their own maximum, so no row can underflow, whatever the range of the scores.
    With :math:`\rho < 1` the column constraint is soft (unbalanced transport with a KL
    penalty, Chizat et al. 2018, :math:`\rho = \lambda / (\lambda + \epsilon)`): real classes
    are not equal in size. Sums run over all the points: under jit with sharded scores they
    are global.

    Args:
      scores: float [n, k], similarities (cosines: in [-1, 1]).
      epsilon: temperature, > 0; smaller is harder.
      num_iters: full iterations, >= 0; 0 gives a softmax over clusters.
      prior: float [k], the wanted share of each cluster, sums to 1; None: equal shares.
      marginal_relaxation: :math:`\rho` in [0, 1]; 1 asks for the prior exactly, 0 ignores it.
      valid: bool [n]; a point that is not valid has no vote and gets a row of zeros.

    Returns:
      float32 [n, k], rows sum to 1.
    """
    if scores.ndim != 2:
        raise ValueError(f"scores must be [n, k], got {scores.shape}")
    if not epsilon > 0:
        raise ValueError(f"epsilon must be > 0, got {epsilon}")
    num_clusters = scores.shape[1]
    scores = scores.astype(jnp.float32) / epsilon
    vote = jnp.ones(scores.shape[:1]) if valid is None else valid.astype(jnp.float32)
    scores = jnp.where(vote[:, None] > 0, scores, 0.0)      # whatever stands there, NaN too
    row_max = jnp.max(scores, axis=1)
    kernel = jnp.exp(scores - row_max[:, None])
    if prior is None:
        prior = jnp.full((num_clusters,), 1.0 / num_clusters, jnp.float32)
    target = prior * jnp.sum(vote)

    # The first column sums are those of exp(scores) itself, as in SwAV; its overall scale is free.
    highest = jnp.max(jnp.where(vote > 0, row_max, -jnp.inf))
    u = jnp.where(vote > 0, jnp.exp(row_max - highest), 0.0)
    u = u * jnp.sum(vote) / jnp.maximum(jnp.sum(u * jnp.sum(kernel, axis=1)), _TINY)
    v = jnp.ones((num_clusters,), jnp.float32)
    for _ in range(num_iters):
        # In float32 on every device: an accelerator's default would round to bfloat16 or TF32.
        columns = jnp.matmul(u, kernel, precision="highest")
        v = (target / jnp.maximum(columns, _TINY)) ** marginal_relaxation
        u = vote / jnp.maximum(jnp.matmul(kernel, v, precision="highest"), _TINY)
    assignment = kernel * v
    assignment = assignment / jnp.maximum(jnp.sum(assignment, axis=1, keepdims=True), _TINY)
    return jax.lax.stop_gradient(assignment * vote[:, None])
