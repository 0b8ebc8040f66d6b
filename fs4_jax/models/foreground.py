"""Where an encoder's class token looks: AlignSeg's foreground, from the last block's attention."""

import jax
import jax.numpy as jnp
import numpy as np

_BLUR_RADIUS, _BLUR_SIGMA = 3, 0.6        # a 7 x 7 window


def foreground_mask(attention, *, mass=0.6):
    """The patches that hold most of the attention, without specks.

    AlignSeg's attention-map constraint (TPAMI 2024; methods.md 2.2): the mean over heads, blurred;
    its largest entries until they hold `mass` of the sum; components of one or two patches are
    removed (patches that touch at a corner are connected).

    Args:
      attention: float [b, heads, h, w], of the class token to the patches, not negative; h and w
        at least 4, of which the blur reflects 3.
      mass: share of the sum, in (0, 1].

    Returns:
      bool [b, h, w]; may be empty. An entry is kept if the sum of it and of all smaller ones is
      more than 1 - mass of the total, so the entry on the threshold is. Of equal entries the later
      ones, row by row, count as the larger.
    """
    return without_specks(_most_of(blurred(jnp.mean(attention, axis=1)), mass))


def blurred(maps):
    """float [b, h, w] under a 7 x 7 Gaussian of sigma 0.6; borders reflect, without the edge
    itself being doubled (torchvision's gaussian_blur)."""
    places = np.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1)
    weights = np.exp(-0.5 * (places / _BLUR_SIGMA) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (1, 2):
        pad = [(0, 0)] * 3
        pad[axis] = (_BLUR_RADIUS, _BLUR_RADIUS)
        padded, size = jnp.pad(maps, pad, mode="reflect"), maps.shape[axis]
        maps = sum(weight * jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
                   for i, weight in enumerate(weights))
    return maps


def without_specks(mask):
    """bool [b, h, w] without its 8-connected components of one or two patches.

    A patch lies in a larger one exactly if it, or one that it touches, touches two others.
    """
    touches = _window_sum(mask) - 1
    larger = _window_sum(mask & (touches >= 2)) > 0
    return mask & larger


def _window_sum(mask):
    """int32 [b, h, w], how many of the 3 x 3 around a place are set."""
    return jax.lax.reduce_window(mask.astype(jnp.int32), 0, jax.lax.add, (1, 3, 3), (1, 1, 1),
                                 "SAME")


def _most_of(maps, mass):
    flat = maps.reshape(len(maps), -1)
    order = jnp.argsort(flat, axis=1, stable=True)
    held = jnp.cumsum(jnp.take_along_axis(flat, order, axis=1), axis=1)
    kept = held > (1 - mass) * held[:, -1:]
    return jnp.put_along_axis(jnp.zeros_like(kept), order, kept, axis=1,
                              inplace=False).reshape(maps.shape)
