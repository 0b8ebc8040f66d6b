"""DINO: an encoder trained from nothing, by predicting its own average (Caron et al. 2021).

A student sees global and local crops, its teacher (an average of it) the global ones; every crop
predicts the teacher's assignment of the other global crops. As DINOv2 (Oquab et al. 2023) does,
masked patches may predict the teacher's assignment of the same patches (iBOT), and features may be
spread (KoLeo). Patches of one global crop may also predict those of the other, where both show the
same place (SwAV's swapped prediction on patches, as FS^4 has it on pixels), and tell the texture of
their place, seen or masked (MaskFeat, Wei et al. 2021, with structure tensors for HOG: a target
that means something from the first step on, where a random teacher's does not). These two are our
addition, for those who train on one machine and not on a hundred:

    L = w_cls L_view + w_ibot L_masked + w_dense L_swapped + w_texture L_texture + w_koleo L_koleo

It has no classes of its own: FS^4 finds them, on top of what this trains.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fs4_jax.clustering.kmeans import unit_length
from fs4_jax.config import ConfigError
from fs4_jax.data.crops import MultiCrop
from fs4_jax.data.views import ViewSettings
from fs4_jax.losses import distillation
from fs4_jax.losses.assignment import sample_at, swapped_prediction
from fs4_jax.methods.base import encode, running_mean
from fs4_jax.models.context_embedding import NUM_TEXTURE_CUES, texture_cues
from fs4_jax.models.masking import blob_masks
from fs4_jax.models.projection import ProjectionHead
from fs4_jax.models.transformer import weight_init
from fs4_jax.models.vit import normalize_images


def make_dino(config, encoder):
    """DINO of a config; `encoder` is a Linen module."""
    settings = config.dino
    if config.encoder.frozen:
        raise ConfigError("config.encoder.frozen=True leaves config.method='dino' nothing to "
                          "train: set it to False")
    if encoder.block is not None:
        raise ConfigError("config.method='dino' trains all blocks: set config.encoder.block=0")
    heads = {"cls": _head(settings, settings.num_prototypes, encoder.dtype)}
    if max(settings.ibot.weight, settings.dense.weight) > 0 and settings.patch_prototypes > 0:
        heads["patch"] = _head(settings, settings.patch_prototypes, encoder.dtype)
    return DINO(encoder, heads, settings, config.total_steps)


def _head(settings, num_prototypes, dtype):
    return ProjectionHead(num_prototypes, settings.hidden, settings.bottleneck, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class DINO:
    """The Method; `extra` is {"centres": {head: [k]}}, what the teacher's outputs are centred by.

    heads: {"cls": ..., "patch": ...}; without "patch", masked patches use the class token's head.
    """
    encoder: Any
    heads: dict
    settings: Any
    total_steps: int
    title = "DINO"
    frozen = ()
    has_classes = False
    supervised = False

    def make_views(self, data, image_size):
        settings = self.settings
        return MultiCrop(ViewSettings.from_config(data), image_size, self.encoder.patch,
                         settings.num_local, (settings.local_size,) * 2,
                         tuple(settings.local_scale), settings.solarize)

    def init(self, key, images):
        keys = jax.random.split(key, 2 + len(self.heads))
        encoder = self.encoder.init(keys[0], normalize_images(images))["params"]
        cls = jnp.zeros((1, self.encoder.width))
        head = {name: module.init(k, cls)["params"]
                for (name, module), k in zip(self.heads.items(), keys[2:], strict=True)}
        if self.settings.texture.weight > 0:
            head["texture"] = {"kernel": jnp.zeros((self.encoder.width, NUM_TEXTURE_CUES)),
                               "bias": jnp.zeros(NUM_TEXTURE_CUES)}
        if self._masks_patches:
            head["mask_token"] = weight_init(keys[1], (self.encoder.width,))
        centres = {name: jnp.zeros(module.num_prototypes) for name, module in self.heads.items()}
        return {"encoder": encoder, "head": head}, {"centres": centres}

    def loss(self, params, teacher, extra, batch, key, step):
        key_mask, key_global, key_local = jax.random.split(key, 3)
        params = {**params, "head": self._held_last_layers(params["head"], step)}
        images = normalize_images(batch["global"].reshape(-1, *batch["global"].shape[2:]))
        taught = jax.lax.stop_gradient(self._encode(teacher, images))
        masks, seen = None, {}
        if self._masks_patches:
            mask = self.settings.mask
            masks = blob_masks(key_mask, len(images), taught["patch_tokens"].shape[1:3],
                               ratio=mask.ratio, probability=mask.probability)
            seen = {"masked": masks["masked"], "mask_token": params["head"]["mask_token"]}
        student = self._encode(params, images, key_global, **seen)

        terms, centres = {}, dict(extra["centres"])
        terms["cls"], centres["cls"] = self._view_loss(params, teacher, student, taught, batch,
                                                       key_local, centres["cls"], step)
        if self.settings.ibot.weight > 0:
            terms["ibot"], centres = self._masked_loss(params, teacher, student, taught, masks,
                                                       centres, step)
        if self.settings.dense.weight > 0:
            terms["dense"] = self._dense_loss(params, teacher, student, taught, batch, step)
        if self.settings.texture.weight > 0:
            terms["texture"] = self._texture_loss(params, student, images)
        if self.settings.koleo.weight > 0:      # within each global crop, as in DINOv2
            crops = student["cls"].reshape(-1, 2, student["cls"].shape[-1])
            terms["koleo"] = sum(distillation.koleo(crops[:, i]) for i in range(2))
        loss = sum(self.settings[name].weight * term for name, term in terms.items())
        metrics = {f"loss_{name}": term for name, term in terms.items()}
        return loss, (metrics | _telemetry(taught), {"centres": centres})

    @property
    def _masks_patches(self):
        return max(self.settings.ibot.weight, self.settings.texture.weight) > 0

    def _encode(self, params, images, key=None, **masked):
        return encode(self.encoder, params["encoder"], images, key, **masked)

    def _project(self, params, tokens, name):
        name = name if name in self.heads else "cls"
        return self.heads[name].apply({"params": params["head"][name]}, tokens)

    def _held_last_layers(self, head, step):
        """No gradient for the last layers while they are held: DINO's cure for early chaos."""
        held = step < self.settings.freeze_last_layer_steps
        def hold(layer):
            return jax.tree.map(lambda x: jnp.where(held, jax.lax.stop_gradient(x), x), layer)
        return {name: {**part, "last_layer": hold(part["last_layer"])} if name in self.heads
                else part for name, part in head.items()}

    def _view_loss(self, params, teacher, student, taught, batch, key, centre, step):
        b = len(batch["global"])
        cosines = self._project(teacher, taught["cls"], "cls")
        targets, centre = self._targets(cosines, centre, step)
        views = [student["cls"].reshape(b, 2, -1)]
        if "local" in batch:
            images = normalize_images(batch["local"].reshape(-1, *batch["local"].shape[2:]))
            views.append(self._encode(params, images, key)["cls"].reshape(b, -1,
                                                                          views[0].shape[-1]))
        outputs = self._project(params, jnp.concatenate(views, axis=1), "cls")
        return distillation.view_loss(outputs, targets.reshape(b, 2, -1),
                                      self.settings.student_temperature), centre

    def _masked_loss(self, params, teacher, student, taught, masks, centres, step):
        name = "patch" if "patch" in self.heads else "cls"

        def masked(tokens):
            flat = tokens.reshape(len(tokens), -1, tokens.shape[-1])
            return jnp.take_along_axis(flat, masks["index"][..., None], axis=1)

        outputs = self._project(params, masked(student["patch_tokens"]), name)
        cosines = self._project(teacher, masked(taught["patch_tokens"]), name)
        targets, centre = self._targets(cosines.reshape(-1, cosines.shape[-1]), centres[name],
                                        step, masks["valid"].reshape(-1))
        if name == "patch":                     # a shared head's centre follows the class tokens
            centres = {**centres, name: centre}
        return distillation.masked_token_loss(outputs, targets.reshape(outputs.shape),
                                              masks["valid"],
                                              self.settings.student_temperature), centres

    def _dense_loss(self, params, teacher, student, taught, batch, step):
        """Both global crops read at the places of the first one's tokens, then swapped."""
        position, valid = batch["correspondence"], batch["valid"]
        places = []
        for weights, encoded in ((params, student), (teacher, taught)):
            cosines = self._project(weights, encoded["patch_tokens"], "patch")
            cosines = cosines.reshape(-1, 2, *cosines.shape[1:])
            places += [cosines[:, 0], sample_at(cosines[:, 1], position)]
        s1, s2, t1, t2 = (x.reshape(-1, x.shape[-1]) for x in places)
        s1, s2 = (x / self.settings.student_temperature for x in (s1, s2))
        t1, t2 = (x / self._temperature(step) for x in (t1, t2))
        losses, _ = swapped_prediction(
            s1, s2, t1, t2, valid.reshape(-1), epsilon=1.0,
            num_iters=self.settings.sinkhorn_iters,
            marginal_relaxation=self.settings.dense.marginal_relaxation)
        return jnp.sum(losses) / jnp.maximum(jnp.sum(valid), 1)

    def _texture_loss(self, params, student, images):
        layer = params["head"]["texture"]
        told = student["patch_tokens"].astype(jnp.float32) @ layer["kernel"] + layer["bias"]
        return distillation.regression_loss(told, texture_cues(images, told.shape[1:3]))

    def _targets(self, cosines, centre, step, valid=None):
        """(targets of the teacher's cosines [n, k], the centre after them)."""
        settings = self.settings
        if settings.centering == "sinkhorn":
            return distillation.balanced_targets(cosines, self._temperature(step),
                                                 settings.sinkhorn_iters, valid), centre
        moved = distillation.moved_centre(centre, cosines, settings.center_momentum, valid)
        return distillation.centred_targets(cosines, centre, self._temperature(step)), moved

    def _temperature(self, step):
        """The teacher's, in a linear warm-up."""
        settings = self.settings
        share = jnp.clip(step / max(settings.warmup_temperature_steps, 1), 0, 1)
        first, last = settings.warmup_teacher_temperature, settings.teacher_temperature
        return first + (last - first) * share

    def update_teacher(self, teacher, trained, step):
        """An average whose momentum rises to 1 along a cosine (DINO, section 3.2)."""
        done = step.astype(jnp.float32) / self.total_steps
        momentum = 1 - (1 - self.settings.teacher_momentum) * (1 + jnp.cos(jnp.pi * done)) / 2
        return running_mean(teacher, trained, momentum)

    def fit(self, params, extra, batches, key):
        return params, extra

    def inference_params(self, params, teacher):
        return teacher

    def predict(self, params, images):
        """The teacher's tokens; no logits, for it has no classes."""
        tokens = self._encode(params, normalize_images(images))["patch_tokens"]
        return {"embedding": tokens, "patch_tokens": tokens}


def _telemetry(taught):
    """Collapse detectors, of the teacher's unit class and patch tokens of a batch.

    cls_spread, patch_spread: 1 - the length of their mean; 0: they all point the same way.
    """
    def spread(x):
        x = unit_length(x.reshape(-1, x.shape[-1]).astype(jnp.float32))
        return 1 - jnp.linalg.norm(jnp.mean(x, axis=0))

    return {"cls_spread": spread(taught["cls"]), "patch_spread": spread(taught["patch_tokens"])}
