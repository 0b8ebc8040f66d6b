"""Which part of FS^4 earns its place: each switched off in turn, several seeds, one table.

    python -m benchmarks.ablation --config=FILE --out=DIR [--seeds=0,1,2] [--parts=pgg,cae] \\
        [-- --config.data.root=ROOT --config.encoder.weights=F ...]

What follows `--` goes to every `python -m fs4_jax.main`. Each run has a workdir of its own below
DIR and its output beside it; a run that is finished is not run again, one that was interrupted
goes on. With a frozen encoder, `--config.encoder.cached_views=2
--config.encoder.cache_dir=DIR/tokens` lets all runs share the encoder's tokens. The table goes to
DIR/ablation.md too: mean and range over the seeds of the last checkpoint's score, and by how much a
part raises each seed's.
"""

import pathlib

import numpy as np
from absl import app, flags

from benchmarks.finished_runs import score

_CONFIG = flags.DEFINE_string("config", None, "Config file of fs4_jax.main.")
_OUT = flags.DEFINE_string("out", None, "Folder of the runs and of the table.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of each variant.")
_PARTS = flags.DEFINE_list("parts", [], "Which parts; all where none is given.")

_WHOLE = "nothing: all of it"

# part: what takes it away
PARTS = {
    "sinkhorn": {"fs4.sinkhorn.enabled": False},
    "mixture": {"fs4.mixture.enabled": False},
    "pgg": {"fs4.pgg.enabled": False},
    "pgg guides": {"fs4.pgg.guides": "()"},
    "pgg levels above 1": {"fs4.pgg.levels": "(1,)"},
    "cae": {"fs4.cae.enabled": False},
    "cae fixed kernel": {"fs4.cae.form": "attention"},     # one that is learned in its place
    "kernel": {"fs4.kernel.enabled": False},
    "training": {"total_steps": 1},            # what is left is the fitted start
    "rounds": {"fs4.bootstrap.every": 0},
}


def row(variant, runs, whole):
    """A line of the table; whole: the scores of the complete method, seed by seed."""
    miou, accuracy = (np.array([run[key] for run in runs]) for key in ("miou", "accuracy"))
    gain = "" if runs is whole else " ".join(f"{w['miou'] - x:+.1f}" for w, x in zip(whole, miou))
    return (f"| {variant} | {miou.mean():.1f} ({miou.min():.1f} to {miou.max():.1f}) | "
            f"{accuracy.mean():.1f} | {gain} |")


def table(results):
    """Lines of Markdown. results: {variant: [scores of each seed]}, the complete method first."""
    whole = next(iter(results.values()))
    lines = ["| without | mIoU | accuracy | the part adds, seed by seed |", "|---|---|---|---|"]
    lines += [row(variant, runs, whole) for variant, runs in results.items()]
    for floor in whole[0]["floors"]:
        runs = [run["floors"][floor] for run in whole]
        lines.append(row(f"floor: {floor}", runs, whole))
    return lines


def main(argv):
    unknown = [part for part in _PARTS.value if part not in PARTS]
    if unknown:
        raise app.UsageError(f"--parts={','.join(unknown)}: there is {', '.join(PARTS)}")
    out, results = pathlib.Path(_OUT.value), {}
    parts = _PARTS.value or list(PARTS)
    for variant, changes in {_WHOLE: {}, **{part: PARTS[part] for part in parts}}.items():
        folder = "whole" if variant == _WHOLE else variant.replace(" ", "_")
        results[variant] = [score(_CONFIG.value, out / f"{folder}_{seed}", seed, changes, argv[1:])
                            for seed in _SEEDS.value]
        print(row(variant, results[variant], results[_WHOLE]), flush=True)
    text = "\n".join(table(results)) + "\n"
    (out / "ablation.md").write_text(text)
    print(f"\n{text}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "out"])
    app.run(main)
