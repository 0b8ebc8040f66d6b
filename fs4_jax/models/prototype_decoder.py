"""AlignSeg's decoder: learnable prototypes that look at an image's tokens and adapt to it.

Liu et al., TPAMI 2024 (doi 10.1109/TPAMI.2024.3432326), as its released code has it: post-norm
layers of cross-attention, self-attention and FFN, without positions or dropout.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fs4_jax.models.transformer import weight_init

_EPSILON = 1e-5          # of the norms: torch's default
# torch draws the fused [3d, d] projection Xavier-uniform: within sqrt(6 / 4d), for each third.
_in_init = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")


class PrototypeDecoder(nn.Module):
    """Patch tokens float [b, n, d] -> adapted prototypes float32 [b, num_prototypes, d].

    Attributes:
      num_prototypes: K, segments of an image at most.
      num_heads: of both attentions; divides d.
      hidden: width of the FFN.
      num_layers: each goes on from what the one before it has made of the prototypes.
      bug_compatible: as released: every layer starts from the raw prototypes again, so that the
        last one alone counts and the others, whose weights exist, get no gradient.
    """
    num_prototypes: int
    num_heads: int = 3
    hidden: int = 768
    num_layers: int = 1
    bug_compatible: bool = False

    @nn.compact
    def __call__(self, tokens):
        batch, _, width = tokens.shape
        if width % self.num_heads:
            raise ValueError(f"config.alignseg.num_heads={self.num_heads} does not divide the "
                             f"encoder's width, {width}")
        tokens = tokens.astype(jnp.float32)
        prototypes = self.param("prototypes", nn.initializers.normal(1.0),
                                (self.num_prototypes, width))
        start = adapted = jnp.broadcast_to(prototypes, (batch, *prototypes.shape))
        for i in range(self.num_layers):
            layer = DecoderLayer(self.num_heads, self.hidden, name=f"layer_{i}")
            adapted = layer(start if self.bug_compatible else adapted, tokens)
        return adapted


class DecoderLayer(nn.Module):
    """Prototypes [b, k, d], tokens [b, n, d] -> prototypes [b, k, d]; a norm after each branch."""
    num_heads: int
    hidden: int

    @nn.compact
    def __call__(self, prototypes, tokens):
        def normed(x, name):
            return nn.LayerNorm(epsilon=_EPSILON, name=name)(x)

        y = FewQueries(self.num_heads, name="cross")(prototypes, tokens)
        x = normed(prototypes + y, "cross_norm")
        x = normed(x + FewQueries(self.num_heads, name="self")(x, x), "self_norm")
        y = nn.Dense(self.hidden, kernel_init=weight_init, name="linear1")(x)
        y = nn.Dense(x.shape[-1], kernel_init=weight_init, name="linear2")(jax.nn.relu(y))
        return normed(x + y, "ffn_norm")


class FewQueries(nn.Module):
    r"""Multi-head attention of a few queries [b, q, d] to many tokens [b, n, d].

    The same as projecting the tokens to keys and values, for a fraction of the work: the queries
    are brought to the tokens' space, and what is projected is the average they take there:

    .. math:: q_h \cdot (W_h f_n + c) = (W_h^T q_h) \cdot f_n + const, \quad
              \sum_n a_n (V_h f_n + v) = V_h \sum_n a_n f_n + v

    A key's bias adds the same to all scores of a query and so does nothing; it exists for the
    files that have one.
    """
    num_heads: int

    @nn.compact
    def __call__(self, queries, tokens):
        width = tokens.shape[-1]
        shape, heads = (width, self.num_heads, width // self.num_heads), self.num_heads
        query, key, value = (Projection(name=name)(width) for name in ("query", "key", "value"))
        q = (queries @ query[0] + query[1]).reshape(*queries.shape[:-1], heads, -1)
        q = jnp.einsum("bqhc,dhc->bhqd", q * shape[-1] ** -0.5, key[0].reshape(shape))
        batch = q.shape[0]
        q = q.reshape(batch, -1, width)                                     # [b, h q, d]
        weights = jax.nn.softmax(jnp.einsum("bqd,bnd->bqn", q, tokens))
        self.sow("intermediates", "attention", weights)     # [b, heads q, n], if it is asked for
        seen = jnp.einsum("bqn,bnd->bqd", weights, tokens)
        seen = seen.reshape(batch, heads, -1, width)
        y = jnp.einsum("bhqd,dhc->bqhc", seen, value[0].reshape(shape))
        y = y.reshape(queries.shape) + value[1]
        return nn.Dense(width, kernel_init=weight_init, name="out")(y)


class Projection(nn.Module):
    """(kernel [d, d], bias [d]) of a third of torch's fused projection, under nn.Dense's names."""

    @nn.compact
    def __call__(self, width):
        return (self.param("kernel", _in_init, (width, width)),
                self.param("bias", nn.initializers.zeros_init(), (width,)))
