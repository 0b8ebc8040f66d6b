"""CAE: an embedding for each token that knows its neighbours in space and in appearance.

The paper (arXiv 2202.11981) and its successor (CAC, IEEE TMM 2024) say that global features are
fused with low-level geometrical and appearance cues of neighbours near in both; the two forms here
are our reconstruction (methods.md 1.3): neighbours are gathered by a bilateral kernel (form 1) or
by attention that the kernel biases (form 2), then a learned fusion.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fs4_jax.affinity import windowed_attention, windowed_average

_NUM_SCALES = 3
NUM_TEXTURE_CUES = 1 + 4 * _NUM_SCALES


class ContextEmbedding(nn.Module):
    """patch_tokens [b, h, w, d], appearance [b, h, w, a] -> embedding float32 [b, h, w, width].

    appearance: of `appearance_cues`.
    width: channels of the embedding. hidden: of the fusion. form: how neighbours are gathered,
    "bilateral" | "attention". radius, position_sigma: the window, in steps of it. dilations: those
    steps, in tokens, a window for each. colour_sigma: in ImageNet-normalised colour. context:
    False leaves a linear map of the tokens alone.
    """
    width: int
    hidden: int = 256
    form: str = "bilateral"
    radius: int = 2
    dilations: tuple[int, ...] = (1,)
    position_sigma: float = 1.5
    colour_sigma: float = 0.5
    context: bool = True

    @nn.compact
    def __call__(self, patch_tokens, appearance):
        cues = self.cues(patch_tokens, appearance)
        base = nn.Dense(self.width, name="project")(cues)
        if not self.context:
            return base
        b, h, w, _ = base.shape
        position = jnp.broadcast_to(position_cues(h, w), (b, h, w, 8))
        gathered = self.gather(base, position, appearance)
        fused = nn.LayerNorm(name="norm")(jnp.concatenate([base, gathered], axis=-1))
        fused = jnp.concatenate([fused, position, appearance], axis=-1)
        fused = nn.gelu(nn.Dense(self.hidden, name="fuse")(fused))
        # Starts at zero: the first embedding is the bilateral average of the projected cues.
        fused = nn.Dense(self.width, name="out", kernel_init=nn.initializers.zeros)(fused)
        return gathered + fused

    def gather(self, base, position, appearance):
        """Mean of each token's neighbours [b, h, w, width]; at the start the same in both forms."""
        colour = appearance[..., :3] / self.colour_sigma
        window = dict(radius=self.radius, position_sigma=self.position_sigma,
                      dilations=self.dilations)
        if self.form == "bilateral":
            return windowed_average(base, colour, **window)
        seen = nn.LayerNorm(name="attention_norm")(base)
        seen = jnp.concatenate([seen, position, appearance], axis=-1)
        queries = nn.Dense(self.width, name="query", kernel_init=nn.initializers.zeros)(seen)
        # A bias of the keys adds the same to all logits of a query.
        keys = nn.Dense(self.width, name="key", use_bias=False)(seen)
        return windowed_attention(queries, keys, base, colour, **window)

    def cues(self, patch_tokens, appearance):
        """What is projected, float32: the tokens, with context their low-level appearance too."""
        patch_tokens = patch_tokens.astype(jnp.float32)
        if not self.context:
            return patch_tokens
        return jnp.concatenate([patch_tokens, appearance], axis=-1)


def appearance_cues(images, grid, num_scales=_NUM_SCALES):
    """Low-level colour and texture of each token, float32 [b, h, w, 4 + 4 num_scales].

    Mean colour (3, ImageNet-normalised) and the log of the luminance's deviation; then at each
    octave, from the structure tensor of the luminance averaged over the token: log of its energy
    less that of the deviation (a change of contrast cancels), direction as cosine and sine of
    the doubled angle weighted by coherence, and the skew of the luminance's curvature (dark lines
    on light or light on dark).

    Args:
      images: float [b, H, W, 3], ImageNet-normalised. grid: (h, w), dividing H and W.
    """
    images = images.astype(jnp.float32)
    colour = jnp.stack([_cell_mean(images[..., i], grid) for i in range(3)], axis=-1)
    luminance = images @ jnp.asarray([0.299, 0.587, 0.114], jnp.float32)
    mean = _cell_mean(luminance, grid)
    variance = jnp.maximum(_cell_mean(luminance ** 2, grid) - mean ** 2, 0.0) + 1e-3
    texture = [0.5 * jnp.log(variance)]
    for scale in range(num_scales):
        dy, dx = _central(luminance, 1, 2 ** scale), _central(luminance, 2, 2 ** scale)
        yy, xx = _cell_mean(dy * dy, grid), _cell_mean(dx * dx, grid)
        yx = _cell_mean(dy * dx, grid)
        energy = yy + xx + 1e-3
        curve = _second(luminance, 2 ** scale)
        skew = _cell_mean(curve * jnp.abs(curve), grid) / (_cell_mean(curve ** 2, grid) + 1e-3)
        texture += [jnp.log(energy) - jnp.log(variance), (xx - yy) / energy, 2 * yx / energy, skew]
    return jnp.concatenate([colour, jnp.stack(texture, axis=-1)], axis=-1)


def texture_cues(images, grid):
    """`appearance_cues` without colour: float32 [b, h, w, NUM_TEXTURE_CUES]."""
    return appearance_cues(images, grid)[..., 3:]


def _central(x, axis, step):
    """Central difference over 2 step pixels; the border repeats."""
    pad = [(step, step) if i == axis else (0, 0) for i in range(x.ndim)]
    x = jnp.pad(x, pad, mode="edge")
    n = x.shape[axis]
    ahead = jax.lax.slice_in_dim(x, 2 * step, n, axis=axis)
    return 0.5 * (ahead - jax.lax.slice_in_dim(x, 0, n - 2 * step, axis=axis))


def _second(x, step):
    """Laplacian at a distance of `step` pixels; the border repeats."""
    padded = jnp.pad(x, ((0, 0), (step, step), (step, step)), mode="edge")
    h, w = x.shape[1:]
    rows = padded[:, :h, step:-step] + padded[:, 2 * step:, step:-step]
    columns = padded[:, step:-step, :w] + padded[:, step:-step, 2 * step:]
    return 0.25 * (rows + columns) - x


def position_cues(h, w):
    """Sine and cosine of (row, column) at two octaves, float32 [h, w, 8]."""
    row, column = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
    waves = [wave(np.pi * octave * axis) for axis in (row, column) for octave in (1, 2)
             for wave in (np.sin, np.cos)]
    return np.stack(waves, axis=-1).astype(np.float32)


def _cell_mean(maps, grid):
    """[b, H, W] -> [b, h, w], mean of each cell."""
    b, height, width = maps.shape
    h, w = grid
    return maps.reshape(b, h, height // h, w, width // w).mean(axis=(2, 4))
