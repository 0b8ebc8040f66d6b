"""Logits on a token grid to class ids at each label's own size, in one compiled call."""

import jax
import jax.numpy as jnp


def upsample_argmax(logits, size, shape, *, origin=(0, 0), block_rows=64):
    """Bilinear upsampling (align_corners=False) and argmax, each image to its own size.

    Works on blocks of rows, so that the logits at full resolution never exist at once.

    Args:
      logits: float [b, h, w, k] on the token grid.
      size: int [b, 2], each image's own height and width, at most `shape`.
      shape: (H, W), static: the padded size of the answer.
      origin: (row, column) of the answer's first pixel, 0, 0 for whole images. It may be traced,
        so that tiles of one shape cover images of any size in one compilation.
      block_rows: rows in one block.

    Returns:
      int32 [b, H, W]; what lies outside of an image's own size is -1.
    """
    height, width = shape
    b, h, w, _ = logits.shape
    logits = logits.astype(jnp.float32)
    across = origin[1] + jnp.arange(width)
    columns = jax.vmap(lambda n: _weights(across, n, w))(size[:, 1])              # [b, W, w]
    num_blocks = -(-height // block_rows)

    def block(start):
        rows = origin[0] + start + jnp.arange(block_rows)
        weights = jax.vmap(lambda n: _weights(rows, n, h))(size[:, 0])            # [b, R, h]
        # In float32 on every device: what decides between two clusters may be a small difference.
        full = jnp.einsum("bRh,bhwk->bRwk", weights, logits, precision="highest")
        full = jnp.einsum("bWw,bRwk->bRWk", columns, full, precision="highest")
        ids = jnp.argmax(full, axis=-1).astype(jnp.int32)
        inside = rows[None, :, None] < size[:, 0, None, None]
        inside &= across[None, None, :] < size[:, 1, None, None]
        return jnp.where(inside, ids, -1)

    blocks = jax.lax.map(block, block_rows * jnp.arange(num_blocks))              # [n, b, R, W]
    return jnp.moveaxis(blocks, 0, 1).reshape(b, num_blocks * block_rows, width)[:, :height]


def _weights(pixels, length, num_tokens):
    """Bilinear weights [len(pixels), num_tokens] of pixels on a side `length` pixels long."""
    position = (pixels + 0.5) * (num_tokens / length) - 0.5
    position = jnp.clip(position, 0, num_tokens - 1)
    return jnp.maximum(0.0, 1.0 - jnp.abs(position[:, None] - jnp.arange(num_tokens)))


def upsample_maps(maps, size, shape):
    """Bilinear upsampling (align_corners=False) of maps, each to its own size.

    Args:
      maps: float [b, h, w, c]. size: int [b, 2], each answer's own height and width.
      shape: (H, W), static, at least every size; what lies outside of a size repeats its border.

    Returns:
      float32 [b, H, W, c].
    """
    rows, columns = (jax.vmap(lambda n: _weights(jnp.arange(shape[axis]), n, maps.shape[1 + axis]))(
        size[:, axis]) for axis in (0, 1))
    maps = maps.astype(jnp.float32)
    full = jnp.einsum("bHh,bhwc->bHwc", rows, maps, precision="highest")
    return jnp.einsum("bWw,bHwc->bHWc", columns, full, precision="highest")


def upsample_all(maps, shape):
    """Bilinear upsampling (align_corners=False) of maps float [b, h, w, c], all to one size.

    Returns float32 [b, *shape, c]; b may be symbolic.
    """
    rows, columns = (_weights(jnp.arange(side), side, held)
                     for side, held in zip(shape, maps.shape[1:3]))
    full = jnp.einsum("Hh,bhwc->bHwc", rows, maps.astype(jnp.float32), precision="highest")
    return jnp.einsum("Ww,bHwc->bHWc", columns, full, precision="highest")


def upsample_nearest(ids, size, shape):
    """Nearest-neighbour resize of ids int [b, h, w], each to its own size; -1 outside of it."""
    h, w = ids.shape[1:]

    def one(ids, size):
        rows, columns = jnp.arange(shape[0]), jnp.arange(shape[1])
        # floor((i + 1/2) tokens / pixels), in integers: no rounding at a boundary.
        r = jnp.clip((2 * rows + 1) * h // (2 * size[0]), 0, h - 1)
        c = jnp.clip((2 * columns + 1) * w // (2 * size[1]), 0, w - 1)
        inside = (rows < size[0])[:, None] & (columns < size[1])[None, :]
        return jnp.where(inside, ids[r[:, None], c[None, :]], -1)

    return jax.vmap(one)(ids.astype(jnp.int32), size)
