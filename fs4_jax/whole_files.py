"""Files that appear whole or not at all, whatever interrupts who writes them."""

import contextlib
import os
import pathlib

WRITING = ".writing"        # the end of a file's name until it is whole


@contextlib.contextmanager
def whole_file(path, *, durable=False):
    """Within it a path beside `path` to write to, which gets the name at the end, if one comes.

    durable: the content is on the disk before it gets the name, for a power cut's sake.
    """
    path = pathlib.Path(path)
    writing = path.with_name(path.name + WRITING)
    yield writing
    if durable:
        with writing.open("rb") as file:
            os.fsync(file.fileno())
    os.replace(writing, path)


def write_whole(path, content, *, durable=False):
    """Writes text, as UTF-8, or bytes into a `whole_file`."""
    with whole_file(path, durable=durable) as writing:
        writing.write_bytes(content.encode() if isinstance(content, str) else content)
