"""The report's part about the training: curves, signs of collapse and of clutter, speed."""

import html
import math

import numpy as np

from fs4_jax import metrics
from fs4_jax.evaluation import report_charts as charts
from fs4_jax.evaluation.collapse import WARNING, advice, cluster_health, collapse_signs

_SCORES = ("eval_miou", "eval_accuracy", "linear_miou", "knn_miou")


def curves(history, chart):
    """Section of losses, scores and the optimizer; chart: see `report_charts.line_chart`."""
    def series(*names, scale=1.0, dots=False):
        return [charts.Series(n.removeprefix("loss_").removeprefix("eval_").replace("_", " "),
                              *metrics.column(history, n, scale), i % 6, dots)
                for i, n in enumerate(names) if any(n in row for row in history)]

    terms = sorted({n for row in history for n in row if n.startswith("loss_")})
    body = [chart("loss", series("loss")),
            chart("terms of the loss", series(*terms)),
            chart("score in %", series(*_SCORES, dots=True), zero=True),
            chart("learning rate", series("learning_rate"), zero=True),
            chart("gradient norm", series("grad_norm"), zero=True)]
    return charts.section("Training", charts.grid(body))


def telemetry(history, chart, clusters, num_clusters, config):
    """Section of the clusters' health, with a sentence of `diagnose`."""
    entropy = metrics.column(history, "assignment_entropy")
    used = metrics.column(history, "clusters_used")
    share = metrics.column(history, "largest_cluster_share", 100)
    pieces = metrics.column(history, "components_per_image")
    log_k = [(f"log {num_clusters}: all used alike", math.log(num_clusters))
             ] if num_clusters > 1 else []
    all_used = [(f"all {num_clusters}", num_clusters)] if num_clusters else []
    body = charts.grid([
        chart("entropy of the mean assignment (nats)", [charts.Series("entropy", *entropy)],
              references=log_k, zero=True),
        chart("clusters in use", [charts.Series("in use", *used, 2)], references=all_used,
              zero=True),
        chart("share of the largest cluster (%)", [charts.Series("largest", *share, 1)],
              zero=True, unit=" %"),
        chart("spread of unit tokens (0: all alike)", [
            charts.Series(name, *metrics.column(history, f"{name}_spread"), i)
            for i, name in enumerate(("cls", "patch"))], zero=True),
        chart("connected pieces in an image (clutter)", [charts.Series("pieces", *pieces, 3)],
              zero=True)])
    level, text = diagnose(history, num_clusters, clusters, config)
    body = f'<p class="diagnosis {level}">{html.escape(text)}</p>{body}' if text else body
    return charts.section("Collapse and clutter", body)


def diagnose(history, num_clusters, clusters, config):
    """Sentences on the health of the clusters: ("good" | "warn", text), text "" if unknown."""
    shares = np.nan_to_num([metrics.number(s) for s in (clusters or {}).get("share") or []])
    if shares.size:
        used, largest = cluster_health(shares)
    else:
        used = metrics.last(metrics.column(history, "clusters_used")[1])
        largest = metrics.last(metrics.column(history, "largest_cluster_share")[1])
    lost = [row.get("step") for row in history
            if "loss" in row and not math.isfinite(metrics.number(row["loss"]))]
    if lost:
        return "warn", (f"The loss stopped being a number at step {lost[0]}: lower the learning "
                        "rate or clip the gradients; what follows can not be trusted.")
    parts = []
    if math.isfinite(used) and num_clusters:
        every = round(used) >= num_clusters
        parts.append(f"all {num_clusters} clusters are in use" if every else
                     f"{used:.0f} of {num_clusters} clusters are in use")
    if math.isfinite(largest):
        parts.append(f"the largest holds {charts.format_number(100 * largest, 2)} % "
                     "of the pixels")
    text = "; ".join(parts)
    text = text[:1].upper() + text[1:] + "." if text else ""
    told = _warnings(history, num_clusters)
    level = "warn" if collapse_signs(used, largest, num_clusters) else "good"
    if level == "warn" or told:
        text = " ".join(filter(None, [text, told, advice(config)]))
    return level, text


def _warnings(history, num_clusters):
    """What was warned of during the training, one sentence; "" if nothing was."""
    told = []
    for row in history:
        signs = collapse_signs(metrics.number(row.get(WARNING + "few_clusters")),
                               metrics.number(row.get(WARNING + "large_cluster")), num_clusters)
        told += [f"at step {row['step']}: {sign}" for sign in signs.values()]
    more = f", and {len(told) - 3} more times" if len(told) > 3 else ""
    return f"Warned in training: {'; '.join(told[:3])}{more}." if told else ""


def timings(history, chart):
    """Section of the speed."""
    names = (("images a second", "images_per_second", 1, "", 2),
             ("time spent waiting for data (%)", "data_wait_share", 100, " %", 1),
             ("seconds a step", "step_seconds", 1, " s", 0))
    return charts.section("Speed", charts.grid([
        chart(title, [charts.Series("now", *metrics.column(history, name, scale), c)], zero=True,
              unit=unit) for title, name, scale, unit, c in names]))
