"""How many clusters? Curves that need no labels, for features of a folder of images.

    python -m fs4_jax.models.features --weights=F --images=DIR --out=features.npz
    python -m fs4_jax.clustering.choose_k --features=features.npz --candidates=4,8,16,27

For each K, k-means runs from --seeds seeds, the best of three starts each, on a sample of tokens:
what is left of the spread (inertia over that of K = 1), the silhouette of the best run (exact, on
2000 tokens of the sample), and the stability, the mean adjusted Rand index between the labels of
two seeds; all in percent. Labels are stable where that is 80 or more (good recovery: Steinley
2004). Where clusters of a stable K lie apart, a silhouette of 50 or more (reasonable structure:
Kaufman and Rousseeuw 1990), the K of the highest one is recommended. Where they touch, as they do
in natural images, the silhouette falls from K = 2 on and says little: the largest stable K is
recommended, for clusters too many can be merged. A table is printed and a page of the curves
written to --out.

What people call a class neither knows: read the curves and not the recommendation alone.
"""

import html
import itertools
import os
import pathlib
from typing import NamedTuple

import jax
import numpy as np
from absl import app, flags

from fs4_jax.clustering.kmeans import kmeans, unit_length
from fs4_jax.clustering.validity import adjusted_rand, silhouette
from fs4_jax.config import ConfigError
from fs4_jax.errors import command
from fs4_jax.evaluation import report_charts
from fs4_jax.models.features import read_features

SILHOUETTE_POINTS = 2000
NUM_ITERS, RESTARTS = 30, 3
STABLE = 0.8            # labels of an adjusted Rand index from here on are as good as the same
APART = 0.5             # clusters of a silhouette from here on lie apart


class Candidate(NamedTuple):
    """A number of clusters, and what was measured, as shares; spread_left: of that of K = 1."""
    k: int
    spread_left: float
    silhouette: float
    stability: float


def main(argv):
    args = flags.FLAGS
    with command(argv):
        out = pathlib.Path(args.out)
        if out.suffix != ".html" or not os.access(out.absolute().parent, os.W_OK):
            raise ConfigError(f"--out={out} must be an .html file in a folder that can be written")
        numbers = candidate_numbers(args.candidates, args.min, args.max, args.num)
        metadata, arrays = read_features(args.features)
        points = sample_points((array for _, array in arrays), args.points, args.seed)
        if max(numbers) >= len(points):
            raise ConfigError(f"K = {max(numbers)} needs more than that many tokens, and "
                              f"--features={args.features} gives {len(points)} (--points="
                              f"{args.points}): lower --max or --candidates")
        print(f"{len(points)} tokens of {args.features}, {args.seeds} seeds\n"
              f"{'K':>6s} {'spread left':>13s} {'silhouette':>12s} {'stability':>11s}")
        measured = []
        for candidate in measure(points, numbers, args.seeds, args.seed, args.spherical):
            measured.append(candidate)
            print(f"{candidate.k:6d} {100 * candidate.spread_left:11.1f} % "
                  f"{100 * candidate.silhouette:10.1f} % {100 * candidate.stability:9.1f} %",
                  flush=True)
        best, reason = recommend(measured)
        print(f"recommended: K = {best}. {reason}")
        out.write_text(page(measured, best, reason, f"{metadata['output']} of {args.features}"))
        print(f"curves in {out}")


def candidate_numbers(given, least, most, number):
    """The K to try, rising: those given, or `number` of them from least to most, in equal ratios.

    Raises:
      ConfigError: naming the flag.
    """
    if given:
        try:
            numbers = sorted({int(k) for k in given})
        except ValueError as error:
            raise ConfigError(f"--candidates={','.join(given)} must be whole numbers") from error
    else:
        if most <= least:
            raise ConfigError(f"--max={most} must be larger than --min={least}")
        numbers = sorted({round(k) for k in np.geomspace(least, most, number)})
    if numbers[0] < 2:
        raise ConfigError(f"{'--candidates' if given else '--min'}: a K of {numbers[0]} is none; "
                          "start from 2")
    return numbers


def sample_points(arrays, number, seed):
    """Up to `number` of all rows [n, d] of arrays [..., d], each as likely as another.

    The arrays are read one at a time: a row stays as long as its random rank is among the lowest.
    """
    rng, rows, ranks = np.random.default_rng(seed), None, np.empty(0)
    for array in arrays:
        new = array.reshape(-1, array.shape[-1]).astype(np.float32)
        rows = new if rows is None else np.concatenate([rows, new])
        ranks = np.concatenate([ranks, rng.random(len(new))])
        if len(rows) > number:
            keep = np.sort(np.argpartition(ranks, number)[:number])
            rows, ranks = rows[keep], ranks[keep]
    return rows


def measure(points, numbers, num_seeds, seed=0, spherical=True):
    """Yields a Candidate of points [n, d] for each K of `numbers`."""
    if spherical:
        points = np.asarray(unit_length(points))
    some = np.random.default_rng(seed).permutation(len(points))[:SILHOUETTE_POINTS]
    keys = jax.random.split(jax.random.key(seed), num_seeds)
    spread = kmeans(points, 1, key=keys[0], num_iters=1, spherical=spherical).inertia
    for k in numbers:
        runs = [kmeans(points, k, key=key, num_iters=NUM_ITERS, spherical=spherical,
                       restarts=RESTARTS) for key in keys]
        best = min(runs, key=lambda run: float(run.inertia))
        agreement = [adjusted_rand(a.labels, b.labels) for a, b in itertools.combinations(runs, 2)]
        yield Candidate(k, float(best.inertia / spread),
                        silhouette(points[some], np.asarray(best.labels)[some]),
                        float(np.mean(agreement)))


def recommend(candidates):
    """(K, why): of the stable K the highest silhouette or, where clusters touch, the largest."""
    stable = [c for c in candidates if c.stability >= STABLE]
    apart = max(stable, key=lambda c: c.silhouette, default=None)
    if not stable:
        best = max(candidates, key=lambda c: c.stability)
        reason = (f"No K has stable labels; this one's are the stablest, an adjusted Rand index of "
                  f"{100 * best.stability:.1f} %. More --points or --seeds may help.")
    elif apart.silhouette >= APART:
        best = apart
        reason = (f"Its clusters lie apart: silhouette {100 * best.silhouette:.1f} %, the highest "
                  f"of the {len(stable)} of {len(candidates)} K with stable labels.")
    else:
        best = max(stable, key=lambda c: c.k)
        reason = (f"Clusters touch at every K (silhouette {100 * apart.silhouette:.1f} % at most), "
                  f"so it is the largest of the {len(stable)} of {len(candidates)} K with stable "
                  f"labels (adjusted Rand index {100 * best.stability:.1f} %). Would you name "
                  "more classes? Take more: clusters too many can be merged.")
    ends = {candidates[0].k, candidates[-1].k}
    if len(candidates) > 1 and best.k in ends and best.k > 2:
        reason += " It is an end of the range: try K beyond it."
    return best.k, reason


def page(candidates, best, reason, subject):
    """An HTML page with a chart for each measure, the recommended K marked."""
    charts = []
    for field, title in (("silhouette", "Silhouette: 100 lie apart, 0 touch"),
                         ("stability", "Stability: 100 same labels from every seed"),
                         ("spread_left", "Spread left inside clusters, of that of K = 1")):
        rows = [(f"K = {c.k}", 100 * getattr(c, field), "ours" if c.k == best else "",
                 None if c.k == best else "var(--muted)") for c in candidates]
        charts.append(f'<div class="card"><h3>{title}</h3>'
                      f'{report_charts.bars(rows, top=100, unit=" %")}</div>')
    return report_charts.page(
        f"K = {best}", subject,
        f'<p class="lead">{html.escape(reason)}</p><div class="cards">{"".join(charts)}</div>')


def define_flags():
    """The command's own: several commands may be imported into one process."""
    flags.DEFINE_string("features", None, "File of fs4_jax.models.features.")
    flags.DEFINE_list("candidates", [], "Numbers of clusters to try, such as 4,8,16; left "
                      "out: --num of them from --min to --max.")
    flags.DEFINE_integer("min", 2, "Least number of clusters.")
    flags.DEFINE_integer("max", 40, "Largest number of clusters.")
    flags.DEFINE_integer("num", 10, "How many numbers from --min to --max.", lower_bound=2)
    flags.DEFINE_integer("points", 20_000, "Tokens in the sample.", lower_bound=10)
    flags.DEFINE_integer("seeds", 3, "Seeds of k-means for each K.", lower_bound=2)
    flags.DEFINE_integer("seed", 0, "Seed of the sample and of those.")
    flags.DEFINE_bool("spherical", True, "Cosine k-means, the distance of tokens.")
    flags.DEFINE_string("out", "choose_k.html", "Page to write.")


if __name__ == "__main__":
    define_flags()
    flags.mark_flags_as_required(["features"])
    app.run(main)
