"""Scores parameters on a split by a protocol: one pass over the images, the floors beside it."""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from fs4_jax import distributed
from fs4_jax.affinity import dense_crf
from fs4_jax.clustering.kmeans import unit_length
from fs4_jax.config import ConfigError
from fs4_jax.data.pipeline import eval_batches
from fs4_jax.data.views import resize_image
from fs4_jax.data.whole_images import image_of
from fs4_jax.eval_fits import EvalFits, probed_features
from fs4_jax.eval_scores import SHOWN, make_scores
from fs4_jax.evaluation.confusion import confusion_matrix
from fs4_jax.evaluation.floors import IMAGE_FLOORS, closeness, floor_ids
from fs4_jax.evaluation.geometry import ProtocolSource, Subset, resize
from fs4_jax.evaluation.probe import apply_probe
from fs4_jax.evaluation.protocols import find_protocol
from fs4_jax.evaluation.readout import (dense_ids, dense_probabilities, flip_averaged,
                                        scale_averaged)
from fs4_jax.evaluation.report import Picture
from fs4_jax.evaluation.tally import ImageCounts, Tally, read_partial
from fs4_jax.evaluation.upsample import upsample_argmax
from fs4_jax.metrics import ProgressLine
from fs4_jax.sharding import batch_sharding, replicated, round_up


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """scores: what eval.json holds, None without labels. pictures: list of Picture. failures:
    Pictures of the images with the lowest accuracy, worst first. clusters: {"share": [k],
    "mean_colour": [k][3], "components_per_image": float}."""
    scores: dict | None
    pictures: list
    failures: list
    clusters: dict


class Evaluator:
    """Evaluates parameters of a method on a source; compiled once, used at every evaluation.

    Args:
      method: see `methods.base`. source: what is scored. config: ConfigDict; its eval.* and
        data.eval_size say how. mesh: where. split: its name in eval.json.
      train_source: the training split, which floors are fitted to (None: to what is scored);
        with labels for a protocol that trains a probe.
      probes: a TokenProbes that is run too, its scores in eval.json; or None.
      also: Evaluators of other protocols that are run too, their scores in eval.json.
      on_unreadable: "raise" or "skip".
    """

    def __init__(self, method, source, config, mesh, split, *, train_source=None, probes=None,
                 also=(), on_unreadable="raise"):
        self.method, self.config, self.mesh = method, config, mesh
        self.split, self.probes, self.also = split, probes, also
        # Without labels nothing is scored: the model is looked at as it is.
        as_it_is = "hungarian" if method.has_classes else "kmeans"
        self.protocol = find_protocol(config.eval.protocol if source.num_classes else as_it_is)
        self.source, self.on_unreadable = self._seen(source), on_unreadable
        self.train_source = None if train_source is None else self._seen(train_source)
        self.num_clusters, self.num_classes = config.num_clusters, source.num_classes
        self._check()
        everywhere = replicated(mesh)
        self._read = jax.jit(self._read_batch, static_argnames="shape", out_shardings=everywhere)
        self._everywhere = jax.jit(lambda x: x, out_shardings=everywhere)
        self._upsample = jax.jit(upsample_argmax, static_argnames="shape",
                                 out_shardings=everywhere)
        self._count = jax.jit(self._count_batch, static_argnames="rows", out_shardings=everywhere)
        # A training image that can not be read is left out here as it is in training.
        self._fits = EvalFits(method, config, mesh, self.protocol, self.source, self.train_source,
                              functools.partial(self._batches, on_unreadable="skip"))

    def run(self, params, step, *, floors=True, pictures=0, progress=False, partial=None):
        """One pass; returns an Evaluation. Unreadable images raise, or are named and left out.

        Args:
          params: that predict. step: of the training, for eval.json.
          floors: score k-means floors too.
          pictures: how many to keep for the report; with any, those of config.eval.failures
            images too, looked for among the images counted since the last interruption.
          progress: True draws a progress line on a terminal.
          partial: file that keeps what is counted now and then; an evaluation that was
            interrupted goes on from it. None: nothing is kept.
        """
        key = self._key(step, floors)
        found = read_partial(partial, key)
        fitted = self._fits.run(params, floors=floors and self.num_classes > 0) \
            if found is None else found[1]
        fitted = distributed.to_devices(fitted, replicated(self.mesh))
        tally = Tally(fitted, self._rows(fitted), self.num_clusters, self.num_classes,
                      self.protocol.matching)
        if found:
            tally.restore(found[0])
            print(f"going on with the evaluation: {len(tally.done)} images are counted")
        shown, skipped, images = self._pass(
            params, tally, pictures, progress,
            lambda: partial and tally.save_now_and_then(partial, key))
        for name, reason in skipped:
            distributed.warn(f"left out of the evaluation: {name}: {reason}")
        scores = self._scores(tally, step) if self.num_classes else None
        if scores and self.probes:
            scores["probes"] = self.probes.run(params)
        if scores and self.also:
            others = [other.run(params, step, floors=floors).scores for other in self.also]
            scores["also"] = {other["protocol"]: {k: v for k, v in other.items()
                                                  if k != "confusion"} for other in others}
        failed = []
        if pictures and scores and "matching" in scores:
            failed = self._pictures_of(params, fitted, images.worst(
                scores["matching"], self.config.eval.failures))
        if partial:
            distributed.wait_for_all("evaluation is whole")
            if distributed.is_first():
                partial.unlink(missing_ok=True)
        return Evaluation(scores, sorted(shown, key=lambda p: p.name), failed, tally.clusters())

    def _pass(self, params, tally, pictures, progress, keep):
        """Counts every image that is not yet; (pictures, unreadable images, ImageCounts)."""
        number = len(self.source)
        chosen = set(np.linspace(0, number - 1, pictures).astype(int).tolist())
        # Pictures of images counted before an interruption are looked at again, not counted.
        wanted = [i for i in range(number) if i not in tally.done or i in chosen]
        images, began = ImageCounts(SHOWN.get(self.protocol.clusters)), time.time()
        shown, skipped = [], []
        line = ProgressLine(number, len(tally.done), unit="evaluating") if progress else None
        for batch in self._batches(Subset(self.source, wanted), skipped):
            out, ids = self._measured(params, tally.fitted, batch)
            for row in np.flatnonzero(out["index"] >= 0):
                index = wanted[out["index"][row]]
                if index not in tally.done:
                    one = jax.tree.map(lambda x: x[row], out)
                    tally.add(index, one)
                    images.add(index, one["counts"])
                if index in chosen:
                    shown.append(self._picture(index, out, ids, row))
            keep()
            if line:
                line.update(len(tally.done),
                            {"images_per_second": len(tally.done) / (time.time() - began)})
        if line:
            line.close()
        return shown, skipped, images

    def _pictures_of(self, params, fitted, chosen):
        """Pictures of some images, in the order given."""
        shown = {}
        for batch in self._batches(Subset(self.source, chosen)):
            out, ids = self._measured(params, fitted, batch)
            for row in np.flatnonzero(out["index"] >= 0):
                index = chosen[out["index"][row]]
                shown[index] = self._picture(index, out, ids, row)
        return [shown[index] for index in chosen if index in shown]

    def _scores(self, tally, step):
        scores = {"step": int(step), "split": self.split} | make_scores(
            tally, method=self.method, source=self.source, config=self.config,
            protocol=self.protocol)
        if scores["floors"]:
            scores["floors_fitted_to"] = "the scored images" if self.train_source is None \
                else "the training split"
        return scores

    # ---- what is seen ---------------------------------------------------------------------------

    def _check(self):
        if self.protocol.clusters == "model" and not self.method.has_classes:
            raise ConfigError(f"config.eval.protocol={self.protocol.name} scores a model's own "
                              f"classes, and config.method={self.config.method} has none: set "
                              "config.eval.protocol to kmeans, overcluster or linear-probe")
        if self.protocol.clusters == "probe" and not getattr(self.train_source, "num_classes", 0):
            raise ConfigError(f"config.eval.protocol={self.protocol.name} trains a linear probe "
                              "with labels of the training split, and there are none: give "
                              "config.data.labels, or choose another protocol")
        if self.config.eval.matching and (self.protocol.per_image or
                                          self.protocol.clusters != "model"):
            raise ConfigError(f"config.eval.matching has no place in config.eval.protocol="
                              f"{self.protocol.name}: its clusters are not the model's, or every "
                              "image has a match of its own")
        averaged = self.protocol.flip_averaging or self._averages
        if averaged and self.protocol.clusters == "model" and not hasattr(self.method, "classify"):
            raise ConfigError(f"config.eval.protocol={self.protocol.name} with config.eval.flip="
                              f"{self.config.eval.flip} and config.eval.scales="
                              f"{self.config.eval.scales} classifies a mean of embeddings, and "
                              f"what tells classes apart in config.method={self.config.method} is "
                              "each image's own: set config.eval.flip=False, scales=() and "
                              "config.eval.protocol to hungarian, picie27 or per-image-m2o")
        for key in ("flip", "crf", "scales"):
            if self.config.eval[key] and self.protocol.geometry != "whole":
                raise ConfigError(f"config.eval.{key} has no place in config.eval.protocol="
                                  f"{self.protocol.name}, which says itself what it refines; it "
                                  "is for hungarian and kmeans")

    @property
    def _averages(self):
        """Whether the embeddings of several copies of an image are averaged."""
        return self.config.eval.flip or bool(self.config.eval.scales)

    @property
    def _by_segment(self):
        """Whether an image's own segments are scored: classes would only be merged segments."""
        return self.protocol.per_image and hasattr(self.method, "num_segments")

    def _seen(self, source):
        if self.protocol.geometry == "whole":
            return source
        return ProtocolSource(source, self.protocol, self.method.encoder.patch)

    def _batches(self, source, skipped=None, *, on_unreadable=None, with_labels=True):
        config = self.config
        size = config.data.eval_size or config.data.image_size
        if self.protocol.geometry != "whole":
            size = (source.side, source.side)
        return eval_batches(source, batch_size=round_up(config.eval.batch_size, self.mesh),
                            image_size=size, patch=self.method.encoder.patch,
                            with_labels=with_labels and source.num_classes > 0, skipped=skipped,
                            process_index=jax.process_index(), process_count=jax.process_count(),
                            on_unreadable=on_unreadable or self.on_unreadable)

    def _key(self, step, floors):
        """What an evaluation must have in common with the one it goes on with."""
        config = self.config
        return {"step": int(step), "split": self.split, "num_images": len(self.source),
                "floors": floors, "seed": config.seed, "eval": config.eval.to_dict(),
                "data": {key: str(config.data[key]) for key in config.data}}

    # ---- what is counted ------------------------------------------------------------------------

    def _rows(self, fitted):
        """{readout: clusters}: the model or the protocol's k-means runs, and the floors."""
        if not self.num_classes:
            return {}
        rows = {name: self.protocol.num_clusters or self.num_clusters if name.startswith("run")
                else self.num_clusters for name in fitted if name != "probe"}
        for name in IMAGE_FLOORS & rows.keys():
            rows[name] = len(fitted[name])
        if self.protocol.clusters == "probe":
            rows["model"] = self.num_classes
        elif self.protocol.clusters == "model":
            rows["model"] = self.method.num_segments if self._by_segment else self.num_clusters
        return rows

    def _measured(self, params, fitted, batch):
        """(what `Tally.add` takes, for each row of a batch, on the host; ids on the device).

        Besides "index" and "size" of each row, for here are those of all processes.
        """
        arrays, shape = _arrays(batch, self.mesh), _label_shape(batch)
        out = self._read(params, fitted, arrays, shape=shape)
        out |= {name: self._everywhere(arrays[name]) for name in ("index", "size")}
        for name, probabilities in out.pop("probabilities").items():
            out["ids"][name] = self._refined(arrays, probabilities, shape)
        ids = out.pop("ids")
        if "label" in arrays:
            out["counts"] = self._count(ids, arrays["label"],
                                        rows=tuple(sorted(self._rows(fitted).items())))
        else:
            out["counts"] = {}
        out = jax.device_get(out)
        token_ids = out.pop("token_ids")
        out["components"] = np.array([count_components(x) for x in token_ids])
        return out, ids["model" if "model" in ids else "run0"]

    def _read_batch(self, params, fitted, batch, *, shape):
        """Ids of every readout at label size, and what the clusters look like; jitted.

        Where the CRF refines a readout, "probabilities" at the image's size stand for its ids.
        """
        image, size, protocol = batch["image"], batch["size"], self.protocol
        out = self.method.predict(params, image)
        tokens = unit_length(out["patch_tokens"].astype(jnp.float32))
        answer, probabilities = {"ids": floor_ids(fitted, tokens, image, size, shape)}, {}
        if protocol.flip_averaging:            # STEGO's: the embedding at label size is classified
            embedding, classify = self._averaged(params, image), self._classifier(params, fitted)
            if protocol.crf:
                probabilities["model"] = dense_probabilities(embedding, image.shape[1:3], classify)
            else:
                answer["ids"]["model"] = dense_ids(embedding, size, shape, classify)
            read = {"model": classify(embedding)}
        else:
            read = self._logits(params, fitted, out, tokens, image)
            if self.config.eval.crf:
                probabilities = {name: dense_probabilities(
                    x, image.shape[1:3], lambda x: protocol.logit_scale * x)
                    for name, x in read.items()}
            else:
                answer["ids"] |= {name: upsample_argmax(x, size, shape) for name, x in read.items()}
        shown = out["logits"] if self.method.has_classes else next(iter(read.values()))
        return answer | {"probabilities": probabilities} | self._looks(shown, image)

    def _logits(self, params, fitted, out, tokens, image):
        """{readout: logits on the token grid} of what a protocol without STEGO's readout scores."""
        averaged, clusters = self._averages, self.protocol.clusters
        if clusters == "probe":
            return {"model": apply_probe(fitted["probe"], out[probed_features(self.protocol)])}
        if clusters == "model":
            return {"model": self.method.classify(params, self._averaged(params, image))
                    if averaged else out["segments" if self._by_segment else "logits"]}
        tokens = self._averaged(params, image, unit_tokens=True) if averaged else tokens
        return {name: closeness(tokens, x) for name, x in fitted.items() if name.startswith("run")}

    def _averaged(self, params, image, unit_tokens=False):
        """Mean embedding (or unit tokens) of images, mirrored copies and other scales."""
        def embed(x):
            out = self.method.predict(params, x)
            if unit_tokens:
                return unit_length(out["patch_tokens"].astype(jnp.float32))
            return out["embedding"]
        mirror = self.protocol.flip_averaging or self.config.eval.flip
        both = functools.partial(flip_averaged, embed) if mirror else embed
        scales = self.config.eval.scales
        return scale_averaged(both, image, scales, self.method.encoder.patch) if scales \
            else both(image)

    def _classifier(self, params, fitted):
        if self.protocol.clusters == "probe":
            return functools.partial(apply_probe, fitted["probe"])
        return lambda x: self.protocol.logit_scale * self.method.classify(params, x)

    def _refined(self, batch, probabilities, shape):
        """Ids [b, *shape] after the dense CRF on the images as the model sees them.

        Refined probabilities are upsampled to the labels; padding rows count nowhere.
        """
        where = batch_sharding(self.mesh)
        index, image, given = map(distributed.local_rows, (
            batch["index"], batch["image"], jax.device_put(probabilities, where)))
        real = np.flatnonzero(index >= 0)
        refined = np.zeros(given.shape, np.float32)
        if len(real):
            refined[real] = dense_crf(image[real], given[real])
        return self._upsample(distributed.rows_to_devices(refined, where), batch["size"],
                              shape=shape)

    def _count_batch(self, ids, label, *, rows):
        """{readout: int32 [b, clusters, classes]}; rows: (readout, clusters) pairs."""
        return {name: jax.lax.map(
            lambda pair, number=number: confusion_matrix(
                *pair, num_clusters=number, num_classes=self.num_classes), (ids[name], label))
            for name, number in rows}

    def _looks(self, logits, image):
        """Share and summed colour of each image's clusters, ids on the token grid."""
        ids = jnp.argmax(logits, axis=-1)
        one_hot = jax.nn.one_hot(ids, self.num_clusters)
        colour = jax.image.resize(image.astype(jnp.float32), (*ids.shape, 3), "linear")
        return {"token_ids": ids, "share": jnp.sum(one_hot, axis=(1, 2)),
                "colour": jnp.einsum("bhwk,bhwc->bkc", one_hot, colour)}

    # ---- what is told ---------------------------------------------------------------------------

    def _picture(self, index, out, ids, row):
        name, ids = self.source.example_name(index), np.asarray(ids[row])
        if not self.num_classes:
            return Picture(name, resize_image(image_of(self.source, index), ids.shape), None, ids)
        (h, w), example = out["size"][row], self.source[index]
        return Picture(name, resize(example["image"], (h, w), "bilinear"), example["label"],
                       ids[:h, :w])


def count_components(ids):
    """Connected regions (4-neighbours) of a label map int [h, w]: clutter has many."""
    return sum(scipy.ndimage.label(ids == k)[1] for k in np.unique(ids))


def _arrays(batch, mesh):
    """A batch on the devices; without labels, ids are wanted at the size the model sees."""
    if "label" not in batch:
        batch = batch | {"size": np.full_like(batch["size"], batch["image"].shape[1:3])}
    return distributed.rows_to_devices(batch, batch_sharding(mesh))


def _label_shape(batch):
    """The padded size of the answer, static under jit."""
    return (batch["label"] if "label" in batch else batch["image"]).shape[1:3]
