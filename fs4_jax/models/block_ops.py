"""What a block of a Vision Transformer computes, with gradients written by hand.

jax's own gradients keep the [n,n] weights of attention and, on CPU, are compiled to copies and
slow sums. Here a gradient keeps little more than its inputs, recomputes the rest, and has the form
that XLA's matrix products on CPU take as it is (measured by benchmarks/encoder.py --parts). Reverse
mode only: jax refuses forward mode (jvp) through them.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from fs4_jax.long_rows import highest, total

IN_CACHE = 1 << 21      # scores that a CPU's last cache holds beside what is made of them

# Products of bfloat16 are summed in float32, as their sums and softmax go on in it.
_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def attention(qkv, scale):
    """softmax(scale q k^T) v, head by head; softmax in float32.

    Memory is that of one head's scores on CPU, of all heads' elsewhere; none are kept for the
    gradient, which computes them again from the softmax's denominators (as FlashAttention,
    Dao et al. 2022, does).

    Args:
      qkv: [b,n,3,h,c], a projection's queries, keys and values.
      scale: what scores are multiplied by.

    Returns:
      [b,n,h,c] in qkv's dtype.
    """
    return _attention_forward(qkv, scale)[0]


def _attention_forward(qkv, scale):
    y, log_total = _each_head(functools.partial(_attend, scale), qkv)
    return y[:, :, 0], (qkv, y, log_total)


def _attend(scale, q, k, v):
    """One head, [b,n,c] each: the answer [b,n,c], log of the softmax's denominators [b,n,1]."""
    scores = _product("bqc,bkc->bqk", q * scale, k)
    top = highest(scores)
    weights = jnp.exp(scores - top)
    sums = total(weights)
    y = _product("bqk,bkc->bqc", weights.astype(v.dtype), v) / sums
    return (y.astype(v.dtype),), (top + jnp.log(sums),)


def _attention_backward(scale, saved, dy):
    qkv, y, log_total = saved
    dy = dy[:, :, None]
    mean = total(dy.astype(jnp.float32) * y.astype(jnp.float32))
    return _each_head(functools.partial(_attend_backward, scale), qkv, dy, log_total, mean)


def _attend_backward(scale, q, k, v, dy, log_total, mean):
    dtype, q = q.dtype, q * scale
    weights = jnp.exp(_product("bqc,bkc->bqk", q, k) - log_total)
    dv = _product("bqk,bqc->bkc", weights.astype(dtype), dy)
    dscores = (weights * (_product("bqc,bkc->bqk", dy, v) - mean)).astype(dtype)
    dq = _product("bqk,bkc->bqc", dscores, k) * scale
    dk = _product("bqk,bqc->bkc", dscores, q)
    return (dq.astype(dtype), dk.astype(dtype), dv.astype(dtype)),


def _each_head(function, *arrays):
    """Maps a function over the heads of arrays [b,n,k,h,c], of which it takes k of [b,n,c] each.

    It returns a tuple of k of [b,n,c] for each array that comes back. On CPU one part after the
    other, a head of as many images of each device as keep their scores in cache.
    """
    return jax.lax.platform_dependent(*arrays, cpu=functools.partial(_by_parts, function),
                                      default=functools.partial(_at_once, function))


def _at_once(function, *arrays):
    answers = jax.vmap(function, 2, 2)(*(x[:, :, j] for x in arrays for j in range(x.shape[2])))
    return tuple(jnp.stack(ys, axis=2) for ys in answers)


def _by_parts(function, *arrays):
    # Heads are read and written where they lie, each array of a head by itself: put in front, all
    # would be copied; the k of a head together, they would be copied twice.
    b, n, _, heads = arrays[0].shape[:4]
    # Each run of images lies on one device, and a part takes the same of each run: none travels.
    runs, parts = 1, 1
    if isinstance(b, int):                                # symbolic: an export
        runs = math.gcd(b, jax.device_count())
        parts = _parts(b // runs, IN_CACHE // n ** 2)
    size = b // runs // parts
    split = [x.reshape(runs, parts, size, *x.shape[1:]) for x in arrays]

    def place(at, j):
        return 0, at // heads, 0, 0, j, at % heads, 0

    def cut(at):
        return [jax.lax.dynamic_slice(x, place(at, j), (runs, 1, size, n, 1, 1, x.shape[-1]))
                .reshape(runs * size, n, x.shape[-1]) for x in split for j in range(x.shape[4])]

    def put(out, ys, at):
        for j, y in enumerate(ys):
            y = y.reshape(runs, 1, size, n, 1, 1, -1)
            out = jax.lax.dynamic_update_slice(out, y, place(at, j))
        return out

    def turn(outs, at):
        return [put(out, ys, at) for out, ys in zip(outs, function(*cut(at)))], None

    # Zeros would do, as all is written over, but XLA makes all blocks' before the first begins.
    some = split[-1][:, :1, :1, :1, :1, :1, :1]
    outs = [jnp.broadcast_to(some, (runs, parts, size, n, len(ys), heads, ys[0].shape[-1]))
            .astype(ys[0].dtype) for ys in jax.eval_shape(lambda: function(*cut(0)))]
    outs, _ = jax.lax.scan(turn, outs, jnp.arange(parts * heads))
    return tuple(out.reshape(b, *out.shape[3:]) for out in outs)


def _parts(whole, most):
    """The fewest equal parts of a whole of which none is above `most`, or is 1."""
    return next(parts for parts in range(1, whole + 1)
                if whole % parts == 0 and (parts == whole or whole // parts <= most))


attention.defvjp(_attention_forward, _attention_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x, scale, bias, epsilon):
    """Each row of x [...,d] less its mean, over its deviation, times scale [d], plus bias [d].

    In float32 inside; the result has x's dtype. flax's nn.LayerNorm takes a CPU nearly twice as
    long, for its sums along rows.
    """
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(x, scale, bias, epsilon):
    normal, _ = _normal(x, epsilon)
    y = normal * scale.astype(jnp.float32) + bias.astype(jnp.float32)
    return y.astype(x.dtype), (x, scale)


def _layer_norm_backward(epsilon, saved, dy):
    x, scale = saved
    normal, inverse = _normal(x, epsilon)
    dy = dy.astype(jnp.float32)
    dnormal, d = dy * scale.astype(jnp.float32), x.shape[-1]
    dx = inverse * (dnormal - total(dnormal) / d - normal * (total(dnormal * normal) / d))
    return (dx.astype(x.dtype), *(_sum_rows(_rows(z)).astype(scale.dtype)
                                  for z in (dy * normal, dy)))


def _normal(x, epsilon):
    x = x.astype(jnp.float32)
    centred = x - total(x) / x.shape[-1]
    inverse = jax.lax.rsqrt(total(centred * centred) / x.shape[-1] + epsilon)
    return centred * inverse, inverse


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@jax.custom_vjp
def dense(x, kernel, bias):
    """x @ kernel + bias: [...,d], [d,e], [e] -> [...,e], all of one dtype."""
    return x @ kernel + bias


def _dense_forward(x, kernel, bias):
    return dense(x, kernel, bias), (x, kernel)


def _dense_backward(saved, dy):
    x, kernel = saved
    drows = _rows(dy)
    dkernel = _kernel_gradient(_rows(x), drows)
    return dy @ kernel.T, dkernel.astype(kernel.dtype), _sum_rows(drows).astype(kernel.dtype)


dense.defvjp(_dense_forward, _dense_backward)


@jax.custom_vjp
def gelu(x):
    """x times the normal distribution function of x, in float32 inside; result in x's dtype."""
    y = x.astype(jnp.float32)
    return (y * _normal_cdf(y)).astype(x.dtype)


def _gelu_forward(x):
    return gelu(x), x


def _gelu_backward(x, dy):
    y = x.astype(jnp.float32)
    density = np.float32((2 * np.pi) ** -0.5) * jnp.exp(-0.5 * y * y)
    return ((_normal_cdf(y) + y * density) * dy.astype(jnp.float32)).astype(x.dtype),


def _normal_cdf(x):
    # On CPU a little faster than through erfc, which jax.nn.gelu takes.
    return 0.5 * (1 + jax.lax.erf(x * np.float32(0.5**0.5)))


gelu.defvjp(_gelu_forward, _gelu_backward)


@jax.custom_vjp
def mlp(x, kernel1, bias1, kernel2, bias2):
    """Two dense layers, GELU between: [...,d], [d,e], [e], [e,d], [d] -> [...,d], of one dtype."""
    return _mlp_forward(x, kernel1, bias1, kernel2, bias2)[0]


def _mlp_forward(x, kernel1, bias1, kernel2, bias2):
    hidden = _rows(x) @ kernel1 + bias1
    y = gelu(hidden) @ kernel2 + bias2
    return y.reshape(x.shape), (x, kernel1, hidden, kernel2, bias2)


def _mlp_backward(saved, dy):
    x, kernel1, hidden, kernel2, bias2 = saved
    dtype, drows = kernel1.dtype, _rows(dy)
    # What is added to `hidden` below is 0, but only known with dy: XLA would take GELU's parts from
    # the forward pass, and keep them in memory until now (it drops an optimization_barrier on CPU
    # before it looks). Two forms of 0, as with one the uses would share an erf, which is dearer to
    # write and read than to compute; both are read in the order that `hidden` lies in.
    dactivated = drows @ kernel2.T
    activated = gelu(hidden + (drows @ (0 * bias2))[:, None])
    dhidden, = _gelu_backward(hidden + 0 * dactivated, dactivated)
    dkernel1 = _kernel_gradient(_rows(x), dhidden)
    dkernel2 = _kernel_gradient(activated, drows)
    dx = (dhidden @ kernel1.T).reshape(x.shape)
    return dx, *(array.astype(dtype) for array in (
        dkernel1, _sum_rows(dhidden), dkernel2, _sum_rows(drows)))


mlp.defvjp(_mlp_forward, _mlp_backward)


def _rows(x):
    return x.reshape(-1, x.shape[-1])


def _kernel_gradient(rows, drows):
    """rows^T drows: [m,d], [m,e] -> float32 [d,e]."""
    # The other way round, XLA on CPU takes up to 1.4 times as long on two threads; over b and n in
    # place of m it would transpose a copy of drows first.
    return _product("me,md->ed", drows, rows).T


def _sum_rows(x):
    """[m,e] -> float32 [e]; on CPU a product is several times as fast as a sum over rows."""
    return _product("m,me->e", jnp.ones(len(x), x.dtype), x, precision="highest")
