"""What eval.json holds: the scores of what was counted, the floors beside them."""

import numpy as np

from fs4_jax.config import ConfigError
from fs4_jax.evaluation.collapse import cluster_health
from fs4_jax.evaluation.floors import FLOOR_TITLES
from fs4_jax.evaluation.matching import mean_over_runs, read_matching
from fs4_jax.evaluation.protocols import evaluate_counts

# Whose counts are shown: its match, its confusion, its clusters' shares.
SHOWN = {"model": "model", "kmeans": "run0"}


def make_scores(tally, *, method, source, config, protocol):
    """Percents, exact counts and the match of a Tally: a dict that JSON can hold.

    Args:
      tally: of all images. method, source, config, protocol: the evaluator's.

    Raises:
      ConfigError: config.eval.matching is of another number of clusters.
    """
    scored = {name: _score_of(readout, name in FLOOR_TITLES, config, protocol)
              for name, readout in tally.readouts.items()}
    runs = [scores for name, scores in scored.items() if name not in FLOOR_TITLES]
    names, iou = class_names(source), mean_over_runs([s.per_class_iou for s in runs])
    answer = {
        "title": "this model" if method.has_classes else "k-means on its tokens",
        "protocol": protocol.name, "num_images": len(tally.done),
        **_measured(runs, protocol),
        "per_class_iou": {name: None if np.isnan(x) else float(x) for name, x in zip(names, iou)},
        "floors": {name: _measured([scored[name]], protocol) for name in FLOOR_TITLES
                   if name in scored},
        "class_names": list(names), "num_clusters": config.num_clusters,
        "num_classes": source.num_classes}
    answer |= {key: config.eval[key] for key in ("flip", "scales", "crf", "bug_compatible")
               if config.eval[key]}
    if len(runs) > 1:
        answer["runs"] = [_measured([scores], protocol) for scores in runs]
    shown = SHOWN.get(protocol.clusters)
    if shown and not protocol.per_image and not protocol.num_clusters:
        counts = tally.readouts[shown].counts
        answer |= {"matching": runs[0].matching.tolist(), "confusion": counts.tolist()}
        if not method.supervised:
            shares = counts.sum(1) / max(counts.sum(), 1)
            answer["clusters_used"], answer["largest_cluster_share"] = cluster_health(shares)
    return answer


def _measured(runs, protocol):
    """{"miou", "accuracy"}, or what else the protocol measures: means over runs."""
    return {name: float(np.mean([getattr(scores, name) for scores in runs]))
            for name in protocol.measures}


def _score_of(readout, floor, config, protocol):
    if protocol.per_image:
        return readout.scores()
    rule = protocol.matching
    if floor:                          # the floor of a probe is clusters all the same
        return evaluate_counts(readout.counts, "hungarian" if rule == "identity" else rule)
    return evaluate_counts(readout.counts, rule, matching=_given_matching(config),
                           bug_compatible=config.eval.bug_compatible)


def _given_matching(config):
    """config.eval.matching: the match of an earlier eval.json, or None."""
    path = config.eval.matching
    if not path:
        return None
    matching = read_matching(path)
    if len(matching) != config.num_clusters:
        raise ConfigError(f"config.eval.matching={path} matches {len(matching)} clusters, the "
                          f"model has {config.num_clusters}")
    return matching


def class_names(source):
    """The source's class names, or "class 0", "class 1", ... where it has none."""
    return tuple(source.class_names) or tuple(f"class {i}" for i in range(source.num_classes))
