"""batches.tsv: a hash of what every step saw, so that two runs can be compared batch by batch."""

import pathlib

import jax.numpy as jnp

from fs4_jax.whole_files import write_whole

BATCH_LOG_FILE = "batches.tsv"
HASH = "hash"            # of each example in a batch; of the whole batch among a step's metrics


def batch_hash(hashes):
    """uint32 of a batch's uint32 [b] `HASH`: another for other examples, bytes, or another order.

    The same on any number of devices and processes. It is taken in the step's own program: one
    beside it would talk to the other processes, in another order elsewhere, and all would wait.
    """
    x = hashes ^ (jnp.arange(len(hashes), dtype=jnp.uint32) * jnp.uint32(0x9E3779B9))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):       # murmur3's finalizer
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return jnp.sum(x ^ (x >> 16), dtype=jnp.uint32)


class BatchLog:
    """Appends "step TAB hash" lines to WORKDIR/batches.tsv; step: the number it makes finished.

    `truncate_after` comes before the first `write`: until then the file is left as it was found.
    writes: False for all processes of a run but process 0.
    """

    def __init__(self, workdir, writes=True):
        self._workdir, self._writes, self._file = workdir, writes, None

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self._file is not None:
            self._file.close()

    def truncate_after(self, step):
        """Drops the lines behind `step`, which a run resumed from `step` writes again."""
        if not self._writes:
            return
        if self._file is not None:
            self._file.close()
        kept = {k: code for k, code in read_batch_log(self._workdir).items() if k <= step}
        path = pathlib.Path(self._workdir) / BATCH_LOG_FILE
        write_whole(path, "".join(f"{k}\t{code}\n" for k, code in kept.items()))
        self._file = path.open("a", encoding="ascii")

    def write(self, step, code):
        """Notes the `batch_hash` of the batch that step number `step` saw."""
        if self._writes:
            self._file.write(f"{step}\t{int(code):08x}\n")
            self._file.flush()


def read_batch_log(workdir):
    """{step: hash} of a workdir, as hexadecimal text; a half-written last line is left out."""
    path = pathlib.Path(workdir) / BATCH_LOG_FILE
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return {int(step): code for step, code in (line.split("\t") for line in lines)}
