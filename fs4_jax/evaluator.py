"""Scores parameters on a split by a protocol: one pass over the images, the floors beside it."""

import dataclasses
import functools
import itertools
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from fs4_jax.affinity import dense_crf
from fs4_jax.clustering.kmeans import unit_length
from fs4_jax.config import ConfigError
from fs4_jax.data.pipeline import eval_batches
from fs4_jax.evaluation.confusion import confusion_matrix
from fs4_jax.evaluation.floors import closeness, fit_floor
from fs4_jax.evaluation.geometry import ProtocolSource, Subset, resize, sample
from fs4_jax.evaluation.matching import mean_over_runs, read_matching
from fs4_jax.evaluation.probe import apply_probe, fit_probe
from fs4_jax.evaluation.protocols import evaluate_counts, find_protocol
from fs4_jax.evaluation.readout import dense_ids, dense_probabilities, flip_averaged
from fs4_jax.evaluation.report import Picture
from fs4_jax.evaluation.tally import Tally, read_partial
from fs4_jax.evaluation.upsample import upsample_argmax, upsample_nearest
from fs4_jax.metrics import ProgressLine
from fs4_jax.sharding import batch_sharding, replicated, round_up

FLOORS = ("kmeans_tokens", "kmeans_rgb")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """scores: what eval.json holds, None without labels. pictures: list of Picture. clusters:
    {"share": [k], "mean_colour": [k][3], "components_per_image": float}."""
    scores: dict | None
    pictures: list
    clusters: dict


class Evaluator:
    """Evaluates parameters of a method on a source; compiled once, used at every evaluation.

    Args:
      method: see `methods.base`. source: what is scored. config: ConfigDict; its eval.* and
        data.eval_size say how. mesh: where. split: its name in eval.json.
      train_source: labelled images for a protocol that trains a probe; None: there are none.
      probes: a TokenProbes that is run too, its scores in eval.json; or None.
      on_unreadable: "raise" or "skip".
    """

    def __init__(self, method, source, config, mesh, split, *, train_source=None, probes=None,
                 on_unreadable="raise"):
        self.method, self.config, self.mesh = method, config, mesh
        self.split, self.probes = split, probes
        # Without labels nothing is scored: the model is looked at as it is.
        as_it_is = "hungarian" if method.has_classes else "kmeans"
        self.protocol = find_protocol(config.eval.protocol if source.num_classes else as_it_is)
        self.source, self.train_source = self._seen(source), train_source
        self.on_unreadable = on_unreadable
        self.num_clusters, self.num_classes = config.num_clusters, source.num_classes
        self._check()
        everywhere = replicated(mesh)
        self._read = jax.jit(self._read_batch, static_argnames="shape", out_shardings=everywhere)
        self._count = jax.jit(self._count_batch, static_argnames="rows", out_shardings=everywhere)
        self._features = jax.jit(self._floor_features, out_shardings=everywhere)

    def run(self, params, step, *, floors=True, pictures=0, progress=False, partial=None):
        """One pass; returns an Evaluation. Unreadable images raise, or are named and left out.

        Args:
          params: that predict. step: of the training, for eval.json.
          floors: score k-means floors too. pictures: how many to keep for the report.
          progress: True draws a progress line on a terminal.
          partial: file that keeps what is counted now and then; an evaluation that was
            interrupted goes on from it. None: nothing is kept.
        """
        key = self._key(step, floors)
        found = read_partial(partial, key)
        fitted = self._fit(params, floors and self.num_classes > 0) if found is None else found[1]
        fitted = jax.device_put(fitted, replicated(self.mesh))
        tally = Tally(fitted, self._rows(fitted), self.num_clusters, self.num_classes,
                      self.protocol.matching)
        if found:
            tally.restore(found[0])
            print(f"going on with the evaluation: {len(tally.done)} images are counted")
        shown, skipped = self._pass(params, tally, pictures, progress,
                                    lambda: partial and tally.save_now_and_then(partial, key))
        for name, reason in skipped:
            print(f"left out of the evaluation: {name}: {reason}", file=sys.stderr)
        scores = self._scores(tally, step) if self.num_classes else None
        if scores and self.probes:
            scores["probes"] = self.probes.run(params)
        if partial:
            partial.unlink(missing_ok=True)
        return Evaluation(scores, sorted(shown, key=lambda p: p.name), tally.clusters())

    def _pass(self, params, tally, pictures, progress, keep):
        """Counts every image that is not yet; returns (pictures, unreadable images)."""
        number = len(self.source)
        chosen = set(np.linspace(0, number - 1, pictures).astype(int).tolist())
        # Pictures of images counted before an interruption are looked at again, not counted.
        wanted = [i for i in range(number) if i not in tally.done or i in chosen]
        shown, skipped, began = [], [], time.time()
        line = ProgressLine(number, len(tally.done), unit="evaluating") if progress else None
        for batch in self._batches(Subset(self.source, wanted), skipped):
            out, ids = self._measured(params, tally.fitted, batch)
            for row in np.flatnonzero(batch["index"] >= 0):
                index = wanted[batch["index"][row]]
                if index not in tally.done:
                    tally.add(index, jax.tree.map(lambda x: x[row], out))
                if index in chosen:
                    shown.append(self._picture(batch, index, np.asarray(ids), row))
            keep()
            if line:
                line.update(len(tally.done),
                            {"images_per_second": len(tally.done) / (time.time() - began)})
        if line:
            line.close()
        return shown, skipped

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

    def _seen(self, source):
        if self.protocol.geometry == "whole":
            return source
        return ProtocolSource(source, self.protocol, self.method.encoder.patch)

    def _batches(self, source, skipped):
        config = self.config
        size = config.data.eval_size or config.data.image_size
        if self.protocol.geometry != "whole":
            size = (source.side, source.side)
        return eval_batches(source, batch_size=round_up(config.eval.batch_size, self.mesh),
                            image_size=size, patch=self.method.encoder.patch,
                            with_labels=source.num_classes > 0, on_unreadable=self.on_unreadable,
                            skipped=skipped)

    def _key(self, step, floors):
        """What an evaluation must have in common with the one it goes on with."""
        config = self.config
        return {"step": int(step), "split": self.split, "num_images": len(self.source),
                "floors": floors, "seed": config.seed, "eval": config.eval.to_dict(),
                "data": {key: str(config.data[key]) for key in config.data}}

    # ---- what is fitted first -------------------------------------------------------------------

    def _fit(self, params, floors):
        """Centroids of the floors and of the protocol's own k-means, or its probe."""
        fitted, protocol = {}, self.protocol
        if floors or protocol.clusters == "kmeans":
            tokens, pixels = self._floor_points(params)
            seed = self.config.seed
            if floors:
                fit = functools.partial(fit_floor, num_clusters=self.num_clusters, seed=seed)
                if self.method.has_classes:       # k-means on tokens is no floor of itself
                    fitted["kmeans_tokens"] = fit(tokens, spherical=True)
                fitted["kmeans_rgb"] = fit(pixels, spherical=False)
            if protocol.clusters == "kmeans":
                number = protocol.num_clusters or self.num_clusters
                for r in range(protocol.runs):
                    fitted[f"run{r}"] = fit_floor(tokens, number, seed + r, spherical=True)
        if protocol.clusters == "probe":
            fitted["probe"] = self._fit_probe(params)
        return fitted

    def _floor_points(self, params):
        """(tokens [n, d] at unit length, colours [m, 3]) of a sample of the scored images."""
        tokens, pixels = [], []
        for batch in self._batches(sample(self.source, self.config.eval.floor_images), []):
            real = batch["index"] >= 0
            t, p = jax.device_get(self._features(params, _arrays(batch, self.mesh)))
            tokens.append(t[real].reshape(-1, t.shape[-1]))
            pixels.append(p[real].reshape(-1, 3))
        return np.concatenate(tokens), np.concatenate(pixels)

    def _floor_features(self, params, batch):
        image = batch["image"]
        tokens = self.method.predict(params, image)["patch_tokens"].astype(jnp.float32)
        step = self.method.encoder.patch // 2
        pixels = image[:, step // 2::step, step // 2::step].astype(jnp.float32)
        return unit_length(tokens), pixels

    def _fit_probe(self, params):
        """A linear probe, config.eval.probe_steps batches of the training split."""
        features = jax.jit(lambda params, image: self.method.predict(params, image)[
            self._probed()])
        source, rng = self._seen(self.train_source), np.random.default_rng(self.config.seed)

        def batches():
            while True:
                for batch in self._batches(Subset(source, rng.permutation(len(source))), []):
                    arrays = _arrays(batch, self.mesh)
                    yield features(params, arrays["image"]), arrays["label"], arrays["size"]

        steps = self.config.eval.probe_steps
        return fit_probe(itertools.islice(batches(), steps), self.num_classes)[0]

    def _probed(self):
        """STEGO probes the embedding that is clustered; Leopart the encoder's tokens."""
        return "embedding" if self.protocol.flip_averaging else "patch_tokens"

    # ---- what is counted ------------------------------------------------------------------------

    def _rows(self, fitted):
        """{readout: clusters}: the model or the protocol's k-means runs, and the floors."""
        if not self.num_classes:
            return {}
        rows = {name: len(fitted[name]) for name in fitted if name != "probe"}
        if self.protocol.clusters == "probe":
            rows["model"] = self.num_classes
        elif self.protocol.clusters == "model":
            rows["model"] = self.num_clusters
        return rows

    def _measured(self, params, fitted, batch):
        """(what `Tally.add` takes, for each row of a batch, on the host; ids on the device)."""
        arrays, shape = _arrays(batch, self.mesh), _label_shape(batch)
        out = self._read(params, fitted, arrays, shape=shape)
        if "probabilities" in out:
            out["ids"]["model"] = self._refined(arrays, out.pop("probabilities"), shape)
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
        """Ids of every readout at label size, and what the clusters look like; jitted."""
        image, size = batch["image"], batch["size"]
        out = self.method.predict(params, image)
        answer = {"ids": self._cluster_ids(fitted, out, image, size, shape)}
        protocol = self.protocol
        if protocol.flip_averaging:
            embedding = flip_averaged(
                lambda x: self.method.predict(params, x)["embedding"], image)
            classify = self._classifier(params, fitted)
            if protocol.crf:
                side = self.source.side           # the label's own; `shape` is padded
                answer["probabilities"] = dense_probabilities(embedding, (side, side), classify)
            else:
                answer["ids"]["model"] = dense_ids(embedding, size, shape, classify)
        elif protocol.clusters == "probe":
            logits = apply_probe(fitted["probe"], out[self._probed()])
            answer["ids"]["model"] = upsample_argmax(logits, size, shape)
        elif protocol.clusters == "model":
            answer["ids"]["model"] = upsample_argmax(out["logits"], size, shape)
        shown = out["logits"] if self.method.has_classes else \
            closeness(unit_length(out["patch_tokens"].astype(jnp.float32)), fitted["run0"])
        return answer | self._looks(shown, image)

    def _classifier(self, params, fitted):
        if self.protocol.clusters == "probe":
            return functools.partial(apply_probe, fitted["probe"])
        return lambda x: self.protocol.logit_scale * self.method.classify(params, x)

    def _cluster_ids(self, fitted, out, image, size, shape):
        """Ids of the k-means floors and runs."""
        tokens = unit_length(out["patch_tokens"].astype(jnp.float32))
        ids = {name: upsample_argmax(closeness(tokens, centroids), size, shape)
               for name, centroids in fitted.items() if name not in ("probe", "kmeans_rgb")}
        if "kmeans_rgb" in fitted:
            pixels = jax.lax.map(lambda x: jnp.argmax(closeness(
                x.astype(jnp.float32), fitted["kmeans_rgb"]), axis=-1), image)
            ids["kmeans_rgb"] = upsample_nearest(pixels, size, shape)
        return ids

    def _refined(self, batch, probabilities, shape):
        """Ids [b, *shape] after the dense CRF; -1 in padding rows and beyond the label."""
        real = np.flatnonzero(np.asarray(batch["index"]) >= 0)
        refined = dense_crf(batch["image"][real], probabilities[real])
        ids = np.full((len(probabilities), *shape), -1, np.int32)
        h, w = probabilities.shape[1:3]
        ids[real, :h, :w] = np.argmax(refined, axis=-1)
        return jax.device_put(ids, batch_sharding(self.mesh))

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
        h, w = ids.shape[1:]
        cells = image.reshape(image.shape[0], h, -1, w, image.shape[2] // w, 3)
        colour = jnp.mean(cells.astype(jnp.float32), axis=(2, 4))
        return {"token_ids": ids, "share": jnp.sum(one_hot, axis=(1, 2)),
                "colour": jnp.einsum("bhwk,bhwc->bkc", one_hot, colour)}

    # ---- what is told ---------------------------------------------------------------------------

    def _picture(self, batch, index, ids, row):
        name, h, w = self.source.example_name(index), *batch["size"][row]
        if "label" not in batch:
            return Picture(name, batch["image"][row], None, ids[row])
        image = self.source[index]["image"]
        return Picture(name, resize(image, (h, w), "bilinear"), batch["label"][row, :h, :w],
                       ids[row, :h, :w])

    def _scores(self, tally, step):
        """eval.json: percent, exact counts, the match."""
        scored = {name: self._score_of(readout, name in FLOORS)
                  for name, readout in tally.readouts.items()}
        floors = {name: {"miou": scored[name].miou, "accuracy": scored[name].accuracy}
                  for name in FLOORS if name in scored}
        runs = [scores for name, scores in scored.items() if name not in FLOORS]
        names, protocol = class_names(self.source), self.protocol
        iou = mean_over_runs([scores.per_class_iou for scores in runs])
        answer = {
            "title": "this model" if self.method.has_classes else "k-means on its tokens",
            "protocol": protocol.name, "split": self.split, "num_images": len(tally.done),
            "step": int(step), "miou": float(np.mean([s.miou for s in runs])),
            "accuracy": float(np.mean([s.accuracy for s in runs])),
            "per_class_iou": {name: None if np.isnan(x) else float(x)
                              for name, x in zip(names, iou)},
            "floors": dict(sorted(floors.items())), "class_names": list(names),
            "num_clusters": self.num_clusters, "num_classes": self.num_classes}
        if self.config.eval.bug_compatible:
            answer["bug_compatible"] = self.config.eval.bug_compatible
        if len(runs) > 1:
            answer["runs"] = [{"miou": s.miou, "accuracy": s.accuracy} for s in runs]
        shown = {"model": "model", "kmeans": "run0"}.get(protocol.clusters)    # in the pictures
        if shown and not protocol.per_image and not protocol.num_clusters:
            answer["matching"] = runs[0].matching.tolist()
            answer["confusion"] = tally.readouts[shown].counts.tolist()
        return answer

    def _score_of(self, readout, floor):
        if self.protocol.per_image:
            return readout.scores()
        config, rule = self.config.eval, self.protocol.matching
        if floor:                      # the floor of a probe is clusters all the same
            return evaluate_counts(readout.counts, "hungarian" if rule == "identity" else rule)
        return evaluate_counts(readout.counts, rule, matching=self._given_matching(),
                               bug_compatible=config.bug_compatible)

    def _given_matching(self):
        """config.eval.matching: the match of an earlier eval.json, or None."""
        path = self.config.eval.matching
        if not path:
            return None
        matching = read_matching(path)
        if len(matching) != self.num_clusters:
            raise ConfigError(f"config.eval.matching={path} matches {len(matching)} clusters, the "
                              f"model has {self.num_clusters}")
        return matching


def class_names(source):
    """The source's class names, or "class 0", "class 1", ... where it has none."""
    return tuple(source.class_names) or tuple(f"class {i}" for i in range(source.num_classes))


def count_components(ids):
    """Connected regions (4-neighbours) of a label map int [h, w]: clutter has many."""
    return sum(scipy.ndimage.label(ids == k)[1] for k in np.unique(ids))


def _arrays(batch, mesh):
    """A batch on the devices; without labels, ids are wanted at the size the model sees."""
    if "label" not in batch:
        batch = batch | {"size": np.full_like(batch["size"], batch["image"].shape[1:3])}
    return {key: jax.device_put(value, batch_sharding(mesh)) for key, value in batch.items()}


def _label_shape(batch):
    """The padded size of the answer, static under jit."""
    return (batch["label"] if "label" in batch else batch["image"]).shape[1:3]
