"""How a run is made to leave: signals that ask it to, long work that is cut short, hangs."""

import contextlib
import faulthandler
import os
import pathlib
import signal
import sys
import threading
import time

import jax
from jax.experimental import multihost_utils

EXIT_INTERRUPTED = 75      # EX_TEMPFAIL: saved; the same command again goes on
EXIT_HUNG = 70             # EX_SOFTWARE: no step for config.hang_seconds; the same command goes on

_PATIENCE = 20.0           # seconds that a signal waits for a call that Python can not cut short
_HANG_FILE = "hang.txt"


class Stopped(BaseException):
    """A signal came while work was done that may be cut short; see `StopSignals.cut_short`."""


class StopSignals:
    """Ctrl-C and SIGTERM become a request to save and leave; a second one interrupts at once.

    A call that Python can not cut short (XLA compiling for minutes) is waited for `patience`
    seconds. Then the process leaves with status 75 as it is: nothing has been made since the
    newest checkpoint but what such a call was making.

    Of several processes any may be asked; jax's runtime, which listens to SIGTERM, then finds a
    step before which all of them leave (`before`). Nothing is cut short there: the others would
    wait for it.
    """

    def __init__(self, patience=_PATIENCE):
        self.requested, self._asked, self._several = "", "", jax.process_count() > 1
        self._patience, self._interrupts, self._heard = patience, False, threading.Event()

    def __enter__(self):
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        signals = (signal.SIGINT,) if self._several else (signal.SIGINT, signal.SIGTERM)
        self._previous = {s: signal.signal(s, self._ask) for s in signals}
        # Python calls handlers between two of its own instructions; this byte comes at once.
        self._previous_fd = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._insist, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        os.close(self._pipe[1])
        self._thread.join()
        os.close(self._pipe[0])

    def cut_short(self, function, *arguments, **options):
        """What function(*arguments, **options) returns; None where a signal has cut it short."""
        signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)     # event loops take it
        try:
            try:
                self._interrupts = True
                if self.requested:
                    raise Stopped
                return function(*arguments, **options)
            finally:
                self._interrupts = False
        except Stopped:
            return None

    def before(self, step):
        """The signal for which to leave before this step, "" to go on; asked once at each step."""
        if self._several and multihost_utils.reached_preemption_sync_point(step):
            self.requested = self._asked or "SIGTERM"
        return self.requested

    def _ask(self, number, frame):
        self._heard.set()
        if self._asked:
            raise KeyboardInterrupt
        self._asked = signal.Signals(number).name
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self.requested = self._asked
        if self._interrupts:
            raise Stopped

    def _insist(self):
        while byte := os.read(self._pipe[0], 1):
            if byte[0] in self._previous and not self._heard.wait(self._patience):
                print(f"\nstopped by {signal.Signals(byte[0]).name} in a call that can not be cut "
                      "short: the same command goes on from the newest checkpoint",
                      file=sys.stderr, flush=True)
                os._exit(EXIT_INTERRUPTED)


class HangWatch:
    """Ends a run that makes no step for too long, once it has said where every thread stands.

    The stacks of all threads go to stderr and WORKDIR/hang.txt, the exit status is 70. Between
    `rest` and the next `expect` it does not watch: evaluations and fits take what they take.

    Args:
      workdir: folder. seconds: for a step; 0: never ends anything.
    """

    def __init__(self, workdir, seconds):
        self._path, self._seconds = pathlib.Path(workdir) / _HANG_FILE, seconds
        self._deadline, self._closed = None, threading.Event()

    def __enter__(self):
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *exc):
        self._closed.set()
        if self._seconds:
            self._thread.join()

    def expect(self):
        """A step begins."""
        self._deadline = time.monotonic() + self._seconds

    def rest(self):
        """What comes now is no step."""
        self._deadline = None

    def _watch(self):
        while not self._closed.wait(min(1.0, self._seconds / 4)):
            deadline = self._deadline
            if deadline is not None and time.monotonic() > deadline:
                self._end()

    def _end(self):
        text = (f"no step for {self._seconds:g} seconds (config.hang_seconds): the run ends, and "
                "the same command goes on from the newest checkpoint. Where every thread stands:\n")
        print(f"\n{text}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
        with contextlib.suppress(OSError), open(self._path, "w") as file:    # a full disk
            file.write(text)
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        os._exit(EXIT_HUNG)
