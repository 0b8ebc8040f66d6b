"""Where a patch stands: stored position embeddings resized to a grid, and rotary ones (RoPE)."""

import numpy as np

# jax is imported where it is used: a command that names RESIZES answers --help without.

RESIZES = ("bicubic", "bicubic_offset", "bicubic_antialias")
POSITIONS = (*RESIZES, "rope")


def resize_position(pos, grid, how="bicubic"):
    """[1,h,w,d] -> [1,*grid,d], as torch's bicubic with align_corners=False does.

    torch's cubic has a = -0.75 where jax.image.resize has -0.5, and repeats the edge where that
    renormalises; the released weights were trained on torch's.

    Args:
      how: "bicubic": size given. "bicubic_offset": scale factors of (n + 0.1) / n given, as DINO
        and iBOT do. "bicubic_antialias": size given and antialias=True, as DINOv2 does where it
        has registers.
    """
    import jax.numpy as jnp
    if pos.shape[1:3] == tuple(grid):
        return pos
    rows = resize_weights(pos.shape[1], grid[0], how)
    cols = resize_weights(pos.shape[2], grid[1], how)
    if rows is not None:
        pos = jnp.einsum("ih,bhwd->biwd", rows, pos, precision="highest")
    if cols is not None:
        pos = jnp.einsum("jw,bhwd->bhjd", cols, pos, precision="highest")
    return pos


def resize_weights(num_in, num_out, how):
    """float32 [num_out, num_in], the matrix of a resize along one axis; None changes nothing."""
    if how == "bicubic_offset":     # changes an axis of the same length too
        return cubic_weights(num_in, num_out, scale=num_in / (num_out + 0.1))
    if num_in == num_out:
        return None
    resize = antialiased_weights if how == "bicubic_antialias" else cubic_weights
    return resize(num_in, num_out)


def cubic_weights(num_in, num_out, *, scale=None):
    """Four taps around each centre, a = -0.75, the edge repeated; scale: inputs an output."""
    centre = (np.arange(num_out) + 0.5) * (num_in / num_out if scale is None else scale) - 0.5
    tap = np.floor(centre)[:, None].astype(int) + np.arange(-1, 3)
    weights = np.zeros((num_out, num_in))
    row = np.arange(num_out)[:, None]
    values = _cubic(np.abs(centre[:, None] - tap), a=-0.75)
    np.add.at(weights, (row, np.clip(tap, 0, num_in - 1)), values)
    return weights.astype(np.float32)


def antialiased_weights(num_in, num_out):
    """A cubic of a = -0.5 as wide as an output, cut off at the edge and normalised to 1."""
    scale = num_in / num_out
    centre = (np.arange(num_out)[:, None] + 0.5) * scale
    values = _cubic(np.abs(np.arange(num_in) + 0.5 - centre) / max(scale, 1.0), a=-0.5)
    return (values / values.sum(1, keepdims=True)).astype(np.float32)


def _cubic(x, a):
    """Keys' cubic at distances x >= 0."""
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0.0))


def rope_angles(grid, size, theta=100.0):
    """Angles of DINOv3's rotary positions, float32 [h*w, size]; size: channels of a head.

    A patch's centre is (y, x) in [-1, 1] of the image; a quarter of the channels turns with y and
    one with x, at theta ** -(4 i / size) turns for each unit; the second half repeats the first.
    """
    if size % 4:
        raise ValueError(f"rotary positions need heads of a multiple of 4 channels, not {size}")
    turns = theta ** -(np.arange(size // 4) * 4 / size)
    y, x = ((2 * np.arange(n) + 1) / n - 1 for n in grid)
    centres = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2)
    angles = 2 * np.pi * centres[:, :, None] * turns
    return np.tile(angles.reshape(len(centres), -1), 2).astype(np.float32)


def rotate(x, angles):
    """Turns the last tokens of x, those that have angles; in float32, result in x's dtype.

    Args:
      x: [b,n,...,c], queries or keys.
      angles: float32 [m,c], m <= n, from `rope_angles`.
    """
    import jax.numpy as jnp
    n, c = x.shape[1], x.shape[-1]
    still = n - len(angles)                 # class token and registers
    cos = np.concatenate([np.ones((still, c), np.float32), np.cos(angles)])
    sin = np.concatenate([np.zeros((still, c), np.float32), np.sin(angles)])
    cos, sin = (z.reshape(n, *[1] * (x.ndim - 3), c) for z in (cos, sin))
    y = x.astype(jnp.float32)
    first, second = jnp.split(y, 2, axis=-1)
    return (y * cos + jnp.concatenate([-second, first], axis=-1) * sin).astype(x.dtype)
