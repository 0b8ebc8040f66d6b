"""Regularized losses of scribble supervision: what a segmentation should be like where no label is.

Tang et al. 2018 (arXiv 1803.09569 and 1804.01346), GatedCRF (Obukhov et al. 2019, arXiv
1906.04651), and DFR (arXiv 2108.01296), whose formulas are not public: that one is our
reconstruction. Each is a function of the `PairSums` of some kernel; none reaches the image.
"""

import functools

import jax
import jax.numpy as jnp

from fs4_jax.affinity import dense_filter, normalized_cut, pair_sums, potts_energy, windowed_filter


def dense_crf_loss(assignment, image, *, colour_sigma=15.0, position_sigma=100.0, scale_factor=1.0,
                   roi=None, normalized=True, leaf_size=1):
    r"""DenseCRF loss, in rloss' conventions or independent of the resolution.

    .. math:: R = -\tfrac1N \sum_{images} \sum_k a_k^T W a_k

    That is rloss' number (normalized=False): the relaxed Potts energy less a constant, so below 0,
    its own pixels' pairs included, a sum over pixels; weights are about 1e-9. normalized=True is
    `dense_kernel_energy`: the Potts energy over the kernel's sum, in [0, 1].

    Args:
      assignment: float [b, H, W, k], softmax probabilities.
      image: [b, H, W, 3], RGB in 0..255. colour_sigma: in its units.
      position_sigma: in pixels of these maps.
      scale_factor: the kernel is evaluated on maps so many times as large (image and roi by
        nearest neighbour as torch rounds, assignment bilinearly); position_sigma shrinks with them.
      roi: [b, H, W], 0 on padding, 1 elsewhere, also on unlabelled pixels; None: 1.
      leaf_size: 1 is exact, see `dense_filter`.

    Returns:
      float32 scalar.
    """
    assignment, image, roi = _scaled(assignment, image, roi, scale_factor)
    cues = jax.lax.stop_gradient(image.astype(jnp.float32) / colour_sigma)
    kernel = functools.partial(dense_filter, position_sigma=position_sigma * scale_factor,
                               leaf_size=leaf_size, self_pairs=not normalized)
    assignment = assignment if roi is None else assignment * roi[..., None]
    sums = pair_sums(kernel, assignment, cues, roi)
    return jnp.mean(potts_energy(sums) if normalized else -jnp.sum(sums.agreement, axis=-1))


def normalized_cut_loss(assignment, cues, *, position_sigma, crf_weight=0.0, roi=None,
                        leaf_size=1):
    r"""Normalised cut, or with crf_weight > 0 kernel cut (Tang et al. 2018, arXiv 1804.01346).

    .. math:: R = \tfrac1K \sum_k \frac{a_k^T W (1 - a_k)}{a_k^T W 1} + w R_{Potts}

    Published sums over classes are K times as large. Their layers were never released, so this
    follows the formulas alone.

    Args:
      assignment: float [b, h, w, k]. cues, position_sigma, leaf_size: as for `dense_filter`; no
        gradient reaches the cues. crf_weight: of the Potts energy on the same kernel.
      roi: [b, h, w], pixels that count.

    Returns:
      float32 scalar, for crf_weight=0 in [0, 1].
    """
    kernel = functools.partial(dense_filter, position_sigma=position_sigma, leaf_size=leaf_size)
    assignment = assignment if roi is None else assignment * roi[..., None]
    sums = pair_sums(kernel, assignment, jax.lax.stop_gradient(cues), roi)
    return jnp.mean(normalized_cut(sums) / assignment.shape[-1] + crf_weight * potts_energy(sums))


def gated_crf_loss(assignment, image, *, radius=5, dilations=(1,), position_sigma=6.0,
                   colour_sigma=0.1, position_weight=0.0, roi=None):
    """GatedCRF: a windowed Potts energy whose kernel is a sum of Gaussians.

    Args:
      assignment: float [b, h, w, k]. image: float [b, h, w, 3], ImageNet-normalised, area-pooled to
        the assignment's size. radius, dilations: of the window; published: 5 and (1,).
      position_sigma: in pixels of the map. colour_sigma: in normalised colour.
      position_weight: of a kernel of position alone, beside that of position and colour (0 or 0.1
        published, the other one's weight is 1 less this).
      roi: float [b, h, w], the gate: pairs count where both ends are open. The original can gate
        the two ends apart; with labels at one end that is what the partial cross entropy does.

    Returns:
      float32 scalar in [0, 1].
    """
    window = dict(radius=radius, position_sigma=position_sigma, dilations=tuple(dilations))
    cues = jax.lax.stop_gradient(image.astype(jnp.float32) / colour_sigma)

    def kernel(values, cues):
        filtered = (1 - position_weight) * windowed_filter(values, cues, **window)
        if position_weight:
            filtered += position_weight * windowed_filter(values, jnp.zeros_like(cues[..., :1]),
                                                          **window)
        return filtered

    assignment = assignment if roi is None else assignment * roi[..., None]
    return jnp.mean(potts_energy(pair_sums(kernel, assignment, cues, roi)))


def dynamic_feature_loss(assignment, shallow, features, energy, *, static_weight=0.0):
    r"""DFR: a Potts energy whose kernel has shallow and deep cues (our reconstruction).

    .. math:: R = R(K^s K^d) + w R(K^s), \qquad K^d_{ij} = e^{-|g_i - g_j|^2 / 2}

    The abstract of arXiv 2108.01296 has it that shallow and deep features make the kernel together
    and that the deep ones change as training goes; the formula is ours. The product is the literal
    reading, static_weight > 0 the sum. The deep features are those of the feature consistency head
    (`losses.consistency`), which alone trains them: no gradient reaches them here.

    Args:
      assignment: float [b, h, w, k], rows sum to 1.
      shallow: float [b, h, w, c], colour over its sigma. features: float [b, h, w, d], g.
      energy: (assignment, cues) -> float [b]: `windowed_kernel_energy` or `dense_kernel_energy`
        with its position_sigma. static_weight: w.

    Returns:
      float32 scalar.
    """
    shallow, features = jax.lax.stop_gradient((shallow, features))
    loss = jnp.mean(energy(assignment, jnp.concatenate([shallow, features], axis=-1)))
    if static_weight:
        loss += static_weight * jnp.mean(energy(assignment, shallow))
    return loss


def stroke_agreement_loss(assignment, cues, strokes, label, valid, *, apart=1e-3):
    r"""Pixels agree with the strokes that a kernel ties them to (our reconstruction, with DFR).

    .. math:: t_{ic} = \tfrac1S \sum_{s : y_s = c} e^{-|f_i - f_s|^2 / 2}, \qquad
              L = -\mathrm{mean}_i \log \frac{\sum_c t_{ic} a_{ic} + \kappa}{\sum_c t_{ic} + \kappa}

    The pairs of the Potts energy of which one end is drawn, each pixel for itself: where nothing
    is known but the kernel, 1 - sum_c t_ic a_ic / sum_c t_ic is the share of disagreeing pairs. In
    the logarithm the gradient is that of a cross entropy whose target is what model and kernel
    say together, proportional to a_ic t_ic. No gradient reaches the cues.

    Args:
      assignment: float [b, h, w, k], rows sum to 1. cues: float [b, h, w, c], over their sigmas.
      strokes: float [b, s, c], cues at drawn pixels. label: int [b, s], their classes. valid: bool
        [b, s], which of them exist.
      apart: kappa. A pixel much farther than this kernel value from every stroke, as of an object
        that the crop shows without its stroke, is left alone; so is an image without strokes.

    Returns:
      float32 scalar, at least 0.
    """
    b, k = len(assignment), assignment.shape[-1]
    pixels, strokes = jax.lax.stop_gradient((cues.reshape(b, -1, cues.shape[-1]), strokes))
    pixels, strokes = pixels.astype(jnp.float32), strokes.astype(jnp.float32)
    distance = (0.5 * jnp.sum(pixels ** 2, axis=-1)[:, :, None]
                + 0.5 * jnp.sum(strokes ** 2, axis=-1)[:, None]
                - jnp.einsum("bnd,bsd->bns", pixels, strokes, precision="highest"))
    member = jax.nn.one_hot(jnp.where(valid, label, k), k)                  # [b, s, k]
    member /= jnp.maximum(jnp.sum(valid, axis=1), 1)[:, None, None]
    tied = jnp.exp(-jnp.maximum(distance, 0.0)) @ member                    # [b, n, k]
    agreeing = jnp.sum(tied * assignment.reshape(b, -1, k), axis=-1)
    return jnp.mean(jnp.log(jnp.sum(tied, axis=-1) + apart) - jnp.log(agreeing + apart))


def feature_smoothness(features, shallow, *, radius, position_sigma, dilations=(1,)):
    r"""Mean distance of neighbours' features, weighted by the shallow kernel (A2GNN's regularizer).

    .. math:: R = \sum_{ij} k^s_{ij} \tfrac12 |g_i - g_j|^2 / \sum_{ij} k^s_{ij}

    Args:
      features: float [b, h, w, d]. shallow: float [b, h, w, c], colour over its sigma; no gradient.
      radius, position_sigma, dilations: as for `windowed_average`.

    Returns:
      float32 scalar, at least 0 up to rounding.
    """
    features = features.astype(jnp.float32)
    kernel = functools.partial(windowed_filter, radius=radius, position_sigma=position_sigma,
                               dilations=tuple(dilations))
    # |g_i - g_j|^2 / 2 = (|g_i|^2 + |g_j|^2) / 2 - g_i g_j: the sums of two kinds of channels.
    square = jnp.sum(features ** 2, axis=-1, keepdims=True)
    sums = pair_sums(kernel, jnp.concatenate([features, square], axis=-1),
                     jax.lax.stop_gradient(shallow))
    distance = sums.volume[:, -1] - jnp.sum(sums.agreement[:, :-1], axis=-1)
    return jnp.mean(distance / jnp.maximum(sums.total, 1e-12))


def _scaled(assignment, image, roi, scale):
    """Maps so many times as large, as rloss makes them: torch's "nearest" takes the first pixel."""
    if scale == 1:
        return assignment, image, roi
    h, w = (int(side * scale) for side in assignment.shape[1:3])
    rows = (jnp.arange(h) * assignment.shape[1]) // h
    columns = (jnp.arange(w) * assignment.shape[2]) // w
    shape = (assignment.shape[0], h, w, assignment.shape[-1])
    assignment = jax.image.resize(assignment, shape, "linear", antialias=False)
    image, roi = (None if x is None else x[:, rows][:, :, columns] for x in (image, roi))
    return assignment, image, roi
