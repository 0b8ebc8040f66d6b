"""Trains or evaluates a model: `python -m fs4_jax.main --config=configs/folder.py --workdir=W`."""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Settings, a file of configs/: FILE.py or FILE.py:ARG; any key is set by "
    "--config.KEY=VALUE.", lock_config=True)
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


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    if _DRY_RUN.value and _MODE.value != "train":
        raise app.UsageError("--dry_run is for --mode=train")
    logging.set_verbosity(logging.WARNING)
    # Imported here, so that --help and a mistyped flag answer at once.
    from fs4_jax import dry_run, errors, evaluate, train, watch
    with errors.explained(watch.NonFinite):
        if _DRY_RUN.value:
            sys.exit(dry_run.dry_run(_CONFIG.value))
        if _MODE.value == "eval":
            sys.exit(evaluate.evaluate_workdir(_CONFIG.value, _WORKDIR.value))
        sys.exit(train.train(_CONFIG.value, _WORKDIR.value))


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    flags.register_multi_flags_validator(
        ["workdir", "dry_run"], lambda given: given["workdir"] or given["dry_run"],
        "--workdir must be given, except with --dry_run")
    app.run(main)
