"""Settings that can not work are refused by their keys, before anything slow starts."""

import math

from fs4_jax.config import DATA_SETS, ConfigError, flatten

_LEAST = {"total_steps": 1, "batch_size": 1, "accumulate_steps": 1, "num_clusters": 1,
          "log_every": 1, "nonfinite.most": 1, "hang_seconds": 0,
          "encoder.cached_views": 0, "fs4.overcluster": 1,
          "fs4.mixture.num_iters": 1, "fs4.pgg.smoothing": 0, "fs4.cae.radius": 0,
          "fs4.kernel.radius": 0, "fs4.bootstrap.every": 0, "fs4.bootstrap.rounds": 0,
          "scribble.decoder.width": 1, "scribble.decoder.detail": 0, "scribble.decoder.upsample": 1,
          "scribble.regularizer.radius": 1, "scribble.regularizer.rampup": 0,
          "scribble.regularizer.strokes.number": 1, "scribble.regularizer.strokes.apart": 1e-12,
          "scribble.regularizer.dense.leaf_size": 1, "scribble.consistency.width": 1,
          "scribble.consistency.pairs": 2, "scribble.consistency.confident": 0,
          "optimizer.halve_every": 0, "alignseg.num_prototypes": 1, "alignseg.num_heads": 1,
          "alignseg.hidden": 1, "alignseg.num_layers": 1, "alignseg.num_local": 1,
          "alignseg.fit_images": 1, "alignseg.contrast.temperature": 1e-6,
          "alignseg.mass": 1e-6, "alignseg.mixture.rounds": 0, "alignseg.mixture.attention": 0,
          "alignseg.mixture.place": 0}

_TEXTS = ("data.class_names", "sharding", "eval.also")       # tuples of more than numbers
_MAY_BE_NEGATIVE = ("mesh.", "optimizer.final_weight_decay")
_POSITIVE = ("temperature", "sigma", "epsilon", "marginal_relaxation", "eval.batch_size",
             "eval.probe_steps", "checkpoint.keep")
_AT_MOST_1 = ("momentum", "data.flip", "data.grey", "data.blur", "optimizer.beta2", "drop_path",
              "alignseg.mass", "whitening", "mask.probability", "scribble.ratio", "rampup",
              "confident")
# (low, high), 0 < low <= high <= 1: shares of an image
_RANGES = ("data.crop_scale", "data.view2_scale", "dino.local_scale", "alignseg.global_scale",
           "alignseg.local_scale")


def check_config(config):
    """Refuses settings that can not work, before anything slow starts."""
    flat = flatten(config)
    for key, least in _LEAST.items():
        if not flat[key] >= least:
            raise ConfigError(f"config.{key} must be at least {least}, got {flat[key]}")
    for key, value in flat.items():
        _check_numbers(key, value)
    if config.num_clusters > 255:
        raise ConfigError(f"config.num_clusters is {config.num_clusters}; masks are 8-bit: at "
                          "most 255")
    choices = {"nonfinite.policy": ("stop", "skip", "rollback"),
               "dtype": ("float32", "bfloat16"), "data.name": tuple(DATA_SETS),
               "data.crops": ("random", "five"), "fs4.teacher": ("ema", "frozen"),
               "fs4.cae.form": ("bilateral", "attention"),
               "fs4.sinkhorn.prior": ("equal", "running", "fitted"),
               "fs4.pgg.form": ("heads", "pooled"), "fs4.pgg.labels": ("nearest", "balanced"),
               "fs4.bootstrap.start": ("previous", "fresh"),
               "alignseg.correlation.reduction": ("mean", "sum"),
               "alignseg.signature": ("prototype", "tokens"),
               "encoder.remat": ("none", "blocks"), "dino.centering": ("sinkhorn", "center"),
               "scribble.regularizer.form": ("none", "static", "densecrf", "normalized_cut",
                                             "kernel_cut", "dfr"),
               "scribble.regularizer.reach": ("window", "dense")}
    for key, allowed in choices.items():
        if flat[key] not in allowed:
            raise ConfigError(f"config.{key} is {flat[key]!r}; choose one of {', '.join(allowed)}")
    label_sets = DATA_SETS[config.data.name]
    if config.data.label_set not in ("", *label_sets):
        raise ConfigError(f"config.data.label_set is {config.data.label_set!r}; "
                          f"{config.data.name} has {', '.join(label_sets) or 'none'}")
    for key, least in (("image_size", 1), ("eval_size", 0)):
        sides = config.data[key] if isinstance(config.data[key], tuple) else (config.data[key],)
        if len(sides) not in (1, 2) or any(type(side) is not int or side < least for side in sides):
            raise ConfigError(f"config.data.{key} is {config.data[key]!r}; give pixels: one side, "
                              "or (height, width)")
    if any(not 0 < scale <= 8 for scale in config.eval.scales):
        raise ConfigError(f"config.eval.scales is {config.eval.scales!r}; give factors of the "
                          "image's sides, above 0: (0.75, 1.0, 1.25)")
    dilations = config.fs4.cae.dilations
    if not dilations or any(type(step) is not int or step < 1 for step in dilations):
        raise ConfigError(f"config.fs4.cae.dilations is {dilations!r}; give steps of at least one "
                          "token: (1,) or (1, 2, 4)")
    _check_evaluation(config)
    if len(config.profile.steps) not in (0, 2):
        raise ConfigError("config.profile.steps takes two numbers: first,last")


def _check_evaluation(config):
    """ConfigError where a protocol is unknown, or is not for labels such as the data set's."""
    from fs4_jax.evaluation.protocols import BUGS, PROTOCOLS     # jax, which settings do without
    for key, allowed in (("protocol", tuple(PROTOCOLS)), ("bug_compatible", ("", *BUGS))):
        if config.eval[key] not in allowed:
            raise ConfigError(f"config.eval.{key} is {config.eval[key]!r}; choose one of "
                              f"{', '.join(filter(None, allowed))}")
    if not set(config.eval.also) <= set(PROTOCOLS):
        raise ConfigError(f"config.eval.also is {config.eval.also!r}; choose of "
                          f"{', '.join(PROTOCOLS)} (several: --config.eval.also=\"('a', 'b')\")")
    if config.data.name == "folder" or config.data.eval_images:      # whose labels mean anything
        return
    objects = config.data.label_set == "objects"
    for key, names in (("protocol", (config.eval.protocol,)), ("also", config.eval.also)):
        for name in names:
            if (PROTOCOLS[name].matching == "objects") != objects:
                cure = ("--config.eval.protocol=objects --config.eval.also='()'" if objects else
                        "scenes have them: --config.data.label_set=objects")
                raise ConfigError(f"config.eval.{key} is {config.eval[key]!r}: 'objects' scores "
                                  f"objects' ids and nothing else does; {cure}")
    if objects and config.eval.probes:
        raise ConfigError("config.eval.probes learns classes; config.data.label_set='objects' has "
                          "none")


def _check_numbers(key, value):
    """ConfigError where a number is none, or outside of what such a key can be."""
    numbers = [x for x in (value if isinstance(value, tuple) else (value,))
               if isinstance(x, (int, float)) and not isinstance(x, bool)]
    if isinstance(value, tuple) and key not in _TEXTS and len(numbers) < len(value):
        raise ConfigError(f"config.{key} is {value!r}; give numbers")
    if not all(map(math.isfinite, numbers)):
        raise ConfigError(f"config.{key} is {value!r}; give finite numbers")
    if min(numbers, default=0) < 0 and not key.startswith(_MAY_BE_NEGATIVE):
        raise ConfigError(f"config.{key} is {value!r}; it can not be negative")
    if min(numbers, default=1) <= 0 and key.endswith(_POSITIVE):
        raise ConfigError(f"config.{key} is {value!r}; it must be above 0")
    if max(numbers, default=0) > 1 and key.endswith(_AT_MOST_1):
        raise ConfigError(f"config.{key} is {value!r}; it is at most 1")
    if key in _RANGES and not (len(numbers) == len(value) == 2 and
                               0 < numbers[0] <= numbers[1] <= 1):
        raise ConfigError(f"config.{key} is {value!r}; give two shares of the image's area, the "
                          "smaller one first: (0.3, 1.0)")
