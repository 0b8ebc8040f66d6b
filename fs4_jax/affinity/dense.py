"""Fully connected Gaussian kernels over position, colour and features, a block at a time.

Exact as it stands, with the memory of one block of the kernel. With leaves, what is summed over is
gathered first: a balanced k-d tree of each tile's pixels, in the space of the kernel itself, puts
those that the kernel hardly tells apart into leaves of equal number, and a leaf stands for them by
its weight, its mean and its spread. All shapes are static, so it runs inside of jit.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from fs4_jax.affinity.pairs import pair_sums, potts_energy

# Of the kernel, held at once for an image: on a CPU what a core's cache holds.
_BLOCK_ENTRIES = {"cpu": 1 << 18, "default": 1 << 25}
_TILE = 0.7                # of the position's sigma; a tile's deviation is 1 / sqrt(12) of its side


def dense_filter(values, cues, *, position_sigma, leaf_size=1, self_pairs=False):
    r"""Sums of all pixels, weighted by the kernel: :math:`y_i = \sum_j k_{ij} x_j`.

    .. math:: k_{ij} = e^{-|p_i-p_j|^2 / 2 \sigma^2 - |I_i-I_j|^2 / 2}

    What a permutohedral lattice approximates for DenseCRF (Kraehenbuehl and Koltun 2011). With
    leaf_size > 1 the kernel between a pixel and a leaf is that of the pixel and a Gaussian of the
    leaf's mean and diagonal covariance (our own approximation; 1 is the referee).

    Args:
      values: float [b, h, w, d].
      cues: float [b, h, w, c], divided by their sigmas beforehand (colour, features); None: none.
      position_sigma: in pixels of the map.
      leaf_size: pixels a leaf holds, about; 1 is exact. Cost falls as it grows.
      self_pairs: whether the pixel itself takes part, with its kernel of 1.

    Returns:
      float32 [b, h, w, d].
    """
    b, h, w, d = values.shape
    points, values = _points(cues, (b, h, w), position_sigma), values.astype(jnp.float32)
    flat = points.reshape(b, h * w, -1)
    mean, variance, gathered = flat, None, values.reshape(b, h * w, d)
    if leaf_size > 1:
        mean, variance, gathered = _leaves(points, values, leaf_size,
                                           _tile_side(position_sigma, leaf_size, max(h, w)))
    filtered = _blockwise(flat, mean, variance, gathered).reshape(b, h, w, d)
    return filtered if self_pairs else filtered - values


def dense_kernel_energy(assignment, cues, *, position_sigma, leaf_size=1, roi=None):
    r"""Normalised Potts energy of a soft assignment under a fully connected Gaussian kernel.

    .. math:: R = \sum_{i \ne j} k_{ij} (1 - \sum_k a_{ik} a_{jk}) / \sum_{i \ne j} k_{ij}

    `windowed_kernel_energy` without a window: DenseCRF's energy (Tang et al. 2018, arXiv
    1803.09569), normalised. One pass gives the energy and its gradient.

    Args:
      assignment: float [b, h, w, k], rows sum to 1.
      cues, position_sigma, leaf_size: as for `dense_filter`. Gradients reach the cues: stop them
        outside where the kernel is meant to be fixed.
      roi: float [b, h, w] in [0, 1], the pixels that count, or None: all.

    Returns:
      float [b], in [0, 1].
    """
    kernel = functools.partial(dense_filter, position_sigma=position_sigma, leaf_size=leaf_size)
    return potts_energy(pair_sums(kernel, assignment, cues, roi))


def _points(cues, shape, position_sigma):
    """Pixels in the kernel's space, [b, h, w, 2 + c], about their mean: products stay small."""
    b, h, w = shape
    place = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), axis=-1)
    points = jnp.broadcast_to(jnp.asarray(place / position_sigma, jnp.float32), (b, h, w, 2))
    if cues is not None:
        points = jnp.concatenate([points, cues.astype(jnp.float32)], axis=-1)
    return points - jax.lax.stop_gradient(jnp.mean(points, axis=(1, 2), keepdims=True))


def _blockwise(points, mean, variance, values):
    """Kernel of points [b, n, c] to means [b, m, c], times values [b, m, d]: [b, n, d]."""
    rows, columns = _exponent_factors(points, mean, variance)
    by_size = {name: functools.partial(_blocks, entries=entries)
               for name, entries in _BLOCK_ENTRIES.items()}
    return jax.lax.platform_dependent(rows, columns, values, **by_size)


def _blocks(rows, columns, values, *, entries):
    b, n, _ = rows.shape
    size = max(1, min(n, entries // columns.shape[1]))
    num_blocks = -(-n // size)
    rows = jnp.pad(rows, ((0, 0), (0, num_blocks * size - n), (0, 0)))
    rows = jnp.moveaxis(rows.reshape(b, num_blocks, size, -1), 1, 0)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def block(rows):
        exponent = jnp.einsum("bic,bjc->bij", rows, columns, precision="highest")
        kernel = jnp.exp(jnp.minimum(exponent, 0.0))      # rounding: it is never above 0
        return jnp.einsum("bij,bjd->bid", kernel, values, precision="highest")

    filtered = jax.lax.map(block, rows)
    return jnp.moveaxis(filtered, 0, 1).reshape(b, num_blocks * size, -1)[:, :n]


def _exponent_factors(points, mean, variance):
    """(rows [b, n, e], columns [b, m, e]) whose products are the logarithms of the kernel.

    Of a point and a Gaussian: -|p - m|^2 / 2 (1 + v) - log(1 + v) / 2, summed over dimensions.
    """
    one = jnp.ones_like(points[..., :1])
    if variance is None:
        square = -0.5 * jnp.sum(points ** 2, axis=-1, keepdims=True)
        of_mean = -0.5 * jnp.sum(mean ** 2, axis=-1, keepdims=True)
        return (jnp.concatenate([points, square, one], axis=-1),
                jnp.concatenate([mean, jnp.ones_like(of_mean), of_mean], axis=-1))
    width = 1 / (1 + variance)
    constant = -0.5 * jnp.sum(mean ** 2 * width - jnp.log(width), axis=-1, keepdims=True)
    return (jnp.concatenate([points ** 2, points, one], axis=-1),
            jnp.concatenate([-0.5 * width, mean * width, constant], axis=-1))


def _leaves(points, values, leaf_size, tile):
    """(means [b, m, c], variances [b, m, c], sums of values [b, m, d]) of a k-d tree's leaves.

    points [b, h, w, c] and values [b, h, w, d] are cut into tiles first, which the kernel hardly
    tells apart by position; then every node is split in the middle of the axis along which its
    points vary most. Which leaf a point falls in has no gradient.
    """
    b, h, w, _ = points.shape
    more = ((0, 0), (0, -h % tile), (0, -w % tile), (0, 0))        # tiles beyond the border
    weight = jnp.pad(jnp.ones((b, h, w, 1), jnp.float32), more)
    values, points = jnp.pad(values, more), jnp.pad(points, more, mode="edge")
    weight, values, points = (_tiled(x, tile) for x in (weight, values, points))
    nodes = jax.lax.stop_gradient(points)
    order = jnp.broadcast_to(jnp.arange(tile * tile), points.shape[:2])
    depth = max(0, round(math.log2(tile * tile / leaf_size)))
    for _ in range(depth):
        spread = jnp.max(nodes, axis=1) - jnp.min(nodes, axis=1)
        axis = jnp.argmax(spread, axis=-1)
        key = jnp.take_along_axis(nodes, axis[:, None, None], axis=-1)[..., 0]
        _, order = jax.lax.sort((key, order), dimension=1, num_keys=1, is_stable=True)
        order = order.reshape(-1, order.shape[1] // 2)
        nodes = _rows_at(jax.lax.stop_gradient(points), order.reshape(len(points), -1)).reshape(
            *order.shape, -1)
    order = order.reshape(len(points), -1)
    weight, values, points = (
        _rows_at(x, order).reshape(b, -1, tile * tile >> depth, x.shape[-1])
        for x in (weight, values, points))
    number = jnp.maximum(jnp.sum(weight, axis=2), 1)
    mean = jnp.sum(weight * points, axis=2) / number
    variance = jnp.sum(weight * (points - mean[:, :, None]) ** 2, axis=2) / number
    return mean, variance, jnp.sum(values, axis=2)


def _tile_side(position_sigma, leaf_size, longer):
    """A power of two: a tile's spread is a fifth of the kernel's sigma, it holds a leaf at least,
    and is no larger than need be to hold an image with so long a side."""
    side = max(position_sigma * _TILE, math.sqrt(leaf_size), 1)
    return 2 ** min(round(math.log2(side)), math.ceil(math.log2(longer)))


def _tiled(x, tile):
    """[b, h, w, c] -> [b * tiles, tile * tile, c]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // tile, tile, w // tile, tile, c).swapaxes(2, 3)
    return x.reshape(-1, tile * tile, c)


def _rows_at(x, index):
    """x[i, index[i]] of every image: [b, n, c], int [b, ...] -> [b, ..., c]."""
    return jax.vmap(lambda x, i: x[i])(x, index)
