"""Compiled programs are kept on disk, so that a second start is a fast one; what a start took."""

import hashlib
import os
import pathlib
import platform
import time

import jax

_DURATION = "/jax/core/compile/backend_compile_duration"     # of compiling, or of reading
_HIT = "/jax/compilation_cache/cache_hits"


def keep_compiled_programs():
    """Turns jax's compilation cache on, in the user's cache folder.

    jax's own settings stand: JAX_COMPILATION_CACHE_DIR moves it, JAX_ENABLE_COMPILATION_CACHE=0
    turns it off. Programs for other processors lie in other folders: machines may share a home.
    """
    if jax.config.jax_compilation_cache_dir is None and jax.config.jax_enable_compilation_cache:
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir",
                          os.fspath(pathlib.Path(home, "fs4_jax", "compiled", _processor())))


def _processor():
    """Names what code compiled here may use."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:                       # not on Linux
        lines = [platform.processor()]
    features = sorted({line for line in lines if line.startswith(("flags", "Features"))}) or lines
    return f"{platform.machine()}-{hashlib.sha1(features[0].encode()).hexdigest()[:8]}"


class StartUp:
    """Counts what jax compiles from here to `told`, and the time."""

    def __init__(self):
        self._began, self._seconds, self._hits = time.monotonic(), [], 0
        jax.monitoring.register_event_listener(self._note_event)
        jax.monitoring.register_event_duration_secs_listener(self._note_duration)

    def told(self):
        """The line for the log, once: a second call answers ""."""
        if self._began is None:
            return ""
        took, self._began = time.monotonic() - self._began, None
        jax.monitoring.unregister_event_listener(self._note_event)
        jax.monitoring.unregister_event_duration_listener(self._note_duration)
        where = jax.config.jax_compilation_cache_dir
        kept = f"{self._hits} of them from the cache in {where}" if where else "no cache is kept"
        return (f"first step after {took:.1f} s, {sum(self._seconds):.1f} s for "
                f"{len(self._seconds)} programs, {kept}")

    def _note_event(self, event, **kwargs):
        self._hits += event == _HIT

    def _note_duration(self, event, seconds, **kwargs):
        if event == _DURATION:
            self._seconds.append(seconds)
