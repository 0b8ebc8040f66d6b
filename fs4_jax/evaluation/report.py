"""One self-contained HTML file of what a run learned: pictures, scores, curves, settings."""

import base64
import dataclasses
import functools
import html
import io
import json
import math
import pathlib
import time

import numpy as np
from PIL import Image

from fs4_jax import metrics
from fs4_jax.config import flatten
from fs4_jax.evaluation import pictures as paint
from fs4_jax.evaluation import report_charts as charts
from fs4_jax.evaluation import report_training as training
from fs4_jax.evaluation.confusion import IGNORE_LABEL
from fs4_jax.evaluation.floors import FLOOR_TITLES
from fs4_jax.evaluation.probe import PROBE_TITLES
from fs4_jax.evaluation.protocols import MEASURES
from fs4_jax.whole_files import write_whole

_PICTURE_SIDE = 520      # longest side of an embedded picture, pixels
_MOST_ROWS = 48          # of clusters, in the heat map and in the legend
_TITLES = FLOOR_TITLES | PROBE_TITLES


@dataclasses.dataclass(frozen=True)
class Picture:
    """One example of the report.

    name: its caption.
    image: uint8 [H, W, 3].
    truth: class ids uint8 [H, W], 255 = not labelled; None if there are no labels.
    prediction: CLUSTER ids int [H, W], below 0 = none; the report applies the matching.
    """
    name: str
    image: np.ndarray
    truth: np.ndarray | None
    prediction: np.ndarray


def write_report(path, *, title, config, history, evaluation, pictures, clusters, environment,
                 failures=()):
    """Writes the report; the file appears whole or not at all, and needs no network.

    Args:
      path: the .html file.
      title: string.
      config: dict (may be nested).
      history: list of dict, rows of metrics.jsonl; any key may be missing.
      evaluation: dict as in eval.json (percents; `confusion` is raw, clusters x classes;
        `matching` the class or -1 of each cluster), None without labels: no scores are shown.
      pictures: list of Picture.
      clusters: {"share": [k], "mean_colour": [k][3], and what people said of them, if they did:
        "names": {cluster: name}, "merged": {cluster: the one that it is shown as}} or None. Scores
        and counts are of the clusters before that.
      environment: dict of name -> value: versions, devices, commit, command.
      failures: Pictures of the images with the lowest accuracy, worst first.

    Raises:
      ValueError: a picture's image, truth and prediction differ in size.
    """
    history = history or []
    config = config.to_dict() if hasattr(config, "to_dict") else config or {}
    key = _Key.of(evaluation, clusters, [*pictures, *failures])
    num_clusters = max(key.num_clusters, int(np.nan_to_num(metrics.number(
        config.get("num_clusters")))))
    chart = functools.partial(charts.line_chart, steps=metrics.column(history, "step")[0])
    sections = [
        _headline(evaluation),
        _pictures(pictures, key),
        _failures(failures, key),
        _per_class(evaluation, key),
        _confusion(evaluation, key),
        _clusters(clusters, evaluation, key),
        training.curves(history, chart),
        training.telemetry(history, chart, clusters, num_clusters, config),
        training.timings(history, chart),
        _config(config),
        _environment(environment),
    ]
    page = charts.page(str(title), _subtitle(history, evaluation), "\n".join(sections))
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page)


@dataclasses.dataclass(frozen=True)
class _Key:
    """What colours and names mean: classes first, then the clusters that have no class.

    names: of each colour. of_cluster: int [num_clusters], the colour of each cluster as it was
    matched. shown: the same with people's merges. given: people's names, {cluster: name}.
    """
    names: list
    of_cluster: np.ndarray
    shown: np.ndarray
    given: dict
    num_classes: int
    palette: np.ndarray

    @property
    def num_clusters(self):
        return len(self.of_cluster)

    @classmethod
    def of(cls, evaluation, clusters, pictures):
        seen = 1 + max((int(p.prediction.max()) for p in pictures if p.prediction.size), default=-1)
        num_clusters = max(seen, len((clusters or {}).get("share") or ()))
        matching, names = [], []
        if evaluation:
            matching = [int(c) for c in evaluation.get("matching") or []]
            names = [str(n) for n in evaluation.get("class_names") or []]
            num_clusters = max(num_clusters, len(matching), evaluation.get("num_clusters") or 0,
                               len(evaluation.get("confusion") or []))
            num_classes = max([evaluation.get("num_classes") or 0, *(c + 1 for c in matching)])
            names += [f"class {i}" for i in range(len(names), num_classes)]
        num_classes = len(names)
        matching = np.array(matching + [-1] * (num_clusters - len(matching)), np.int64)
        free = np.flatnonzero(matching < 0)
        matching[free] = num_classes + np.arange(len(free))
        given, shown = (clusters or {}).get("names", {}), matching.copy()
        for cluster, into in (clusters or {}).get("merged", {}).items():
            shown[cluster] = matching[into]
        names += [given.get(i, f"cluster {i}") for i in free]
        return cls(names, matching, shown, given, num_classes, paint.palette(max(1, len(names))))

    def paint_clusters(self, prediction, colours):
        """Colour ids int64 of cluster ids, by `of_cluster` or `shown`; -1 where there is none."""
        return np.append(colours, -1)[np.maximum(np.asarray(prediction, np.int64), -1)]

    def told_of(self, i):
        """A cluster as people call it."""
        if i not in self.given:
            return f"cluster {i}"
        return f"cluster {i}, “{self.given[i]}”"

    @property
    def legend(self):
        """The colours that pictures have: classes, and clusters that are shown as themselves."""
        return [*range(self.num_classes),
                *sorted({int(c) for c in self.shown if c >= self.num_classes})]

    def css(self, i):
        return "rgb({},{},{})".format(*self.palette[i])


def _subtitle(history, evaluation):
    steps = metrics.column(history, "step")[0]
    step = metrics.number((evaluation or {}).get("step", metrics.last(steps)))
    parts = [f"step {step:,.0f}"] if math.isfinite(step) else []
    told = {**evaluation, "protocol": protocol_name(evaluation)} if evaluation else {}
    for name, text in (("protocol", "protocol {}"), ("split", "split {}"),
                       ("num_images", "{} images scored")):
        if told.get(name) is not None:
            parts.append(text.format(told[name]))
    return " · ".join([*parts, time.strftime("%Y-%m-%d %H:%M")])


def protocol_name(evaluation):
    """The protocol of an eval.json and what was switched on beside it; None if it has none."""
    if evaluation.get("protocol") is None:
        return None
    switches = {"flip": "mirrored images averaged", "scales": "several scales averaged",
                "crf": "CRF"}
    return ", ".join([evaluation["protocol"],
                      *(text for key, text in switches.items() if evaluation.get(key))])


def _headline(evaluation):
    """The scores, each between its floors and, if there are any, the probes' ceiling."""
    if not evaluation:
        return ""
    cards = []
    for name, text in MEASURES.items():
        if name not in evaluation:
            continue
        value = metrics.number(evaluation.get(name))
        floors = {k: metrics.number((v or {}).get(name))
                  for k, v in (evaluation.get("floors") or {}).items()}
        floors = {k: v for k, v in floors.items() if math.isfinite(v)}
        rows = [("this run", value, "ours", None)]
        rows += [(_TITLES.get(k, k), v, "floor", None) for k, v in floors.items()]
        rows += [(_TITLES.get(k, k), metrics.number(v.get(name)), "ceiling", None)
                 for k, v in (evaluation.get("probes") or {}).items()]
        gain = ""
        if floors and math.isfinite(value):
            best = max(floors, key=floors.get)
            delta = value - floors[best]
            gain = (f'<span class="gain {"up" if delta > 0 else "down"}">{delta:+.1f} points</span>'
                    f'<small>against {html.escape(_TITLES.get(best, best))}</small>')
        shown = f"{value:.1f}<small>%</small>" if math.isfinite(value) else "–"
        cards.append(f'<div class="card score"><h3>{text}</h3><p class="big">{shown}{gain}</p>'
                     f'{charts.bars(rows, top=100, unit=" %")}</div>')
    notes = []
    if evaluation.get("floors_fitted_to"):
        notes.append(f"Floors are fitted to {evaluation['floors_fitted_to']}, without labels.")
    if "kmeans_strong" in (evaluation.get("floors") or {}):
        notes.append("Plain: tokens at unit length; strong: whitened too, with their place.")
    if evaluation.get("probes"):
        notes.append("Striped: probes read labels of the training split. They are a ceiling of "
                     "what is in the tokens, not a score of label-free segmentation.")
    told = f'<p class="lead">{html.escape(" ".join(notes))}</p>' if notes else ""
    return f'<div class="cards">{"".join(cards)}</div>{told}'


def _pictures(pictures, key):
    """Rows of image | truth | prediction, or image | prediction | overlay without truth."""
    if not pictures:
        return ""
    figures = "".join(_picture(p, key) for p in pictures)
    colours = key.legend
    chips = "".join(f'<span><i style="background:{key.css(i)}"></i>{html.escape(key.names[i])}'
                    "</span>" for i in colours[:_MOST_ROWS])
    more = len(colours[_MOST_ROWS:])
    chips += f"<span>and {more} more clusters</span>" if more else ""
    if any(_shows_truth(p, key) for p in pictures):
        chips += '<span><i class="hatch"></i>not labelled</span>'
    slider = ('<label class="slider">photograph <input type="range" min="0" max="100" value="100" '
              "oninput=\"document.body.style.setProperty('--alpha', this.value / 100)\"> colours"
              "</label>")
    few = " few" if len(pictures) <= 3 else ""
    return charts.section("Pictures", f'<div class="legend">{chips}{slider}</div>'
                    f'<div class="pictures{few}">{figures}</div>',
                    "Click a row to enlarge it; the slider blends the photograph in.")


def _failures(failures, key):
    figures = "".join(_picture(p, key) for p in failures)
    few = " few" if len(failures) <= 3 else ""
    return charts.section("Where it fails", f'<div class="pictures{few}">{figures}</div>'
                          if figures else "", "The images with the lowest accuracy, worst first.")


def _shows_truth(picture, key):
    """Without an evaluation nothing says which cluster is which class."""
    return picture.truth is not None and key.num_classes > 0


def _picture(picture, key):
    shapes = {np.shape(picture.image)[:2], np.shape(picture.prediction)}
    shapes |= {np.shape(picture.truth)} if picture.truth is not None else set()
    if len(shapes) > 1:
        raise ValueError(f"picture {picture.name!r}: image, truth and prediction differ in size: "
                         f"{sorted(shapes)}")
    ids = key.paint_clusters(picture.prediction, key.shown)
    note = ""
    image, shown = _shrink(picture.image), _shrink(ids)
    photo = f"--photo:url({_uri(image, 'JPEG')})"
    prediction = _cell("prediction", paint.colour_labels(shown, key.palette), "mask")
    if _shows_truth(picture, key):
        labelled = picture.truth != IGNORE_LABEL
        if labelled.any():
            matched = key.paint_clusters(picture.prediction, key.of_cluster)
            share = 100 * np.mean(matched[labelled] == picture.truth[labelled])
            note = f"<b>{share:.0f} %</b> of labelled pixels right"
        truth = paint.colour_labels(_shrink(picture.truth), key.palette)
        cells = [_cell("image"), _cell("truth", truth, "mask"), prediction]
    else:
        blend = paint.overlay(image, shown, key.palette)
        cells = [_cell("image"), prediction, _cell("overlay", blend, "")]
    height, width = image.shape[:2]
    return (f'<figure class="picture" style="--ratio:{width}/{height}" '
            "onclick=\"this.classList.toggle('large')\">"
            f'<div class="triple" style="{photo}">{"".join(cells)}</div>'
            f"<figcaption>{html.escape(picture.name)}<span>{note}</span></figcaption></figure>")


def _cell(name, pixels=None, kind=""):
    mask = "" if pixels is None else f'<img class="{kind}" alt="" src="{_uri(pixels, "PNG")}">'
    return f'<div class="cell"><div class="photo">{mask}</div><small>{name}</small></div>'


def _shrink(pixels):
    """At most _PICTURE_SIDE long: photographs smoothly, ids by the nearest."""
    height, width = pixels.shape[:2]
    scale = min(1.0, _PICTURE_SIDE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    if pixels.ndim == 3:
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        return np.asarray(picture.resize(size[::-1], Image.BILINEAR, reducing_gap=2.0))
    rows, columns = ((np.arange(n) + 0.5) * old / n for n, old in zip(size, (height, width)))
    return pixels[rows.astype(int)[:, None], columns.astype(int)]


def _uri(pixels, kind):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, quality=86, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _per_class(evaluation, key):
    scores = (evaluation or {}).get("per_class_iou") or {}
    if not scores:
        return ""
    rows = [(str(name), metrics.number(value)) for name, value in scores.items()]
    colours = {name: key.css(i) for i, name in enumerate(key.names[:key.num_classes])}
    rows.sort(key=lambda row: -row[1] if math.isfinite(row[1]) else math.inf)
    body = charts.bars([(n, v, "" if math.isfinite(v) else "absent", colours.get(n))
                        for n, v in rows], top=100, unit=" %")
    wide = " columns" if len(rows) > 12 else ""
    return charts.section("IoU of each class", f'<div class="card{wide}">{body}</div>')


def _confusion(evaluation, key):
    """Rows: clusters in the order of their classes; shares of each row's pixels."""
    counts = np.array((evaluation or {}).get("confusion") or [], np.float64)
    if counts.ndim != 2 or not counts.size:
        return ""
    colour = key.of_cluster[:len(counts)]
    total = counts.sum(1)
    matched = colour < key.num_classes
    order = np.lexsort((-total, np.where(matched, colour, key.num_classes)))
    hidden = len(order) - _MOST_ROWS
    order = order[:_MOST_ROWS]
    shares = counts[order] / np.maximum(total[order], 1)[:, None]
    rows = [f"{i} → {key.names[colour[i]] if matched[i] else 'no class'}" for i in order]
    body = charts.heat_map(shares, rows, key.names[:counts.shape[1]],
                           numbers=max(len(rows), counts.shape[1]) <= 15,
                           row_title="cluster", column_title="true class")
    lead = "Of the pixels of each cluster, the share (%) that truly is each class."
    lead += f" {hidden} more clusters are not shown." if hidden > 0 else ""
    body = f'<div class="card scroll">{body}</div>'
    return charts.section("Clusters against classes", body, lead)


def _clusters(clusters, evaluation, key):
    share = (clusters or {}).get("share")
    if not share:
        return ""
    share = [float(np.nan_to_num(metrics.number(s))) for s in share]
    mean = clusters.get("mean_colour") or []
    top = max([1e-9, *share])
    rows = []
    for i in sorted(range(len(share)), key=lambda i: -share[i]):
        rgb = [metrics.number(c) for c in mean[i]] if i < len(mean) else [math.nan]
        swatch = ("background:rgb({:.0f},{:.0f},{:.0f})".format(*rgb)
                  if all(map(math.isfinite, rgb)) else "visibility:hidden")
        matched = key.of_cluster[i] < key.num_classes
        name = key.told_of(i) + (f" → {key.names[key.of_cluster[i]]}" if matched
                                 else " → no class" if evaluation else "")
        if key.shown[i] != key.of_cluster[i]:
            name += f" (shown as {key.names[key.shown[i]]})"
        rows.append(
            f'<div class="cluster"><i class="swatch" style="{swatch}"></i>'
            f'<i class="dot" style="background:{key.css(key.shown[i])}"></i>'
            f'<span class="name" title="{html.escape(name)}">{html.escape(name)}</span>'
            f'<span class="track"><i style="width:{100 * share[i] / top:.1f}%"></i></span>'
            f'<span class="value">{100 * share[i]:.1f} %</span></div>')
    lead = ("Square: mean colour of the cluster's pixels. Dot: its colour in the pictures above. "
            "Bar: its share of the pixels, beside the largest one's.")
    return charts.section("Clusters", f'<div class="card clusters">{"".join(rows)}</div>', lead)


def _config(config):
    told = ((k, json.dumps(v, default=str, ensure_ascii=False)) for k, v in flatten(config).items())
    rows = "".join(f"<div><span>{html.escape(k)}</span> <b>{html.escape(v)}</b></div>"
                   for k, v in told)
    return charts.section("Config", f'<details class="card"><summary>{rows.count("<div>")} settings'
                    f'</summary><div class="config">{rows}</div></details>' if rows else "")


def _environment(environment):
    rows = "".join(f"<tr><th>{html.escape(str(k))}</th><td>{html.escape(str(v))}</td></tr>"
                   for k, v in (environment or {}).items())
    return charts.section("Environment", f'<table class="card">{rows}</table>' if rows else "")
