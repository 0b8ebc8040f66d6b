"""A light decoder: tokens of several blocks and the image's own edges to logits on a finer grid."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fs4_jax.models.block_ops import gelu


class MultiLevelDecoder(nn.Module):
    """levels [b, l, h, w, d], images float [b, H, W, 3] -> dict, on a grid of [upsample h, ... w].

    "embedding" [b, h', w', width], "logits" [b, h', w', num_classes] and, with consistency > 0,
    "features" [b, h, w, consistency], one for each token: g of the feature consistency head (our
    reconstruction of DFR's, after A2GNN: each level reduced, all side by side, one linear map).

    Attributes:
      num_classes: outputs. width: of the embedding, half of what tokens are reduced to.
      detail: width of what is seen of the image itself, on the grid of the answer; 0: nothing.
      upsample: cells on a token's side.
      consistency: width of g; 0 builds no such head.
    """
    num_classes: int
    width: int = 32
    detail: int = 16
    upsample: int = 4
    consistency: int = 0

    @nn.compact
    def __call__(self, levels, images):
        # Blocks' tokens are of very different size, a few channels a hundred times the others'.
        norms = [nn.LayerNorm(name=f"norm_{i}") for i in range(levels.shape[1])]

        def normed(levels):
            return [norm(levels[:, i].astype(jnp.float32)) for i, norm in enumerate(norms)]

        grid = tuple(side * self.upsample for side in levels.shape[2:4])
        details = [self._detail(images, grid)] if self.detail else []
        fused = gelu(nn.Dense(2 * self.width, name="fuse")(self._reduced(normed(levels), "reduce")))
        coarse = resized(nn.Dense(self.width, name="project")(fused), grid)
        seen = jnp.concatenate([coarse, *details], axis=-1)
        # What the tokens say alone stays within reach of the classifier.
        embedding = coarse + gelu(nn.Conv(self.width, (3, 3), name="refine")(seen))
        logits = nn.Dense(self.num_classes, name="classifier")(embedding)
        answer = {"embedding": embedding, "logits": logits}
        if self.consistency:
            # They tell of tokens and do not make them: an encoder that began random would give way
            # to the smoothness, which asks for tokens that are all alike.
            told = self._reduced(normed(jax.lax.stop_gradient(levels)), "relate")
            answer["features"] = nn.Dense(self.consistency, name="consistency")(nn.elu(told))
        return answer

    def _reduced(self, levels, name):
        return jnp.concatenate([nn.Dense(2 * self.width, name=f"{name}_{i}")(level)
                                for i, level in enumerate(levels)], axis=-1)

    def _detail(self, images, grid):
        x = resized(images.astype(jnp.float32), grid)
        for i in range(2):
            x = gelu(nn.Conv(self.detail, (3, 3), name=f"detail_{i}")(x))
        return x


def resized(maps, grid):
    """Bilinear, averaging where it shrinks: float [b, h, w, c] to [b, *grid, c]."""
    return jax.image.resize(maps, (maps.shape[0], *grid, maps.shape[-1]), "linear")
