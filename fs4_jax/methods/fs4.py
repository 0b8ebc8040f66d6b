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

from fs4_jax import distributed
from fs4_jax.clustering.merge import merge_clusters, merge_with_background
from fs4_jax.clustering.view_consistency import consistent_projection, scatter
from fs4_jax.config import ConfigError
from fs4_jax.data.views import TwoViews, ViewSettings
from fs4_jax.losses.assignment import sample_at, swapped_prediction
from fs4_jax.losses.kernel import kernel_loss
from fs4_jax.losses.pyramid import (
    cell_features,
    cell_labels,
    pooled_assignment_loss,
    pyramid_loss,
)
from fs4_jax.methods import fs4_fit
from fs4_jax.methods.base import early_momentum, encode, gather, running_mean
from fs4_jax.models.context_embedding import ContextEmbedding, appearance_cues
from fs4_jax.models.heads import SegmentationHead
from fs4_jax.models.prototypes import Prototypes, class_scores
from fs4_jax.models.vit import normalize_images

_SHARE_MOMENTUM = 0.95
_LEAST_SHARE = 1e-6         # of a fine cluster, whose logarithm is taken
_GROUPS_PER_CLASS = 3       # of PGG: kinds of images (cells) are more than kinds of things


def make_fs4(config, encoder):
    """FS4 of a config; `encoder` is a Linen module."""
    settings = config.fs4
    cae = settings.cae
    embedding = dict(width=cae.width, hidden=cae.hidden, form=cae.form, radius=cae.radius,
                     dilations=cae.dilations, position_sigma=cae.position_sigma,
                     colour_sigma=cae.colour_sigma, context=cae.enabled)
    pyramid = _pyramid(config, int(np.min(config.data.image_size)) // encoder.patch)
    heads = pyramid if settings.pgg.form == "heads" else {}
    head = SegmentationHead(config.num_clusters * settings.overcluster, embedding, heads)
    frozen = ("groups", "prior") + (("encoder",) if config.encoder.frozen else ())
    if settings.background and config.num_clusters < 2:
        raise ConfigError("config.fs4.background makes one of the classes the background: "
                          "config.num_clusters must be at least 2")
    return FS4(encoder, head, settings, config.num_clusters, pyramid, frozen)


def _pyramid(config, tokens):
    """{level: number of groups} of PGG; tokens: on an image's shorter side."""
    pgg = config.fs4.pgg
    if not pgg.enabled:
        return {}
    numbers = pgg.num_groups or _GROUPS_PER_CLASS * config.num_clusters
    numbers = tuple(numbers) if np.ndim(numbers) else (numbers,) * len(pgg.levels)
    if len(numbers) != len(pgg.levels):
        raise ConfigError(f"config.fs4.pgg.num_groups={numbers} has {len(numbers)} numbers for "
                          f"the levels {tuple(pgg.levels)}: give one for each, or one for all")
    if pgg.shared and len(set(numbers)) > 1:
        raise ConfigError(f"config.fs4.pgg.num_groups={numbers}: with config.fs4.pgg.shared all "
                          "levels have the same groups; give one number")
    if not set(pgg.guides) <= set(pgg.levels):
        raise ConfigError(f"config.fs4.pgg.guides={tuple(pgg.guides)} must be among "
                          f"config.fs4.pgg.levels={tuple(pgg.levels)}")
    if not pgg.levels:
        raise ConfigError("config.fs4.pgg.levels is empty: give cells on a side, (1, 2, 4), or set "
                          "config.fs4.pgg.enabled=False")
    if max(pgg.levels) > tokens:
        raise ConfigError(f"config.fs4.pgg.levels={tuple(pgg.levels)} asks for {max(pgg.levels)} "
                          f"cells on a side, but config.data.image_size={config.data.image_size} "
                          f"has {tokens} tokens there: lower one or raise the other")
    return {str(level): number for level, number in zip(pgg.levels, numbers)}


@dataclasses.dataclass(frozen=True)
class FS4:
    """The Method.

    Pixels are assigned to m fine clusters, `settings.overcluster` times num_clusters of them.
    params["groups"] int32 [m] says which class each belongs to, params["prior"] [m] how large it
    was when it was fitted. pyramid: {level: g}, groups of PGG. `extra` is {"centroids": {level:
    [g, d]}, "shares": {level: [g, m]}, "share": [m]}: PGG's global groups, how the pixels of each
    divide among the fine clusters, and the running share that each was assigned of all.
    """
    encoder: Any
    head: SegmentationHead
    settings: Any
    num_clusters: int
    pyramid: dict
    frozen: tuple[str, ...]
    title = "FS^4"
    has_classes = True
    supervised = False

    @property
    def kept(self):
        """Names of what `keep` keeps: all that is read of a view, by steps and by the fit."""
        return (("patch_tokens", "cls", "appearance")
                + (("attention",) if self.settings.background else ()))

    @property
    def temperature(self):
        """Of the student's softmax, which `predict`'s logits are cosines of."""
        return self.settings.student_temperature

    @property
    def guides(self):
        """Levels of the pyramid whose groups guide the clusters' fit."""
        return tuple(str(level) for level in self.settings.pgg.guides if self.pyramid)

    def make_views(self, data, image_size):
        return TwoViews(ViewSettings.from_config(data), image_size, self.encoder.patch)

    def init(self, key, images):
        key_encoder, key_head = jax.random.split(key)
        images = normalize_images(images)
        encoder = self.encoder.init(key_encoder, images)["params"]
        tokens = self.encoder.apply({"params": encoder}, images)["patch_tokens"]
        appearance = appearance_cues(images, tokens.shape[1:3])
        head = self.head.init(key_head, tokens, appearance)["params"]
        fine = self.head.num_clusters
        groups = jnp.arange(fine, dtype=jnp.int32) % self.num_clusters
        equal = jnp.full((fine,), 1 / fine, jnp.float32)
        extra = {"centroids": {level: jnp.zeros((number, tokens.shape[-1]))
                               for level, number in self.pyramid.items()},
                 "shares": {level: jnp.tile(equal, (number, 1))
                            for level, number in self.pyramid.items()},
                 "share": equal}
        return {"encoder": encoder, "head": head, "groups": groups, "prior": equal}, extra

    def loss(self, params, teacher, extra, batch, key, step):
        key_path, key_tokens = jax.random.split(key)
        if "encoder" in self.frozen:
            seen = taught = jax.lax.stop_gradient(self._look(params, batch))
        else:
            seen = self._look(params, batch, key_path)
            taught = jax.lax.stop_gradient(self._look(teacher, batch))
        student = self._head(params, seen)
        target = jax.lax.stop_gradient(self._head(teacher, taught, pyramid=False))
        temperature = self.settings.student_temperature
        labels = self._cell_labels(taught, extra["centroids"])
        logits = student["cosines"] / temperature + jnp.log(params["prior"])
        scores = self._scores(params, student["cosines"]) / temperature

        pixel, share = self._pixel_loss(
            logits, target["cosines"] + temperature * jnp.log(params["prior"]), batch, key_tokens,
            extra["share"], params["prior"])
        terms = {"pixel": pixel}
        if self.settings.pgg.form == "heads" and labels:
            terms["pgg"] = pyramid_loss(student["cells"], labels)
        elif labels:
            terms["pgg"] = pooled_assignment_loss(jax.nn.softmax(logits), labels, extra["shares"])
        if self.settings.kernel.enabled:
            terms["kernel"] = self._kernel_loss(scores, taught)
        weighted = {name: self.settings[name].weight * term for name, term in terms.items()}
        metrics = {f"loss_{name}": term for name, term in terms.items()}
        metrics |= telemetry(scores)
        return sum(weighted.values()), (metrics, extra | {"share": share})

    def _cell_labels(self, taught, centroids):
        """{level: pseudo labels [2 b, l, l, g]} of PGG, from what the teacher's encoder sees."""
        pgg = self.settings.pgg
        return {level: cell_labels(
            cell_features(taught["patch_tokens"], taught["cls"], int(level)), centroids[level],
            balanced=pgg.labels == "balanced", smoothing=pgg.smoothing) for level in self.pyramid}

    def _look(self, params, batch, key=None, fit=False):
        """The encoder's outputs and the "appearance" of both views, or what is kept of them.

        Views are interleaved, so that a device keeps the images it has: [2 b, ...].
        """
        if "patch_tokens" in batch:
            return {name: batch[name].reshape(-1, *batch[name].shape[2:]) for name in self.kept}
        images = normalize_images(_interleave(batch["view1"], batch["view2"]))
        return self._look_at(params, images, key, fit)

    def _look_at(self, params, images, key=None, fit=False):
        """fit: all that a fit reads, not steps' part of it alone."""
        attention = fit and self.settings.background
        seen = encode(self.encoder, params["encoder"], images, key, return_attention=attention)
        if attention:
            seen |= {"attention": jnp.mean(seen["attention"], axis=1)}
        return seen | {"appearance": appearance_cues(images, seen["patch_tokens"].shape[1:3])}

    def keep(self, params, batch):
        """What a frozen encoder sees of a batch's views, float16; `loss` reads it in their place.

        "patch_tokens" [b, 2, h, w, d], "cls" [b, 2, d], "appearance" [b, 2, h, w, a]; "attention"
        [b, 2, h, w] with settings.background.
        """
        seen = self._look(params, batch, fit=True)
        return {name: seen[name].reshape(-1, 2, *seen[name].shape[1:]).astype(jnp.float16)
                for name in self.kept}

    def _head(self, params, seen, pyramid=True):
        return self.head.apply({"params": params["head"]}, seen["patch_tokens"],
                               seen["appearance"], pyramid)

    def _pixel_loss(self, logits, taught, batch, key, share, fitted):
        """Both views read at the places of view 1's tokens, then swapped prediction.

        taught: the teacher's scores [2 b, h, w, m]. share, fitted: of the clusters, running and as
        they were fitted. Returns (loss, running share).
        """
        position, valid = batch["correspondence"], batch["valid"]
        (s1, s2), (t1, t2) = _views(logits), _views(taught)
        places = [s1, sample_at(s2, position), t1, sample_at(t2, position), valid]
        places = [x.reshape(valid.shape[0], -1, *x.shape[3:]) for x in places]
        num_tokens = self.settings.pixel.tokens
        if 0 < num_tokens < places[-1].shape[1]:
            order = jax.random.uniform(key, places[-1].shape)
            chosen = jnp.argsort(order, axis=1)[:, :num_tokens]
            places = [jax.vmap(lambda x, i: x[i])(x, chosen) for x in places]
        places = [x.reshape(-1, *x.shape[2:]) for x in places]
        sinkhorn = self.settings.sinkhorn
        losses, assignment = swapped_prediction(
            *places, epsilon=sinkhorn.epsilon, num_iters=sinkhorn.num_iters,
            marginal_relaxation=sinkhorn.marginal_relaxation, balanced=sinkhorn.enabled,
            prior={"equal": None, "running": share, "fitted": fitted}[sinkhorn.prior])
        number = jnp.maximum(jnp.sum(places[-1]), 1)
        seen = jnp.sum(assignment, axis=(0, 1)) / (2 * number)
        return jnp.sum(losses) / number, share + (1 - _SHARE_MOMENTUM) * (seen - share)

    def _kernel_loss(self, scores, taught):
        kernel = self.settings.kernel
        return kernel_loss(jax.nn.softmax(scores), taught["appearance"][..., :3],
                           taught["patch_tokens"], radius=kernel.radius,
                           position_sigma=kernel.position_sigma, colour_sigma=kernel.colour_sigma,
                           feature_sigma=kernel.feature_sigma)

    def update_teacher(self, teacher, trained, step):
        """Exponential average; faster at the start, where the average knows nothing yet."""
        average = running_mean(teacher, trained,
                               early_momentum(step, self.settings.teacher_momentum))
        if self.settings.teacher == "frozen" and "encoder" in teacher:
            average = {**average, "encoder": teacher["encoder"]}
        return average

    def inference_params(self, params, teacher):
        return params if self.settings.teacher == "frozen" else {**params, **teacher}

    def predict(self, params, images):
        seen = self._look_at(params, normalize_images(images))
        head = self._head(params, seen, pyramid=False)
        return {"logits": self._scores(params, head["cosines"]), "embedding": head["embedding"],
                "patch_tokens": seen["patch_tokens"]}

    def classify(self, params, embedding):
        prototypes = {"params": params["head"]["classifier"]}
        cosines = Prototypes(self.head.num_clusters).apply(prototypes, embedding)
        return self._scores(params, cosines)

    def _scores(self, params, cosines):
        """Class scores [..., num_clusters], in cosines, of the fine clusters' cosines."""
        return class_scores(cosines, params["groups"], self.num_clusters,
                            self.settings.student_temperature, params["prior"])

    def fit(self, params, extra, batches, key):
        """First centroids, projection and prototypes, from the encoder's own tokens."""
        gathered = gather(self._gathered, params, batches)
        centroids = self._fit_centroids(gathered, key)
        projection = consistent_projection(gathered["scatter"], self.head.embedding["width"])
        head = distributed.to_host(params["head"])
        head["context"] = {**head["context"], "project": projection}
        embedding = fs4_fit.embed(self._embedded, head, gathered)
        fitted = self._fit_clusters(embedding, gathered, centroids, key)
        head["classifier"] = {"prototypes": fitted.centroids}
        groups = self._classes_of(embedding, gathered, fitted)
        return ({**params, "head": head, "groups": groups, "prior": fitted.share},
                {"centroids": centroids, "shares": fitted.shares, "share": fitted.share})

    def refit(self, params, teacher, extra, batches, key):
        """PGG's groups anew from the teacher's present tokens, and what its clusters make of them.

        A group keeps its number: each begins where it was, or is matched with what it was.
        """
        now = self.inference_params(params, teacher)
        gathered = gather(self._gathered, now, batches)
        before, head = distributed.to_host((extra["centroids"], now["head"]))
        centroids = self._fit_centroids(gathered, key, before)
        fitted = self._fit_clusters(fs4_fit.embed(self._embedded, head, gathered), gathered,
                                    centroids, key, head["classifier"]["prototypes"])
        return extra | {"centroids": centroids, "shares": fitted.shares}

    @functools.cached_property
    def _gathered(self):
        """Jitted once for all fits: see `_gathered_of_batch`."""
        return jax.jit(functools.partial(_gathered_of_batch, self))

    @functools.cached_property
    def _embedded(self):
        """The head's embedding of tokens; jitted once, as `_gathered` is."""
        return jax.jit(lambda params, tokens, appearance: self.head.apply(
            {"params": params}, tokens, appearance)["embedding"])

    def _fit_centroids(self, gathered, key, start=None):
        return fs4_fit.fit_centroids(gathered["cells"], self.pyramid, key, start=start,
                                     shared=self.settings.pgg.shared,
                                     fresh=self.settings.bootstrap.start == "fresh")

    def _classes_of(self, embedding, gathered, fitted):
        """Which class each fine cluster belongs to, int32 [m]."""
        if not self.settings.background:
            return merge_clusters(fitted.centroids, fitted.share, self.num_clusters)
        looked_at = fs4_fit.attention_of(embedding, gathered["attention"], fitted.centroids)
        return merge_with_background(fitted.centroids, fitted.share, looked_at, self.num_clusters)

    def _fit_clusters(self, embedding, gathered, centroids, key, start=None):
        groups = fs4_fit.token_groups(gathered["cells"], centroids,
                                      gathered["patch_tokens"].shape[1:3])
        mixture = self.settings.mixture
        fitted = fs4_fit.fit_clusters(
            embedding, groups, self.head.num_clusters, key, start=start,
            mixture=mixture.enabled, num_groups=tuple(self.pyramid.items()), guides=self.guides,
            temperature=self.settings.student_temperature,
            num_iters=mixture.num_iters if mixture.enabled else 1)
        share = fitted.share + _LEAST_SHARE
        return fitted._replace(share=share / jnp.sum(share))


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


def _gathered_of_batch(method, params, batch):
    """What the fits need of one batch."""
    seen = method._look(params, batch, fit=True)
    cues = ContextEmbedding(**method.head.embedding).cues(seen["patch_tokens"],
                                                          seen["appearance"])
    (cues1, cues2), first = _views(cues), {name: _views(seen[name])[0] for name in method.kept}
    cells = {level: cell_features(first["patch_tokens"], first["cls"], int(level))
             for level in method.pyramid}
    pairs = scatter(cues1, sample_at(cues2, batch["correspondence"]), batch["valid"])
    return first | {"cells": cells, "scatter": pairs}
