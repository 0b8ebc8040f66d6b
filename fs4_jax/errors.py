"""How a command ends before its end: one clear message, no traceback, at once."""

import atexit
import contextlib
import errno
import os
import sys

from absl import app, logging

from fs4_jax.config import ConfigError
from fs4_jax.data.images import DataError, UnreadableImage
from fs4_jax.models.weight_files import WeightsError


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written, or none that can be read; says what is whole.

    It stands here, for a command that reads no checkpoint need not wait for orbax.
    """


EXPLAINED = (ConfigError, DataError, UnreadableImage, WeightsError, CheckpointError)
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


@contextlib.contextmanager
def explained(*more):
    """Prints an explained error to stderr and exits with status 2 (1 for those in `more`)."""
    try:
        yield
    except EXPLAINED as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        print(f"error: {error.filename or 'a file'}: {error.strerror}; what was saved before is "
              "whole. With that mended, the same command goes on", file=sys.stderr)
        sys.exit(2)
    except more as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


@contextlib.contextmanager
def command(argv, stopped=""):
    """What a command that takes flags alone runs in: other arguments refused, errors explained.

    stopped: what Ctrl-C leaves behind, for people; the exit status is then 130.
    """
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    with explained():
        try:
            yield
        except KeyboardInterrupt:
            if not stopped:
                raise
            print(f"\nstopped; {stopped}", file=sys.stderr)
            leave(130)


def leave(status):
    """Ends the process now: runs what `atexit` holds, waits for nothing that devices still compute.

    Python itself would wait for a step under way, however long it takes, or die of it: a run
    that was stopped in its first step ended with a segmentation fault in place of its status.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
