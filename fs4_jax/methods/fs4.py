"""FS^4: a segmentation model bootstrapped from unlabelled images (Wang et al., arXiv 2202.11981).

The paper names the modules (pixel clustering and assignment, pyramid-global-guided pseudo labels,
context-aware embedding); its equations are not public. What stands here is our reconstruction:

    L = w_pixel L_pixel + w_pgg L_pgg + w_kernel R

with a student and a teacher that see two views of each image, and all pseudo labels made on the
device from the teacher's tokens of the same forward pass.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fs4_jax.config import ConfigError
from fs4_jax.data.views import TwoViews, ViewSettings
from fs4_jax.losses.assignment import sample_at, swapped_prediction
from fs4_jax.losses.kernel import kernel_loss
from fs4_jax.losses.pyramid import cell_features, nearest_centroid, pyramid_loss
from fs4_jax.methods import fs4_fit
from fs4_jax.models.context_embedding import ContextEmbedding, appearance_cues
from fs4_jax.models.heads import SegmentationHead
from fs4_jax.models.prototypes import Prototypes
from fs4_jax.models.vit import normalize_images


def make_fs4(config, encoder):
    """FS4 of a config; `encoder` is a Linen module."""
    settings = config.fs4
    pgg, cae = settings.pgg, settings.cae
    num_groups = pgg.num_groups or config.num_clusters
    embedding = dict(width=cae.width, hidden=cae.hidden, radius=cae.radius,
                     position_sigma=cae.position_sigma, colour_sigma=cae.colour_sigma,
                     context=cae.enabled)
    pyramid = {str(level): num_groups for level in pgg.levels} if pgg.enabled else {}
    tokens = int(np.min(config.data.image_size)) // encoder.patch
    if pyramid and max(pgg.levels) > tokens:
        raise ConfigError(f"config.fs4.pgg.levels={tuple(pgg.levels)} asks for {max(pgg.levels)} "
                          f"cells on a side, but config.data.image_size={config.data.image_size} "
                          f"has {tokens} tokens there: lower one or raise the other")
    head = SegmentationHead(config.num_clusters, embedding, pyramid)
    frozen = ("encoder",) if config.encoder.frozen else ()
    return FS4(encoder, head, settings, config.num_clusters, frozen)


@dataclasses.dataclass(frozen=True)
class FS4:
    """The Method; `extra` is {"centroids": {level: [k_l, d]}}, PGG's global groups."""
    encoder: Any
    head: SegmentationHead
    settings: Any
    num_clusters: int
    frozen: tuple[str, ...]
    title = "FS^4"
    has_classes = True

    def make_views(self, data, image_size):
        return TwoViews(ViewSettings.from_config(data), image_size, self.encoder.patch)

    def init(self, key, images):
        key_encoder, key_head = jax.random.split(key)
        images = normalize_images(images)
        encoder = self.encoder.init(key_encoder, images)["params"]
        tokens = self.encoder.apply({"params": encoder}, images)["patch_tokens"]
        head = self.head.init(key_head, tokens, images)["params"]
        centroids = {level: jnp.zeros((num, tokens.shape[-1]))
                     for level, num in self.head.pyramid.items()}
        return {"encoder": encoder, "head": head}, {"centroids": centroids}

    def encode(self, params, images, key=None):
        """The encoder's outputs for normalised images; drop path acts when a key is given."""
        rngs = {} if key is None else {"dropout": key}
        return self.encoder.apply({"params": params["encoder"]}, images, train=key is not None,
                                  rngs=rngs)

    def loss(self, params, teacher, extra, batch, key, step):
        key_path, key_tokens = jax.random.split(key)
        # Views interleaved, so that a device keeps the images it has: [2 b, H, W, 3].
        images = normalize_images(_interleave(batch["view1"], batch["view2"]))
        if self.frozen:
            seen = taught = jax.lax.stop_gradient(self.encode(params, images))
        else:
            seen = self.encode(params, images, key_path)
            taught = jax.lax.stop_gradient(self.encode(teacher, images))
        student = self._head(params, seen, images)
        target = jax.lax.stop_gradient(self._head(teacher, taught, images))
        logits = student["cosines"] / self.settings.student_temperature

        terms = {"pixel": self._pixel_loss(logits, target["cosines"], batch, key_tokens)}
        if self.head.pyramid:
            terms["pgg"] = self._pgg_loss(student["cells"], taught, extra["centroids"])
        if self.settings.kernel.enabled:
            terms["kernel"] = self._kernel_loss(logits, images, taught["patch_tokens"])
        weighted = {name: self.settings[name].weight * term for name, term in terms.items()}
        metrics = {f"loss_{name}": term for name, term in terms.items()}
        return sum(weighted.values()), (metrics | telemetry(logits), extra)

    def _head(self, params, encoded, images, pyramid=True):
        return self.head.apply({"params": params["head"]}, encoded["patch_tokens"], images, pyramid)

    def _pixel_loss(self, logits, cosines, batch, key):
        """Both views read at the places of view 1's tokens, then swapped prediction."""
        position, valid = batch["correspondence"], batch["valid"]
        (s1, s2), (t1, t2) = _views(logits), _views(cosines)
        places = [s1, sample_at(s2, position), t1, sample_at(t2, position), valid]
        places = [x.reshape(valid.shape[0], -1, *x.shape[3:]) for x in places]
        num_tokens = self.settings.pixel.tokens
        if 0 < num_tokens < places[-1].shape[1]:
            order = jax.random.uniform(key, places[-1].shape)
            chosen = jnp.argsort(order, axis=1)[:, :num_tokens]
            places = [jax.vmap(lambda x, i: x[i])(x, chosen) for x in places]
        places = [x.reshape(-1, *x.shape[2:]) for x in places]
        sinkhorn = self.settings.sinkhorn
        losses, _ = swapped_prediction(
            *places, epsilon=sinkhorn.epsilon, num_iters=sinkhorn.num_iters,
            marginal_relaxation=sinkhorn.marginal_relaxation, balanced=sinkhorn.enabled)
        return jnp.sum(losses) / jnp.maximum(jnp.sum(places[-1]), 1)

    def _pgg_loss(self, cell_logits, taught, centroids):
        labels = {}
        for level in cell_logits:
            cells = cell_features(taught["patch_tokens"], taught["cls"], int(level))
            labels[level] = nearest_centroid(cells, centroids[level])
        return pyramid_loss(cell_logits, labels)

    def _kernel_loss(self, logits, images, patch_tokens):
        kernel = self.settings.kernel
        colour = appearance_cues(images, logits.shape[1:3])[..., :3]
        return kernel_loss(jax.nn.softmax(logits), colour, patch_tokens, radius=kernel.radius,
                           position_sigma=kernel.position_sigma, colour_sigma=kernel.colour_sigma,
                           feature_sigma=kernel.feature_sigma)

    def update_teacher(self, teacher, trained, step):
        """Exponential average; faster at the start, where the average knows nothing yet."""
        step = step.astype(jnp.float32)
        momentum = jnp.minimum(self.settings.teacher_momentum, (1 + step) / (10 + step))
        average = jax.tree.map(lambda t, s: t + (1 - momentum) * (s - t), teacher, trained)
        if self.settings.teacher == "frozen" and "encoder" in teacher:
            average = {**average, "encoder": teacher["encoder"]}
        return average

    def inference_params(self, params, teacher):
        return params if self.settings.teacher == "frozen" else {**params, **teacher}

    def predict(self, params, images):
        images = normalize_images(images)
        encoded = self.encode(params, images)
        head = self._head(params, encoded, images, pyramid=False)
        return {"logits": head["cosines"], "embedding": head["embedding"],
                "patch_tokens": encoded["patch_tokens"]}

    def classify(self, params, embedding):
        prototypes = {"params": params["head"]["classifier"]}
        return Prototypes(self.num_clusters).apply(prototypes, embedding)

    def fit(self, params, extra, batches, key):
        """First centroids, projection and prototypes, from the encoder's own tokens."""
        gathered = fs4_fit.gather(functools.partial(_gathered, self), params, batches)
        levels = self.head.pyramid
        centroids = fs4_fit.fit_centroids(gathered["cells"], levels, key)
        projection = fs4_fit.consistent_projection(gathered["scatter"],
                                                   self.head.embedding["width"])
        head = {**params["head"]}
        head["context"] = {**head["context"], "project": projection}
        embedding = fs4_fit.embed(self.head, head, gathered)
        head["classifier"] = {"prototypes": fs4_fit.fit_prototypes(embedding, self.num_clusters,
                                                                   key)}
        return {**params, "head": head}, {"centroids": centroids}

    def refit(self, params, teacher, extra, batches, key):
        """Centroids from the teacher's present tokens, each begun where it was: same identity."""
        params = self.inference_params(params, teacher)
        gathered = fs4_fit.gather(functools.partial(_gathered, self), params, batches)
        return {"centroids": fs4_fit.fit_centroids(gathered["cells"], self.head.pyramid, key,
                                                   start=extra["centroids"])}


def telemetry(logits):
    """Collapse detectors of a batch of student logits [b, h, w, k].

    assignment_entropy: of the mean soft assignment, in nats (log k: all clusters alike).
    clusters_used: clusters that win at least 0.1 / k of the pixels. largest_cluster_share: in
    [0, 1].
    """
    num_clusters = logits.shape[-1]
    mean = jnp.mean(jax.nn.softmax(logits), axis=(0, 1, 2))
    winner = jnp.argmax(logits, axis=-1).reshape(-1)
    share = jnp.bincount(winner, length=num_clusters) / winner.size
    return {"assignment_entropy": -jnp.sum(mean * jnp.log(mean + 1e-12)),
            "clusters_used": jnp.sum(share >= 0.1 / num_clusters),
            "largest_cluster_share": jnp.max(share)}


def _interleave(a, b):
    return jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])


def _views(x):
    x = x.reshape(-1, 2, *x.shape[1:])
    return x[:, 0], x[:, 1]


def _gathered(method, params, batch):
    """What the fits need of one batch; jitted by the caller."""
    images = normalize_images(_interleave(batch["view1"], batch["view2"]))
    encoded = method.encode(params, images)
    cues = ContextEmbedding(**method.head.embedding).cues(encoded["patch_tokens"], images)
    (cues1, cues2), (tokens, _) = _views(cues), _views(encoded["patch_tokens"])
    cells = {level: cell_features(tokens, _views(encoded["cls"])[0], int(level))
             for level in method.head.pyramid}
    pairs = fs4_fit.scatter(cues1, sample_at(cues2, batch["correspondence"]), batch["valid"])
    return {"images": batch["view1"], "patch_tokens": tokens, "cells": cells, "scatter": pairs}
