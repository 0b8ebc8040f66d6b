"""Trains or evaluates a model: `python -m fs4_jax.main --config=configs/folder.py --workdir=W`."""

import contextlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from fs4_jax.config_files import parse_flags, with_shipped_configs

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Settings: FILE.py or FILE.py:ARG, or the name of a config that came with the "
    "package (demo, folder:S/14); any key is set by --config.KEY=VALUE.", lock_config=True)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where checkpoints, metrics and the report go; an interrupted run in it is "
    "resumed.")
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "train; or eval: score the newest checkpoint of the "
    "workdir on config.data.eval_images and config.data.eval_labels.")
_DRY_RUN = flags.DEFINE_boolean(
    "dry_run", False, "Make all that training makes, up to the compiled step, print what it costs "
    "(parameters, FLOPs, memory, hours on named hardware) and leave. Nothing is trained or "
    "written; --workdir is not needed.")
_DISTRIBUTED = flags.DEFINE_boolean(
    "distributed", False, "This is one of several processes that are one run: start the same "
    "command in each. On TPU pods, under Slurm and Open MPI jax finds the others; "
    "elsewhere say where they are with the next three. docs/pods.md")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "HOST:PORT of process 0, a free port there; with --distributed.")
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", 0, "How many processes there are; with --distributed --coordinator.")
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", -1, "Which one this is, 0 to num_processes - 1; with --coordinator.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    if _DRY_RUN.value and _MODE.value != "train":
        raise app.UsageError("--dry_run is for --mode=train")
    where = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if not _DISTRIBUTED.value and where != ("", 0, -1):
        raise app.UsageError("--coordinator, --num_processes and --process_id need --distributed")
    if _DISTRIBUTED.value and _DRY_RUN.value:
        raise app.UsageError("--dry_run is for one process: fake the devices of the pod with "
                             "XLA_FLAGS=--xla_force_host_platform_device_count=N")
    logging.set_verbosity(logging.WARNING)
    # Imported here, so that --help and a mistyped flag answer at once.
    from fs4_jax import compile_cache, distributed, dry_run, errors, evaluate, train, watch
    compile_cache.keep_compiled_programs()
    with contextlib.ExitStack() as stack:
        if _DISTRIBUTED.value:
            stack.enter_context(distributed.failing_at_once())
        stack.enter_context(errors.explained(watch.NonFinite))
        if _DISTRIBUTED.value:
            distributed.initialize(*where)
            stack.enter_context(distributed.quiet_unless_first())
        if _DRY_RUN.value:
            sys.exit(dry_run.dry_run(_CONFIG.value))
        work = evaluate.evaluate_workdir if _MODE.value == "eval" else train.train
        status = work(_CONFIG.value, _WORKDIR.value)
        if status == train.EXIT_INTERRUPTED and not _DISTRIBUTED.value:
            errors.leave(status)       # several processes cut nothing short
        sys.exit(status)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    flags.register_multi_flags_validator(
        ["workdir", "dry_run"], lambda given: given["workdir"] or given["dry_run"],
        "--workdir must be given, except with --dry_run")
    app.run(main, argv=with_shipped_configs(sys.argv), flags_parser=parse_flags)
