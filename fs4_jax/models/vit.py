"""A Vision Transformer of the shape DINO, DINOv2 and DINOv2 with registers have.

Written for dense use: any image size that the patch divides, patch tokens as a map [b,h,w,d],
and an early stop (`block`) for those who want a middle block and will not pay for the rest.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fs4_jax.models.transformer import Block, weight_init

# name: (width, depth, num_heads). "mu" is for the demo and the tests.
VARIANTS = {
    "mu": (128, 4, 4),
    "Ti": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
}
PATCHES = (4, 8, 14, 16)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# torch's default for a convolution, which DINO and DINOv2 keep: uniform within 1/sqrt(fan_in).
_patch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def parse_variant(variant):
    """Splits "S/14" into (width, depth, num_heads, patch). ValueError for an unknown name."""
    size, _, patch = str(variant).partition("/")
    if size not in VARIANTS or patch not in map(str, PATCHES):
        raise ValueError(
            f"encoder.variant={variant!r} is unknown: write SIZE/PATCH with SIZE one of "
            f"{', '.join(VARIANTS)} and PATCH one of {', '.join(map(str, PATCHES))}, as in 'S/14'"
        )
    return *VARIANTS[size], int(patch)


def make_encoder(
    variant,
    *,
    image_size=224,
    dtype=jnp.float32,
    block=None,
    drop_path=0.0,
    layer_scale=None,
    num_registers=0,
):
    """A `ViT` by name, for training from scratch (`weights.load_encoder` is for a trained one).

    Args:
      variant: "SIZE/PATCH", for instance "S/14"; see `VARIANTS` and `PATCHES`.
      image_size: int or (height, width) in pixels: where the position embedding is stored, with
        nothing to interpolate. Other sizes are still accepted by `apply`.
      dtype, block, drop_path, layer_scale, num_registers: as in `ViT`.

    Raises:
      ValueError: unknown variant, or an image size that the patch does not divide.
    """
    width, depth, num_heads, patch = parse_variant(variant)
    height, width_px = (image_size, image_size) if np.ndim(image_size) == 0 else image_size
    return ViT(
        patch=patch,
        width=width,
        depth=depth,
        num_heads=num_heads,
        pos_grid=_token_grid(int(height), int(width_px), patch),
        num_registers=num_registers,
        layer_scale=layer_scale,
        drop_path=drop_path,
        dtype=dtype,
        block=block,
    )


def normalize_images(images, dtype=jnp.float32):
    """[..., 3] uint8 or float, both in 0..255 -> `dtype`, ImageNet mean 0 and deviation 1."""
    mean = 255 * jnp.asarray(IMAGENET_MEAN, jnp.float32)
    std = 255 * jnp.asarray(IMAGENET_STD, jnp.float32)
    return ((jnp.asarray(images).astype(jnp.float32) - mean) / std).astype(dtype)


class ViT(nn.Module):
    """A pre-norm Vision Transformer with class token, optional registers and LayerScale.

    Attributes:
      patch: side of a patch in pixels.
      width, depth, num_heads: dimension of a token, number of blocks, heads of attention.
      pos_grid: (rows, cols) the position embedding is stored at; another image size gets it
        resized as torch's bicubic does (`resize_position`).
      mlp_ratio: hidden width of the MLP over `width`.
      num_registers: register tokens, without position, between class token and patches.
      layer_scale: first value of LayerScale's gammas; None or 0 builds none.
      drop_path: probability, in [0, 1), that a sample skips a branch of the last block; it grows
        linearly with depth, from 0 at the first. Acts only with `train=True`, and then draws
        from rngs={"dropout": key}.
      dtype: what is computed in. Parameters, softmax and statistics of the norms are float32.
      block: stop after this many blocks, 1..depth; None runs all. Later blocks get no parameters
        (and ignore those they are given). The final norm is applied all the same.
    """

    patch: int
    width: int
    depth: int
    num_heads: int
    pos_grid: tuple[int, int]
    mlp_ratio: float = 4.0
    num_registers: int = 0
    layer_scale: float | None = None
    drop_path: float = 0.0
    dtype: Any = jnp.float32
    block: int | None = None

    @nn.compact
    def __call__(self, images, train=False, return_blocks=(), masked=None, mask_token=None):
        """Encodes images.

        Args:
          images: float [b,H,W,3], normalised as `normalize_images` does.
          train: switches `drop_path` on.
          return_blocks: 1-based numbers of blocks whose patch tokens are wanted too.
          masked: bool [b,h,w], patches that `mask_token` stands for, before their positions are
            added (masked image modelling); None: none.
          mask_token: float [d], only needed with `masked`.

        Returns:
          "cls" [b,d] and "patch_tokens" [b,h,w,d], after the final norm; "registers" [b,r,d]
          if there are any; "block_tokens", a tuple of [b,h,w,d] in the order of
          `return_blocks`, if any were asked for, each after the final norm: the same as
          "patch_tokens" of an encoder that stops there (as DINOv2's get_intermediate_layers).

        Raises:
          ValueError: an image size that the patch does not divide, images that are not float
            [b,H,W,3], a block that does not exist.
        """
        self._check(images, return_blocks)
        batch, height, width, _ = images.shape
        grid = _token_grid(height, width, self.patch)
        prefix = 1 + self.num_registers
        norm = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")

        x = self._embed(images, grid, masked, mask_token)
        wanted = {}
        for i in range(self._num_blocks()):
            rate = self.drop_path * i / max(self.depth - 1, 1)
            x = Block(
                num_heads=self.num_heads,
                mlp_ratio=self.mlp_ratio,
                layer_scale=self.layer_scale,
                drop_path=rate,
                dtype=self.dtype,
                name=f"blocks_{i}",
            )(x, train)
            if i + 1 in return_blocks:
                wanted[i + 1] = norm(x[:, prefix:]).reshape(batch, *grid, -1)

        x = norm(x)
        out = {"cls": x[:, 0], "patch_tokens": x[:, prefix:].reshape(batch, *grid, -1)}
        if self.num_registers:
            out["registers"] = x[:, 1:prefix]
        if return_blocks:
            out["block_tokens"] = tuple(wanted[i] for i in return_blocks)
        return out

    def _num_blocks(self):
        return self.depth if self.block is None else self.block

    def _embed(self, images, grid, masked, mask_token):
        """Patches, class token, registers and positions: [b, 1 + r + h*w, d]."""
        batch, (rows, cols) = images.shape[0], grid
        # A patch is a row of a matrix: on CPU faster than a strided convolution, and the same.
        x = images.astype(self.dtype).reshape(batch, rows, self.patch, cols, self.patch, 3)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * cols, -1)
        x = nn.Dense(self.width, dtype=self.dtype, kernel_init=_patch_init, name="patch_embed")(x)
        if masked is not None:
            x = jnp.where(masked.reshape(batch, -1, 1), mask_token.astype(self.dtype), x)

        cls = self.param("cls_token", weight_init, (1, 1, self.width))
        cls_pos = self.param("cls_pos", weight_init, (1, 1, self.width))
        pos = self.param("pos_embed", weight_init, (1, *self.pos_grid, self.width))
        x = x + resize_position(pos, grid).reshape(1, -1, self.width).astype(self.dtype)
        first = [cls + cls_pos]
        if self.num_registers:
            shape = (1, self.num_registers, self.width)
            first.append(self.param("register_tokens", weight_init, shape))
        first = jnp.concatenate(first, axis=1).astype(self.dtype)
        first = jnp.broadcast_to(first, (batch, *first.shape[1:]))
        return jnp.concatenate([first, x], axis=1)

    def _check(self, images, return_blocks):
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must be [b,H,W,3], got {tuple(images.shape)}")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"images must be float, got {images.dtype}: pass them through normalize_images"
            )
        if self.width % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} does not divide width={self.width}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path={self.drop_path} is not in [0, 1)")
        last = self._num_blocks()
        if not 1 <= last <= self.depth:
            raise ValueError(
                f"encoder.block={self.block} does not exist: this encoder has blocks 1 to "
                f"{self.depth} (None runs all)"
            )
        if any(not 1 <= i <= last for i in return_blocks):
            raise ValueError(
                f"return_blocks={tuple(return_blocks)}: this encoder runs blocks 1 to {last}"
            )


def resize_position(pos, grid):
    """[1,h,w,d] -> [1,*grid,d], as torch's bicubic with align_corners=False and no antialias.

    torch's cubic has a = -0.75 where jax.image.resize has -0.5, and repeats the edge where that
    renormalises; DINOv2's weights were trained on torch's.
    """
    rows, cols = grid
    if pos.shape[1] != rows:
        weights = cubic_weights(pos.shape[1], rows)
        pos = jnp.einsum("ih,bhwd->biwd", weights, pos, precision="highest")
    if pos.shape[2] != cols:
        weights = cubic_weights(pos.shape[2], cols)
        pos = jnp.einsum("jw,bhwd->bhjd", weights, pos, precision="highest")
    return pos


def cubic_weights(num_in, num_out, a=-0.75):
    """float32 [num_out, num_in]: the matrix of a cubic resize along one axis, edge repeated."""
    centre = (np.arange(num_out) + 0.5) * (num_in / num_out) - 0.5
    tap = np.floor(centre)[:, None].astype(int) + np.arange(-1, 3)
    x = np.abs(centre[:, None] - tap)
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    weights = np.zeros((num_out, num_in))
    row = np.arange(num_out)[:, None]
    np.add.at(weights, (row, np.clip(tap, 0, num_in - 1)), np.where(x <= 1, inner, outer))
    return weights.astype(np.float32)


def _token_grid(height, width, patch):
    if height % patch or width % patch or min(height, width) < patch:
        raise ValueError(
            f"images of {height}x{width} pixels do not divide into patches of {patch}: set "
            f"data.image_size to multiples of {patch}"
        )
    return height // patch, width // patch
