"""The feature consistency head's loss: deep features that tell which pixels belong together."""

import jax
import jax.numpy as jnp


def pair_loss(features, label, valid, num_classes):
    r"""Binary cross entropy of the affinity of all pairs of sampled pixels (our reconstruction).

    .. math:: A_{ij} = e^{-|g_i - g_j|^2 / 2}, \qquad
              L = \tfrac12 \, \overline{-\log A_{ij}}^{\,y_i = y_j}
                + \tfrac12 \, \overline{-\log (1 - A_{ij})}^{\,y_i \ne y_j}

    DFR (arXiv 2108.01296) trains a head on pair-wise relations; that it is this follows the same
    first author's affinity network (A2GNN, methods.md 3.2), with two changes: all pairs of a
    sample, of other images too, for pairs of a window hardly ever have two strokes in them; and
    the mean over equal pairs gives every class the same weight, not background and the rest.

    Args:
      features: float [n, d], g. label: int [n]. valid: bool [n], those that take part.
      num_classes: labels are below it.

    Returns:
      float32 scalar; a kind of pair that does not occur adds nothing.
    """
    features = features.astype(jnp.float32)
    square = jnp.sum(features ** 2, axis=-1)
    product = jnp.matmul(features, features.T, precision="highest")
    distance = jnp.maximum(0.5 * (square[:, None] + square[None]) - product, 0.0)
    both = valid[:, None] & valid[None] & ~jnp.eye(len(label), dtype=bool)
    same = label[:, None] == label[None]
    # A class' own mean over its pairs, then over the classes that have any.
    member = jax.nn.one_hot(jnp.where(valid, label, num_classes), num_classes)
    equal = (both & same).astype(jnp.float32)
    pairs = member.T @ jnp.sum(equal, axis=1)
    pulled = member.T @ jnp.sum(equal * distance, axis=1) / jnp.maximum(pairs, 1.0)
    pull = jnp.sum(pulled) / jnp.maximum(jnp.sum(pairs > 0), 1)
    other = (both & ~same).astype(jnp.float32)
    push = -jnp.log(jnp.maximum(-jnp.expm1(-distance), 1e-5))
    return 0.5 * pull + 0.5 * jnp.sum(other * push) / jnp.maximum(jnp.sum(other), 1.0)
