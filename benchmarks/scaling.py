"""How work and talk grow with the number of devices: FS^4's step, Sinkhorn, k-means.

    python -m benchmarks.scaling --config=configs/demo.py
    python -m benchmarks.scaling --config=FILE --model --devices=256 --chip="TPU v5e"

Without --model: the programs that XLA makes for 1, 2, 4 and 8 faked devices. Weak scaling keeps a
device's share of the batch (or points), strong scaling the whole. Work and bytes of memory are
XLA's count for one device; collectives are read from the compiled program, by kind, as one device
sees them. Times are of faked devices, which share this machine's cores: what they say is the sum of
all devices' work, so that perfect weak scaling is a time that grows as their number.

With --model: a step's time on chips that are not here, from what is written (nothing is compiled):
docs/pods.md says how.
"""

import dataclasses
import os

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.")
_SIZES = flags.DEFINE_list("sizes", ["1", "2", "4", "8"], "Numbers of faked devices.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Timed runs of each program; 0: none.")
_POINTS = flags.DEFINE_integer("points", 16384, "Points of a device, of Sinkhorn and k-means.")
_MODEL = flags.DEFINE_boolean("model", False, "Print the model of a step on --devices --chip.")
_DEVICES = flags.DEFINE_integer("devices", 256, "Of the model.")
_CHIP = flags.DEFINE_enum("chip", "TPU v5e", ["TPU v5e", "H100"], "Of the model.")

# Bytes/s of one chip: memory; what it sends to the others of its fast network; of the slow one
# behind groups of so many chips. Sources: Google Cloud's page "TPU v5e" (HBM 819 GB/s; ICI 1,600
# Gbit/s, both directions of all links); NVIDIA's data sheet of the H100 SXM (3.35 TB/s, NVLink 900
# GB/s, both directions) and a 400 Gbit/s adapter for each GPU, as DGX H100 has.
_NETWORK = {"TPU v5e": (819e9, 100e9, None, 256), "H100": (3.35e12, 450e9, 50e9, 8)}
_LATENCY = 20e-6        # seconds of a collective that carries next to nothing; assumed


def main(_):
    logging.set_verbosity(logging.WARNING)
    os.environ["XLA_FLAGS"] = " ".join((
        os.environ.get("XLA_FLAGS", ""),
        f"--xla_force_host_platform_device_count={max(map(int, _SIZES.value))}"))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if _MODEL.value:
        print("\n".join(model(_CONFIG.value, _DEVICES.value, _CHIP.value)))
        return
    import jax

    programs = {"Sinkhorn, 27 clusters": _sinkhorn,
                "k-means, 27 clusters of 64 numbers, 10 iterations": _kmeans, "step": _step}
    for title, make in programs.items():
        for kind in ("weak", "strong"):
            print(f"\n{title}, {kind} scaling\ndevices  rows  GFLOP/device  MB/device      time  "
                  "collectives of a device")
            for number in map(int, _SIZES.value):
                print(_row(number, *make(number, kind == "weak", jax.devices()[:number])),
                      flush=True)


def _row(number, rows, program, arguments):
    """A line of the table: a jitted program at these arguments, shapes with shardings."""
    from fs4_jax.program_cost import collectives
    compiled = program.lower(*arguments).compile()
    cost = compiled.cost_analysis() or {}
    told = ", ".join(f"{count} {kind} {size / 1e3:,.1f} kB" for kind, (count, size) in
                     sorted(collectives(compiled.as_text()).items())) or "none"
    return (f"{number:7d} {rows:5d} {cost.get('flops', 0) / 1e9:13.3f} "
            f"{cost.get('bytes accessed', 0) / 1e6:10.1f} {_time(compiled, arguments):>9s}  {told}")


def _time(compiled, arguments):
    if not _REPEATS.value:
        return "-"
    import jax
    import jax.numpy as jnp

    from benchmarks.timing import median

    def zeros(x):
        make = (lambda: jax.random.split(jax.random.key(0), x.shape)) if jax.dtypes.issubdtype(
            x.dtype, jax.dtypes.prng_key) else (lambda: jnp.ones(x.shape, x.dtype))
        return jax.jit(make, out_shardings=x.sharding)()

    given = jax.tree.map(zeros, arguments)
    copy = jax.jit(lambda x: jax.tree.map(jnp.copy, x))      # a step takes its state's buffers
    seconds = median(lambda given: jax.block_until_ready(compiled(*given)), _REPEATS.value,
                     setup=lambda: jax.block_until_ready(copy(given)))
    return f"{1000 * seconds:.1f} ms"


def _step(number, weak, devices):
    from fs4_jax.run import prepare
    from fs4_jax.sharding import make_mesh
    largest = max(map(int, _SIZES.value))
    with _CONFIG.value.unlocked():
        config = _CONFIG.value.copy_and_resolve_references()
    config.batch_size = max(1, config.batch_size // largest) * (number if weak else largest)
    config.mesh.data, config.mesh.fsdp = -1, 1
    run = dataclasses.replace(prepare(_every_device(config, largest)),
                              mesh=make_mesh(config.mesh, devices), config=config)
    state = run.abstract_state()
    return config.batch_size, run.jit_step(state), (state, run.abstract_batch())


def _every_device(config, largest):
    """The same config with a batch that all faked devices divide: the check of `prepare`."""
    config = config.copy_and_resolve_references()
    config.batch_size = largest * config.accumulate_steps
    return config


def _points(number, weak, devices, width):
    import jax
    import jax.numpy as jnp

    from fs4_jax.sharding import batch_sharding, make_mesh
    rows = _POINTS.value * (number if weak else max(map(int, _SIZES.value)))
    where = batch_sharding(make_mesh({"data": -1, "fsdp": 1}, devices))
    return rows, jax.ShapeDtypeStruct((rows, width), jnp.float32, sharding=where)


def _sinkhorn(number, weak, devices):
    import jax

    from fs4_jax.clustering import sinkhorn
    rows, scores = _points(number, weak, devices, 27)
    return rows, jax.jit(sinkhorn), (scores,)


def _kmeans(number, weak, devices):
    import jax

    from fs4_jax.clustering import kmeans
    rows, points = _points(number, weak, devices, 64)
    return rows, jax.jit(lambda x: kmeans(
        x, 27, key=jax.random.key(0), init="random", num_iters=10)), (points,)


def model(config, devices, chip):
    """Lines: what a step of a config takes on so many chips, and why."""
    import jax

    from fs4_jax.dry_run import HARDWARE, UTILISATION
    from fs4_jax.program_cost import product_bytes, product_flops
    from fs4_jax.run import prepare
    from fs4_jax.train_step import split

    with config.unlocked():
        config = config.copy_and_resolve_references()
    config.mesh.data, config.mesh.fsdp = -1, 1
    run = prepare(config)
    state, batch = run.abstract_state(), run.abstract_batch()
    jaxpr = run.jit_step(state).trace(state, batch).jaxpr
    trained = sum(x.size for x in jax.tree.leaves(split(state.params, run.method.frozen)[0]))
    memory, fast, slow, group = _NETWORK[chip]
    peak = HARDWARE[chip][0]
    compute = product_flops(jaxpr) / devices / (peak * UTILISATION)
    # Products share the batch; the optimizer reads and writes a device's whole copy of parameters,
    # two moments and teacher, and reads a gradient.
    moved = product_bytes(jaxpr) / devices + 9 * 4 * trained
    gradient = 4 * trained
    ring = 2 * gradient * (1 - 1 / min(devices, group)) / fast
    behind = 2 * gradient / group / slow if slow and devices > group else 0.0
    clusters = config.num_clusters * config.fs4.overcluster
    small = 2 * (2 + 5 * config.fs4.sinkhorn.num_iters)      # two views; see the step's table
    lines = {
        "products": (compute, f"{product_flops(jaxpr) / devices / 1e12:.3g} TFLOP a chip at "
                              f"{100 * UTILISATION:.0f} % of {peak / 1e12:.0f} TFLOP/s"),
        "memory": (moved / memory, f"{moved / 1e9:.3g} GB a chip at {memory / 1e9:.0f} GB/s"),
        "gradient": (ring + behind, f"all-reduce of {gradient / 1e6:.3g} MB, whatever the number "
                                    "of chips"),
        "Sinkhorn": (small * _LATENCY, f"{small} all-reduces of {4 * clusters} bytes, "
                                       f"{1e6 * _LATENCY:.0f} us each"),
    }
    slowest = max(compute, moved / memory)
    total = slowest + ring + behind + small * _LATENCY
    head = (f"{config.encoder.variant}{', frozen' if config.encoder.frozen else ''}, "
            f"{config.batch_size} images of {config.data.image_size} pixels, {devices} x {chip}")
    return [head, *(f"{name:9s} {1e3 * seconds:8.2f} ms  {why}"
                    for name, (seconds, why) in lines.items()),
            f"step      {1e3 * total:8.2f} ms  the larger of products and memory, then the rest: "
            f"{config.batch_size / total:,.0f} images/s, {100 * slowest / total:.0f} % of it work"]


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(main)
