"""From a model's embedding to class scores at label size, as STEGO's evaluation reads it."""

import jax
import jax.numpy as jnp

from fs4_jax.evaluation.upsample import upsample_maps


def flip_averaged(embed, images):
    """Mean of the embeddings of images and of their mirrored copies, mirrored back.

    Embeddings and not logits are averaged (protocols.md 2e).

    Args:
      embed: images [b, H, W, 3] -> [b, h, w, c]. images: of it.

    Returns:
      float32 [b, h, w, c].
    """
    mirrored = jnp.flip(embed(jnp.flip(images, axis=2)), axis=2)
    return 0.5 * (embed(images).astype(jnp.float32) + mirrored.astype(jnp.float32))


def scale_averaged(embed, images, scales, patch):
    """Mean of the embeddings of images resized to several scales, on the grid of the first one.

    Args:
      embed: images [b, H, W, 3] -> [b, h, w, c]. images: of it. scales: factors of both sides.
      patch: of the encoder; sides are rounded to its multiples, one at least.

    Returns:
      float32 [b, h, w, c].
    """
    total, (b, *sides, _) = None, images.shape
    for scale in scales:
        size = tuple(max(1, round(side * scale / patch)) * patch for side in sides)
        resized = jax.image.resize(images.astype(jnp.float32), (b, *size, 3), "linear")
        maps = embed(resized).astype(jnp.float32)
        total = maps if total is None else total + jax.image.resize(maps, total.shape, "linear")
    return total / len(scales)


def dense_ids(embedding, size, shape, classify):
    """int32 [b, H, W] ids of embeddings upsampled first and classified then; -1 beyond a size.

    Args:
      embedding: float [b, h, w, c]. size: int [b, 2]. shape: (H, W), static.
      classify: [..., c] -> scores [..., k].
    """
    def one(args):
        full = upsample_maps(args[0][None], args[1][None], shape)[0]
        ids = jnp.argmax(classify(full), axis=-1).astype(jnp.int32)
        inside = ((jnp.arange(shape[0]) < args[1][0])[:, None]
                  & (jnp.arange(shape[1]) < args[1][1])[None, :])
        return jnp.where(inside, ids, -1)

    # One image at a time: an embedding at label size is large.
    return jax.lax.map(one, (embedding, size))


def dense_probabilities(embedding, shape, classify):
    """Softmax of the scores of embeddings upsampled first: float32 [b, H, W, k].

    Args:
      embedding: float [b, h, w, c]. shape: (H, W), of every image. classify: as above.
    """
    def one(embedding):
        full = upsample_maps(embedding[None], jnp.array([shape]), shape)[0]
        return jax.nn.softmax(classify(full), axis=-1)

    return jax.lax.map(one, embedding)
