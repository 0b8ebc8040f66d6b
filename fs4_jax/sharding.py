"""Where arrays live: a mesh with axes ("data", "fsdp") and regex rules for parameters."""

import re

import jax
from jax.sharding import AxisType

from fs4_jax.config import ConfigError

AXES = ("data", "fsdp")


def make_mesh(sizes, devices=None):
    """A mesh of all devices.

    Args:
      sizes: {"data": n, "fsdp": m}; one of them may be -1, "whatever is left".
      devices: list of jax devices; None: all.

    Raises:
      ConfigError: sizes that do not multiply to the number of devices; names config.mesh.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [int(sizes[axis]) for axis in AXES]
    known = 1
    for size in sizes:
        known *= size if size > 0 else 1
    if sizes.count(-1) == 1 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if min(sizes) < 1 or sizes[0] * sizes[1] != len(devices):
        raise ConfigError(f"config.mesh asks for data={sizes[0]} x fsdp={sizes[1]} devices, but "
                          f"there are {len(devices)}: set config.mesh.data=-1, or sizes whose "
                          "product is that number")
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def batch_sharding(mesh):
    """Batches are split over every device of the mesh, along their first axis."""
    return jax.NamedSharding(mesh, jax.P(AXES))


def replicated(mesh):
    """The same array on every device."""
    return jax.NamedSharding(mesh, jax.P())


def check_batch(batch_size, mesh, key):
    """Raises ConfigError naming the config key when the mesh does not divide a batch."""
    if batch_size % mesh.size:
        raise ConfigError(f"config.{key}={batch_size} is not divisible by the {mesh.size} devices "
                         f"of the mesh: use a multiple of {mesh.size}")


def round_up(number, mesh):
    """The next multiple of the number of devices."""
    return -(-number // mesh.size) * mesh.size


def tree_sharding(tree, rules, mesh):
    """One NamedSharding a leaf, by the first rule whose regex is found in the leaf's path.

    Args:
      tree: arrays or shape structs.
      rules: ((regex, "replicate" | "fsdp"), ...), searched in paths such as
        "params/encoder/blocks_0/attn/qkv/kernel". "fsdp" splits the longest axis that the mesh
        axis divides; scalars, vectors and indivisible arrays are replicated.
      mesh: of `make_mesh`.

    Raises:
      ConfigError: a leaf no rule matches, or an unknown strategy.
    """
    shards = mesh.shape["fsdp"]

    def place(path, leaf):
        name = "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))))
                        for k in path)
        strategy = next((how for regex, how in rules if re.search(regex, name)), None)
        if strategy not in ("replicate", "fsdp"):
            raise ConfigError(f"config.sharding: no rule of replicate | fsdp for {name} "
                             f"(found {strategy!r}); end the rules with ('.*', 'replicate')")
        # P() and not P(None, None), which jax holds for another sharding and compiles anew for.
        spec = []
        fits = [i for i in range(leaf.ndim) if leaf.shape[i] % shards == 0]
        if strategy == "fsdp" and shards > 1 and leaf.ndim > 1 and fits:
            spec = [None] * max(fits, key=lambda i: leaf.shape[i]) + ["fsdp"]
        return jax.NamedSharding(mesh, jax.P(*spec))

    return jax.tree_util.tree_map_with_path(place, tree)
