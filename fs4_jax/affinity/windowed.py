"""Gaussian kernels over a window: bilateral averages, attention, the Potts energy of labels.

The kernel is evaluated one step of the window at a time, once more where a backward pass needs it,
and never stored for all of them: memory is that of a few maps, cost grows with pixels x window.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fs4_jax.affinity.pairs import pair_sums, potts_energy


def windowed_average(values, cues, *, radius, position_sigma, dilations=(1,)):
    r"""Weighted mean of each pixel's window (a joint bilateral filter).

    .. math:: c_i = \sum_j k_{ij} f_j / \sum_j k_{ij}, \qquad
              k_{ij} = \sum_s e^{-|p_i-p_j|^2 / 2 s^2 \sigma^2 - |I_i-I_j|^2 / 2}

    methods.md 1.3, form 1 (our reconstruction of CAE's gathering step). The window is cut at
    the image border; the pixel itself takes part.

    Args:
      values: float [b, h, w, d], what is averaged.
      cues: float [b, h, w, c], divided by their sigmas beforehand (colour, features).
      radius: the window is (2 radius + 1)^2 pixels.
      position_sigma: in steps of the window, whatever their length.
      dilations: lengths s of a step, in pixels. Each has its own window; k sums over those that
        hold j.

    Returns:
      float [b, h, w, d].
    """
    reach, steps = _window(radius, dilations)
    padded_values, padded_cues = _pad(values, reach), _pad(cues, reach)

    def term(step):
        kernel = jnp.exp(_log_kernel(cues, padded_cues, step, reach, position_sigma))
        return kernel * _neighbour(padded_values, step, reach), kernel

    total, weight = _sum_over(steps, term)
    return total / weight


def windowed_attention(queries, keys, values, cues, *, radius, position_sigma, dilations=(1,)):
    r"""Attention over each pixel's window, the log of `windowed_average`'s kernel its bias.

    .. math:: c_i = \sum_j a_{ij} f_j, \qquad
              a_{ij} \propto k_{ij} \, e^{q_i \cdot k_j / \sqrt d}, \qquad \sum_j a_{ij} = 1

    methods.md 1.3, form 2. Queries of zeros give `windowed_average`.

    Args:
      queries, keys: float [b, h, w, d].
      values: float [b, h, w, e], what is averaged.
      cues, radius, position_sigma, dilations: as for `windowed_average`.

    Returns:
      float [b, h, w, e].
    """
    reach, steps = _window(radius, dilations)
    padded_values = _pad(values, reach)
    maps = (queries / queries.shape[-1] ** 0.5, _pad(keys, reach), cues, _pad(cues, reach))

    def logit(step, queries, padded_keys, cues, padded_cues):
        content = jnp.sum(queries * _neighbour(padded_keys, step, reach), axis=-1, keepdims=True)
        return content + _log_kernel(cues, padded_cues, step, reach, position_sigma)

    # The largest logit first, which needs no gradient: it cancels. A running maximum would have
    # to keep its rescalings of all steps for the backward pass.
    fixed = jax.lax.stop_gradient(maps)
    largest, _ = jax.lax.scan(
        lambda largest, step: (jnp.maximum(largest, logit(step, *fixed)), None),
        jnp.full(queries.shape[:3] + (1,), -jnp.inf), steps)

    def term(step):
        weight = jnp.exp(logit(step, *maps) - largest)
        return weight * _neighbour(padded_values, step, reach), weight

    total, weight = _sum_over(steps, term)
    return total / weight


def windowed_filter(values, cues, *, radius, position_sigma, dilations=(1,)):
    r"""Sums of each pixel's neighbours, weighted by the kernel: :math:`y_i = \sum_j k_{ij} x_j`.

    The kernel is `windowed_average`'s without the pixel itself; it is symmetric, so each pair is
    visited once.

    Args:
      values: float [b, h, w, d].
      cues, radius, position_sigma, dilations: as for `windowed_average`.

    Returns:
      float [b, h, w, d].
    """
    reach, steps = _window(radius, dilations, half=True)
    padded_values, padded_cues = _pad(values, reach), _pad(cues, reach)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def products(step):
        kernel = jnp.exp(_log_kernel(cues, padded_cues, step, reach, position_sigma))
        return kernel * _neighbour(padded_values, step, reach), kernel * values

    def add(total, step):
        there, here = products(step)
        for place, product in ((jnp.zeros_like(step), there), (step, here)):
            seen = _neighbour(total, place, reach)
            total = jax.lax.dynamic_update_slice(total, seen + product, _corner(place, reach))
        return total, None

    total, _ = jax.lax.scan(add, jnp.zeros_like(padded_values), steps)
    h, w = values.shape[1:3]
    return total[:, reach:reach + h, reach:reach + w]


def windowed_kernel_energy(assignment, cues, *, radius, position_sigma, dilations=(1,), roi=None):
    r"""Normalised Potts energy of a soft assignment under a windowed Gaussian kernel.

    .. math:: R = \sum_{ij} k_{ij} (1 - \sum_k a_{ik} a_{jk}) / \sum_{ij} k_{ij}

    The regularizer of design.md (the relaxed Potts model of Tang et al. 2018, arXiv
    1803.09569, over a window as in GatedCRF, arXiv 1906.04651). Pairs inside the image, the
    pixel itself left out. One pass over the window gives the energy and its gradient.

    Args:
      assignment: float [b, h, w, k], rows sum to 1.
      cues: float [b, h, w, c], divided by their sigmas beforehand. Gradients reach them:
        stop them outside where the kernel is meant to be fixed.
      radius, position_sigma, dilations: as for `windowed_average`.
      roi: float [b, h, w] in [0, 1], the pixels that count, or None: all.

    Returns:
      float [b], in [0, 1]: 0 where every pair of similar neighbours agrees.
    """
    kernel = functools.partial(windowed_filter, radius=radius, position_sigma=position_sigma,
                               dilations=tuple(dilations))
    return potts_energy(pair_sums(kernel, assignment, cues, roi))


def _window(radius, dilations, *, half=False):
    """(reach in pixels, steps int32 [n, 3]: rows and columns in steps, the step in pixels).

    The pixel itself comes first; half: one of each opposite pair, without the pixel itself.
    """
    side = range(-radius, radius + 1)
    steps = [(rows, columns, dilation) for dilation in dilations for rows in side
             for columns in side if (rows, columns) > (0, 0) or not half]
    steps.sort(key=lambda step: step[:2] != (0, 0))
    return radius * max(dilations), np.array(steps, np.int32).reshape(-1, 3)


def _sum_over(steps, term):
    """Sum of the arrays term(step), one step at a time; of each step nothing is kept."""
    shapes = jax.eval_shape(term, jax.ShapeDtypeStruct((3,), jnp.int32))
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    term = jax.checkpoint(term, prevent_cse=False)     # the backward pass computes it again
    total, _ = jax.lax.scan(lambda total, step: (jax.tree.map(jnp.add, total, term(step)), None),
                            start, steps)
    return total


def _log_kernel(cues, padded_cues, step, reach, position_sigma):
    """log k between each pixel and its neighbour, [b, h, w, 1]; -inf outside the image."""
    rows, columns, dilation = step
    difference = cues - _neighbour(padded_cues, step, reach)
    exponent = jnp.sum(difference * difference, axis=-1, keepdims=True)
    exponent = exponent + (rows * rows + columns * columns) / position_sigma ** 2
    h, w = cues.shape[1:3]
    row, column = jnp.arange(h) + rows * dilation, jnp.arange(w) + columns * dilation
    inside = ((row >= 0) & (row < h))[:, None, None] & ((column >= 0) & (column < w))[:, None]
    return jnp.where(inside, -0.5 * exponent, -jnp.inf)


def _pad(x, reach):
    """A frame of zeros around [b, h, w, d]; padded once, sliced for every step."""
    return jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))


def _neighbour(padded, step, reach):
    """x[:, r + dy, c + dx] for every (r, c), zeros outside the image."""
    b, height, width, d = padded.shape
    return jax.lax.dynamic_slice(padded, _corner(step, reach),
                                 (b, height - 2 * reach, width - 2 * reach, d))


def _corner(step, reach):
    """Where the image begins in a padded one that a step has moved."""
    rows, columns, dilation = step
    return 0, reach + rows * dilation, reach + columns * dilation, 0
