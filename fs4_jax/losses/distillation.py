"""Self-distillation: a student predicts its teacher's assignment of another view (DINO, iBOT)."""

import jax
import jax.numpy as jnp

from fs4_jax.clustering import sinkhorn
from fs4_jax.clustering.kmeans import unit_length


def centred_targets(cosines, centre, temperature):
    """softmax((cosines - centre) / temperature), float32 [..., k]: DINO's equation 2 with a centre.

    Args:
      cosines: float [..., k], the teacher's. centre: float [k]. temperature: > 0.
    """
    return jax.lax.stop_gradient(jax.nn.softmax((cosines - centre) / temperature))


def moved_centre(centre, cosines, momentum, valid=None):
    """The centre [k] after a batch: an average of the teacher's outputs (DINO, equation 4).

    Args:
      centre: float [k]. cosines: float [n, k]. momentum: in [0, 1]. valid: bool [n], who votes.
    """
    vote = jnp.ones(len(cosines)) if valid is None else valid.astype(jnp.float32)
    total = jnp.sum(vote)
    mean = jnp.sum(cosines * vote[:, None], axis=0) / jnp.maximum(total, 1)
    moved = momentum * centre + (1 - momentum) * mean
    return jax.lax.stop_gradient(jnp.where(total > 0, moved, centre))


def balanced_targets(cosines, temperature, num_iters, valid=None):
    """Targets of equal mass for every prototype (SwAV's Sinkhorn, as DINOv2 uses it).

    Args:
      cosines: float [n, k], of the global batch. temperature: > 0, may be traced.
      num_iters: as for `sinkhorn`.
      valid: bool [n]; the others get rows of zeros.
    """
    return sinkhorn(cosines / temperature, 1.0, num_iters, valid=valid)


def view_loss(student, targets, temperature):
    r"""Every view predicts the teacher's target of every other global view.

    .. math:: L = \frac{1}{|P|} \sum_{(t, s) \in P} -\, q_t \cdot \log \mathrm{softmax}(s / \tau),
              \quad P = \{(t, s): s \ne t\}

    DINO (arXiv 2104.14294, equation 3), averaged over pairs.

    Args:
      student: float [b, v, k], cosines of the views, the g global ones first.
      targets: float [b, g, k], of the global views. temperature: the student's.

    Returns:
      float32 scalar.
    """
    log_p = jax.nn.log_softmax(student.astype(jnp.float32) / temperature)
    losses = -jnp.einsum("bgk,bvk->gv", targets, log_p, precision="highest") / len(student)
    pairs = 1 - jnp.eye(targets.shape[1], student.shape[1])
    return jnp.sum(losses * pairs) / jnp.sum(pairs)


def masked_token_loss(student, targets, valid, temperature):
    """Masked patches predict what the teacher sees there (iBOT, arXiv 2111.07832, equation 2).

    Args:
      student: float [n, m, k], cosines of n images' masked patches. targets: float [n, m, k].
      valid: bool [n, m]. temperature: the student's.

    Returns:
      float32 scalar: mean over an image's masked patches, then over images that have some.
    """
    log_p = jax.nn.log_softmax(student.astype(jnp.float32) / temperature)
    losses = -jnp.sum(targets * log_p, axis=-1) * valid
    count = jnp.sum(valid, axis=1)
    per_image = jnp.sum(losses, axis=1) / jnp.maximum(count, 1)
    return jnp.sum(per_image) / jnp.maximum(jnp.sum(count > 0), 1)


def regression_loss(predicted, target, limit=4.0):
    """Mean squared error to targets [..., c] of mean 0 and deviation 1 over the batch.

    Args:
      predicted, target: float [..., c]. limit: farther values count as this many deviations.

    Returns:
      float32 scalar; 1 for a constant prediction.
    """
    places = tuple(range(target.ndim - 1))
    target = target - jnp.mean(target, axis=places)
    target = target / (jnp.std(target, axis=places) + 1e-3)
    target = jax.lax.stop_gradient(jnp.clip(target, -limit, limit))
    return jnp.mean(jnp.square(predicted - target))


def koleo(features, epsilon=1e-8):
    r"""Spreads features: minus the mean log distance to the nearest other one (KoLeo).

    .. math:: -\frac1n \sum_i \log \min_{j \ne i} \lVert x_i - x_j \rVert

    Sablayrolles et al. 2019 (arXiv 1806.03198, equation 2), on unit vectors, as in DINOv2.

    Args:
      features: float [n, d], n >= 2, made unit length here. epsilon: keeps twins finite.

    Returns:
      float32 scalar.
    """
    x = unit_length(features.astype(jnp.float32))
    cosines = jnp.matmul(x, x.T, precision="highest")
    nearest = jnp.argmax(jnp.where(jnp.eye(len(x), dtype=bool), -2.0, cosines), axis=1)
    squared = jnp.sum(jnp.square(x - x[nearest]), axis=1)
    return -0.5 * jnp.mean(jnp.log(squared + epsilon))
