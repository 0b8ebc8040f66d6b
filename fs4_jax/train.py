"""The training loop: data, method, state, restore, [eval, save, next batch, step]*."""

import dataclasses
import os
import pathlib
import signal
import time

import jax

from fs4_jax.checkpoint import Checkpoints
from fs4_jax.config import remember_config
from fs4_jax.evaluate import make_evaluator, partial_file, publish
from fs4_jax.metrics import MetricsWriter
from fs4_jax.run import checked_source, prepare, remember_encoder
from fs4_jax.token_cache import cached_views
from fs4_jax.train_step import restarted
from fs4_jax.watch import Watch

EXIT_INTERRUPTED = 75      # EX_TEMPFAIL: saved; the same command again goes on


def train(config, workdir):
    """Trains, resumes, evaluates and reports.

    Args:
      config: ConfigDict of `default_config`'s keys.
      workdir: folder for checkpoints, metrics and report; made if missing, resumed if not.

    Returns:
      The process's exit status: 0 finished, 75 interrupted and saved.

    Raises:
      ConfigError, DataError, WeightsError: something the user can mend, before the first step.
      NonFinite: a loss that is no number; the newest checkpoint is good.
    """
    # ---- what will run: config, mesh, encoder, method, data ------------------------------------
    workdir = pathlib.Path(workdir)
    run = prepare(config)
    source, eval_source = checked_source(config, "train"), checked_source(config, "eval")
    workdir.mkdir(parents=True, exist_ok=True)
    remember_config(config, workdir)
    remember_encoder(run, workdir)
    if config.encoder.cached_views:
        source = cached_views(run, source, config.encoder.cache_dir or workdir / "tokens")
    # Images that were trained on may hold unreadable ones; a split of its own may not.
    own_split = bool(config.data.eval_images or config.data.root or not config.data.images)
    evaluator = make_evaluator(run, eval_source, "eval",
                               on_unreadable="raise" if own_split else "skip")
    _describe(run, source, eval_source, workdir)

    with (Checkpoints(workdir, config.checkpoint.keep) as checkpoints,
          MetricsWriter(workdir) as writer, StopSignals() as stop):
        # ---- state and data, resumed or new ----------------------------------------------------
        state, iterator = _start(run, source, checkpoints)
        first = int(state.step)
        writer.truncate_after(first)
        step_fn, batch_keys = run.jit_step(state), run.batch_keys(source)
        watch = Watch(config, source, writer, first)

        # ---- the loop: eval, save, next batch, step --------------------------------------------
        for step in range(first, config.total_steps):
            if _due(step, config.eval.every) and step > first or \
                    step == first == 0 and config.eval.at_start:
                watch.flush()
                state = _finished(run, source, state)
                _evaluate(run, evaluator, state, step, writer, floors=False)
            if stop.requested or (step > first and _due(step, config.checkpoint.every)):
                watch.flush()            # a state that is no longer finite is never saved
                checkpoints.save(step, state, iterator)
            if stop.requested:
                checkpoints.wait()
                print(f"\nstopped by {stop.requested} at step {step}, saved in "
                      f"{checkpoints.directory}: the same command goes on from there")
                return EXIT_INTERRUPTED
            if not run.method.supervised and _due(step, config.fs4.bootstrap.every,
                                                  config.fs4.bootstrap.rounds):
                state = _bootstrap(run, source, state, step)
            _profile(config, workdir, step)

            began = time.perf_counter()
            batch = next(iterator)
            waited = time.perf_counter() - began
            with (jax.transfer_guard("disallow"),
                  jax.profiler.StepTraceAnnotation("train", step_num=step)):
                state, metrics = step_fn(state, {key: batch[key] for key in batch_keys})
            watch.after(step, metrics, batch, waited)

        # ---- the end: last checkpoint, last evaluation, report ---------------------------------
        watch.flush()
        state = _finished(run, source, state)
        checkpoints.save(config.total_steps, state, iterator)
        checkpoints.wait()
        result = _evaluate(run, evaluator, state, config.total_steps, writer,
                           floors=config.eval.floors, pictures=config.eval.pictures,
                           partial=partial_file(workdir))
    publish(workdir, run, result)
    return 0


class StopSignals:
    """Ctrl-C and SIGTERM become a request to save and leave; a second one interrupts at once."""

    def __enter__(self):
        self.requested = ""
        self._previous = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, number, frame):
        if self.requested:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name

    def __exit__(self, *exc):
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def _start(run, source, checkpoints):
    """(state, data iterator): from the newest checkpoint, or fitted to the data."""
    iterator = iter(run.views(source, run.config.seed))
    if checkpoints.latest is not None:
        print(f"resuming from step {checkpoints.latest}", flush=True)
        abstract = run.abstract_state()
        state = checkpoints.restore(abstract, iterator)
        # Orbax restores the key with a sharding of its own, which the step would refuse.
        return jax.device_put(state, jax.tree.map(lambda x: x.sharding, abstract)), iterator
    state = run.create_state()
    if run.method.supervised:
        return state, iterator
    if run.method.has_classes:
        print("fitting the first centroids and prototypes to the encoder's own tokens ...",
              flush=True)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    params, extra = run.method.fit(state.params, state.extra, run.fit_batches(source, 1),
                                   state.key)
    state = dataclasses.replace(
        state, params=jax.device_put(params, shardings.params),
        extra=jax.device_put(extra, shardings.extra))
    # Jitted, so that the teacher gets buffers of its own: the step donates the state.
    fresh = jax.jit(lambda s: restarted(s, run.method, run.optimizer), out_shardings=shardings)
    return fresh(state), iterator


def _bootstrap(run, source, state, step):
    """A bootstrap round: PGG's groups from what the teacher sees by now.

    A function of the state, the step and the data alone, so a resumed run repeats it exactly.
    """
    extra = run.method.refit(state.params, state.teacher, state.extra,
                             run.fit_batches(source, 2 + step),
                             jax.random.fold_in(state.key, step))
    where = jax.tree.map(lambda x: x.sharding, state.extra)
    return dataclasses.replace(state, extra=jax.device_put(extra, where))


def _finished(run, source, state):
    """The state with what predicting needs and no step trains, where the method has such.

    A function of the parameters and the data alone, as `_bootstrap`.
    """
    if not hasattr(run.method, "finish"):
        return state
    params = run.method.finish(state.params, run.fit_batches(source, 1), state.key)
    where = jax.tree.map(lambda x: x.sharding, state.params)
    return dataclasses.replace(state, params=jax.device_put(params, where))


def _evaluate(run, evaluator, state, step, writer, *, floors, pictures=0, partial=None):
    """One evaluation, noted in the metrics."""
    params = run.method.inference_params(state.params, state.teacher)
    result = evaluator.run(params, step, floors=floors, pictures=pictures, progress=True,
                           partial=partial)
    row = {"components_per_image": result.clusters["components_per_image"]}
    if result.scores:
        row |= {"eval_miou": result.scores["miou"], "eval_accuracy": result.scores["accuracy"]}
        row |= {f"{name}_miou": score["miou"] for name, score in
                (result.scores.get("probes", {}) | result.scores.get("also", {})).items()}
    writer.write(step, row)
    return result


def _due(step, every, times=0):
    """Whether every so many steps is now; times: at most so often, 0 without end."""
    return every > 0 and step > 0 and step % every == 0 and (not times or step // every <= times)


def _profile(config, workdir, step):
    """Traces the steps from config.profile.steps[0] up to [1] into W/profile."""
    if config.profile.steps and step == config.profile.steps[0]:
        jax.profiler.start_trace(os.fspath(workdir / "profile"))
    if config.profile.steps and step == config.profile.steps[1]:
        jax.profiler.stop_trace()


def _describe(run, source, eval_source, workdir):
    config = run.config
    labels = f"{eval_source.num_classes} classes" if eval_source.num_classes else "no labels"
    print(f"{run.method.title} on {len(source)} images; evaluation on {len(eval_source)} "
          f"({labels}); K={config.num_clusters}\nencoder {config.encoder.variant} from "
          f"{config.encoder.weights or 'random weights'}"
          f"{', frozen' if config.encoder.frozen else ''}; {run.mesh.size} "
          f"{jax.devices()[0].platform} device(s); workdir {workdir}", flush=True)
