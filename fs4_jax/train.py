"""The training loop: data, method, state, restore, [eval, save, next batch, step]*."""

import dataclasses
import os
import pathlib
import time

import jax

from fs4_jax import distributed
from fs4_jax.batch_log import BatchLog
from fs4_jax.checkpoint import Checkpoints
from fs4_jax.compile_cache import StartUp
from fs4_jax.config import ConfigError, check_workdir, remember_config
from fs4_jax.evaluate import make_evaluator, metrics_row, partial_file, publish
from fs4_jax.metrics import MetricsWriter, NoWriter
from fs4_jax.run import ENCODER_FILE, checked_source, prepare, remember_encoder
from fs4_jax.stopping import EXIT_INTERRUPTED, HangWatch, StopSignals
from fs4_jax.token_cache import cached_views
from fs4_jax.train_step import restarted
from fs4_jax.watch import NonFinite, Watch


def train(config, workdir):
    """Trains, resumes, evaluates and reports.

    Args:
      config: ConfigDict of `default_config`'s keys.
      workdir: folder for checkpoints, metrics and report; made if missing, resumed if not.

    Returns:
      The process's exit status: 0 finished, 75 interrupted and saved (70: see `HangWatch`).

    Raises:
      ConfigError, DataError, WeightsError: something the user can mend, before the first step.
      NonFinite: a loss that is no number, where config.nonfinite.policy does not go on behind it;
        the newest checkpoint is good.
      CheckpointError: one that can not be written or read; it says which is whole.
    """
    # ---- what will run: config, mesh, encoder, method, data ------------------------------------
    workdir, start_up = pathlib.Path(workdir), StartUp()
    check_workdir(workdir)
    run = prepare(config)
    source, eval_source = checked_source(config, "train"), checked_source(config, "eval")
    _claim(workdir, run)
    with StopSignals() as stop:
        if config.encoder.cached_views:
            source = stop.cut_short(cached_views, run, source,
                                    config.encoder.cache_dir or workdir / "tokens")
            if stop.requested:
                return _left(stop, "while tokens were cached: those there are stay")
        # Images that were trained on may hold unreadable ones; a split of its own may not.
        own_split = bool(config.data.eval_images or config.data.root or not config.data.images)
        evaluator = make_evaluator(run, eval_source, "eval",
                                   on_unreadable="raise" if own_split else "skip")
        _describe(run, source, eval_source, workdir)
        step_fn = run.jit_step(run.abstract_state())
        returns = _Returns(config.nonfinite)
        while True:
            try:
                return _train(run, source, evaluator, step_fn, workdir, stop, returns, start_up)
            except NonFinite as error:
                returns.note(error)


def _train(run, source, evaluator, step_fn, workdir, stop, returns, start_up):
    """From the newest checkpoint, or from nothing, to the end; the exit status."""
    config = run.config
    with (Checkpoints(workdir, config.checkpoint.keep) as checkpoints,
          MetricsWriter(workdir) if distributed.is_first() else NoWriter() as writer,
          BatchLog(workdir, writes=distributed.is_first()) as batches,
          HangWatch(workdir, config.hang_seconds) as hang):
        # ---- state and data, resumed or new ----------------------------------------------------
        state, iterator = stop.cut_short(_start, run, source, checkpoints) or (None, None)
        if stop.requested:
            return _left(stop, "before the first step: there is nothing new to save")
        first = int(state.step)
        writer.truncate_after(first)
        batches.truncate_after(first)
        returns.begin(first, iterator, writer)
        batch_keys = run.batch_keys(source)
        watch = Watch(config, source, writer, first, batches=batches, tensor_names=(
            lambda batch, metrics: run.tensor_names({k: batch[k] for k in batch_keys}, metrics)))

        # ---- the loop: eval, save, next batch, step --------------------------------------------
        for step in range(first, config.total_steps):
            checkpoints.check()
            if not stop.requested and _evaluation_due(config, step, first, writer):
                watch.flush()
                hang.rest()
                state = stop.cut_short(_finished, run, source, state) or state
                stop.cut_short(_evaluate, run, evaluator, state, step, writer, floors=False)
            leave = stop.before(step)
            if leave or _save_due(config, step, first):
                watch.flush()            # a state that is no longer finite is never saved
                checkpoints.save(step, state, iterator)
            if not leave and hasattr(run.method, "refit") and _due(
                    step, config.fs4.bootstrap.every, config.fs4.bootstrap.rounds):
                watch.flush()
                hang.rest()
                refitted = stop.cut_short(_bootstrap, run, source, state, step)
                leave = stop.requested
                if leave:                # a resumed run makes the round again
                    checkpoints.save(step, state, iterator)
                state = refitted or state
            if leave:
                checkpoints.wait()
                return _left(stop, f"at step {step}, saved in {checkpoints.directory}")
            _profile(config, workdir, step)

            if step > first:             # the first one compiles
                hang.expect()
            began = time.perf_counter()
            batch = next(iterator)
            waited = time.perf_counter() - began
            call = stop.cut_short if step == first else _call
            with (jax.transfer_guard("disallow"),
                  jax.profiler.StepTraceAnnotation("train", step_num=step)):
                made = call(step_fn, state, {key: batch[key] for key in batch_keys})
            if made is None:
                return _left(stop, "in the first step: there is nothing new to save")
            state, metrics = made
            if step == first:
                print(start_up.told(), flush=True)
            watch.after(step, metrics, batch, waited, iterator.get_state())

        # ---- the end: last checkpoint, last evaluation, report ---------------------------------
        watch.flush()
        hang.rest()
        state = _finished(run, source, state)
        checkpoints.save(config.total_steps, state, iterator)
        checkpoints.wait()
        result = stop.cut_short(_evaluate, run, evaluator, state, config.total_steps, writer,
                                floors=config.eval.floors, pictures=config.eval.pictures,
                                partial=partial_file(workdir))
        if stop.requested:
            return _left(stop, f"in the last evaluation; what is trained is in {workdir}")
    if distributed.is_first():
        publish(workdir, run, result)
    distributed.wait_for_all("published")
    return 0


class _Returns:
    """Returns to the newest checkpoint, behind whose data a batch gave no number.

    settings: config.nonfinite; unless its policy is rollback nothing returns.
    """

    def __init__(self, settings):
        self._settings, self._number, self._data_state, self._last = settings, 0, None, None

    def note(self, error):
        """Before a return; raises the NonFinite where there is to be none."""
        if self._settings.policy != "rollback":
            raise error
        if self._number >= self._settings.most:
            raise NonFinite(f"after {self._number} returns to the checkpoint of step {self._last} "
                            f"(config.nonfinite.most): {error}", error.step,
                            error.data_state) from error
        print(f"\nWARNING: {error}\ngoing back to the newest checkpoint, and on with the data "
              "behind that batch", flush=True)
        self._data_state = error.data_state

    def begin(self, first, iterator, writer):
        """At the start from step `first`: sets the data where it goes on after a return."""
        if self._data_state is None:
            return
        iterator.set_state(self._data_state)
        self._data_state = None
        self._number = self._number + 1 if self._last == first else 1
        self._last = first
        writer.write(first, {"rollbacks": writer.last("rollbacks") + 1})


def _claim(workdir, run):
    """Makes a workdir, or checks that it is this run's, and that all processes see it."""
    workdir.mkdir(parents=True, exist_ok=True)
    remember_config(run.config, workdir, write=distributed.is_first())
    if distributed.is_first():
        remember_encoder(run, workdir)
    distributed.wait_for_all("workdir is made")
    if not (workdir / ENCODER_FILE).exists():
        raise ConfigError(f"--workdir={workdir} is not on storage that all processes share: "
                          f"process {jax.process_index()} does not see what process 0 wrote there")


def _start(run, source, checkpoints):
    """(state, data iterator): from the newest checkpoint, or fitted to the data."""
    iterator = iter(run.views(source, run.config.seed))
    if checkpoints.latest is not None:
        state, step = checkpoints.restore(run.abstract_state(), iterator)
        print(f"resuming from step {step}", flush=True)
        return state, iterator
    state = run.create_state()
    if run.method.supervised:
        return state, iterator
    if run.method.has_classes:
        print("fitting the first centroids and prototypes to the encoder's own tokens ...",
              flush=True)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    params, extra = run.method.fit(state.params, state.extra, run.fit_batches(source, 1),
                                   distributed.to_host(state.key))
    state = dataclasses.replace(
        state, params=distributed.to_devices(params, shardings.params),
        extra=distributed.to_devices(extra, shardings.extra))
    # Jitted, so that the teacher gets buffers of its own: the step donates the state.
    fresh = jax.jit(lambda s: restarted(s, run.method, run.optimizer), out_shardings=shardings)
    return fresh(state), iterator


def _bootstrap(run, source, state, step):
    """A bootstrap round: PGG's groups from what the teacher sees by now.

    A function of the state, the step and the data alone, so a resumed run repeats it exactly.
    """
    extra = run.method.refit(state.params, state.teacher, state.extra,
                             run.fit_batches(source, 2 + step),
                             jax.random.fold_in(distributed.to_host(state.key), step))
    where = jax.tree.map(lambda x: x.sharding, state.extra)
    return dataclasses.replace(state, extra=distributed.to_devices(extra, where))


def _finished(run, source, state):
    """The state with what predicting needs and no step trains, where the method has such.

    A function of the parameters and the data alone, as `_bootstrap`.
    """
    if not hasattr(run.method, "finish"):
        return state
    params = run.method.finish(state.params, run.fit_batches(source, 1),
                               distributed.to_host(state.key))
    where = jax.tree.map(lambda x: x.sharding, state.params)
    return dataclasses.replace(state, params=distributed.to_devices(params, where))


def _evaluate(run, evaluator, state, step, writer, *, floors, pictures=0, partial=None):
    """One evaluation, noted in the metrics."""
    params = run.method.inference_params(state.params, state.teacher)
    result = evaluator.run(params, step, floors=floors, pictures=pictures, progress=True,
                           partial=partial)
    writer.write(step, metrics_row(result))
    return result


def _evaluation_due(config, step, first, writer):
    """Whether to evaluate before a step; a resumed run makes up for one that was cut short."""
    due = config.eval.at_start if step == 0 else _due(step, config.eval.every)
    if due and step == first:        # process 0 has the metrics, and all must do the same
        due = not distributed.gather(writer.has(step, "components_per_image"))[0]
    return due


def _save_due(config, step, first):
    """Whether to save before a step; where steps may return to a checkpoint there is a first."""
    if step == first:
        return step == 0 and config.nonfinite.policy == "rollback"
    return _due(step, config.checkpoint.every)


def _left(stop, where):
    """The exit status of a run that was asked to leave."""
    print(f"\nstopped by {stop.requested} {where}; the same command goes on from there")
    return EXIT_INTERRUPTED


def _call(function, *arguments):
    return function(*arguments)


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
          f"{jax.devices()[0].platform} device(s) of {jax.process_count()} process(es); workdir "
          f"{workdir}", flush=True)
    if config.encoder.frozen and not config.encoder.weights:
        print("WARNING: an encoder left at random weights: set config.encoder.weights", flush=True)
