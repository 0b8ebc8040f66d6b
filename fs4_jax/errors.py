"""How a command ends when the user can mend it: one clear message, no traceback."""

import contextlib
import sys

from absl import app, logging

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


@contextlib.contextmanager
def command(argv):
    """What a command that takes flags alone runs in: other arguments refused, errors explained."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    with explained():
        yield
