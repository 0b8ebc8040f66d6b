"""The k-means floors every score is read against: no training, the same number of clusters.

kmeans_plain: tokens at unit length. kmeans_strong: what a careful user does with the same tokens
in ten lines, so what a method has to beat: unit length, PCA to 12 whitened dimensions, unit length
again, the token's place appended. kmeans_rgb: the pixels' colours. All are Euclidean and fitted to
images of the training split; each gets one Hungarian match on the scored pixels.

Where images are matched one by one there are two more, fitted to each image: kmeans_image,
spherical k-means of its own tokens into as many segments as the model has, and one_segment, the
whole image in one.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fs4_jax.clustering import kmeans
from fs4_jax.clustering.kmeans import squared_distances, unit_length
from fs4_jax.evaluation.upsample import upsample_argmax, upsample_nearest

FLOOR_TITLES = {"kmeans_plain": "plain k-means on its tokens",
                "kmeans_strong": "strong k-means on its tokens", "kmeans_rgb": "k-means on RGB",
                "kmeans_image": "k-means within each image", "one_segment": "one segment"}
IMAGE_FLOORS = {"kmeans_image", "one_segment"}
_MAX_POINTS = 100_000
_RESTARTS = 3
_ITERATIONS = 30
_STRONG_WIDTH = 12


def fit_floor(points, num_clusters, seed, *, spherical):
    """Centroids [k, d] of points [n, d]: the best of 3 k-means++ restarts, by inertia.

    Args:
      points: float; at most 100,000 of them are used, drawn by the seed.
      num_clusters: k.
      seed: int.
      spherical: cosine k-means rather than Euclidean.
    """
    points, = _drawn(seed, points)
    result = kmeans(jnp.asarray(points), num_clusters, key=jax.random.key(seed),
                    num_iters=_ITERATIONS, spherical=spherical, restarts=_RESTARTS)
    return np.asarray(result.centroids)


def fit_strong(tokens, places, num_clusters, seed):
    """What `strong_features` reads tokens by, and the centroids among them.

    Args:
      tokens: float [n, d] at unit length; at most 100,000 are used, drawn by the seed.
      places: float [n, 2], of `token_places`. num_clusters: k. seed: int.

    Returns:
      {"mean" [d], "whiten" [d, 12], "centroids" [k, 14]} (fewer than 12 where d is less).
    """
    tokens, places = _drawn(seed, tokens, places)
    mean = tokens.mean(0)
    # Float64 sums only where they are small: [d, d].
    covariance = ((tokens - mean).T @ (tokens - mean)).astype(np.float64) / len(tokens)
    variance, axes = np.linalg.eigh(covariance)
    variance, axes = variance[::-1][:_STRONG_WIDTH], axes[:, ::-1][:, :_STRONG_WIDTH]
    # A direction without spread would blow up rounding to unit variance: it counts nothing.
    spread = variance > 1e-6 * variance[0]
    scale = np.where(spread, 1 / np.sqrt(np.where(spread, variance, 1)), 0)
    fitted = {"mean": mean, "whiten": np.float32(axes * scale)}
    features = np.asarray(strong_features(tokens, places, fitted))
    return fitted | {"centroids": fit_floor(features, num_clusters, seed, spherical=False)}


def strong_features(tokens, places, fitted):
    """float32 [..., 14]: whitened tokens at unit length, then (x, y).

    Args:
      tokens: float [..., d] at unit length. places: float [..., 2], broadcast against them.
      fitted: "mean" and "whiten" of `fit_strong`.
    """
    white = jnp.matmul(tokens - fitted["mean"], fitted["whiten"], precision="highest")
    places = jnp.broadcast_to(places, (*white.shape[:-1], 2))
    return jnp.concatenate([unit_length(white), places], axis=-1)


def floor_ids(fitted, tokens, image, size, shape):
    """{floor: ids [b, *shape] at label size}; never mirrored or refined; jitted by the caller.

    Args:
      fitted: {floor: what was fitted}; of `IMAGE_FLOORS`, the segments' numbers [k].
      tokens: float [b, h, w, d] at unit length. image: uint8 [b, H, W, 3].
      size, shape: as for `upsample_argmax`.
    """
    ids = {}
    if "kmeans_plain" in fitted:
        ids["kmeans_plain"] = upsample_argmax(closeness(tokens, fitted["kmeans_plain"]), size,
                                              shape)
    if "kmeans_strong" in fitted:
        strong = fitted["kmeans_strong"]
        features = strong_features(tokens, token_places(*tokens.shape[1:3]), strong)
        ids["kmeans_strong"] = upsample_argmax(closeness(features, strong["centroids"]), size,
                                               shape)
    if "kmeans_rgb" in fitted:
        pixels = jax.lax.map(lambda x: jnp.argmax(closeness(
            x.astype(jnp.float32), fitted["kmeans_rgb"]), axis=-1), image)
        ids["kmeans_rgb"] = upsample_nearest(pixels, size, shape)
    if "kmeans_image" in fitted:
        number = len(fitted["kmeans_image"])
        near = jax.lax.map(lambda x: closeness(x, segment_centroids(x, number)), tokens)
        ids["kmeans_image"] = upsample_argmax(near, size, shape)
    if "one_segment" in fitted:
        ids["one_segment"] = jnp.zeros((len(image), *shape), jnp.int32)
    return ids


def segment_centroids(tokens, number):
    """Centroids [number, d] of one image's unit tokens [h, w, d], by spherical k-means."""
    points = tokens.reshape(-1, tokens.shape[-1])
    return kmeans(points, number, key=jax.random.key(0), num_iters=_ITERATIONS, spherical=True,
                  restarts=_RESTARTS).centroids


def token_places(height, width):
    """(x, y) of the centres of a grid's tokens, float32 [height, width, 2].

    In -0.5 .. 0.5 of the image: x to the right, y down.
    """
    x, y = ((np.arange(n, dtype=np.float32) + 0.5) / n - 0.5 for n in (width, height))
    return np.stack(np.meshgrid(x, y), axis=-1)


def closeness(x, centroids):
    """Minus the squared distances [..., k] of x [..., d] to centroids [k, d]: k-means' logits."""
    flat = squared_distances(x.reshape(-1, x.shape[-1]), centroids)
    return -flat.reshape(*x.shape[:-1], -1)


def _drawn(seed, *arrays):
    """The same at most 100,000 rows of arrays, drawn by the seed."""
    number = len(arrays[0])
    if number <= _MAX_POINTS:
        return arrays
    chosen = np.random.default_rng(seed).choice(number, _MAX_POINTS, replace=False)
    return tuple(array[chosen] for array in arrays)
