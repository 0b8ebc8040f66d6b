"""Everything that is made from a config before the first step: mesh, encoder, method, data."""

import dataclasses
import itertools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from fs4_jax.batch_log import HASH, batch_hash
from fs4_jax.checkpoint import Checkpoints
from fs4_jax.config import ConfigError, recall_config
from fs4_jax.config_checks import check_config
from fs4_jax.data.pipeline import make_source, to_device, train_dataset
from fs4_jax.data.strokes import StrokeSource
from fs4_jax.methods import make_method
from fs4_jax.models.vit import ViT, make_encoder
from fs4_jax.models.encoder_files import load_encoder
from fs4_jax.nonfinite import tensors_of_step
from fs4_jax.optimizer import make_optimizer
from fs4_jax.sharding import batch_sharding, check_batch, make_mesh, replicated, tree_sharding
from fs4_jax.token_cache import CachedViews
from fs4_jax.train_step import init_state, make_train_step, split

ENCODER_FILE = "encoder.json"


@dataclasses.dataclass(frozen=True)
class Run:
    """A config made real. encoder_params: trained weights, None where they begin random."""
    config: object
    mesh: object
    method: object
    optimizer: object
    encoder_params: object

    @property
    def image_size(self):
        """(height, width) of the training crops."""
        return _pair(self.config.data.image_size)

    @property
    def make_views(self):
        """What is made of an image for training."""
        return self.method.make_views(self.config.data, self.image_size)

    def views(self, source, seed):
        """The training views of a source: a grain dataset of device arrays."""
        cached = isinstance(source, CachedViews)
        dataset = train_dataset(
            source, source if cached else self.make_views, seed=seed,
            batch_size=self.config.batch_size,
            num_workers=0 if cached else self.config.data.num_workers,    # nothing to decode
            process_index=jax.process_index(), process_count=jax.process_count())
        return to_device(dataset, batch_sharding(self.mesh))

    def batch_keys(self, source):
        """What a step reads of a batch of `views(source, ...)`."""
        return (*(source.keys if isinstance(source, CachedViews) else self.make_views.keys), HASH)

    def fit_batches(self, source, salt):
        """Views of about config.<method>.fit_images images, for fits; never the loop's own."""
        settings = self.config[self.config.method]
        wanted = min(settings.get("fit_images", self.config.fs4.fit_images), len(source))
        count = max(1, math.ceil(wanted / self.config.batch_size))
        return itertools.islice(iter(self.views(source, self.config.seed + 7919 * salt)), count)

    def abstract_state(self):
        """The state's shapes, dtypes and shardings."""
        shapes = jax.eval_shape(self._make_state, *self._seeds())
        shardings = tree_sharding(shapes, self.config.sharding, self.mesh)
        return jax.tree.map(
            lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
            shapes, shardings)

    def abstract_batch(self):
        """The shapes, dtypes and shardings of what a step reads of a batch."""
        make_views, where = self.make_views, batch_sharding(self.mesh)
        image = np.zeros((*self.image_size, 3), np.uint8)
        label = (image[..., 0],) if make_views.labelled else ()
        row = make_views(image, np.random.default_rng(0), *label) | {HASH: np.uint32(0)}
        return {key: jax.ShapeDtypeStruct((self.config.batch_size, *row[key].shape),
                                          row[key].dtype, sharding=where)
                for key in (*make_views.keys, HASH)}

    def create_state(self):
        """The first state, born where it will live."""
        shardings = jax.tree.map(lambda s: s.sharding, self.abstract_state())
        return jax.jit(self._make_state, out_shardings=shardings)(*self._seeds())

    def jit_step(self, state):
        """The compiled step(state, batch) -> (state, metrics); it takes over the state's buffers.

        The metrics have the `batch_hash` too, of a batch with hashes.

        The state stays where it is: left to the compiler, a first step may split a bias over
        devices, and the second one then compiles again.
        """
        pure = make_train_step(self.method, self.optimizer, self.config.accumulate_steps,
                               skip_nonfinite=self.config.nonfinite.policy == "skip")
        where = jax.tree.map(lambda x: x.sharding, state)

        def step(state, batch):
            views = {key: x for key, x in batch.items() if key != HASH}
            code = {HASH: batch_hash(batch[HASH])} if HASH in batch else {}
            new, metrics = pure(state, views, jax.random.fold_in(state.key, state.step))
            return new, metrics | code

        return jax.jit(step, donate_argnums=0, out_shardings=(where, replicated(self.mesh)))

    def tensor_names(self, batch, metrics):
        """What "first_nonfinite" counts; batch, metrics: arrays or shape structs of a step."""
        state = self.abstract_state()
        trained, _ = split(state.params, self.method.frozen)
        return [name for name, _ in
                tensors_of_step(batch, trained, metrics, trained, state.extra, trained)]

    def _seeds(self):
        return jax.random.key(self.config.seed), self.encoder_params

    def _make_state(self, key, encoder_params):
        images = jnp.zeros((1, *self.image_size, 3), jnp.uint8)
        return init_state(self.method, self.optimizer, key, images, encoder_params)


def prepare(config, trained_in=None):
    """Checks the config against the machine and the weights; returns a Run.

    Args:
      config: ConfigDict.
      trained_in: a workdir whose checkpoint will be restored. Its encoder.json says what the
        encoder is, so the file of its first weights is no longer needed.
    """
    check_config(config)
    mesh = make_mesh(config.mesh)
    if trained_in is None:
        check_batch(config.batch_size, mesh, "batch_size")
        _check_micro_batch(config.batch_size, config.accumulate_steps, mesh)
        encoder, encoder_params = _build_encoder(config)
    else:
        shape = json.loads((pathlib.Path(trained_in) / ENCODER_FILE).read_text())
        shape["pos_grid"] = tuple(shape["pos_grid"])
        encoder, encoder_params = ViT(**shape, dtype=jnp.dtype(config.dtype)), None
    encoder = dataclasses.replace(encoder, remat=config.encoder.remat)
    for key in ("image_size", "eval_size"):
        _check_size(config.data[key], encoder.patch, key)
    depth = encoder.block or encoder.depth          # blocks there are: layer decay counts them
    optimizer = make_optimizer(config.optimizer, config.total_steps, depth)
    return Run(config, mesh, make_method(config, encoder), optimizer, encoder_params)


def trained_run(workdir):
    """The Run of a workdir that was trained, on this machine's devices, not on that training's."""
    config = recall_config(workdir)
    config.mesh.data, config.mesh.fsdp = -1, 1
    return prepare(config, trained_in=workdir)


def segmenting_run(workdir):
    """`trained_run`, of a model that has classes; ConfigError for an encoder alone."""
    run = trained_run(workdir)
    if not run.method.has_classes:
        raise ConfigError(f"--workdir={workdir} holds an encoder ({run.method.title}), which has "
                          "no classes: train FS^4 on top of it with --config=configs/folder.py "
                          f"--config.encoder.weights={workdir}, and use that workdir")
    return run


def checked_source(config, split):
    """The source of a split, checked before minutes are spent on it; raises DataError."""
    source = make_source(config.data, split)
    if config.method == "scribble":
        _check_classes(config, source)
        if split == "train":
            settings = config.scribble
            source = StrokeSource(source, settings.annotation, ratio=settings.ratio,
                                  width=settings.width, seed=settings.seed)
    # Crops are taken from the images of training; evaluation resizes whole ones, small or not.
    patch = int(config.encoder.variant.rpartition("/")[2])
    source.check(min_side=patch if split == "train" else 1)
    return source


def _check_classes(config, source):
    if source.num_classes and source.num_classes != config.num_clusters:
        raise ConfigError(f"config.num_clusters={config.num_clusters}, but {source.name} has "
                          f"{source.num_classes} classes, and config.method=scribble learns just "
                          f"these: set --config.num_clusters={source.num_classes}")


def remember_encoder(run, workdir):
    """Writes the encoder's architecture into a workdir, for `prepare(trained_in=workdir)`."""
    encoder = run.method.encoder
    fields = {f.name: getattr(encoder, f.name) for f in dataclasses.fields(encoder)
              if f.name not in ("dtype", "remat", "parent", "name")}
    (pathlib.Path(workdir) / ENCODER_FILE).write_text(json.dumps(fields, indent=2) + "\n")


def restore_inference(run, workdir, step=None):
    """(parameters that predict, step) of a workdir's checkpoint of a step; None: the newest.

    Raises ConfigError where there is none.
    """
    with Checkpoints(workdir, writes=False) as checkpoints:
        if checkpoints.latest is None:
            raise ConfigError(f"{workdir} holds no complete checkpoint: let the training there "
                              "reach config.checkpoint.every steps")
        if step is not None and step not in checkpoints.steps:
            raise ConfigError(f"{workdir} holds no checkpoint of step {step}; there is "
                              f"{', '.join(map(str, checkpoints.steps))}")
        state, step = checkpoints.restore(run.abstract_state(), step=step)
    return run.method.inference_params(state.params, state.teacher), step


def encoder_of_workdir(workdir, *, dtype=jnp.float32, block=None, drop_path=0.0,
                       expected_variant=None):
    """The encoder that a run has trained, from its newest checkpoint.

    Args:
      workdir: of a training run of any method; what predicts there (the teacher) is taken.
      dtype, block, drop_path, expected_variant: as for `models.load_encoder`.

    Returns:
      (model, params), as `models.load_encoder` does.

    Raises:
      ConfigError: no such run, no checkpoint, a block that its encoder did not train, another
        variant than expected.
    """
    run = trained_run(workdir)
    encoder, variant = run.method.encoder, run.config.encoder.variant
    if expected_variant not in (None, variant):
        raise ConfigError(f"config.encoder.weights={workdir} has trained a {variant}, but "
                          f"config.encoder.variant is {expected_variant}: set "
                          f"--config.encoder.variant={variant}")
    depth = encoder.block or encoder.depth
    if block is not None and not 1 <= block <= depth:
        raise ConfigError(f"config.encoder.block={block}: {workdir} has trained blocks 1 to "
                          f"{depth}")
    params = jax.device_get(restore_inference(run, workdir)[0]["encoder"])
    unused = {f"blocks_{i}" for i in range(block or depth, depth)}
    return (dataclasses.replace(encoder, dtype=dtype, block=block or encoder.block,
                                drop_path=drop_path),
            {name: value for name, value in params.items() if name not in unused})


def _build_encoder(config):
    """(Linen module, trained parameters or None) that config.encoder asks for."""
    encoder = config.encoder
    options = dict(dtype=jnp.dtype(config.dtype), block=encoder.block or None,
                   drop_path=encoder.drop_path)
    try:
        if encoder.weights and pathlib.Path(encoder.weights).is_dir():
            return encoder_of_workdir(encoder.weights, expected_variant=encoder.variant, **options)
        if encoder.weights:
            return load_encoder(encoder.weights, expected_variant=encoder.variant, **options)
        return make_encoder(encoder.variant, image_size=config.data.image_size,
                            layer_scale=encoder.layer_scale or None, **options), None
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:          # a name that no file can have
        raise ConfigError(f"config.encoder.weights can not be read: {error.strerror}") from error


def _check_size(size, patch, key):
    if any(side % patch for side in _pair(size)):
        raise ConfigError(f"config.data.{key}={size} is no multiple of the encoder's patch, "
                          f"{patch} pixels")


def _check_micro_batch(batch_size, accumulate_steps, mesh):
    rows = mesh.size * accumulate_steps
    if batch_size % rows:
        raise ConfigError(
            f"config.batch_size={batch_size} is not divisible by {mesh.size} devices x "
            f"config.accumulate_steps={accumulate_steps}: use a multiple of {rows}, or fewer steps")


def _pair(size):
    return (size, size) if np.ndim(size) == 0 else tuple(size)
