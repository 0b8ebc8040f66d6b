"""Segmentation without pixel labels: FS^4, in JAX."""

import importlib.util
import mmap
import os
import pathlib

__version__ = "0.1.0"


def _avoid_miscompiled_fusions():
    """Keeps jaxlib, from 0.10.2 to at least 0.12.0.1, from computing wrong numbers on CPU.

    Its XLA hands some fusions to a library that returns garbage for a matrix product followed by a
    reduction (jax issues 39103 and 39257; tests/miscompile_test.py shows it on our own layers). An
    empty list of such fusions avoids it. The flag is read when jax starts its backend, so this runs
    on the first import; a user's own setting of the flag stands. XLA ends a process whose flag it
    does not know: the flag is set where jaxlib's library has its name in it.
    """
    name = "xla_cpu_experimental_ynn_fusion_type"
    flags = os.environ.get("XLA_FLAGS", "")
    if name not in flags and any(_holds(path, name.encode()) for path in _jaxlib_libraries()):
        os.environ["XLA_FLAGS"] = f"{flags} --{name}=".strip()


def _jaxlib_libraries():
    spec = importlib.util.find_spec("jaxlib")
    folders = spec.submodule_search_locations or () if spec else ()
    return [path for folder in folders for path in pathlib.Path(folder).glob("*jax_common*")]


def _holds(path, text):
    """Whether a file has this text in it: 10 ms where it does, 0.2 s where it does not."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(text) >= 0
    except (OSError, ValueError):          # ValueError: of an empty file
        return False


_avoid_miscompiled_fusions()
