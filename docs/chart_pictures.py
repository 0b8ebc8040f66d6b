"""Pictures of numbers: what a table, a model of a step or a disturbed run say, as charts."""

import math
import pathlib
import re
import tempfile
import textwrap

import jax
import numpy as np
from picture_parts import (
    BLUE,
    DOCS,
    GREEN,
    INK,
    LINE,
    MUTED,
    ORANGE,
    PALE,
    Chart,
    images_of,
    save,
    screenshot,
)

from fs4_jax.clustering import choose_k
from fs4_jax.metrics import read_metrics
from fs4_jax.models import normalize_images
from fs4_jax.run import encoder_of_workdir


def choosing_k(workdirs):
    encoder, params = encoder_of_workdir(workdirs.encoder)
    tokens = np.asarray(jax.jit(lambda x: encoder.apply(
        {"params": params}, normalize_images(x))["patch_tokens"])(images_of(tuple(range(96)))))
    points = choose_k.sample_points(tokens, 5000, 0)
    measured = list(choose_k.measure(points, (4, 6, 8, 10, 12, 16), 3))
    best, reason = choose_k.recommend(measured)
    with tempfile.TemporaryDirectory() as folder:
        page = pathlib.Path(folder, "choose_k.html")
        page.write_text(choose_k.page(measured, best, reason, "tokens of 96 rendered scenes"))
        screenshot("choosing_k.png", page.as_uri(), "body", (1000, 640))


def performance(_):
    """The table of docs/performance.md, on a logarithmic axis around 1."""
    rows = peers((DOCS / "performance.md").read_text())
    low, high, left, right, step, top = 0.5, 64.0, 395, 730, 21, 36
    bottom = top + step * len(rows)
    chart = Chart(right + 110, bottom + 24)

    def px(ratio):
        return left + (right - left) * math.log(ratio / low) / math.log(high / low)

    chart.text(px(1) + 8, 14, "faster than the peer", colour=MUTED)
    chart.text(px(1) - 8, 14, "slower", anchor="rm", colour=MUTED)
    for ratio in (0.5, 1, 2, 4, 8, 16, 32, 64):
        equal = ratio == 1
        chart.line([(px(ratio), 8 if equal else 26), (px(ratio), bottom)],
                   MUTED if equal else LINE, 1.5 if equal else 1)
        chart.text(px(ratio), bottom + 12, f"{ratio:g} x", anchor="mm", colour=MUTED)
    for i, (what, peer, ratios) in enumerate(rows):
        y, ends = top + step * (i + 0.5), sorted({min(ratios), max(ratios)})
        if i == 0 or what != rows[i - 1][0]:
            chart.text(8, y, what)
        chart.text(left - 14, y, peer, anchor="rm", colour=MUTED)
        chart.bar(px(ends[0]) - 4, y - 4, px(ends[-1]) + 4, y + 4,
                  ORANGE if ends[0] < 1 else BLUE, 4)
        chart.text(right + 22, y, " to ".join(f"{x:g}" for x in ends))
    save("performance.png", chart.pixels)


def peers(page):
    """(what, peer, ratios) of each row of the page's table that has numbers."""
    table = page[page.index("| command | what | peer |"):].split("\n\n")[0].splitlines()[2:]
    rows, what = [], ""
    for row in table:
        _, described, peer, measured = (cell.strip() for cell in row.split("|")[1:-1])
        what = described.split(",")[0] or what
        if measured:
            rows.append((what, peer, _numbers(measured)))
    return rows


def _numbers(cell):
    return [float(x) for x in re.findall(r"[\d.]+", cell)]


def results(_):
    """The table of docs/results.md: mIoU of each run, of k-means on the same tokens and on RGB."""
    rows = runs_of((DOCS / "results.md").read_text())
    kinds = (("this library", BLUE), ("k-means on the same tokens", PALE), ("k-means on RGB", LINE))
    left, right, top, step = 330, 700, 36, 54
    chart = Chart(right + 50, top + step * len(rows))
    x = left
    for name, colour in kinds:
        chart.bar(x, 9, x + 12, 21, colour, 2)
        chart.text(x + 18, 15, name)
        x += 44 + 5.6 * len(name)
    most = max(end for _, _, (_, end) in rows)
    for i, (run, values, seeds) in enumerate(rows):
        y = top + step * i
        for line, part in enumerate(textwrap.wrap(run, 48)):
            chart.text(8, y + 10 + 16 * line, part)
        for j, ((_, colour), value) in enumerate(zip(kinds, values, strict=True)):
            end = left + (right - left) * value / most
            chart.bar(left, y + 14 * j + 2, end, y + 14 * j + 14, colour)
            if not j:
                end = left + (right - left) * seeds[1] / most
                chart.line([(left + (right - left) * x / most, y + 8) for x in seeds], INK, 1.5)
            chart.text(end + 8, y + 14 * j + 8, f"{value:g}", size=11)
    save("results.png", chart.pixels)


def runs_of(page):
    """Of each row of the page's table: its name; mIoU, its own, of k-means on its tokens and of
    k-means on RGB; the least and the most of its own over the seeds."""
    table = page[page.index("| run | mIoU |"):].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table]
    return [(run.replace(" (below)", ""), [_numbers(cell)[0] for cell in (miou, tokens, rgb)],
             _numbers(miou)[1:]) for run, miou, _, tokens, rgb in cells]


def pods(_):
    """A step's parts by the model of benchmarks/scaling.py, against the number of chips."""
    panels = (("8 images a chip, however many chips", [(n, 8 * n) for n in (4, 16, 64, 256)]),
              ("2,048 images, divided among the chips", [(n, 2048) for n in (32, 64, 128, 256)]))
    parts = (("work", BLUE), ("all-reduce of the gradient", ORANGE), ("Sinkhorn", GREEN))
    width, top, step = 420, 62, 27
    chart = Chart(2 * width, top + 4 * step + 30)
    x = 8
    for name, colour in parts:
        chart.bar(x, 8, x + 12, 20, colour, 2)
        chart.text(x + 18, 14, name)
        x += 200
    for panel, (title, sizes) in enumerate(panels):
        left, right = panel * width + 78, (panel + 1) * width - 70
        steps = [modelled_step(*size) for size in sizes]
        most = max(sum(one.values()) for one in steps)
        chart.text(panel * width + 8, 44, title, colour=MUTED)
        for i, ((chips, _), one) in enumerate(zip(sizes, steps, strict=True)):
            x, y = left, top + step * (i + 0.5)
            chart.text(left - 10, y, f"{chips} chips", anchor="rm")
            for name, colour in parts:
                end = x + (right - left) * one[name] / most
                chart.bar(x, y - 8, end, y + 8, colour)
                x = end
            chart.text(x + 8, y, f"{sum(one.values()):.1f} ms")
    chart.text(8, top + 4 * step + 16, "ViT-S/14 trained on images of 224 pixels, TPU v5e; "
               "arithmetic, not a measurement", colour=MUTED, size=11)
    save("pods.png", chart.pixels)


def modelled_step(chips, images):
    """{part of a step: ms} of docs/pods.md's config on so many v5e chips."""
    from benchmarks import scaling
    from configs import cocostuff
    config = cocostuff.get_config("S/14")
    config.encoder.frozen, config.batch_size = False, images
    told = "\n".join(scaling.model(config, chips, "TPU v5e"))
    ms = {name: float(value) for name, value in re.findall(r"^(\w+) +([\d.]+) ms", told, re.M)}
    return {"work": max(ms["products"], ms["memory"]), "Sinkhorn": ms["Sinkhorn"],
            "all-reduce of the gradient": ms["gradient"]}


def reliability(_):
    """The losses of a run that is killed and stopped on those of an undisturbed one."""
    from tests.reliability import runs
    with tempfile.TemporaryDirectory() as folder:
        cache, whole, parts = (pathlib.Path(folder, name) for name in ("cache", "whole", "parts"))
        runs.Life("tiny", whole, cache).end()
        lives = [(life.resumed, life.reached, "asked to leave" if life.how == "stop" else
                  "killed in a save" if life.saving else "killed")
                 for life in runs.disturbed("tiny", parts, cache, kills=4, seed=1)]
        runs.assert_same_run("tiny", whole, parts)
        last = re.search(r"resuming from step (\d+)", parts.with_suffix(".log").read_text())
        lives.append((int(last[1]) if last else 0, runs.STEPS, "done"))
        curves = [[(row["step"], row["loss"]) for row in read_metrics(folder / "metrics.jsonl")
                   if "loss" in row] for folder in (whole, parts)]
    draw_lives(curves, lives)


def draw_lives(curves, lives):
    """curves: (step, loss) pairs, undisturbed and disturbed. lives: (from, to, how it ended)."""
    left, right, top, bottom, step = 104, 530, 46, 176, 24
    chart = Chart(right + 124, bottom + 34 + step * len(lives) + 8)
    last = max(x for x, _ in curves[0])
    values = [y for _, y in curves[0]]

    def place(x, y):
        share = (y - min(values)) / (max(values) - min(values))
        return left + (right - left) * x / last, bottom - 8 - (bottom - top - 16) * share

    chart.line([(left, 16), (left + 26, 16)], PALE, 9)
    chart.text(left + 34, 16, "undisturbed")
    chart.line([(left + 150, 16), (left + 176, 16)], INK, 1.5)
    chart.dot(left + 163, 16, 3, INK)
    chart.text(left + 184, 16, f"killed and stopped {len(lives) - 1} times")
    chart.text(8, (top + bottom) / 2, "loss", colour=MUTED)
    for value in (min(values), max(values)):
        chart.text(left - 14, place(0, value)[1], f"{value:.2f}", anchor="rm", colour=MUTED)
    for x in range(0, last + 1, 2):
        chart.line([(place(x, 0)[0], top), (place(x, 0)[0], chart.height - 8)])
        chart.text(place(x, 0)[0], bottom + 14, str(x), anchor="mm", colour=MUTED)
    chart.text(left - 14, bottom + 14, "step", anchor="rm", colour=MUTED)
    chart.line([place(*point) for point in curves[0]], PALE, 9)
    chart.line([place(*point) for point in curves[1]], INK, 1.5)
    for point in curves[1]:
        chart.dot(*place(*point), 3, INK)
    for i, (begin, end, how) in enumerate(lives):
        y, done = bottom + 34 + step * (i + 0.5), i == len(lives) - 1
        chart.text(left - 14, y, f"process {i + 1}", anchor="rm", colour=MUTED)
        x1, x2 = place(begin, 0)[0], place(max(begin, end), 0)[0]
        chart.bar(x1, y - 4, max(x2, x1 + 8), y + 4, BLUE if done else ORANGE, 4)
        chart.text(max(x2, x1 + 8) + 8, y, how)
    save("reliability.png", chart.pixels)
