"""Scores a model on a split: one pass over the images, the k-means floors beside it."""

import dataclasses
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

import fs4_jax
from fs4_jax import config as config_lib
from fs4_jax.checkpoint import Checkpoints
from fs4_jax.clustering.kmeans import unit_length
from fs4_jax.data.pipeline import eval_batches
from fs4_jax.evaluation import Confusion, confusion_matrix
from fs4_jax.evaluation.floors import closeness, fit_floor
from fs4_jax.evaluation.protocols import evaluate_counts
from fs4_jax.evaluation.report import Picture, write_report
from fs4_jax.evaluation.upsample import upsample_argmax, upsample_nearest
from fs4_jax.metrics import read_metrics
from fs4_jax.run import checked_source, prepare
from fs4_jax.sharding import batch_sharding, replicated, round_up


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """scores: what eval.json holds, None without labels. pictures: list of Picture. clusters:
    {"share": [k], "mean_colour": [k][3], "components_per_image": float}."""
    scores: dict | None
    pictures: list
    clusters: dict


class Evaluator:
    """Evaluates parameters of a method on a source; compiled once, used at every evaluation."""

    def __init__(self, method, source, config, mesh, split, *, on_unreadable="raise"):
        self.method, self.source, self.config, self.split = method, source, config, split
        self.mesh, self.on_unreadable = mesh, on_unreadable
        self.num_clusters, self.num_classes = config.num_clusters, source.num_classes
        self._measure = jax.jit(self._measure_batch, static_argnames="shape",
                                out_shardings=replicated(mesh))
        self._features = jax.jit(self._floor_features, out_shardings=replicated(mesh))

    def run(self, params, step, *, floors=True, pictures=0, progress=False):
        """One pass; returns an Evaluation. Unreadable images raise, or are named and left out."""
        floors = floors and self.num_classes > 0
        centroids = self._fit_floors(params) if floors else {}
        totals = {name: Confusion(self.num_clusters, self.num_classes)
                  for name in ("model", *centroids)}
        share, colour, components = 0.0, 0.0, []
        shown, chosen = [], set(np.linspace(0, len(self.source) - 1, pictures).astype(int))
        done, began, skipped = 0, time.time(), []
        for batch in self._batches(self.source, skipped):
            out = self._measure(params, centroids, _arrays(batch, self.mesh),
                                shape=_label_shape(batch))
            ids = out.pop("ids")          # large, and wanted on the host for few pictures
            out = jax.device_get(out)
            for name in out["counts"]:
                totals[name].add(out["counts"][name])
            share, colour = share + out["share"], colour + out["colour"]
            for row, index in enumerate(batch["index"]):
                if index >= 0:
                    components.append(count_components(out["token_ids"][row]))
                if index in chosen:
                    shown.append(self._picture(batch, np.asarray(ids), row))
            done += int(np.sum(batch["index"] >= 0))
            if progress and sys.stderr.isatty():
                print(f"\revaluating {done}/{len(self.source)}  "
                      f"{done / (time.time() - began):.1f} img/s ", end="", file=sys.stderr)
        if progress and sys.stderr.isatty():
            print(file=sys.stderr)
        for name, reason in skipped:
            print(f"left out of the evaluation: {name}: {reason}", file=sys.stderr)
        clusters = {"share": (share / share.sum()).tolist(),
                    "mean_colour": (colour / np.maximum(share, 1)[:, None]).tolist(),
                    "components_per_image": float(np.mean(components))}
        scores = self._scores(totals, step, done) if self.num_classes else None
        return Evaluation(scores, sorted(shown, key=lambda p: p.name), clusters)

    def _batches(self, source, skipped):
        config = self.config
        return eval_batches(source, batch_size=round_up(config.eval.batch_size, self.mesh),
                            image_size=config.data.eval_size or config.data.image_size,
                            patch=self.method.encoder.patch, with_labels=self.num_classes > 0,
                            on_unreadable=self.on_unreadable, skipped=skipped)

    def _measure_batch(self, params, centroids, batch, *, shape):
        """Everything one batch tells: counts of the model and the floors, ids, clusters."""
        image, size = batch["image"], batch["size"]
        out = self.method.predict(params, image)
        ids = {"model": upsample_argmax(out["logits"], size, shape)}
        if "kmeans_tokens" in centroids:
            tokens = unit_length(out["patch_tokens"].astype(jnp.float32))
            ids["kmeans_tokens"] = upsample_argmax(closeness(tokens, centroids["kmeans_tokens"]),
                                                   size, shape)
            pixels = jax.lax.map(lambda x: jnp.argmax(closeness(
                x.astype(jnp.float32), centroids["kmeans_rgb"]), axis=-1), image)
            ids["kmeans_rgb"] = upsample_nearest(pixels, size, shape)
        counts = {}
        if "label" in batch:
            counts = {name: confusion_matrix(x, batch["label"], num_clusters=self.num_clusters,
                                             num_classes=self.num_classes)
                      for name, x in ids.items()}
        token_ids = jnp.argmax(out["logits"], axis=-1)
        real = (batch["index"] >= 0)[:, None, None, None]
        one_hot = jax.nn.one_hot(token_ids, self.num_clusters) * real
        h, w = token_ids.shape[1:]
        cells = image.reshape(image.shape[0], h, -1, w, image.shape[2] // w, 3)
        colour = jnp.mean(cells.astype(jnp.float32), axis=(2, 4))
        return {"counts": counts, "ids": ids["model"], "token_ids": token_ids,
                "share": jnp.sum(one_hot, axis=(0, 1, 2)),
                "colour": jnp.einsum("bhwk,bhwc->kc", one_hot, colour)}

    def _floor_features(self, params, batch):
        image = batch["image"]
        tokens = self.method.predict(params, image)["patch_tokens"].astype(jnp.float32)
        step = self.method.encoder.patch // 2
        pixels = image[:, step // 2::step, step // 2::step].astype(jnp.float32)
        return unit_length(tokens), pixels

    def _fit_floors(self, params):
        """k-means centroids with K = num_clusters, fitted on the scored images themselves.

        Tokens at unit length (cosine), colours as they are; best of a few restarts by inertia.
        """
        chosen = np.linspace(0, len(self.source) - 1,
                             min(len(self.source), self.config.eval.floor_images)).astype(int)
        tokens, pixels = [], []
        for batch in self._batches(_Subset(self.source, np.unique(chosen)), []):
            real = batch["index"] >= 0
            t, p = jax.device_get(self._features(params, _arrays(batch, self.mesh)))
            tokens.append(t[real].reshape(-1, t.shape[-1]))
            pixels.append(p[real].reshape(-1, 3))
        fit = functools.partial(fit_floor, num_clusters=self.num_clusters, seed=self.config.seed)
        return jax.device_put({"kmeans_tokens": fit(np.concatenate(tokens), spherical=True),
                               "kmeans_rgb": fit(np.concatenate(pixels), spherical=False)},
                              replicated(self.mesh))

    def _picture(self, batch, ids, row):
        index = int(batch["index"][row])
        if "label" not in batch:
            return Picture(self.source.example_name(index), batch["image"][row], None, ids[row])
        h, w = batch["size"][row]
        return Picture(self.source.example_name(index), self.source[index]["image"],
                       batch["label"][row, :h, :w], ids[row, :h, :w])

    def _scores(self, totals, step, num_images):
        """eval.json: percent, exact counts, the match."""
        scores = evaluate_counts(totals["model"].counts, self.config.eval.protocol)
        floors = {}
        for name in totals.keys() - {"model"}:
            floor = evaluate_counts(totals[name].counts, self.config.eval.protocol)
            floors[name] = {"miou": floor.miou, "accuracy": floor.accuracy}
        names = class_names(self.source)
        iou = {name: None if np.isnan(value) else float(value)
               for name, value in zip(names, scores.per_class_iou)}
        return {"protocol": self.config.eval.protocol, "split": self.split,
                "num_images": num_images, "step": int(step), "miou": scores.miou,
                "accuracy": scores.accuracy, "per_class_iou": iou,
                "floors": dict(sorted(floors.items())), "matching": scores.matching.tolist(),
                "class_names": list(names), "num_clusters": self.num_clusters,
                "num_classes": self.num_classes, "confusion": totals["model"].counts.tolist()}


class _Subset:
    """Some examples of a source."""

    def __init__(self, source, indices):
        self._source, self._indices = source, indices

    def __len__(self):
        return len(self._indices)

    def __getitem__(self, i):
        return self._source[int(self._indices[i])]

    def __getattr__(self, name):
        return getattr(self._source, name)

    def size(self, i):
        return self._source.size(int(self._indices[i]))

    def example_name(self, i):
        return self._source.example_name(int(self._indices[i]))


def class_names(source):
    """The source's class names, or "class 0", "class 1", ... where it has none."""
    return tuple(source.class_names) or tuple(f"class {i}" for i in range(source.num_classes))


def count_components(ids):
    """Connected regions (4-neighbours) of a label map int [h, w]: clutter has many."""
    return sum(scipy.ndimage.label(ids == k)[1] for k in np.unique(ids))


def write_scores(workdir, scores):
    """Writes eval.json (the newest evaluation) and adds it to evals.jsonl (all of them)."""
    workdir = pathlib.Path(workdir)
    temporary = workdir / "eval.json.tmp"
    temporary.write_text(json.dumps(scores, indent=2) + "\n")
    temporary.replace(workdir / "eval.json")
    with open(workdir / "evals.jsonl", "a") as file:
        file.write(json.dumps({k: v for k, v in scores.items() if k != "confusion"}) + "\n")


def summary(scores):
    """The lines printed at the end of a run."""
    lines = [f"{'':24s}  mIoU    accuracy   ({scores['split']}, {scores['num_images']} images, "
             f"protocol {scores['protocol']})",
             f"{'this model':24s} {scores['miou']:5.1f} %   {scores['accuracy']:5.1f} %"]
    titles = {"kmeans_tokens": "k-means on its tokens", "kmeans_rgb": "k-means on RGB"}
    for name, floor in scores["floors"].items():
        lines.append(f"{titles[name]:24s} {floor['miou']:5.1f} %   {floor['accuracy']:5.1f} %")
    return "\n".join(lines)


def _arrays(batch, mesh):
    """A batch on the devices; without labels, ids are wanted at the size the model sees."""
    if "label" not in batch:
        batch = batch | {"size": np.full_like(batch["size"], batch["image"].shape[1:3])}
    return {key: jax.device_put(value, batch_sharding(mesh)) for key, value in batch.items()}


def _label_shape(batch):
    """The padded size of the answer, static under jit."""
    return (batch["label"] if "label" in batch else batch["image"]).shape[1:3]


def restore_inference(run, workdir):
    """(parameters that predict, step) of a workdir's newest checkpoint.

    Raises ConfigError where there is none.
    """
    with Checkpoints(workdir, writes=False) as checkpoints:
        step = checkpoints.latest
        if step is None:
            raise config_lib.ConfigError(f"--workdir={workdir} holds no complete checkpoint: let "
                                         "the training reach config.checkpoint.every steps")
        state = checkpoints.restore(run.abstract_state())
    return run.method.inference_params(state.params, state.teacher), step


def evaluate_workdir(given, workdir):
    """`--mode=eval`: scores the newest checkpoint of a workdir; returns the exit status.

    What was trained is read from the workdir; of `given` only what says where and how to
    evaluate counts: data.root, data.eval_*, class_names, num_classes, ignore_ids; eval.*.
    """
    config = config_lib.evaluation_config(config_lib.recall_config(workdir), given)
    run = prepare(config, trained_in=workdir)
    source = checked_source(config, "eval")
    params, step = restore_inference(run, workdir)
    split = config.data.eval_images or "eval"
    result = Evaluator(run.method, source, config, run.mesh, split).run(
        params, step, floors=config.eval.floors, pictures=config.eval.pictures, progress=True)
    if result.scores is None:
        raise config_lib.ConfigError("nothing to score: give --config.data.eval_images=DIR and "
                                     "--config.data.eval_labels=DIR")
    publish(workdir, config, result)
    return 0


def publish(workdir, config, result):
    """Writes eval.json and report.html of an Evaluation, prints the closing lines."""
    workdir = pathlib.Path(workdir)
    if result.scores:
        write_scores(workdir, result.scores)
        print(summary(result.scores))
    report = workdir / "report.html"
    write_report(report, title=f"FS^4 in {workdir.name}", config=config.to_dict(),
                 history=read_metrics(workdir / "metrics.jsonl"), evaluation=result.scores,
                 pictures=result.pictures, clusters=result.clusters, environment=environment())
    print(f"report: {report}")


def environment():
    """What the numbers were made with."""
    versions = {name: importlib.metadata.version(name)
                for name in ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")}
    devices = jax.devices()
    return {"fs4_jax": fs4_jax.__version__, "python": platform.python_version(), **versions,
            "devices": f"{len(devices)} x {devices[0].device_kind}",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "command": " ".join(sys.argv)}
