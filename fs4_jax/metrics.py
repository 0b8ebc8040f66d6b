"""Where numbers go: metrics.jsonl, TensorBoard when there is one, a line on the screen."""

import importlib
import importlib.util
import json
import math
import numbers
import os
import pathlib
import shutil
import sys
import time
import types

import numpy as np

from fs4_jax import distributed
from fs4_jax.whole_files import write_whole

METRICS_FILE = "metrics.jsonl"


class NoWriter:
    """A MetricsWriter that writes nowhere: for all processes but process 0."""

    def write(self, step, metrics):
        pass

    def truncate_after(self, step):
        pass

    def has(self, step, name):
        return False

    def last(self, name):
        return 0

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class MetricsWriter:
    """Appends rows to WORKDIR/metrics.jsonl; of several processes, make one on process 0 only.

    A row is one JSON object a line, {"step": int, "time": unix seconds, name: number, ...}, on
    disk before `write` returns. Numbers that JSON has no word for are the strings "nan", "inf"
    and "-inf". What a killed run left half-written at the end of the file is dropped.

    Args:
      workdir: folder, made if missing.
      tensorboard: also write TensorBoard events into WORKDIR/tensorboard, if tensorboardX or
        torch.utils.tensorboard can be imported; without them nothing is said or written.
    """

    def __init__(self, workdir, *, tensorboard=True):
        self.path = pathlib.Path(workdir) / METRICS_FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._summary_writer = _summary_writer_class() if tensorboard else None
        self._events = None
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            self._rewrite(read_metrics(self.path))
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, step, metrics):
        """Writes one row.

        Args:
          step: int.
          metrics: dict of name -> number or array with one element.

        Raises:
          ValueError: a name is "step" or "time", or a value is not one number.
        """
        row = {"step": int(step), "time": round(time.time(), 3)}
        for name, value in metrics.items():
            if name in row:
                raise ValueError(f"a metric can not be named {name!r}: each row has that already")
            row[name] = _plain(name, value)
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        self._write_events(row)

    def truncate_after(self, step):
        """Drops the rows later than `step`, which a run resumed from `step` writes again."""
        self._file.close()
        self._rewrite([row for row in read_metrics(self.path) if row["step"] <= step])
        self._file = self.path.open("a", encoding="utf-8")

    def has(self, step, name):
        """Whether a row of this step has `name`."""
        return any(row["step"] == step and name in row for row in read_metrics(self.path))

    def last(self, name):
        """The newest value of a count; 0 where no row has it."""
        return next((row[name] for row in reversed(read_metrics(self.path)) if name in row), 0)

    def close(self):
        """Closes the files."""
        self._file.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _write_events(self, row):
        if self._summary_writer is None:
            return
        if self._events is None:   # purge_step: TensorBoard hides what a killed run wrote later
            self._events = self._summary_writer(str(self.path.parent / "tensorboard"),
                                                purge_step=row["step"])
        for name, value in row.items():
            if name not in ("step", "time") and math.isfinite(float(value)):
                self._events.add_scalar(name, float(value), row["step"], walltime=row["time"])
        self._events.flush()

    def _rewrite(self, rows):
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in rows), durable=True)


def read_metrics(path):
    """The rows of a metrics.jsonl, oldest first; values as written ("nan" stays a string).

    Args:
      path: the file. A half-written last line is dropped silently.

    Returns:
      list of dict, each with at least "step".

    Raises:
      ValueError: another line is not a row; the message names file and line.
    """
    lines = pathlib.Path(path).read_bytes().decode("utf-8", errors="replace").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or "step" not in row:
                raise ValueError("not an object with a step")
            rows.append(row)
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: {error}; remove this line to go on with "
                                 "the file") from error
    return rows


def column(history, name, scale=1.0):
    """(steps, values) of the rows that have `name`, floats; "nan", None and odd values are NaN."""
    rows = [row for row in history if name in row and math.isfinite(number(row.get("step")))]
    steps = np.array([number(row["step"]) for row in rows], np.float64)
    return steps, scale * np.array([number(row[name]) for row in rows], np.float64)


def number(value):
    """A float, NaN where there is none; infinities become NaN too."""
    try:
        value = float(value)
    except (TypeError, ValueError):
        return math.nan
    return value if math.isfinite(value) else math.nan


def last(values):
    """The last finite value, or NaN."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    return float(values[-1]) if values.size else math.nan


class ProgressLine:
    """One line that tells how the run goes, rewritten in place on a terminal.

    Elsewhere (a log file, CI) a plain line is printed every `every_seconds`, and at the last step.

    Args:
      total_steps: the step at which the run ends.
      first_step: the step it starts from; > 0 when it resumes.
      every_seconds: seconds between plain lines.
      unit: what is counted.
      stream: where to, default standard error of process 0.
      clock: function without arguments, seconds.
    """

    def __init__(self, total_steps, first_step=0, *, every_seconds=10.0, unit="step",
                 stream=None, clock=time.monotonic):
        self.total_steps, self._unit = total_steps, unit
        if stream is None:
            stream = sys.stderr if distributed.is_first() else open(os.devnull, "w")
        self._stream = stream
        self._in_place = bool(getattr(self._stream, "isatty", lambda: False)())
        self._every_seconds = every_seconds
        self._clock = clock
        self._start = (first_step, clock())
        self._updated = False
        self._last_print = -math.inf
        self._width = 0               # of what stands on the terminal's line

    def begin(self):
        """Work begins now: what came before, compiling say, is left out of the first ETA."""
        self._start = (self._start[0], self._clock())

    def format(self, step, metrics):
        """The line, such as "step 120/600  loss 2.345  pixel 1.9 pgg 0.4  38.2 img/s  ETA 1:23".

        Args:
          step: int.
          metrics: a row of metrics.jsonl; uses loss, loss_*, clusters_used,
            largest_cluster_share (0..1), images_per_second and data_wait_share (0..1), those
            present.
        """
        parts = [f"{self._unit} {step}/{self.total_steps}"]
        if "loss" in metrics:
            parts.append(f"loss {float(metrics['loss']):.4g}")
        terms = [f"{name.removeprefix('loss_')} {float(value):.2g}"
                 for name, value in metrics.items() if name.startswith("loss_")]
        parts += [" ".join(terms)] if terms else []
        if "clusters_used" in metrics:
            parts.append(f"{float(metrics['clusters_used']):.0f} clusters, largest "
                         f"{100 * float(metrics.get('largest_cluster_share', math.nan)):.0f} %")
        if "images_per_second" in metrics:
            parts.append(f"{float(metrics['images_per_second']):.1f} img/s")
        if "data_wait_share" in metrics:
            parts.append(f"data {100 * float(metrics['data_wait_share']):.0f} %")
        seconds = self._seconds_left(step)
        parts += [] if seconds is None else [f"ETA {format_seconds(seconds)}"]
        return "  ".join(parts)

    def update(self, step, metrics):
        """Shows the line, if it is time to."""
        now = self._clock()
        if self._in_place:
            self._replace(self.format(step, metrics))
        elif now - self._last_print >= self._every_seconds or step >= self.total_steps:
            self._last_print = now
            self._stream.write(self.format(step, metrics) + "\n")
            self._stream.flush()
        if not self._updated:   # from here on the ETA leaves out what compiling took
            self._start, self._updated = (step, now), True

    def note(self, text):
        """Prints a line of its own (such as "saved step 100") that stays."""
        if self._in_place:
            self._replace("")
            self._stream.write("\r")
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self):
        """Ends the line."""
        if self._in_place and self._width:
            self._stream.write("\n")
            self._stream.flush()
            self._width = 0

    def _replace(self, text):
        text = text[:shutil.get_terminal_size().columns - 1]
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)

    def _seconds_left(self, step):
        if step <= self._start[0]:
            return None
        rate = (self._clock() - self._start[1]) / (step - self._start[0])
        return max(0, self.total_steps - step) * rate


def format_seconds(seconds):
    """Seconds as "0:07", "12:34" or "1:02:03"."""
    minutes, seconds = divmod(int(round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _plain(name, value):
    """A number as JSON can hold it; an int stays an int."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise ValueError(f"metric {name!r} must be one number, got {value!r}")
    value = array.reshape(()).item() if array.dtype.kind in "biuf" else float(array.reshape(()))
    if isinstance(value, numbers.Integral):
        return int(value)
    return value if math.isfinite(value) else str(value)


def _summary_writer_class():
    """SummaryWriter of the first TensorBoard writer that imports, else None."""
    if importlib.util.find_spec("tensorboard") is not None:
        # TensorBoard imports the whole of TensorFlow where it is installed, unless this exists.
        sys.modules.setdefault("tensorboard.compat.notf",
                               types.ModuleType("tensorboard.compat.notf"))
    for module in ("tensorboardX", "torch.utils.tensorboard"):
        try:
            return importlib.import_module(module).SummaryWriter
        except (ImportError, AttributeError):
            continue
    return None
