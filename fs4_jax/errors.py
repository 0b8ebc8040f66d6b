"""How a command ends when the user can mend it: one clear message, no traceback."""

import contextlib
import sys

from fs4_jax.config import ConfigError
from fs4_jax.data.folder import DataError, UnreadableImage
from fs4_jax.models.weight_files import WeightsError

EXPLAINED = (ConfigError, DataError, UnreadableImage, WeightsError)


@contextlib.contextmanager
def explained(*more):
    """Prints an explained error to stderr and exits with status 2 (1 for those in `more`)."""
    try:
        yield
    except EXPLAINED as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except more as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
