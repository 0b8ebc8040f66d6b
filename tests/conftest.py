"""What must be set before the tests import jax: the CPU, and 8 faked devices on it.

Deprecation warnings raised from fs4_jax are errors: see filterwarnings in pyproject.toml.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8".strip()

from absl import flags  # noqa: E402

# grain's worker processes read a flag of theirs; under pytest nobody parses the flags.
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
