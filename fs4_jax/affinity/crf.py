"""The fully connected CRF: mean field with Gaussian kernels over position and colour.

Krahenbuhl and Koltun, Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials
(arXiv 1210.5644), with the conventions of pydensecrf, which STEGO and its successors refine their
masks with (protocols.md 2f): symmetric normalisation, Potts compatibility, ten iterations.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fs4_jax.affinity.permutohedral import Lattice, build_lattice, filter_lattice

_LEAST = 1e-5              # pydensecrf's clip of a probability, in unary_from_softmax
_LANES = 16                # numbers that a row of a table is a multiple of
_SETTINGS = dict(sxy_gaussian=1, compat_gaussian=3, sxy_bilateral=67, srgb=3, compat_bilateral=4,
                 num_iters=10)


def dense_crf(image, probabilities, **settings):
    r"""Class probabilities refined by a dense CRF; the defaults are STEGO's.

    .. math:: Q_i \propto p_i \exp\Big(\sum_m w_m \sum_j \hat k^m_{ij} Q_j\Big), \quad
              \hat K = D^{-1/2} K D^{-1/2}

    with k over position (w = compat_gaussian) and over position and colour (compat_bilateral).
    The sums over j run over all pixels, by the permutohedral lattice, whose sorting is done on
    the host: not for use inside of jit. Gradients reach `probabilities`.

    Args:
      image: [h, w, 3] or [b, h, w, 3], 0 to 255, not normalised; the order of the channels does
        not matter.
      probabilities: float [..., h, w, k] of the same h and w, rows sum to 1; below 1e-5 they
        count as 1e-5.
      sxy_gaussian, sxy_bilateral: standard deviations of position, in pixels.
      srgb: standard deviation of colour, in the image's units.
      compat_gaussian, compat_bilateral: weights of the kernels.
      num_iters: of the mean field.

    Returns:
      float32, shaped as `probabilities`; rows sum to 1.

    Raises:
      ValueError: shapes that do not fit; an image that is no number.
    """
    return _dense_crf(image, probabilities, _lattice_kernels, **{**_SETTINGS, **settings})


def dense_crf_exact(image, probabilities, **settings):
    """`dense_crf` with exact kernel sums, a block of rows at a time: the referee.

    Cost grows with the square of the number of pixels; memory is that of a block.
    """
    return _dense_crf(image, probabilities, _exact_kernels, **{**_SETTINGS, **settings})


def _dense_crf(image, probabilities, make_kernels, *, num_iters, **settings):
    image = np.asarray(image)
    if image.ndim not in (3, 4) or image.shape[-1] != 3:
        raise ValueError(f"image must be [h, w, 3] or [b, h, w, 3], got {image.shape}")
    if probabilities.ndim != image.ndim or probabilities.shape[:-1] != image.shape[:-1]:
        raise ValueError(f"probabilities {probabilities.shape} do not fit an image of "
                         f"{image.shape}: give [..., h, w, k] of the same size")
    if image.ndim == 3:
        return _one(image, probabilities, make_kernels, num_iters, settings)
    return jnp.stack([_one(i, p, make_kernels, num_iters, settings)
                      for i, p in zip(image, probabilities)])


def _one(image, probabilities, make_kernels, num_iters, settings):
    kernels, compat = make_kernels(image, **settings)
    flat = probabilities.reshape(-1, probabilities.shape[-1])
    return mean_field(kernels, compat, flat, num_iters=num_iters).reshape(probabilities.shape)


@functools.partial(jax.jit, static_argnames="num_iters")
def mean_field(kernels, compat, probabilities, *, num_iters):
    """Mean field of one picture.

    Args:
      kernels: Lattices, or float [n, d] features whose kernel is summed exactly.
      compat: float, the weight of each kernel.
      probabilities: float [n, k].
      num_iters: static.

    Returns:
      float32 [n, k].
    """
    num_classes = probabilities.shape[1]
    log_p = jnp.log(jnp.maximum(probabilities.astype(jnp.float32), _LEAST))
    # Rows of whole vectors are read several times faster; the classes added have no probability.
    log_p = jnp.pad(log_p, ((0, 0), (0, -num_classes % _LANES)), constant_values=-jnp.inf)
    ones = jnp.ones((len(log_p), _LANES))
    scales = [jax.lax.rsqrt(_filtered(kernel, ones)[:, :1] + 1e-20) for kernel in kernels]

    def step(q, _):
        logits = log_p
        for kernel, weight, scale in zip(kernels, compat, scales):
            logits = logits + weight * scale * _filtered(kernel, scale * q)
        return jax.nn.softmax(logits), None

    # The first marginals are of the clipped probabilities, too.
    marginals, _ = jax.lax.scan(step, jax.nn.softmax(log_p), None, length=num_iters)
    return marginals[:, :num_classes]


def _filtered(kernel, values):
    return (filter_lattice if isinstance(kernel, Lattice) else exact_sums)(kernel, values)


def exact_sums(features, values, *, block=256):
    """Sums of values [n, k] over all points, weighted by exp(-|f_i - f_j|^2 / 2): float [n, k]."""
    n = len(features)
    padded = jnp.pad(features, ((0, -n % block), (0, 0)))

    @jax.checkpoint
    def rows(some):
        difference = some[:, None] - features[None]
        kernel = jnp.exp(-0.5 * jnp.sum(difference ** 2, axis=-1))
        return jnp.matmul(kernel, values, precision="highest")

    sums = jax.lax.map(rows, padded.reshape(-1, block, features.shape[-1]))
    return sums.reshape(-1, values.shape[-1])[:n]


def _features(image, sxy_gaussian, sxy_bilateral, srgb):
    """float32 position [n, 2] and position with colour [n, 5], over their deviations."""
    h, w = image.shape[:2]
    position = np.stack(np.mgrid[:h, :w][::-1], axis=-1).reshape(-1, 2).astype(np.float32)
    colour = image.reshape(-1, 3).astype(np.float32) / srgb
    return position / sxy_gaussian, np.concatenate([position / sxy_bilateral, colour], axis=-1)


def _exact_kernels(image, *, sxy_gaussian, compat_gaussian, sxy_bilateral, srgb,
                   compat_bilateral):
    features = _features(image, sxy_gaussian, sxy_bilateral, srgb)
    return [jnp.asarray(x) for x in features], [compat_gaussian, compat_bilateral]


def _lattice_kernels(image, *, sxy_gaussian, compat_gaussian, sxy_bilateral, srgb,
                     compat_bilateral):
    _, bilateral = _features(image, 1.0, sxy_bilateral, srgb)
    smooth = _smooth_lattice(*image.shape[:2], float(sxy_gaussian))
    return [smooth, build_lattice(bilateral)], [compat_gaussian, compat_bilateral]


@functools.lru_cache(maxsize=16)
def _smooth_lattice(h, w, sigma):
    """The lattice of position alone: the same for every picture of a size."""
    position, _ = _features(np.zeros((h, w, 3)), sigma, 1.0, 1.0)
    return jax.device_put(build_lattice(position))
