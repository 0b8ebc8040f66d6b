"""Which patches a student does not see: random blobs, drawn on the device."""

import jax
import jax.numpy as jnp


def blob_masks(key, num_images, grid, *, ratio, probability):
    """Masks of smooth random shape, for masked image modelling.

    iBOT draws rectangles until a share of the patches is covered, a loop without a fixed length.
    Here smooth noise is cut at the height that leaves just that share: blobs of like size, in one
    sort. Our reconstruction.

    Args:
      key: random key. num_images: int. grid: (h, w) patches.
      ratio: (least, most) share of an image's patches that is masked, drawn uniformly.
      probability: that an image is masked at all.

    Returns:
      "masked" bool [n, h, w]; "index" int32 [n, m], which patches (row-major) those are, m being
      the most there can be; "valid" bool [n, m], whether that entry is one.
    """
    h, w = grid
    key_noise, key_ratio, key_image = jax.random.split(key, 3)
    coarse = jax.random.normal(key_noise, (num_images, -(-h // 2), -(-w // 2)))
    noise = jax.image.resize(coarse, (num_images, h, w), "cubic").reshape(num_images, h * w)
    share = jax.random.uniform(key_ratio, (num_images,), minval=ratio[0], maxval=ratio[1])
    chosen = jax.random.uniform(key_image, (num_images,)) < probability
    count = jnp.where(chosen, jnp.round(share * h * w), 0).astype(jnp.int32)
    most = max(1, round(ratio[1] * h * w))
    index = jnp.argsort(-noise, axis=1)[:, :most]
    valid = jnp.arange(most) < count[:, None]
    rows = jnp.arange(num_images)[:, None]
    masked = jnp.zeros((num_images, h * w), bool).at[rows, index].set(valid)
    return {"masked": masked.reshape(num_images, h, w), "index": index, "valid": valid}
