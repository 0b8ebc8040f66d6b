"""Gaussian kernels over a window: bilateral averages and the Potts energy of a soft assignment.

The kernel is evaluated one offset of the window at a time and never stored for all of them:
memory is that of a few maps, cost grows with pixels x window.
"""

import jax.numpy as jnp


def windowed_average(values, cues, *, radius, position_sigma, dilation=1):
    r"""Weighted mean of each pixel's window (a joint bilateral filter).

    .. math:: c_i = \sum_j k_{ij} f_j / \sum_j k_{ij}, \qquad
              k_{ij} = e^{-|p_i-p_j|^2 / 2\sigma^2 - |I_i-I_j|^2 / 2}

    methods.md 1.3, form 1 (our reconstruction of CAE's gathering step). The window is cut at
    the image border; the pixel itself takes part.

    Args:
      values: float [b, h, w, d], what is averaged.
      cues: float [b, h, w, c], divided by their sigmas beforehand (colour, features).
      radius: the window is (2 radius + 1)^2 pixels.
      position_sigma: in pixels.
      dilation: step between the window's pixels.

    Returns:
      float [b, h, w, d].
    """
    total, weight = values, jnp.ones(values.shape[:3] + (1,), values.dtype)
    reach = radius * dilation
    padded_values, padded_cues = _pad(values, reach), _pad(cues, reach)
    for offset in _offsets(radius, dilation, half=False):
        kernel = _kernel(cues, padded_cues, offset, reach, position_sigma)
        total = total + kernel * _neighbour(padded_values, offset, reach)
        weight = weight + kernel
    return total / weight


def windowed_kernel_energy(assignment, cues, *, radius, position_sigma, dilation=1):
    r"""Normalised Potts energy of a soft assignment under a windowed Gaussian kernel.

    .. math:: R = \sum_{ij} k_{ij} (1 - \sum_k a_{ik} a_{jk}) / \sum_{ij} k_{ij}

    The regularizer of design.md (the relaxed Potts model of Tang et al. 2018, arXiv
    1803.09569, over a window as in GatedCRF, arXiv 1906.04651). Pairs inside the image, the
    pixel itself left out; each unordered pair is visited once.

    Args:
      assignment: float [b, h, w, k], rows sum to 1.
      cues: float [b, h, w, c], divided by their sigmas beforehand. Gradients reach them:
        stop them outside where the kernel is meant to be fixed.
      radius, position_sigma, dilation: as for `windowed_average`.

    Returns:
      float [b], in [0, 1]: 0 where every pair of similar neighbours agrees.
    """
    energy = jnp.zeros(assignment.shape[0])
    weight = jnp.zeros(assignment.shape[0])
    reach = radius * dilation
    padded_assignment, padded_cues = _pad(assignment, reach), _pad(cues, reach)
    for offset in _offsets(radius, dilation, half=True):
        kernel = _kernel(cues, padded_cues, offset, reach, position_sigma)[..., 0]
        agree = jnp.sum(assignment * _neighbour(padded_assignment, offset, reach), axis=-1)
        energy += jnp.sum(kernel * (1.0 - agree), axis=(1, 2))
        weight += jnp.sum(kernel, axis=(1, 2))
    return energy / jnp.maximum(weight, 1e-12)


def _offsets(radius, dilation, *, half):
    """The window's steps (dy, dx) without (0, 0); `half`: one of each opposite pair."""
    steps = range(-radius, radius + 1)
    offsets = [(dy, dx) for dy in steps for dx in steps if (dy, dx) > (0, 0) or not half]
    return [(dy * dilation, dx * dilation) for dy, dx in offsets if (dy, dx) != (0, 0)]


def _kernel(cues, padded_cues, offset, reach, position_sigma):
    """k between each pixel and its neighbour at an offset, [b, h, w, 1]; 0 outside the image."""
    dy, dx = offset
    difference = cues - _neighbour(padded_cues, offset, reach)
    exponent = jnp.sum(difference * difference, axis=-1, keepdims=True)
    exponent = exponent + (dy * dy + dx * dx) / position_sigma ** 2
    h, w = cues.shape[1:3]
    rows = (jnp.arange(h) + dy >= 0) & (jnp.arange(h) + dy < h)
    columns = (jnp.arange(w) + dx >= 0) & (jnp.arange(w) + dx < w)
    inside = rows[:, None, None] & columns[None, :, None]
    return jnp.exp(-0.5 * exponent) * inside


def _pad(x, reach):
    """A frame of zeros around [b, h, w, d]; padded once, sliced for every offset."""
    return jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))


def _neighbour(padded, offset, reach):
    """x[:, r + dy, c + dx] for every (r, c), zeros outside the image."""
    dy, dx = offset
    h, w = padded.shape[1] - 2 * reach, padded.shape[2] - 2 * reach
    return padded[:, reach + dy:reach + dy + h, reach + dx:reach + dx + w]
