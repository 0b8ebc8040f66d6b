"""A method that compiles in a moment, for tests of the loop and not of what it trains."""

import contextlib
import dataclasses
import io
import pathlib
import tempfile
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from fs4_jax import run as run_lib
from fs4_jax.config import default_config
from fs4_jax.data.views import TwoViews, ViewSettings
from fs4_jax.methods.base import running_mean
from fs4_jax.sharding import make_mesh
from tests.train_test import restored


@dataclasses.dataclass(frozen=True)
class TinyMethod:
    """Predicts an image's mean colour from its mean colour; `extra` counts and averages it.

    bad_step: whose loss term "colour" is NaN; poison: mean of an image whose views are.
    """
    encoder: Any
    bad_steps: tuple = ()
    poison: float | None = None
    frozen: tuple = ()
    title = "tiny"
    temperature = 1.0
    has_classes = True
    supervised = True

    def make_views(self, data, image_size):
        views = TwoViews(ViewSettings.from_config(data), image_size, self.encoder.patch)
        return views if self.poison is None else PoisonedViews(views, self.poison)

    def init(self, key, images):
        layers = [jax.random.normal(k, (3, 3)) / 2 for k in jax.random.split(key)]
        return ({"encoder": {"blocks_0": {"kernel": layers[0]}}, "head": {"kernel": layers[1]}},
                {"centroids": jnp.zeros(3)})

    def loss(self, params, teacher, extra, batch, key, step):
        colour = jnp.mean(batch["view1"] / 255.0, axis=(1, 2))
        told = self._head(params, colour + 0.01 * jax.random.normal(key, colour.shape))
        bad = jnp.isin(step, jnp.array(self.bad_steps, jnp.int32))
        terms = {"loss_colour": jnp.mean((told - colour) ** 2) + jnp.where(bad, jnp.nan, 0.0),
                 "loss_place": 1e-3 * jnp.mean(jnp.abs(batch["correspondence"]))}
        extra = {"centroids": 0.9 * extra["centroids"] + 0.1 * jnp.mean(colour, axis=0)}
        return sum(terms.values()), (terms, extra)

    def _head(self, params, x):
        return jnp.tanh(x @ params["encoder"]["blocks_0"]["kernel"]) @ params["head"]["kernel"]

    def update_teacher(self, teacher, trained, step):
        return running_mean(teacher, trained, 0.9)

    def inference_params(self, params, teacher):
        return teacher

    def predict(self, params, images):
        cells = images.reshape(len(images), images.shape[1] // 8, 8, images.shape[2] // 8, 8, 3)
        told = self._head(params, jnp.mean(cells / 255.0, axis=(2, 4)))
        return {"logits": told, "embedding": told, "patch_tokens": told}


@dataclasses.dataclass(frozen=True)
class PoisonedViews:
    """Views whose places are NaN for the image of one mean."""
    views: Any
    poison: float
    labelled = False

    def __getattr__(self, name):
        return getattr(self.views, name)

    def __call__(self, image, rng):
        made = self.views(image, rng)
        if image.mean() == self.poison:
            made["correspondence"] = np.full_like(made["correspondence"], np.nan)
        return made


def tiny_run(**changes):
    """Six steps of `TinyMethod` on 32-pixel scenes."""
    config = default_config()
    config.num_clusters, config.total_steps, config.batch_size, config.log_every = 3, 6, 4, 1
    config.data.update(dict(name="scenes", image_size=32, num_train=64, num_eval=8))
    config.encoder.variant, config.checkpoint.every = "mu/8", 2
    config.eval.update(dict(batch_size=8, floors=False, pictures=0, failures=0))
    config.update_from_flattened_dict(changes)
    return config


@contextlib.contextmanager
def in_place(*, devices=1, **settings):
    """Within it every run trains a `TinyMethod` of these settings, on the first devices."""
    mesh = make_mesh({"data": devices, "fsdp": 1}, jax.devices()[:devices])
    with mock.patch.object(run_lib, "make_mesh", lambda sizes: mesh), \
            mock.patch.object(run_lib, "make_method",
                              lambda config, encoder: TinyMethod(encoder, **settings)):
        yield


class TinyRunCase(parameterized.TestCase):
    """Runs in a folder of the test's own, `dir`; what they print is kept in `log`."""

    def setUp(self):
        super().setUp()
        self.dir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.log = io.StringIO()
        self.enterContext(contextlib.redirect_stdout(self.log))
        self.enterContext(contextlib.redirect_stderr(self.log))

    def state(self, name):
        """What `restored` gives of the run in the folder `name`."""
        return restored(tiny_run(), self.dir / name)
