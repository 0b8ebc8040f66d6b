"""Image in, mask out: AlignSeg against k-means of the data set, one jitted call each.

    python -m benchmarks.latency --batch_size=1 --size=448 --variant=S/14

Random weights, float32: the same encoder and the same upsampling to every pixel. k-means gives a
token the nearest of K centroids that were found before; AlignSeg adapts its prototypes to the image
(with `rounds` of the mixture settled there too), names its segments by the nearest of K classes and
is asked for both. The calls take turns; a row is the median of the repeats.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.timing import median_of_each
from fs4_jax.clustering.kmeans import unit_length
from fs4_jax.config import default_config
from fs4_jax.evaluation.floors import closeness
from fs4_jax.evaluation.upsample import upsample_argmax
from fs4_jax.models.vit import normalize_images
from fs4_jax.run import prepare

_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Images a call.", lower_bound=1)
_SIZE = flags.DEFINE_integer("size", 448, "Side of an image, pixels.", lower_bound=1)
_VARIANT = flags.DEFINE_string("variant", "S/14", "The encoder.")
_CLUSTERS = flags.DEFINE_integer("num_clusters", 21, "K: of k-means, and classes of AlignSeg.",
                                 lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 11, "Timed calls of each.", lower_bound=1)


def method_of(rounds):
    """(AlignSeg, its random parameters on the first device), of the default settings."""
    config = default_config()
    config.update(dict(method="alignseg", batch_size=jax.device_count(),
                       num_clusters=_CLUSTERS.value))
    config.data.image_size = _SIZE.value
    config.encoder.update(dict(variant=_VARIANT.value, frozen=True))
    if rounds:
        config.alignseg.mixture.update(dict(weight=10.0, rounds=rounds, whitening=0.25))
    run = prepare(config)
    return run.method, jax.device_put(jax.device_get(run.create_state().params), jax.devices()[0])


def calls():
    """[(title, function of nothing)], on one device."""
    rng, shape = np.random.default_rng(0), (_SIZE.value, _SIZE.value)
    images = jnp.asarray(rng.integers(0, 256, (_BATCH_SIZE.value, *shape, 3), dtype=np.uint8))
    masks = functools.partial(upsample_argmax, size=jnp.full((len(images), 2), _SIZE.value),
                              shape=shape)
    method, params = method_of(0)
    settled, settled_params = method_of(10)
    centroids = unit_length(jnp.asarray(rng.normal(size=(_CLUSTERS.value, method.encoder.width))))

    @jax.jit
    def tokens(params, images):
        return method.encoder.apply({"params": params["encoder"]},
                                    normalize_images(images))["patch_tokens"]

    @jax.jit
    def nearest(params, images, centroids):
        return masks(closeness(unit_length(tokens(params, images)), centroids))

    def segments(method):
        def both(params, images):
            out = method.predict(params, images)
            return masks(out["segments"]), masks(out["logits"])
        return jax.jit(both)

    ours, ours_settled = segments(method), segments(settled)
    return [("the encoder alone", lambda: tokens(params, images)),
            ("k-means, masks", lambda: nearest(params, images, centroids)),
            ("AlignSeg, masks", lambda: ours(params, images)),
            ("AlignSeg, 10 rounds", lambda: ours_settled(settled_params, images))]


def main(_):
    named = calls()
    seconds = median_of_each([lambda call=call: jax.block_until_ready(call()) for _, call in named],
                             _REPEATS.value)
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {_VARIANT.value}, "
          f"{_BATCH_SIZE.value} x {_SIZE.value} x {_SIZE.value}, float32, median of "
          f"{_REPEATS.value}")
    print(f"{'':20s}        ms  images/s  / k-means")
    for (title, _), time in zip(named, seconds):
        print(f"{title:20s}  {1000 * time:8.1f}  {_BATCH_SIZE.value / time:8.2f}  "
              f"{time / seconds[1]:9.3f}")


if __name__ == "__main__":
    app.run(main)
