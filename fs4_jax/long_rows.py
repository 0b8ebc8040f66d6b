"""The highest of long rows, their sums: on a CPU by vectors, elsewhere as jax has them.

XLA's reduction along a row is a loop of single numbers on a CPU, its argmax slower still, above all
when fused with what comes before. Half of the rows against the other half is vectors again
(measured by benchmarks/kmeans.py and benchmarks/encoder.py).
"""

import jax
import jax.numpy as jnp


def highest(x):
    """The highest of each row of x [..., k]: [..., 1]."""
    return jax.lax.platform_dependent(x, cpu=_folded_max, default=_max)


def first_highest(x):
    """Where it is, int32 [...]: the first of equal ones; on a CPU 0 where the highest is NaN."""
    return jax.lax.platform_dependent(x, cpu=_folded_argmax, default=_argmax)


def total(x):
    """The sum of each row of float32 x [..., k]: [..., 1]."""
    return jax.lax.platform_dependent(x, cpu=_product_with_ones, default=_sum)


def _max(x):
    return x.max(-1, keepdims=True)


def _sum(x):
    return x.sum(-1, keepdims=True)


def _argmax(x):
    return jnp.argmax(x, axis=-1).astype(jnp.int32)


def _folded_max(x):
    return _max(_folded(jnp.maximum, x))


def _folded_argmax(x):
    k = x.shape[-1]
    places = jnp.where(x == _folded_max(x), jnp.arange(k, dtype=jnp.int32), k)
    first = _folded(jnp.minimum, places).min(-1)
    return jnp.where(first < k, first, 0)


def _folded(op, x):
    """[..., k] -> [..., 32] or less, of which `op` makes what it makes of x; halves may overlap."""
    while (k := x.shape[-1]) > 32:
        half = -(-k // 2)
        x = op(x[..., :half], x[..., k - half:])
    return x


def _product_with_ones(x):
    return jnp.matmul(x, jnp.ones((x.shape[-1], 1), x.dtype), precision="highest")
