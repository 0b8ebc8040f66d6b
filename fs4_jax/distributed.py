"""Several processes that are one run: asked for on the command line, run by JAX's own runtime.

Every process runs the same program on its own devices; an array may lie on the devices of all of
them. What all must agree on and each could find out otherwise (what was fitted on the host, files
that are there, images that can not be read) is said by process 0, or gathered here. With one
process everything below is what it would be without it.

Each function that moves values between processes must be called by all of them, in the same order.
"""

import contextlib
import os
import sys
import traceback

import jax
import numpy as np
from jax.experimental import multihost_utils

from fs4_jax.config import ConfigError

_HOW = ("Three ways to say where the processes are:\n"
        "  on a TPU pod, under Slurm or Open MPI: --distributed alone, in each process\n"
        "  anywhere: --distributed --coordinator=HOST:PORT --num_processes=N --process_id=I, with "
        "HOST:PORT a free port of process 0's machine, the same in each, and I = 0 .. N-1\n"
        "  several processes on this machine, to try: launch/local_pod.sh")


# ---- beginning and end --------------------------------------------------------------------------

def initialize(coordinator="", num_processes=0, process_id=-1, timeout=300):
    """Joins the other processes of the run; before anything else is asked of jax.

    Args:
      coordinator, num_processes, process_id: HOST:PORT of process 0, how many, which one this is;
        "", 0 and -1: as jax finds them in its cluster's environment.
      timeout: seconds to wait for the others.

    Raises:
      ConfigError: addresses that make no sense, no cluster found, or the others did not come.
    """
    given = {"--coordinator": coordinator != "", "--num_processes": num_processes != 0,
             "--process_id": process_id != -1}
    missing = [name for name, there in given.items() if not there]
    if missing and len(missing) < len(given):
        raise ConfigError(f"--distributed: {', '.join(missing)} missing beside "
                          f"{', '.join(name for name in given if name not in missing)}.\n{_HOW}")
    plain = {} if missing else dict(
        coordinator_address=coordinator, num_processes=num_processes, process_id=process_id,
        cluster_detection_method="deactivate")
    if plain and not 0 <= process_id < num_processes:
        raise ConfigError(f"--process_id={process_id} is not one of 0 to {num_processes - 1} "
                          f"(--num_processes={num_processes}).\n{_HOW}")
    if plain and not coordinator.rpartition(":")[2].isdigit():
        raise ConfigError(f"--coordinator={coordinator} has no port: give HOST:PORT.\n{_HOW}")
    try:
        jax.distributed.initialize(**plain, initialization_timeout=timeout)
    except (RuntimeError, ValueError) as error:
        where = f" at {coordinator} (process {process_id} of {num_processes})" if plain else ""
        raise ConfigError(f"--distributed: jax could not join the other processes{where}: "
                          f"{str(error).strip()}\n{_HOW}") from error
    # Connections are made now, while all are here: on a CPU they are waited for half a minute, and
    # later one process may still compile when another is done.
    wait_for_all("joined")
    mesh = jax.make_mesh((jax.device_count(),), ("all",), (jax.sharding.AxisType.Auto,))
    ones = rows_to_devices(np.ones(jax.local_device_count()), jax.NamedSharding(mesh, jax.P("all")))
    jax.block_until_ready(jax.jit(lambda x: x.sum())(ones))


@contextlib.contextmanager
def quiet_unless_first():
    """Standard output of process 0 alone; errors and warnings are everybody's."""
    if is_first():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


@contextlib.contextmanager
def failing_at_once():
    """A process that fails ends on the spot, so that the others do not wait for it.

    Else the runtime's farewell would wait for processes that wait in a step for this one. They are
    ended by the runtime, which misses it, or by whatever launched them.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1 or isinstance(error, SystemExit) and error.code in (0, 75):
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)


def is_first():
    """Whether this is process 0, the one that writes and prints."""
    return jax.process_index() == 0


def warn(text):
    """Prints to standard error what all processes know, once."""
    if is_first():
        print(text, file=sys.stderr)


def wait_for_all(name):
    """Returns when every process has come to here; name: the same in each."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


# ---- values -------------------------------------------------------------------------------------

def to_host(tree):
    """The tree's arrays as numpy, whole, on every process; random keys stay keys."""
    def fetch(x):
        if not isinstance(x, jax.Array):
            return x
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(fetch(jax.random.key_data(x)),
                                            impl=jax.random.key_impl(x))
        if x.is_fully_addressable or x.is_fully_replicated:
            return jax.device_get(x)
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(fetch, tree)


def to_devices(tree, shardings):
    """Arrays placed as `shardings` say; a tree of them, or one for all.

    Of arrays that lie on the host those of process 0 are taken: what each process computed for
    itself, in sums of its own order, is not the same to the last bit.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    leaves, structure = jax.tree.flatten(tree)
    wanted = [shardings] * len(leaves) if isinstance(shardings, jax.sharding.Sharding) else \
        structure.flatten_up_to(shardings)
    here = {i: x for i, x in enumerate(leaves) if not _spans_processes(x)}
    here = multihost_utils.broadcast_one_to_all(to_host(here))
    for i, where in enumerate(wanted):
        leaves[i] = jax.device_put(leaves[i], where) if i not in here else \
            jax.make_array_from_callback(here[i].shape, where, here[i].__getitem__)
    return structure.unflatten(leaves)


def rows_to_devices(tree, sharding):
    """Global arrays of each process's rows (numpy, the same shape in each)."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def local_rows(array):
    """This process's rows of an array that is split along its first axis, as numpy."""
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def gather(value):
    """What every process has, numpy of one shape in each: [processes, ...]."""
    return multihost_utils.process_allgather(np.asarray(value))


def bytes_of_first(data):
    """The bytes that process 0 has (None: it has none), on every process."""
    if jax.process_count() == 1:
        return data
    length = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if data is None else len(data))))
    if length < 0:
        return None
    mine = np.frombuffer(data, np.uint8) if is_first() else np.zeros(length, np.uint8)
    return multihost_utils.broadcast_one_to_all(mine).tobytes()


def _spans_processes(x):
    return isinstance(x, jax.Array) and not x.is_fully_addressable
