"""Hours in a pod of two processes on this machine, through kills: does it leak, does it slow down?

`python -m benchmarks.reliability --hours=2 --folder=F`. FS^4 on `scenes` under launch/local_pod.sh
with bootstrap rounds, evaluations and saves; now and then a process, drawn, is killed (SIGKILL) at
a moment, drawn; the launcher ends and the same command goes on. Every process is looked at every
ten seconds, into F/samples.jsonl, of which `report` makes the lines that are printed: `--hours=0
--folder=F` prints those of a run that was cut.
"""

import json
import math
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np

from fs4_jax.metrics import read_metrics

PROCESSES = 2
_FLAGS = {          # of configs/demo.py: steps of a tenth of a second, and every part of a run
    "total_steps": 10**6, "batch_size": 4, "log_every": 20,
    "data.image_size": 48, "data.num_train": 256, "data.num_eval": 64,
    "checkpoint.every": 200, "fs4.fit_images": 128, "fs4.bootstrap.every": 500,
    "eval.every": 500, "eval.batch_size": 16, "eval.floors": False, "nonfinite.policy": "skip"}

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_EVERY = 10.0           # seconds between two looks
# Of a life, that no slope is fitted to: programs are compiled, all kinds of work come first twice.
_WARM_UP_SECONDS, _WARM_UP_STEPS = 480.0, 1000
_KILLED_IN = 0.6        # of the hours: what is left is the longest life, whose slope says most
_MB = 1e6


def train_for(hours, folder, kills, seed):
    """Trains for so many hours through so many kills; what was seen is in folder/samples.jsonl."""
    folder, rng = pathlib.Path(folder), random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    slot = _KILLED_IN * 3600 * hours / max(1, kills)
    moments = [slot * (i + rng.uniform(0.3, 1.0)) for i in range(kills)]
    began, life = time.time(), 0
    with (folder / "samples.jsonl").open("w", buffering=1) as file:
        def note(**row):
            file.write(json.dumps({"time": time.time() - began, "life": life} | row) + "\n")

        while True:
            until = moments[0] if moments else 3600 * hours
            with (folder / f"life_{life}.log").open("wb") as log:
                launcher = _launch(folder, log)
                ended = _look(launcher, folder / "workdir", note, began + until)
                if ended and moments:
                    moments.pop(0)
                    which, pid = rng.choice(sorted(_processes(launcher.pid).items()))
                    note(killed=which)
                    os.kill(pid, signal.SIGKILL)
                elif ended:
                    note(stopped=True)
                    launcher.send_signal(signal.SIGTERM)
                launcher.wait(300)
            found = re.search(r"resuming from step (\d+)", (folder / f"life_{life}.log").read_text(
                errors="replace"))
            note(status=launcher.returncode, resumed=int(found[1]) if found else 0)
            if ended and until == 3600 * hours or not ended and life > kills + 5:
                return
            life += 1


def _launch(folder, log):
    flags = [f"--config.{key}={value}" for key, value in _FLAGS.items()]
    return subprocess.Popen(
        ["launch/local_pod.sh", str(PROCESSES), "1", "--config=configs/demo.py",
         f"--workdir={folder.absolute() / 'workdir'}", *flags], cwd=_ROOT, stdout=log,
        stderr=subprocess.STDOUT, env=os.environ | {
            "FS4_PYTHON": sys.executable,
            "JAX_COMPILATION_CACHE_DIR": os.fspath(folder.absolute() / "compiled")})


def _look(launcher, workdir, note, until):
    """Notes what the processes use until then; False where they ended before."""
    while time.time() < until:
        if launcher.poll() is not None:
            return False
        seen = {which: used for which, pid in _processes(launcher.pid).items()
                if (used := _used(pid))}
        if len(seen) == PROCESSES:
            note(step=_step(workdir), processes=seen)
        time.sleep(max(0.0, min(_EVERY, until - time.time())))
    return True


def _processes(launcher):
    """{number of a process of the run: its pid}."""
    found = {}
    for pid in _text(f"/proc/{launcher}/task/{launcher}/children").split():
        words = _text(f"/proc/{pid}/cmdline").split("\0")
        for word in words:
            if word.startswith("--process_id="):
                found[word.rpartition("=")[2]] = int(pid)
    return found


def _used(pid):
    """MB that a process alone has (USS), shares of others' (PSS), has at all; its CPU seconds."""
    lines = _text(f"/proc/{pid}/smaps_rollup").splitlines()[1:]
    times = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if not lines or not times:
        return None
    kb = {line.split()[0].rstrip(":"): int(line.split()[1]) for line in lines}
    mb = {"uss": kb["Private_Clean"] + kb["Private_Dirty"], "pss": kb["Pss"], "rss": kb["Rss"],
          "anonymous": kb["Anonymous"]}
    return {name: value * 1024 / _MB for name, value in mb.items()} | {
        "cpu": sum(map(int, times[11:13])) / os.sysconf("SC_CLK_TCK")}


def _text(path):
    """Of a file in /proc; "" where its process has just ended."""
    try:
        return pathlib.Path(path).read_text()
    except OSError:
        return ""


def _step(workdir):
    rows = read_metrics(workdir / "metrics.jsonl") if (workdir / "metrics.jsonl").exists() else []
    return max((row["step"] for row in rows if "loss" in row), default=0)


def report(folder):
    """Lines about what samples.jsonl says."""
    with (pathlib.Path(folder) / "samples.jsonl").open() as file:
        rows = [json.loads(line) for line in file if line.endswith("\n")]
    lines, slopes = [], {str(i): [] for i in range(PROCESSES)}
    for life in sorted({row["life"] for row in rows}):
        mine = [row for row in rows if row["life"] == life]
        lines += _life(life, mine, slopes)
    lines.append("all lives, weighted by their variances:")
    for which, pairs in slopes.items():
        if pairs:
            weights = [1 / half**2 for _, half in pairs]
            mean = sum(w * slope for w, (slope, _) in zip(weights, pairs)) / sum(weights)
            lines.append(f"  process {which}: memory {mean:+.1f} +- {sum(weights)**-0.5:.1f} "
                         "MB/hour")
    rows = read_metrics(pathlib.Path(folder) / "workdir" / "metrics.jsonl")
    skipped = max((row.get("skipped_steps", 0) for row in rows), default=0)
    steps = max((row["step"] for row in rows if "loss" in row), default=0)
    lines.append(f"{steps} steps in the log, {skipped:.0f} skipped; mIoU "
                 + ", ".join(f"{row['eval_miou']:.1f}" for row in rows if "eval_miou" in row))
    return lines


def _life(number, rows, slopes):
    end = " ".join(f"{key}={row[key]}" for row in rows for key in ("killed", "stopped", "status")
                   if key in row)
    resumed = next((row["resumed"] for row in rows if "resumed" in row), "?")
    looks = [row for row in rows if "processes" in row]
    minutes = (rows[-1]["time"] - rows[0]["time"]) / 60
    lines = [f"life {number}: {len(looks)} looks in {minutes:.0f} min; from step {resumed} to "
             f"{max([row['step'] for row in looks], default='?')}; {end or 'cut'}"]
    first = min((row["step"] for row in looks), default=0)
    warm = [row for row in looks if row["time"] - rows[0]["time"] > _WARM_UP_SECONDS
            and row["step"] >= first + _WARM_UP_STEPS]
    if len(warm) < 30:
        return lines + ["  too short for a slope"]
    made = (warm[-1]["step"] - warm[0]["step"]) / 1000
    hours = np.array([row["time"] for row in warm]) / 3600
    for which in slopes:
        uss = np.array([row["processes"][which]["uss"] for row in warm])
        slope, half = _slope(hours, uss)
        slopes[which].append((slope, half))
        length = hours[-1] - hours[0]
        thirds = ", ".join(f"{np.median(_third(uss, part)):.0f}" for part in range(3))
        lines.append(f"  process {which}: memory {slope:+.1f} +- {half:.1f} MB/hour over "
                     f"{60 * length:.0f} min, {slope * length / made:+.1f} in a thousand steps; "
                     f"{uss.min():.0f} to {uss.max():.0f} MB of its own, median of each third "
                     f"{thirds}")
    for name, part in (("first", 0), ("last", 2)):
        third = _third(warm, part)
        steps = third[-1]["step"] - third[0]["step"]
        seconds = third[-1]["time"] - third[0]["time"]
        began, ended = (sum(row["processes"][which]["cpu"] for which in slopes)
                        for row in (third[0], third[-1]))
        lines.append(f"  {name} third: {steps} steps, {steps / seconds:.2f} a second of the clock, "
                     f"{steps / (ended - began):.2f} a CPU second "
                     f"({1e3 * (ended - began) / max(1, steps):.1f} ms of CPU each)")
    return lines


def _slope(x, y):
    """(slope, half of its 95 % interval), wider where what is left over goes on from look to look.

    Of a first-order process n values say as much as n (1 - r) / (1 + r) independent ones.
    """
    x = x - x.mean()
    slope = x @ y / (x @ x)
    left = y - y.mean() - slope * x
    r = min(0.99, max(0.0, left[1:] @ left[:-1] / max(left @ left, 1e-12)))
    error = math.sqrt(left @ left / (len(x) - 2) / (x @ x) * (1 + r) / (1 - r))
    return slope, max(1.96 * error, 1e-6)


def _third(values, part):
    size = len(values) // 3
    return values[part * size:(part + 1) * size] if part < 2 else values[-size:]
