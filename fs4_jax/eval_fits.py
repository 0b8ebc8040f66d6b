"""What an evaluation fits before it counts: the floors, the protocol's own k-means, its probe."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from fs4_jax import distributed
from fs4_jax.clustering.kmeans import unit_length
from fs4_jax.evaluation.floors import fit_floor, fit_strong, token_places
from fs4_jax.evaluation.geometry import Subset, sample
from fs4_jax.evaluation.probe import fit_probe
from fs4_jax.sharding import batch_sharding, replicated


class EvalFits:
    """Fits to a sample of images, seen as the protocol sees them; compiled once.

    Args:
      method, config, mesh, protocol: the evaluator's.
      source: what is scored; the protocol's own k-means is fitted to it.
      train_source: what floors and the probe are fitted to; None: floors to what is scored.
      batches: (source, with_labels=True) -> what `data.pipeline.eval_batches` yields of it.
    """

    def __init__(self, method, config, mesh, protocol, source, train_source, batches):
        self.method, self.config, self.mesh, self.protocol = method, config, mesh, protocol
        self.source, self.train_source, self.batches = source, train_source, batches
        self._points = jax.jit(self._points_of_batch, out_shardings=replicated(mesh))

    def run(self, params, *, floors):
        """{name: centroids, or a dict of arrays}: the floors' if asked for, then "run0", ... or
        "probe", whichever the protocol has."""
        fitted, seed = {}, self.config.seed
        if floors:
            fitted = self._floors(params, seed)
        if self.protocol.clusters == "kmeans":
            tokens, _, _ = self._sampled(params, self.source)
            number = self.protocol.num_clusters or self.config.num_clusters
            fitted |= {f"run{r}": fit_floor(tokens, number, seed + r, spherical=True)
                       for r in range(self.protocol.runs)}
        if self.protocol.clusters == "probe":
            fitted["probe"] = self._probe(params)
        return fitted

    def _floors(self, params, seed):
        source = self.source if self.train_source is None else self.train_source
        tokens, places, colours = self._sampled(params, source)
        number = self.config.num_clusters
        fitted = {"kmeans_strong": fit_strong(tokens, places, number, seed),
                  "kmeans_rgb": fit_floor(colours, number, seed, spherical=False)}
        if self.method.has_classes:           # k-means on tokens is no floor of itself
            fitted["kmeans_plain"] = fit_floor(tokens, number, seed, spherical=False)
        if self.protocol.per_image:           # fitted to each image when it is seen
            segments = getattr(self.method, "num_segments", number)
            fitted |= {"kmeans_image": np.arange(segments), "one_segment": np.arange(1)}
        return fitted

    def _sampled(self, params, source):
        """(tokens [n, d] at unit length, their places [n, 2], colours [m, 3]) of
        config.eval.floor_images of a source."""
        points = []
        for batch in self.batches(sample(source, self.config.eval.floor_images),
                                  with_labels=False):
            tokens, colours, index = jax.device_get(self._points(
                params, self._put(batch["image"]), self._put(batch["index"])))
            places = np.broadcast_to(token_places(*tokens.shape[1:3]), (*tokens.shape[:3], 2))
            real = index >= 0
            points.append([x[real].reshape(-1, x.shape[-1]) for x in (tokens, places, colours)])
        return tuple(np.concatenate(parts) for parts in zip(*points))

    def _points_of_batch(self, params, image, index):
        tokens = self.method.predict(params, image)["patch_tokens"].astype(jnp.float32)
        step = self.method.encoder.patch // 2
        colours = image[:, step // 2::step, step // 2::step].astype(jnp.float32)
        return unit_length(tokens), colours, index

    def _probe(self, params):
        """A linear probe, config.eval.probe_steps batches of the training split."""
        name = probed_features(self.protocol)
        features = jax.jit(lambda params, image: self.method.predict(params, image)[name])
        source, rng = self.train_source, np.random.default_rng(self.config.seed)

        def batches():
            while True:
                for batch in self.batches(Subset(source, rng.permutation(len(source)))):
                    seen = features(params, self._put(batch["image"]))
                    yield seen, self._put(batch["label"]), self._put(batch["size"])

        steps = self.config.eval.probe_steps
        return fit_probe(itertools.islice(batches(), steps), self.source.num_classes)[0]

    def _put(self, array):
        return distributed.rows_to_devices(array, batch_sharding(self.mesh))


def probed_features(protocol):
    """STEGO probes the embedding that is clustered; Leopart the encoder's tokens."""
    return "embedding" if protocol.flip_averaging else "patch_tokens"
