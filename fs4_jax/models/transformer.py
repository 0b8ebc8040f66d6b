"""The blocks of a Vision Transformer: attention and MLP, each in a residual branch."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fs4_jax.models import block_ops
from fs4_jax.models.position import rotate

MLPS = ("gelu", "swiglu")

weight_init = nn.initializers.truncated_normal(0.02)


class Block(nn.Module):
    """Attention and MLP, each in a residual branch behind its own norm."""

    num_heads: int
    mlp_ratio: float
    layer_scale: float | None
    drop_path: float
    dtype: Any
    mlp: str = "gelu"
    norm_epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x, train, angles=None, details=False):
        """[b,n,d] -> [b,n,d]; with details also what `Attention` tells.

        angles: float32 [m,c] that turn the last m tokens' queries and keys (`rope_angles`).
        """
        norm = {"epsilon": self.norm_epsilon, "dtype": self.dtype}
        y = LayerNorm(**norm, name="norm1")(x)
        y, told = Attention(self.num_heads, self.dtype, name="attn")(y, angles, details)
        x = x + self._branch(y, "ls1", train)
        y = LayerNorm(**norm, name="norm2")(x)
        mlp = GatedMlp if self.mlp == "swiglu" else Mlp
        y = mlp(self.mlp_ratio, self.dtype, name="mlp")(y)
        x = x + self._branch(y, "ls2", train)
        return (x, told) if details else x

    def _branch(self, y, name, train):
        """LayerScale, then drop path: a sample loses the whole branch or has it scaled up."""
        if self.layer_scale:
            gamma = self.param(name, nn.initializers.constant(self.layer_scale), y.shape[-1:])
            y = y * gamma.astype(self.dtype)
        if train and self.drop_path:
            keep = 1.0 - self.drop_path
            kept = jax.random.bernoulli(self.make_rng("dropout"), keep, (y.shape[0], 1, 1))
            y = y * (kept / keep).astype(self.dtype)
        return y


class Attention(nn.Module):
    """Multi-head self-attention, [b,n,d] -> [b,n,d]; softmax in float32.

    Returns (y, told): with details, told is {"attention": float32 [b,heads,n], of the first token
    to all, "keys": [b,n,d], before any rotation}, otherwise empty.
    """

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x, angles=None, details=False):
        b, n, d = x.shape
        dense = {"dtype": self.dtype, "kernel_init": weight_init}
        qkv = Dense(3 * d, **dense, name="qkv")(x)
        told = {"keys": qkv[..., d:2 * d]} if details else {}
        qkv = qkv.reshape(b, n, 3, self.num_heads, -1)
        if angles is not None:
            qkv = jnp.concatenate([rotate(qkv[:, :, :2], angles), qkv[:, :, 2:]], axis=2)
        scale = qkv.shape[-1] ** -0.5
        if details:
            scores = jnp.einsum("bhc,bkhc->bhk", qkv[:, 0, 0] * scale, qkv[:, :, 1],
                                preferred_element_type=jnp.float32)
            told["attention"] = jax.nn.softmax(scores)
        y = block_ops.attention(qkv, scale).reshape(b, n, d)
        return Dense(d, **dense, name="proj")(y), told


class LayerNorm(nn.Module):
    """flax's nn.LayerNorm with the gradient of `block_ops.layer_norm`; statistics in float32."""

    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros_init(), x.shape[-1:])
        return block_ops.layer_norm(x, scale, bias, self.epsilon).astype(self.dtype)


class Weights(nn.Module):
    """Kernel [d,features] and bias [features] of a dense layer, under nn.Dense's names."""

    features: int
    dtype: Any
    kernel_init: Any

    @nn.compact
    def __call__(self, d):
        kernel = self.param("kernel", self.kernel_init, (d, self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return kernel.astype(self.dtype), bias.astype(self.dtype)


class Dense(Weights):
    """flax's nn.Dense with the gradient of `block_ops.dense`."""

    @nn.compact
    def __call__(self, x):
        return block_ops.dense(x.astype(self.dtype), *super().__call__(x.shape[-1]))


class Mlp(nn.Module):
    """Two layers with the exact (erf) GELU between them, [b,n,d] -> [b,n,d]."""

    mlp_ratio: float
    dtype: Any

    @nn.compact
    def __call__(self, x):
        d, hidden = x.shape[-1], round(x.shape[-1] * self.mlp_ratio)
        dense = {"dtype": self.dtype, "kernel_init": weight_init}
        return block_ops.mlp(x.astype(self.dtype), *Weights(hidden, **dense, name="fc1")(d),
                             *Weights(d, **dense, name="fc2")(hidden))


class GatedMlp(nn.Module):
    """SwiGLU, [b,n,d] -> [b,n,d]: the first half of w12, through SiLU, times its second half."""

    mlp_ratio: float
    dtype: Any

    @nn.compact
    def __call__(self, x):
        d = x.shape[-1]
        dense = {"dtype": self.dtype, "kernel_init": weight_init}
        gate, y = jnp.split(Dense(2 * round(d * self.mlp_ratio), **dense, name="w12")(x), 2, -1)
        gate = jax.nn.silu(gate.astype(jnp.float32)).astype(self.dtype)
        return Dense(d, **dense, name="w3")(gate * y)
