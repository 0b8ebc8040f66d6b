"""Runs of fs4_jax.main that a table is made of: each in a workdir of its own, made once."""

import json
import pathlib
import subprocess
import sys


def command(config, workdir, seed, changes, rest):
    """The command line of one run."""
    switches = [f"--config.{key}={value}" for key, value in changes.items()]
    return [sys.executable, "-m", "fs4_jax.main", f"--config={config}", f"--workdir={workdir}",
            f"--config.seed={seed}", *rest, *switches]


def score(config, workdir, seed, changes, rest):
    """{"miou", "accuracy", "floors"} of a run, which is made first where it is not finished."""
    scores = workdir / "eval.json"
    if not (workdir / "report.html").exists():         # the last thing that a run writes
        workdir.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{workdir}.log", "a") as log:
            status = subprocess.run(command(config, workdir, seed, changes, rest), stdout=log,
                                    stderr=subprocess.STDOUT).returncode
        if status or not scores.exists():
            lines = pathlib.Path(f"{workdir}.log").read_text().splitlines()[-5:]
            raise SystemExit("\n".join([*lines, f"that run failed ({workdir}.log); the runs before "
                                        "it are kept, the same command goes on"]))
    return json.loads(scores.read_text())
