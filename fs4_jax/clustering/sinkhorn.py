"""Sinkhorn assignment: soft labels whose cluster sizes follow a prior (optimal transport)."""

import functools

import jax
import jax.numpy as jnp

# Numbers below it are zero in float32. Relative to a sum, what is lost so must be below _LOSS.
_TINY = float(jnp.finfo(jnp.float32).tiny)
_LOSS = 1e-8


def sinkhorn(scores, epsilon=0.05, num_iters=3, *, prior=None, marginal_relaxation=1.0,
             valid=None):
    r"""Assigns n points to k clusters so that the clusters' masses follow `prior`.

    .. math:: Q = \mathrm{diag}(u)\, e^{S/\epsilon}\, \mathrm{diag}(v), \qquad
              v = (n\,\pi / K^\top u)^{\rho}, \quad u = 1 / (K v)

    The form of SwAV (Caron et al. 2020, arXiv 2006.09882, appendix A.1), kept as two scaling
    vectors: one read of the matrix per half step instead of a read and a write. With
    :math:`\rho < 1` the column constraint is soft (unbalanced transport with a KL penalty,
    Chizat et al. 2018, :math:`\rho = \lambda / (\lambda + \epsilon)`): real classes are not
    equal in size. Sums run over all the points: under jit with sharded scores they are global.

    float32 holds :math:`e^{S/\epsilon}` for cosines and the usual epsilons. Whether it did is
    read off the sums; if not (a large range, a small epsilon), the same iterations run again on
    logarithms, which no range of scores can overflow or underflow.

    Args:
      scores: float [n, k], similarities (cosines: in [-1, 1]).
      epsilon: temperature, > 0; smaller is harder.
      num_iters: full iterations, >= 0 (static); 0 gives a softmax over clusters.
      prior: float [k], the wanted share of each cluster, sums to 1; None: equal shares. A
        cluster whose share is 0 gets nothing.
      marginal_relaxation: :math:`\rho` in [0, 1]; 1 asks for the prior exactly, 0 ignores it.
      valid: bool [n]; a point that is not valid has no vote and gets a row of zeros.

    Returns:
      float32 [n, k], rows sum to 1; no gradient flows through it.

    Raises:
      ValueError: scores that are no matrix, epsilon <= 0, a prior of another shape.
    """
    if scores.ndim != 2:
        raise ValueError(f"scores must be [n, k], got {scores.shape}")
    if not epsilon > 0:
        raise ValueError(f"epsilon must be > 0, got {epsilon}")
    n, k = scores.shape
    prior = jnp.full((k,), 1.0 / k) if prior is None else jnp.asarray(prior, jnp.float32)
    if prior.shape != (k,):
        raise ValueError(f"prior must be [{k}] for scores {scores.shape}, got {prior.shape}")
    arguments = jax.lax.stop_gradient((scores, epsilon, prior, marginal_relaxation))
    return _assign(*arguments, valid, num_iters=num_iters)


@functools.partial(jax.jit, static_argnames="num_iters", inline=True)
def _assign(scores, epsilon, prior, rho, valid, num_iters):
    """`sinkhorn`, compiled once for all calls of a shape."""
    vote = jnp.ones(scores.shape[:1]) if valid is None else valid.astype(jnp.float32)
    target = prior * jnp.sum(vote)

    def logits():
        # Divided where it is used: one more matrix in memory would cost more than the division.
        scaled = scores.astype(jnp.float32) / epsilon
        # Whatever stands in a row without a vote, NaN too.
        return scaled if valid is None else jnp.where(vote[:, None] > 0, scaled, 0.0)

    if num_iters == 0:
        return jax.nn.softmax(logits()) * vote[:, None]
    # A loop of one turn at most: unlike a branch, it works in the memory of the first result.
    return jax.lax.while_loop(
        lambda carry: ~carry[1],
        lambda carry: (_in_logarithms(logits(), vote, target, rho, num_iters), jnp.array(True)),
        _in_float32(logits(), vote, target, rho, num_iters))[0]


def _in_float32(scores, vote, target, rho, num_iters):
    """(assignment [n, k], whether float32 held it), from exp(scores) as it is."""
    def product(a, b):
        # In float32 on every device: an accelerator's default would round to bfloat16 or TF32.
        return jnp.matmul(a, b, precision="highest")

    def held(factor, sums):
        # A sum has lost len(factor) terms below _TINY at most, of the kernel or of the product.
        lost = _TINY * len(factor) * jnp.maximum(jnp.max(factor), 1.0)
        return (lost < _LOSS * jnp.min(sums)) & jnp.isfinite(jnp.max(sums))

    kernel = jnp.exp(scores)

    def iteration(_, carry):
        u, _, exact = carry
        columns = jnp.where(target > 0, product(u, kernel), 1.0)
        v = (target / columns) ** rho
        rows = product(kernel, v)
        return vote / rows, v, exact & held(u, columns) & held(v, rows)

    u, v, exact = jax.lax.fori_loop(0, num_iters, iteration, (vote, target, jnp.array(True)))
    return jnp.where(vote[:, None] > 0, kernel * v * u[:, None], 0.0), exact


def _in_logarithms(scores, vote, target, rho, num_iters):
    """The same assignment [n, k], from log u and log v: slower, for any range of scores."""
    voter, nothing = vote > 0, jnp.where(rho > 0, -jnp.inf, 0.0)
    log_u = jnp.where(voter, 0.0, -jnp.inf)

    def iteration(_, carry):
        log_u, _ = carry
        columns = jax.nn.logsumexp(scores + log_u[:, None], axis=0)
        log_v = jnp.where(target > 0, rho * (jnp.log(target) - columns), nothing)
        return jnp.where(voter, -jax.nn.logsumexp(scores + log_v, axis=1), -jnp.inf), log_v

    _, log_v = jax.lax.fori_loop(0, num_iters, iteration, (log_u, target))
    return jnp.where(voter[:, None], jax.nn.softmax(scores + log_v, axis=1), 0.0)
