"""A Vision Transformer of the shape DINO, DINOv2 and DINOv2 with registers have.

Written for dense use: any image size that the patch divides, patch tokens as a map [b,h,w,d],
and an early stop (`block`) for those who want a middle block and will not pay for the rest.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

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

_weight_init = nn.initializers.truncated_normal(0.02)
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
    def __call__(self, images, train=False, return_blocks=()):
        """Encodes images.

        Args:
          images: float [b,H,W,3], normalised as `normalize_images` does.
          train: switches `drop_path` on.
          return_blocks: 1-based numbers of blocks whose patch tokens are wanted too.

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

        x = self._embed(images, grid)
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

    def _embed(self, images, grid):
        """Patches, class token, registers and positions: [b, 1 + r + h*w, d]."""
        batch, (rows, cols) = images.shape[0], grid
        # A patch is a row of a matrix: on CPU faster than a strided convolution, and the same.
        x = images.astype(self.dtype).reshape(batch, rows, self.patch, cols, self.patch, 3)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * cols, -1)
        x = nn.Dense(self.width, dtype=self.dtype, kernel_init=_patch_init, name="patch_embed")(x)

        cls = self.param("cls_token", _weight_init, (1, 1, self.width))
        cls_pos = self.param("cls_pos", _weight_init, (1, 1, self.width))
        pos = self.param("pos_embed", _weight_init, (1, *self.pos_grid, self.width))
        x = x + resize_position(pos, grid).reshape(1, -1, self.width).astype(self.dtype)
        first = [cls + cls_pos]
        if self.num_registers:
            shape = (1, self.num_registers, self.width)
            first.append(self.param("register_tokens", _weight_init, shape))
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


class Block(nn.Module):
    """Attention and MLP, each in a residual branch behind its own norm."""

    num_heads: int
    mlp_ratio: float
    layer_scale: float | None
    drop_path: float
    dtype: Any

    @nn.compact
    def __call__(self, x, train):
        norm = {"epsilon": 1e-6, "dtype": self.dtype}  # flax keeps the statistics in float32
        y = nn.LayerNorm(**norm, name="norm1")(x)
        y = Attention(self.num_heads, self.dtype, name="attn")(y)
        x = x + self._branch(y, "ls1", train)
        y = nn.LayerNorm(**norm, name="norm2")(x)
        y = Mlp(self.mlp_ratio, self.dtype, name="mlp")(y)
        return x + self._branch(y, "ls2", train)

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
    """Multi-head self-attention, [b,n,d] -> [b,n,d]; softmax in float32."""

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        b, n, d = x.shape
        dense = {"dtype": self.dtype, "kernel_init": _weight_init}
        qkv = nn.Dense(3 * d, **dense, name="qkv")(x)
        # One transposition up front is 10 % faster on CPU than einsums over [b,n,h,c].
        q, k, v = qkv.reshape(b, n, 3, self.num_heads, -1).transpose(2, 0, 3, 1, 4)
        q = q * q.shape[-1] ** -0.5
        scores = jnp.einsum("bhqc,bhkc->bhqk", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores).astype(self.dtype)
        y = jnp.einsum("bhqk,bhkc->bhqc", weights, v)
        y = y.transpose(0, 2, 1, 3).reshape(b, n, d)
        return nn.Dense(d, **dense, name="proj")(y)


class Mlp(nn.Module):
    """Two layers with the exact (erf) GELU between them, [b,n,d] -> [b,n,d]."""

    mlp_ratio: float
    dtype: Any

    @nn.compact
    def __call__(self, x):
        d = x.shape[-1]
        dense = {"dtype": self.dtype, "kernel_init": _weight_init}
        y = nn.Dense(round(d * self.mlp_ratio), **dense, name="fc1")(x)
        return nn.Dense(d, **dense, name="fc2")(gelu(y))


def gelu(x):
    """x times the normal distribution function of x, in float32 inside; result in x's dtype.

    On CPU a little faster than jax.nn.gelu(approximate=False), which goes through erfc.
    """
    y = x.astype(jnp.float32)
    return (0.5 * y * (1 + jax.lax.erf(y * np.float32(np.sqrt(0.5))))).astype(x.dtype)


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
