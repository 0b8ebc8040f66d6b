"""What is written of an evaluation: eval.json, the report; `--mode=eval` of a workdir."""

import importlib.metadata
import json
import math
import os
import pathlib
import platform
import shlex
import sys

import jax

import fs4_jax
from fs4_jax import config as config_lib
from fs4_jax import distributed
from fs4_jax.cluster_names import read_cluster_names
from fs4_jax.data.images import DataError
from fs4_jax.data.sources import make_source
from fs4_jax.evaluation.collapse import advice, collapse_signs
from fs4_jax.evaluation.floors import FLOOR_TITLES
from fs4_jax.evaluation.probe import PROBE_TITLES
from fs4_jax.evaluation.protocols import MEASURES, find_protocol
from fs4_jax.evaluation.report import protocol_name, write_report
from fs4_jax.evaluator import Evaluator
from fs4_jax.metrics import read_metrics
from fs4_jax.run import checked_source, prepare, restore_inference
from fs4_jax.stopping import EXIT_INTERRUPTED, StopSignals
from fs4_jax.token_probes import TokenProbes
from fs4_jax.whole_files import write_whole


def write_scores(workdir, scores):
    """Writes eval.json (the newest evaluation) and adds it to evals.jsonl (all of them)."""
    workdir = pathlib.Path(workdir)
    write_whole(workdir / "eval.json", json.dumps(scores, indent=2) + "\n")
    with open(workdir / "evals.jsonl", "a") as file:
        file.write(json.dumps({k: v for k, v in scores.items() if k != "confusion"}) + "\n")


def metrics_row(result):
    """{name: number} of an Evaluation, for the metrics of its step."""
    scores = result.scores or {}
    row = {"components_per_image": result.clusters["components_per_image"]}
    row |= {f"eval_{measure}": scores[measure] for measure in MEASURES if measure in scores}
    others = scores.get("probes", {}) | scores.get("also", {})
    return row | {f"{name}_{measure}": score[measure] for name, score in others.items()
                  for measure in ("miou", "mbo") if measure in score}


def summary(scores, config):
    """The lines printed at the end of a run: scores, floors, and whether clusters collapse."""
    titles, width = FLOOR_TITLES | PROBE_TITLES, max(map(len, FLOOR_TITLES.values()))
    rows = [(scores["title"], scores)] + [(titles[name], score) for name, score in
                                          (scores["floors"] | scores.get("probes", {})).items()]
    def row(title, score):
        return f"{title:{width}s}" + "  ".join(
            f" {score[name]:5.1f} %" for name in MEASURES if name in score)

    heads = "    ".join(text for name, text in MEASURES.items() if name in scores)
    lines = [f"{'':{width}s}  {heads}   ({scores['split']}, {scores['num_images']} images, "
             f"protocol {protocol_name(scores)})"]
    lines += [row(*pair) for pair in rows]
    for name, score in scores.get("also", {}).items():
        lines += [f"protocol {name}:", row(score["title"], score)] + [
            row(titles[floor], one) for floor, one in score["floors"].items()]
    signs = collapse_signs(scores.get("clusters_used", math.nan),
                           scores.get("largest_cluster_share", math.nan), scores["num_clusters"])
    if signs:
        lines.append(f"check: {'; '.join(signs.values())}. {advice(config)}")
    return "\n".join(lines)


def evaluate_workdir(given, workdir):
    """`--mode=eval`: scores the newest checkpoint of a workdir; the exit status, 75 if stopped.

    What was trained is read from the workdir; of `given` only what says where and how to
    evaluate counts: data.root, data.eval_*, class_names, num_classes, ignore_ids; eval.*.
    """
    config = config_lib.evaluation_config(config_lib.recall_config(workdir), given)
    run = prepare(config, trained_in=workdir)
    source = checked_source(config, "eval")
    params, step = restore_inference(run, workdir)
    split = config.data.eval_images or "eval"
    evaluator = make_evaluator(run, source, split)
    with StopSignals() as stop:
        result = stop.cut_short(
            evaluator.run, params, step, floors=config.eval.floors, progress=True,
            pictures=config.eval.pictures, partial=partial_file(workdir))
        if stop.requested:
            print(f"\nstopped by {stop.requested}; the same command goes on with the images that "
                  "were not counted")
            return EXIT_INTERRUPTED
    if result.scores is None:
        raise config_lib.ConfigError("nothing to score: give --config.data.eval_images=DIR and "
                                     "--config.data.eval_labels=DIR")
    if distributed.is_first():
        publish(workdir, run, result)
    distributed.wait_for_all("published")
    return 0


def make_evaluator(run, source, split, **options):
    """The Evaluator of a run on a source, with the probes that config.eval asks for."""
    config, train_source, probes = run.config, None, None
    names = (config.eval.protocol, *config.eval.also)
    if config.eval.probes or any(find_protocol(name).clusters == "probe" for name in names):
        train_source = checked_source(config, "train")
    elif config.eval.floors and source.num_classes:
        train_source = _images_of_training(config)
    if config.eval.probes and train_source.num_classes and source.num_classes:
        probes = TokenProbes(run.method, train_source, source, config, run.mesh)
    options |= dict(train_source=train_source)
    also = [Evaluator(run.method, source, _of_protocol(config, name), run.mesh, split, **options)
            for name in config.eval.also if source.num_classes]
    return Evaluator(run.method, source, config, run.mesh, split, probes=probes, also=also,
                     **options)


def _of_protocol(config, name):
    """The config of another protocol, without what refines this one's."""
    config = config.copy_and_resolve_references()
    config.eval.update(dict(protocol=name, flip=False, crf=False, matching="", also=()))
    return config


def _images_of_training(config):
    """What floors are fitted to; None, with a word, where a model is evaluated far from it."""
    try:
        return make_source(config.data, "train")
    except DataError as error:
        distributed.warn("the training split is not here, so floors are fitted to the scored "
                         f"images: {error}")
        return None


def partial_file(workdir):
    """Where an evaluation keeps what it has counted, until it is whole."""
    return pathlib.Path(workdir) / "eval.partial.npz"


def publish(workdir, run, result):
    """Writes eval.json and report.html of an Evaluation, prints the closing lines.

    Names and merges of the workdir's clusters are in the report, not in the scores.
    """
    workdir = pathlib.Path(workdir)
    if result.scores:
        write_scores(workdir, result.scores)
        print(summary(result.scores, run.config))
    report = workdir / "report.html"
    told = read_cluster_names(workdir, run.config.num_clusters)
    write_report(report, title=f"{run.method.title} in {workdir.name}", config=run.config.to_dict(),
                 history=read_metrics(workdir / "metrics.jsonl"), evaluation=result.scores,
                 pictures=result.pictures, failures=result.failures,
                 clusters=result.clusters | dict(names=told.names, merged=told.merged),
                 environment=environment())
    print(f"report: {report}")


def environment():
    """What the numbers were made with."""
    versions = {name: importlib.metadata.version(name)
                for name in ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")}
    devices = jax.devices()
    return {"fs4_jax": fs4_jax.__version__, "python": platform.python_version(), **versions,
            "devices": f"{len(devices)} x {devices[0].device_kind}",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "command": shlex.join(["python", *sys.orig_argv[1:]])}
