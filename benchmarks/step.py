"""Where a training step's time goes: data, forward, backward.

    python -m benchmarks.step --config=configs/demo.py

Medians over --repeats runs after a warm-up, in this one process. Forward is the loss alone;
backward all that the step adds to it (gradient, optimizer, teacher). Data is the time to make a
batch with nothing else going on; in training it overlaps with the step.
"""

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from benchmarks.timing import median

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.")
_REPEATS = flags.DEFINE_integer("repeats", 10, "Timed runs of each part.", lower_bound=1)


def main(_):
    logging.set_verbosity(logging.WARNING)
    from fs4_jax.run import checked_source, prepare

    config = _CONFIG.value
    run = prepare(config)
    iterator = iter(run.views(checked_source(config, "train"), config.seed))
    # The first ones were made ahead.
    data = median(lambda: next(iterator), _REPEATS.value, skip=4)
    batch = {key: value for key, value in next(iterator).items()
             if key not in ("index", "skipped")}
    state = run.create_state()
    # Everything is an argument: a captured array is a constant that XLA folds.
    loss = jax.jit(lambda *arguments: run.method.loss(*arguments)[0])
    arguments = state.params, state.teacher, state.extra, batch, state.key, state.step
    forward = median(lambda: jax.block_until_ready(loss(*arguments)), _REPEATS.value)
    held = [run.create_state()]
    step_fn = run.jit_step(held[0])

    def step():
        held[0], metrics = step_fn(held[0], batch)
        jax.block_until_ready((held[0], metrics))

    whole = median(step, _REPEATS.value)
    print(f"batch of {config.batch_size}, {jax.devices()[0].device_kind} x {run.mesh.size}, "
          f"median of {_REPEATS.value}")
    for name, seconds in (("data (overlapped)", data), ("forward", forward),
                          ("backward, update", whole - forward), ("step", whole)):
        print(f"{name:18s} {1000 * seconds:8.1f} ms  {100 * seconds / whole:5.1f} % of the step")
    print(f"{config.batch_size / whole:.1f} images/s")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(main)
