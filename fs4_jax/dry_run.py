"""`--dry_run`: what a training would cost, told before it is paid.

Hours are estimates, from the operations of the step's matrix products and the hardware's peak, of
which a busy ViT reaches `UTILISATION`. Reading images, evaluation and the first fit are not in it.
"""

import dataclasses
import math
import os
import time

import jax
import jax.numpy as jnp

from fs4_jax.evaluate import make_evaluator
from fs4_jax.program_cost import live_bytes, product_flops
from fs4_jax.run import checked_source, prepare
from fs4_jax.sharding import make_mesh
from fs4_jax.train_step import split

# Name: peak bfloat16 FLOP/s (dense) and bytes of memory of one chip. Sources: Google Cloud's pages
# "TPU v5e", "TPU v5p", "TPU v6e"; NVIDIA's data sheets of the SXM modules with 80 GB.
HARDWARE = {
    "TPU v5e": (197e12, 16e9),
    "TPU v5p": (459e12, 95e9),
    "TPU v6e": (918e12, 32e9),
    "A100 80GB": (312e12, 80e9),
    "H100": (989e12, 80e9),
}
UTILISATION = 0.4       # assumed; measure yours with benchmarks.step


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one step and of the run; sizes in bytes of one device.

    parameters: {"encoder": n, "head": n}; trained: how many of them are. flops: of a step's
    matrix products, on all devices; xla_flops: what XLA counts. state, batch: exact. temporaries:
    the compiled program's, on the platform here. live: `live_bytes`, on any platform.
    """
    parameters: dict
    trained: int
    num_images: int
    flops: float
    xla_flops: float
    state: int
    batch: int
    temporaries: int
    live: int

    def needs(self, platform):
        """Bytes of a device. XLA's word counts where it is about an accelerator.

        On a CPU its program is another: attention goes head by head, and what `remat` frees is
        not reused (XLA schedules there as if it had not been asked to recompute).
        """
        return self.state + self.batch + (self.live if platform == "cpu" else self.temporaries)


def dry_run(config):
    """Makes all that training makes up to the compiled step, prints its cost; returns 0.

    Raises what `train.train` raises for a config, data or weights that can not work.
    """
    run = prepare(config)
    source, eval_source = checked_source(config, "train"), checked_source(config, "eval")
    make_evaluator(run, eval_source, "eval")
    print(report(run, measure(run, len(source))))
    return 0


def measure(run, num_images):
    """The Cost of a Run on so many images; compiles the step, allocates nothing."""
    state, batch = run.abstract_state(), run.abstract_batch()
    traced = run.jit_step(state).trace(state, batch)
    compiled = traced.lower().compile()
    xla = compiled.cost_analysis() or {}
    trained, _ = split(state.params, run.method.frozen)
    return Cost(
        parameters={name: _numbers(part) for name, part in state.params.items()},
        trained=_numbers(trained), num_images=num_images, flops=product_flops(traced.jaxpr),
        xla_flops=xla.get("flops", 0.0) * run.mesh.size, state=_device_bytes(state),
        batch=_device_bytes(batch), live=live_bytes(_of_one_device(run, traced)),
        temporaries=compiled.memory_analysis().temp_size_in_bytes)


def report(run, cost):
    """The lines printed."""
    config, devices = run.config, run.mesh.size
    platform = jax.devices()[0].platform
    parts = ", ".join(f"{name} {_short(number).strip()}"
                      for name, number in cost.parameters.items())
    steps, rows = config.total_steps, config.batch_size
    needs = cost.needs(platform)
    facts = {
        "parameters": f"{parts}, total {_short(sum(cost.parameters.values()))}; "
                      f"{_short(cost.trained)} are trained",
        "data": f"{cost.num_images:,} images, {cost.num_images / rows:,.1f} steps an epoch; "
                f"{steps:,} steps are {steps * rows / cost.num_images:,.1f} epochs",
        "a step": f"{rows:,} images in {config.accumulate_steps} micro-batch(es), on {devices} "
                  f"{platform} device(s): data={run.mesh.shape['data']} x "
                  f"fsdp={run.mesh.shape['fsdp']}",
        "its work": f"{_short(cost.flops)}FLOP in matrix products, {_short(cost.flops / rows)}FLOP "
                    "an image",
        "by XLA": f"{_short(cost.xla_flops)}FLOP: a loop's body once, products of libraries not "
                  "at all",
        "state": f"{_gb(cost.state)} on each device (parameters, moments, teacher, the rest)",
        "batch": _gb(cost.batch),
        "temporaries": f"{_gb(cost.temporaries)} as compiled for {platform} here; "
                       f"{_gb(cost.live)} of live arrays in program order",
        "a device needs": f"{_gb(needs)}, counting the "
                          f"{'live arrays' if platform == 'cpu' else 'compiled temporaries'}",
    }
    if config.encoder.cached_views:
        facts["cached views"] = "counted as if every step encoded its views: costs less"
    lines = ["dry run: nothing is trained, nothing is written", ""]
    lines += [f"{name:<15} {text}" for name, text in facts.items()]
    return "\n".join([*lines, "", *_table(run, cost, needs), *_advice(run, cost, needs)])


def _table(run, cost, needs):
    """What an epoch and the run take on each kind of hardware."""
    steps = run.config.total_steps
    epoch = cost.num_images / run.config.batch_size
    lines = [f"{f'{run.mesh.size} x, {100 * UTILISATION:.0f} % busy':<20} {'peak TFLOP/s':>12} "
             f"{'memory':>8} {'step':>9} {'epoch':>9} {'run':>9} {'device-hours':>12}  fits"]
    rows = {name: (run.mesh.size, *numbers) for name, numbers in HARDWARE.items()}
    rows["this machine"] = _here(run)
    for name, (devices, peak, memory) in rows.items():
        seconds = cost.flops / (devices * peak * UTILISATION)
        shared = needs * run.mesh.size / devices
        lines.append(
            f"{name:<20} {peak / 1e12:12,.4g} {_gb(memory):>8} {_time(seconds):>9} "
            f"{_time(seconds * epoch):>9} {_time(seconds * steps):>9} "
            f"{seconds * steps * devices / 3600:12,.3g}  {'yes' if shared <= memory else 'no'}")
    lines.append("of the steps alone: no waiting for images, first fit, evaluation")
    if run.config.dtype == "float32":
        lines.append("peaks are bfloat16's: float32 is slower (--config.dtype=bfloat16)")
    return lines


def _advice(run, cost, needs):
    """What to change where a device's memory is too small."""
    short = [name for name, (_, memory) in HARDWARE.items() if memory < needs]
    if not short:
        return []
    config, ways = run.config, []
    if config.batch_size % (2 * config.accumulate_steps * run.mesh.size) == 0:
        ways.append(f"--config.accumulate_steps={2 * config.accumulate_steps}")
    if config.encoder.remat == "none" and not config.encoder.frozen:
        ways.append("--config.encoder.remat=blocks")
    if cost.state > needs / 4 and run.mesh.shape["fsdp"] < run.mesh.size:
        ways.append(f"--config.mesh.fsdp={run.mesh.size}")
    ways.append("a smaller --config.batch_size or --config.data.image_size, more devices")
    return ["", f"too much for {', '.join(short)}: try {'; '.join(ways)}"]


def _here(run):
    """(devices, FLOP/s of each, bytes of each) of this machine, by a product in config.dtype.

    Faked devices share one processor: they count as one.
    """
    device = run.mesh.devices.flat[0]
    cpu = device.platform == "cpu"
    side = 1024 if cpu else 8192
    square = jax.device_put(jnp.ones((side, side), run.config.dtype), device)
    product = jax.jit(lambda x: x @ x)
    jax.block_until_ready(product(square))
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        jax.block_until_ready(product(square))
        times.append(time.perf_counter() - begun)
    memory = (device.memory_stats() or {}).get("bytes_limit", 0) if not cpu else (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return (1 if cpu else run.mesh.size), 2 * side**3 / min(times), memory


def _of_one_device(run, traced):
    """The step's jaxpr for one device's share of the batch."""
    devices = run.mesh.size
    if devices == 1:
        return traced.jaxpr
    alone = dataclasses.replace(
        run, mesh=make_mesh({"data": 1, "fsdp": 1}, run.mesh.devices.flat[:1]))
    state = alone.abstract_state()
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((x.shape[0] // devices, *x.shape[1:]), x.dtype),
        alone.abstract_batch())
    return alone.jit_step(state).trace(state, batch).jaxpr


def _numbers(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _device_bytes(tree):
    """Of a tree of shape structs with shardings, the bytes that one device holds."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
               for leaf in jax.tree.leaves(tree))


def _short(number):
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g} "


def _gb(size):
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"


def _time(seconds):
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:,.3g} {unit}"
    return f"{1e6 * seconds:.3g} us"
