"""Sums over all pairs of pixels that a kernel ties, and the energies that are made of them.

Every regularized loss of the field is a function of three sums, whatever the kernel and however it
is evaluated. One pass of the kernel gives them and their gradients.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class PairSums(NamedTuple):
    r"""Of an image: W the kernel [n, n], a_k the assignment to class k, r the region of interest.

    agreement: :math:`a_k^T W a_k`, float [b, k]. volume: :math:`a_k^T W r`, [b, k]. total:
    :math:`r^T W r`, [b].
    """
    agreement: jax.Array
    volume: jax.Array
    total: jax.Array


def pair_sums(kernel_filter, assignment, cues, roi=None):
    """The PairSums of a soft assignment.

    The kernel is symmetric, so what it makes of the assignment in the forward pass is half of the
    gradient already: the backward pass evaluates no kernel, unless the cues have a gradient.

    Args:
      kernel_filter: (values [b, h, w, d], cues) -> [b, h, w, d], the kernel times the values.
      assignment: float [b, h, w, k]; classes of a pixel need not sum to 1.
      cues: float [b, h, w, c], as kernel_filter takes them; None for none.
      roi: float [b, h, w], 0 where a pixel does not count, or None: all count. No gradient.
    """
    def plain(assignment, cues, roi):
        values = jnp.concatenate([assignment, jnp.ones_like(assignment[..., :1])], axis=-1)
        values = values * roi
        filtered = kernel_filter(values, cues) * roi
        classes, degree = filtered[..., :-1], filtered[..., -1:]
        sums = PairSums(jnp.sum(assignment * classes, axis=(1, 2)),
                        jnp.sum(assignment * degree, axis=(1, 2)),
                        jnp.sum(degree, axis=(1, 2))[:, 0])
        return sums, (classes, degree)

    @jax.custom_vjp
    def sums(assignment, cues, roi):
        return plain(assignment, cues, roi)[0]

    def forward(assignment, cues, roi):
        answer, filtered = plain(assignment, cues, roi)
        return answer, (assignment, cues, roi, *filtered)

    def backward(kept, cotangent):
        assignment, cues, roi, classes, degree = kept
        agreement, volume = (x[:, None, None, :] for x in cotangent[:2])
        gradient = 2 * agreement * classes + volume * degree
        # Without a use for the cues' gradient, the compiler drops this and its kernel.
        _, pull = jax.vjp(lambda cues: plain(assignment, cues, roi)[0], cues)
        return gradient, pull(cotangent)[0], jnp.zeros_like(roi)

    sums.defvjp(forward, backward)
    assignment = assignment.astype(jnp.float32)
    roi = jnp.ones_like(assignment[..., :1]) if roi is None else \
        roi[..., None].astype(jnp.float32)
    return sums(assignment, cues, roi)


def potts_energy(sums):
    r"""Normalised Potts energy :math:`1 - \sum_k a_k^T W a_k / r^T W r`, float [b] in [0, 1].

    With classes that sum to 1 in r and to 0 outside it is
    :math:`\sum_{ij} W_{ij} (1 - \sum_k a_{ik} a_{jk}) / \sum_{ij} W_{ij}`.
    The relaxed Potts model of DenseCRF losses (Tang et al. 2018, arXiv 1803.09569), made
    independent of the resolution.
    """
    cut = sums.total - jnp.sum(sums.agreement, axis=-1)
    return cut / jnp.maximum(sums.total, 1e-12)


def normalized_cut(sums):
    r"""Normalised cut :math:`\sum_k a_k^T W (1 - a_k) / a_k^T W 1`, float [b], 0 to k - 1.

    Shi and Malik's, relaxed as in Tang et al. 2018 (arXiv 1804.01346); a class without any mass
    adds nothing.
    """
    cut = sums.volume - sums.agreement
    return jnp.sum(cut / jnp.maximum(sums.volume, 1e-6 * sums.total[:, None] + 1e-12), axis=-1)
