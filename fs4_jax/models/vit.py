"""A Vision Transformer of the shape DINO, iBOT, MAE, MoCo-v3, MSN, DINOv2 and DINOv3 have.

Written for dense use: any image size that the patch divides, patch tokens as a map [b,h,w,d],
and an early stop (`block`) for those who want a middle block and will not pay for the rest.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from fs4_jax.models.position import POSITIONS, resize_position, rope_angles
from fs4_jax.models.transformer import MLPS, Block, weight_init

# name: (width, depth, num_heads). "mu" is for the demo and the tests; "g" is DINOv2's, "S+" and
# "H+" are DINOv3's.
VARIANTS = {
    "mu": (128, 4, 4),
    "Ti": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "H": (1280, 32, 16),
    "g": (1536, 40, 24),
    "S+": (384, 12, 6),
    "H+": (1280, 32, 20),
}
# Those whose MLP is a SwiGLU, and its hidden width; the others have GELU and 4 * width.
SWIGLU_WIDTHS = {"g": 4096, "S+": 1536, "H+": 5120}
PATCHES = (4, 8, 14, 16)
REMATS = ("none", "blocks")

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
    position="bicubic",
):
    """A `ViT` by name, for training from scratch (`weights.load_encoder` is for a trained one).

    Args:
      variant: "SIZE/PATCH", for instance "S/14"; see `VARIANTS` and `PATCHES`.
      image_size: int or (height, width) in pixels: where the position embedding is stored, with
        nothing to interpolate. Other sizes are still accepted by `apply`.
      dtype, block, drop_path, layer_scale, num_registers, position: as in `ViT`.

    Raises:
      ValueError: unknown variant, or an image size that the patch does not divide.
    """
    width, depth, num_heads, patch = parse_variant(variant)
    gated_width = SWIGLU_WIDTHS.get(variant.partition("/")[0])
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
        position=position,
        **({"mlp": "swiglu", "mlp_ratio": gated_width / width} if gated_width else {}),
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
      pos_grid: (rows, cols) the position embedding is stored at; without meaning for "rope".
      mlp_ratio: hidden width of the MLP over `width`.
      num_registers: register tokens, without position, between class token and patches.
      layer_scale: first value of LayerScale's gammas; None or 0 builds none.
      drop_path: probability, in [0, 1), that a sample skips a branch of the last block; it grows
        linearly with depth, from 0 at the first. Acts only with `train=True`, and then draws
        from rngs={"dropout": key}.
      dtype: what is computed in. Parameters, softmax and statistics of the norms are float32.
      block: stop after this many blocks, 1..depth; None runs all. Later blocks get no parameters
        (and ignore those they are given). The final norm is applied all the same.
      position: how another image size gets its positions: the stored ones resized ("bicubic",
        "bicubic_offset", "bicubic_antialias", see `resize_position`), or "rope", none stored:
        queries and keys of the patches are turned (`rope_angles`).
      mlp: "gelu" (two layers) or "swiglu" (gated).
      norm_epsilon: of all norms; DINOv3 has 1e-5.
      remat: "none", or "blocks": a gradient keeps the input of each block alone and computes the
        block again: a quarter more work for a fraction of the memory (on a CPU, XLA does the work
        and saves nothing). Parameters and results are the same.
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
    position: str = "bicubic"
    mlp: str = "gelu"
    norm_epsilon: float = 1e-6
    remat: str = "none"

    @nn.compact
    def __call__(self, images, train=False, return_blocks=(), masked=None, mask_token=None,
                 return_attention=False, return_keys=False):
        """Encodes images.

        Args:
          images: float [b,H,W,3], normalised as `normalize_images` does.
          train: switches `drop_path` on.
          return_blocks: 1-based numbers of blocks whose patch tokens are wanted too.
          masked: bool [b,h,w], patches that `mask_token` stands for, before their positions are
            added (masked image modelling); None: none.
          mask_token: float [d], only needed with `masked`.
          return_attention, return_keys: switch "attention" and "keys" on.

        Returns:
          "cls" [b,d] and "patch_tokens" [b,h,w,d], after the final norm; "registers" [b,r,d]
          if there are any; "block_tokens", a tuple of [b,h,w,d] in the order of
          `return_blocks`, if any were asked for, each after the final norm: the same as
          "patch_tokens" of an encoder that stops there (as DINOv2's get_intermediate_layers).
          When asked for, of the last block that is run: "attention" float32 [b,heads,h,w], from
          the class token to the patches, and "keys" [b,h,w,d], of the patches, heads side by
          side and not rotated: what LOST and TokenCut use.

        Raises:
          ValueError: an image size that the patch does not divide, images that are not float
            [b,H,W,3], a block that does not exist.
        """
        self._check(images, return_blocks)
        batch, height, width, _ = images.shape
        grid = _token_grid(height, width, self.patch)
        prefix = 1 + self.num_registers
        norm = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name="norm")

        x = self._embed(images, grid, masked, mask_token)
        angles = None
        if self.position == "rope":
            angles = rope_angles(grid, self.width // self.num_heads)
        wanted, told = {}, {}
        for i in range(self._num_blocks()):
            rate = self.drop_path * i / max(self.depth - 1, 1)
            block = Block(
                num_heads=self.num_heads,
                mlp_ratio=self.mlp_ratio,
                layer_scale=self.layer_scale,
                drop_path=rate,
                dtype=self.dtype,
                mlp=self.mlp,
                norm_epsilon=self.norm_epsilon,
                name=f"blocks_{i}",
            )
            if i + 1 == self._num_blocks() and (return_attention or return_keys):
                x, told = block(x, train, angles, details=True)
            elif self.remat == "blocks":
                # A closure, as the angles are constants, which an argument would not be.
                x = nn.remat(lambda block, x: block(x, train, angles))(block, x)
            else:
                x = block(x, train, angles)
            if i + 1 in return_blocks:
                wanted[i + 1] = norm(x[:, prefix:]).reshape(batch, *grid, -1)

        x = norm(x)
        out = {"cls": x[:, 0], "patch_tokens": x[:, prefix:].reshape(batch, *grid, -1)}
        if self.num_registers:
            out["registers"] = x[:, 1:prefix]
        if return_blocks:
            out["block_tokens"] = tuple(wanted[i] for i in return_blocks)
        if return_attention:
            attention = told["attention"][:, :, prefix:]
            out["attention"] = attention.reshape(*attention.shape[:2], *grid)
        if return_keys:
            out["keys"] = told["keys"][:, prefix:].reshape(batch, *grid, -1)
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
        if self.position != "rope":
            cls = cls + self.param("cls_pos", weight_init, (1, 1, self.width))
            pos = self.param("pos_embed", weight_init, (1, *self.pos_grid, self.width))
            pos = resize_position(pos, grid, self.position).reshape(1, -1, self.width)
            x = x + pos.astype(self.dtype)
        first = [cls]
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
        for name, value, known in (("position", self.position, POSITIONS), ("mlp", self.mlp, MLPS),
                                   ("remat", self.remat, REMATS)):
            if value not in known:
                raise ValueError(f"{name}={value!r} is unknown: one of {', '.join(known)}")
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


def _token_grid(height, width, patch):
    if height % patch or width % patch or min(height, width) < patch:
        raise ValueError(
            f"images of {height}x{width} pixels do not divide into patches of {patch}: set "
            f"data.image_size to multiples of {patch}"
        )
    return height // patch, width // patch
