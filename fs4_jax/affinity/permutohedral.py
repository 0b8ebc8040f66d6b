"""Gaussian filtering in many dimensions by the permutohedral lattice, as arrays and gathers.

Adams, Baek and Davis, Fast High-Dimensional Filtering Using the Permutohedral Lattice (2010), with
the constants of Krahenbuhl and Koltun's dense CRF (arXiv 1210.5644). The lattice of a picture is
made once, by sorting, on the host; the filter itself is jitted and the same on every device.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_CHUNK = 8          # points a row of `Lattice.first` adds up; most vertices have no more


class Lattice(NamedTuple):
    """A lattice of n points in d dimensions with m vertices, as gathers of rows.

    Vertex m is nothing: a row of zeros. Points of a vertex stand in chunks of eight: the first
    chunk of each vertex in `first`, the others in `extra`, whose vertices `owner` names.

    vertex: int32 [n, d + 1], of each point's simplex. weight: float32 [n, d + 1], barycentric.
    neighbours: int32 [d + 1, 2, m + 1], a step forward and back along each direction.
    first: (int32 [m, 8] points, float32 [m, 8] weights). extra: the same, [e, 8].
    owner: int32 [e].
    """
    vertex: jax.Array
    weight: jax.Array
    neighbours: jax.Array
    first: tuple
    extra: tuple
    owner: jax.Array


def build_lattice(features):
    """The Lattice of points, on the host.

    Args:
      features: float [n, d], d at most 5, each divided by its standard deviation. The filter's
        kernel is close to exp(-|f_i - f_j|^2 / 2).

    Returns:
      Lattice of NumPy arrays. The numbers of vertices and chunks are rounded up by at most an
      eighth, so that pictures of one size share few compilations.

    Raises:
      ValueError: features that are no numbers, or so wide that coordinates overflow.
    """
    features = np.asarray(features, np.float32)
    if features.ndim != 2 or not 1 <= features.shape[1] <= 5:
        raise ValueError(f"features must be [n, d] with d of 1 to 5, got {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError("features hold a value that is no number")
    keys, weight = _simplices(features.T)
    n, d = features.shape
    order = np.argsort(keys)                                  # the only sort there is
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    group = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(keys))))
    # Vertices are numbered as the points come to them: what is near in a picture is near in
    # memory, which is most of the filter's speed.
    corner = np.empty(len(keys), np.int64)
    corner[order] = group
    seen = np.empty(len(starts), np.int64)
    seen[corner[::-1]] = np.arange(len(keys))[::-1]
    number = np.empty(len(starts), np.int64)
    number[np.argsort(seen)] = np.arange(len(starts))
    num_vertices = _round_up(len(starts))
    neighbours = _neighbours(ordered[starts], number, d, num_vertices)
    first, extra, owner = _chunks(order, starts, group, number, weight, num_vertices)
    return Lattice(number[corner].reshape(n, d + 1).astype(np.int32), weight, neighbours, first,
                   extra, owner)


def filter_lattice(lattice, values):
    """Sums of values over all points, weighted by the lattice's kernel; the point itself included.

    Args:
      lattice: of `build_lattice`. values: float [n, k].

    Returns:
      float32 [n, k].
    """
    return _filter(lattice, values.astype(jnp.float32))


@jax.custom_vjp
def _filter(lattice, values):
    return _run(lattice, values, reverse=False)


def _filter_forward(lattice, values):
    return _run(lattice, values, reverse=False), lattice


def _filter_backward(lattice, gradient):
    """Splat and slice are each other's transposes; the blur's is the blur in reverse order."""
    return None, _run(lattice, gradient, reverse=True)


_filter.defvjp(_filter_forward, _filter_backward)


def _run(lattice, values, *, reverse):
    def blur(sums, sides):
        return sums + 0.5 * (_rows(sums, sides[0]) + _rows(sums, sides[1])), None

    # A loop: written out, XLA on CPU fuses the directions, past an optimization_barrier too, and
    # reads every row 3^(d + 1) times over.
    sums, _ = jax.lax.scan(blur, _splat(lattice, values), lattice.neighbours, reverse=reverse)
    dimensions = lattice.vertex.shape[1] - 1
    return _gather(sums, lattice.vertex, lattice.weight) / (1 + 2.0 ** -dimensions)


def _splat(lattice, values):
    """[n, k] -> [m + 1, k], the last row zero."""
    sums = _gather(values, *lattice.first)
    sums = jnp.concatenate([sums, jnp.zeros((1, values.shape[1]))])
    return sums.at[lattice.owner].add(_gather(values, *lattice.extra), mode="promise_in_bounds")


def _gather(rows, index, weight):
    """Sum over j of weight[:, j] rows[index[:, j]]."""
    return sum(_rows(rows, index[:, j]) * weight[:, j, None] for j in range(index.shape[1]))


def _rows(table, index):
    return table.at[index].get(mode="promise_in_bounds")


# ---- on the host --------------------------------------------------------------------------------

def _simplices(features):
    """(int64 [n (d + 1)] keys of each point's corners, float32 [n, d + 1] barycentric weights).

    Args:
      features: float32 [d, n].

    A key packs the first d coordinates of a corner, 12 bits each; d + 1 of them sum to zero.
    """
    d, n = features.shape
    scale = np.sqrt(2.0 / 3.0) * (d + 1) / np.sqrt(np.arange(1, d + 1) * np.arange(2, d + 2))
    scaled = features * scale.astype(np.float32)[:, None]
    # Onto the plane where coordinates sum to zero.
    elevated = np.zeros((d + 1, n), np.float32)
    elevated[:d] = np.cumsum(scaled[::-1], axis=0)[::-1]
    for j in range(1, d + 1):
        elevated[j] -= j * scaled[j - 1]
    # The nearest point of the lattice all of whose coordinates are multiples of d + 1.
    low = np.floor(elevated / (d + 1)) * (d + 1)
    corner = np.where(low + (d + 1) - elevated < elevated - low, low + (d + 1), low)
    offset = elevated - corner
    rank = np.zeros((d + 1, n), np.int32)
    for i in range(d):
        for j in range(i + 1, d + 1):
            behind = offset[i] < offset[j]
            rank[i] += behind
            rank[j] += ~behind
    # Where the coordinates do not sum to zero, the outermost ones give way.
    rank += np.rint(corner.sum(0) / (d + 1)).astype(np.int32)
    turn = (rank < 0).astype(np.int32) - (rank > d)
    corner = corner.astype(np.int32) + (d + 1) * turn
    rank += (d + 1) * turn
    # Barycentric weights are differences of the offsets sorted by rank.
    offset = (elevated - corner) / (d + 1)
    ordered = np.empty_like(offset)
    np.put_along_axis(ordered, rank, offset, axis=0)
    weight = np.empty((n, d + 1), np.float32)
    weight[:, 0] = 1.0 + ordered[d] - ordered[0]
    weight[:, 1:] = (ordered[:d] - ordered[1:])[::-1].T
    if np.abs(corner).max(initial=0) >= 2000:
        raise ValueError("features are too wide for the lattice: their range divided by their "
                         "standard deviation must stay below about 300")
    return _corner_keys(corner[:d], rank[:d], d), weight


def _corner_keys(corner, rank, d):
    """Keys of the d + 1 corners, of the corner with remainder zero and the ranks [d, n]."""
    keys = np.empty((corner.shape[1], d + 1), np.int64)
    for remainder in range(d + 1):
        step = remainder - (d + 1) * (rank > d - remainder)
        keys[:, remainder] = _pack(corner + step)
    return keys.reshape(-1)


def _pack(coordinates):
    """int64 of coordinates [d, ...] within -2048..2047."""
    key = np.zeros(coordinates.shape[1:], np.int64)
    for i, coordinate in enumerate(coordinates):
        key += (coordinate.astype(np.int64) + 2048) << (12 * i)
    return key


def _neighbours(keys, number, d, num_vertices):
    """int32 [d + 1, 2, num_vertices + 1] of sorted keys and the vertices' numbers; missing
    neighbours are the last row."""
    steps = np.full((d + 1, d), -1, np.int64)
    steps[np.arange(d), np.arange(d)] = d
    table = np.full((d + 1, 2, num_vertices + 1), num_vertices, np.int32)
    for j, step in enumerate(steps @ (np.int64(1) << (12 * np.arange(d, dtype=np.int64)))):
        found = np.minimum(np.searchsorted(keys, keys + step), len(keys) - 1)
        there = keys[found] == keys + step
        a, b = number[there], number[found[there]]
        table[j, 0, a], table[j, 1, b] = b, a
    return table


def _chunks(order, starts, group, number, weight, num_vertices):
    """Points of every vertex in rows of eight: (first, extra, owner) of a Lattice."""
    place = np.arange(len(order)) - starts[group]                  # within its vertex
    column = place % _CHUNK
    point = (order // weight.shape[1]).astype(np.int32)
    share = weight.reshape(-1)[order]
    head = place < _CHUNK
    first = _table(number[group[head]], column[head], point[head], share[head], num_vertices)
    # Every other chunk gets a row of its own.
    begins = ~head & (column == 0)
    row = np.cumsum(begins) - 1
    num_extra = _round_up(int(begins.sum()))
    extra = _table(row[~head], column[~head], point[~head], share[~head], num_extra)
    owner = np.full(num_extra, num_vertices, np.int32)
    owner[:begins.sum()] = number[group[begins]]
    return first, extra, owner


def _table(row, column, point, share, num_rows):
    points = np.zeros((num_rows, _CHUNK), np.int32)
    shares = np.zeros((num_rows, _CHUNK), np.float32)
    points[row, column], shares[row, column] = point, share
    return points, shares


def _round_up(number):
    """The next multiple of an eighth of the power of two below; at least 64."""
    step = max(64, (1 << int(number).bit_length()) // 16)
    return max(1, -(-number // step)) * step
