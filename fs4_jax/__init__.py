"""Segmentation without pixel labels: FS^4, in JAX."""

import importlib.metadata
import os

__version__ = "0.1.0"


def _avoid_miscompiled_fusions():
    """Keeps jaxlib 0.10.2 and 0.11 from computing wrong numbers on CPU.

    Their XLA hands some fusions to a library that returns garbage for a matrix product followed
    by a reduction (jax issues 39103 and 39257; tests/miscompile_test.py shows it on our own
    layers). An empty list of such fusions avoids it. The flag is read when jax starts its
    backend, so this runs on the first import; a user's own setting of the flag stands.
    """
    flag = "--xla_cpu_experimental_ynn_fusion_type"
    try:
        version = importlib.metadata.version("jaxlib")
    except importlib.metadata.PackageNotFoundError:
        return
    flags = os.environ.get("XLA_FLAGS", "")
    if (version == "0.10.2" or version.startswith("0.11.")) and flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}=".strip()


_avoid_miscompiled_fusions()
