"""What must be set before the tests import jax: the CPU, and 8 faked devices on it.

Deprecation warnings raised from fs4_jax are errors: see filterwarnings in pyproject.toml.
"""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8".strip()

# Tests compile the same small programs again and again, some of them in child processes.
_cache = tempfile.TemporaryDirectory(prefix="fs4_compiled_")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _cache.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

# grain's worker processes read a flag of theirs; under pytest nobody parses the flags.
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """All programs of the suite take 6 GB; those of a module are of little use to the next one."""
    yield
    jax.clear_caches()
