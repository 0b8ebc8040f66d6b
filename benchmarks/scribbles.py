"""What strokes are worth: the losses, and full masks, on the same images; several seeds, one table.

    python -m benchmarks.scribbles --config=configs/voc_scribble.py:animals --out=DIR \\
        [--seeds=0,1,2] [--losses=partial,static,densecrf,dfr,full] [--cached_views=2] \\
        [-- --config.data.root=ROOT --config.encoder.weights=F ...]

What follows `--` goes to every `python -m fs4_jax.main`. As in `benchmarks.ablation`, each run has
a workdir of its own below DIR, finished ones are not run again, and the table goes to
DIR/scribbles.md: the last checkpoint's score, how much of the way from the partial cross entropy to
full masks a loss goes, and what it reaches of full masks. --cached_views, for a frozen encoder: all
runs share tokens in DIR, those of full masks have their own.
"""

import pathlib

import numpy as np
from absl import app, flags

from benchmarks.finished_runs import score

_CONFIG = flags.DEFINE_string("config", None, "Config file of fs4_jax.main.")
_OUT = flags.DEFINE_string("out", None, "Folder of the runs and of the table.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of each loss.")
_CACHED_VIEWS = flags.DEFINE_integer("cached_views", 0, "config.encoder.cached_views of all runs.")

_FORM, _WEIGHT = "scribble.regularizer.form", "scribble.regularizer.weight"
# loss: (as people write it, what makes it of the config)
LOSSES = {
    "partial": ("partial cross entropy", {_FORM: "none"}),
    "static": ("+ static kernel", {_FORM: "static", _WEIGHT: 1.0}),
    "densecrf": ("+ DenseCRF loss", {_FORM: "densecrf", _WEIGHT: 1.0}),
    "cut": ("+ normalised cut", {_FORM: "normalized_cut", _WEIGHT: 1.0}),
    "dfr": ("+ DFR", {_FORM: "dfr"}),
    "full": ("full masks", {"scribble.annotation": "given", _FORM: "none"}),
}
_LOSSES = flags.DEFINE_list("losses", ["partial", "static", "densecrf", "dfr", "full"],
                            f"Which, of {', '.join(LOSSES)}.")


def changes(loss, out):
    """What a loss changes in the config."""
    cache = {"encoder.cached_views": _CACHED_VIEWS.value, "encoder.cache_dir":
             out / ("tokens_full" if loss == "full" else "tokens")} if _CACHED_VIEWS.value else {}
    return LOSSES[loss][1] | cache


def row(loss, results):
    """A line of the table; results: {loss: [scores of each seed]}."""
    miou, accuracy = (np.array([run[key] for run in results[loss]]) for key in ("miou", "accuracy"))
    line = (f"| {LOSSES[loss][0]} | {miou.mean():.1f} ({miou.min():.1f} to {miou.max():.1f}) | "
            f"{accuracy.mean():.1f} ({accuracy.min():.1f} to {accuracy.max():.1f}) |")
    if not {"partial", "full"} <= results.keys():
        return line
    least, most = (np.array([run["miou"] for run in results[name]]) for name in ("partial", "full"))
    share = (miou - least).mean() / (most - least).mean()
    return f"{line} {100 * share:.0f} % | {100 * miou.mean() / most.mean():.0f} % |"


def table(results):
    """Lines of Markdown, and each seed's mIoU."""
    ends = {"partial", "full"} <= results.keys()
    lines = ["| loss | mIoU | accuracy |" + (" of the gap | of full masks |" if ends else ""),
             "|---|---|---|" + ("---|---|" if ends else "")]
    lines += [row(loss, results) for loss in results] + [""]
    return lines + [f"{LOSSES[loss][0]}, mIoU seed by seed: " + ", ".join(
        f"{run['miou']:.1f}" for run in runs) for loss, runs in results.items()]


def main(argv):
    unknown = [loss for loss in _LOSSES.value if loss not in LOSSES]
    if unknown:
        raise app.UsageError(f"--losses={','.join(unknown)}: there is {', '.join(LOSSES)}")
    out, results = pathlib.Path(_OUT.value).resolve(), {}
    for loss in _LOSSES.value:
        results[loss] = [score(_CONFIG.value, out / f"{loss}_{seed}", seed, changes(loss, out),
                               argv[1:]) for seed in _SEEDS.value]
        print(row(loss, {loss: results[loss]}), flush=True)
    text = "\n".join(table(results)) + "\n"
    (out / "scribbles.md").write_text(text)
    print(f"\n{text}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "out"])
    app.run(main)
