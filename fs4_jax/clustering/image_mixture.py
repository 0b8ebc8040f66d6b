"""An image's segments as a mixture on the sphere: expectation and maximisation, inside of a step.

Ours: what AlignSeg's decoder proposes for an image is settled among the image's own tokens, each
with a weight (docs/alignseg.md).
"""

import jax
import jax.numpy as jnp

from fs4_jax.clustering.kmeans import unit_length

_STAY = 1e-6        # of a prototype that no token belongs to: it stays where it is


def settle(tokens, prototypes, weight, *, num_rounds, temperature):
    r"""Prototypes after rounds of a von Mises-Fisher mixture of equal shares and concentrations.

    .. math:: a_{nk} = \mathrm{softmax}_k(f_n \cdot q_k / \tau), \quad
              q_k \leftarrow n(\textstyle\sum_n w_n a_{nk} f_n)

    Args:
      tokens: float [b, n, d]. prototypes: float [b, k, d]; both are made unit length here.
      weight: float [b, n], of the tokens, >= 0.
      num_rounds: static; 0 gives the prototypes back. temperature: > 0.

    Returns:
      float32 [b, k, d], of unit length (after one round and more).
    """
    if not num_rounds:
        return prototypes
    tokens, start = (unit_length(x.astype(jnp.float32)) for x in (tokens, prototypes))
    # Each image's sum is its own: only its directions count.
    weight = weight / jnp.sum(weight, axis=1, keepdims=True)

    def once(prototypes, _):
        # An accelerator's default would round to bfloat16 or TF32.
        cosines = jnp.einsum("bnd,bkd->bnk", tokens, prototypes, precision="highest")
        member = jax.nn.softmax(cosines / temperature) * weight[..., None]
        pulled = jnp.einsum("bnk,bnd->bkd", member, tokens, precision="highest")
        return unit_length(pulled + _STAY * prototypes), None

    return jax.lax.scan(once, start, length=num_rounds)[0]
