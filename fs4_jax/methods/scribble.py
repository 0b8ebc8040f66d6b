"""Scribbles are enough: partial cross entropy where somebody drew, a regularizer everywhere.

    L = L_pce + ramp(t) (w_r R + w_s L_strokes) + w_f L_fc

R is one of the field's regularized losses (`losses.regularized`), DFR's by default: its kernel has
colour and position, and deep features g that a feature consistency head (L_fc) is trained for while
the segmentation learns (Zhang et al., arXiv 2108.01296; its formulas are not public, these are our
reconstruction). With DFR the deep kernel also ties every pixel to the strokes of its image,
wherever they are (L_strokes). One stage, end to end, no pseudo labels on disk.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from fs4_jax.affinity import dense_kernel_energy, windowed_kernel_energy
from fs4_jax.clustering.kmeans import unit_length
from fs4_jax.config import ConfigError
from fs4_jax.data.labelled_crop import LabelledCrop
from fs4_jax.data.views import ViewSettings
from fs4_jax.evaluation.confusion import IGNORE_LABEL
from fs4_jax.losses.assignment import sample_at
from fs4_jax.losses.consistency import pair_loss
from fs4_jax.losses.partial import partial_cross_entropy
from fs4_jax.losses.regularized import (
    dense_crf_loss,
    dynamic_feature_loss,
    feature_smoothness,
    gated_crf_loss,
    normalized_cut_loss,
    stroke_agreement_loss,
)
from fs4_jax.methods.base import early_momentum, encode, running_mean
from fs4_jax.models.decoder import MultiLevelDecoder, resized
from fs4_jax.models.vit import normalize_images

_NUM_LEVELS = 3
_SMOOTH_RADIUS = 2              # tokens
_COLOUR_UNIT = 255 * 0.225      # of 0..255, in one of the normalised colour's (ImageNet's mean std)


def make_scribble(config, encoder):
    """Scribble of a config; `encoder` is a Linen module."""
    settings, depth = config.scribble, encoder.block or encoder.depth
    levels = tuple(settings.decoder.levels) or tuple(
        -(-depth * (i + 1) // _NUM_LEVELS) for i in range(_NUM_LEVELS))
    if any(not 1 <= level <= depth for level in levels):
        raise ConfigError(f"config.scribble.decoder.levels={levels}: the encoder runs blocks 1 to "
                          f"{depth} (config.encoder.block, config.encoder.variant)")
    dynamic = settings.regularizer.form == "dfr"
    decoder = MultiLevelDecoder(config.num_clusters, settings.decoder.width,
                                settings.decoder.detail, settings.decoder.upsample,
                                settings.consistency.width if dynamic else 0)
    return Scribble(encoder, decoder, levels, settings, config.num_clusters, config.total_steps,
                    ("encoder",) if config.encoder.frozen else ())


@dataclasses.dataclass(frozen=True)
class Scribble:
    """The Method; `extra` is empty.

    levels: blocks whose tokens the decoder sees. What predicts is the teacher, the running mean of
    what is trained.
    """
    encoder: Any
    decoder: Any
    levels: tuple[int, ...]
    settings: Any
    num_classes: int
    total_steps: int
    frozen: tuple[str, ...]
    title = "Scribbles"
    has_classes = True
    supervised = True
    kept = ("levels",)
    temperature = 1.0

    def make_views(self, data, image_size):
        return LabelledCrop(ViewSettings.from_config(data), image_size, self.encoder.patch)

    def init(self, key, images):
        key_encoder, key_decoder = jax.random.split(key)
        images = normalize_images(images)
        encoder = self.encoder.init(key_encoder, images)["params"]
        levels = self._levels(encoder, images)
        decoder = self.decoder.init(key_decoder, levels, images)["params"]
        return {"encoder": encoder, "decoder": decoder}, {}

    def _levels(self, encoder, images, key=None):
        """Tokens of the levels, [b, l, h, w, d]; drop path acts when a key is given."""
        out = encode(self.encoder, encoder, images, key, return_blocks=self.levels)
        return jnp.stack(out["block_tokens"], axis=1)

    def loss(self, params, teacher, extra, batch, key, step):
        key_path, key_pairs, key_strokes = jax.random.split(key, 3)
        images = normalize_images(batch["image"])
        if "levels" in batch:
            levels = batch["levels"]
        elif "encoder" in self.frozen:
            levels = jax.lax.stop_gradient(self._levels(params["encoder"], images))
        else:
            levels = self._levels(params["encoder"], images, key_path)
        out = self.decoder.apply({"params": params["decoder"]}, levels, images)
        settings, label = self.settings, batch["label"].astype(jnp.int32)
        ramp = jnp.minimum(1.0, step / max(1.0, settings.regularizer.rampup * self.total_steps))
        colour = resized(images, out["logits"].shape[1:3])

        terms = {"partial": partial_cross_entropy(out["logits"], label)}
        weights = {"partial": 1.0}
        if settings.regularizer.form != "none":
            terms["regularizer"] = self._regularizer(out, colour)
            weights["regularizer"] = ramp * settings.regularizer.weight
        if "features" in out:
            terms["strokes"] = self._stroke_loss(out, levels[:, -1], label, key_strokes)
            weights["strokes"] = ramp * settings.regularizer.strokes.weight
            terms["pairs"] = self._pair_loss(out, label, ramp, key_pairs)
            terms["smooth"] = self._smoothness(out["features"], images)
            weights["pairs"] = settings.consistency.weight
            weights["smooth"] = settings.consistency.weight * settings.consistency.smooth
        loss = sum(weights[name] * term for name, term in terms.items())
        metrics = {f"loss_{name}": term for name, term in terms.items()}
        return loss, (metrics | telemetry(out["logits"], label), extra)

    def _regularizer(self, out, colour):
        """The term R; colour float [b, h, w, 3], ImageNet-normalised, on the logits' grid."""
        settings = self.settings.regularizer
        assignment = jax.nn.softmax(out["logits"])
        window, dense = self._window(settings), settings.dense
        longer = max(assignment.shape[1:3])
        everywhere = dict(position_sigma=dense.position_sigma * longer, leaf_size=dense.leaf_size)
        if settings.form == "static" and settings.reach == "window":
            return gated_crf_loss(assignment, colour, colour_sigma=settings.colour_sigma,
                                  position_weight=settings.position_weight, **window)
        if settings.form == "densecrf":
            return dense_crf_loss(assignment, _COLOUR_UNIT * colour, normalized=dense.normalized,
                                  colour_sigma=_COLOUR_UNIT * dense.colour_sigma, **everywhere)
        if settings.form in ("normalized_cut", "kernel_cut"):
            return normalized_cut_loss(assignment, colour / dense.colour_sigma, **everywhere,
                                       crf_weight=float(settings.form == "kernel_cut"))
        energy, sigma = functools.partial(windowed_kernel_energy, **window), settings.colour_sigma
        if settings.reach == "dense":
            energy = functools.partial(dense_kernel_energy, **everywhere)
            sigma = dense.colour_sigma
        if settings.form == "static":
            return jnp.mean(energy(assignment, jax.lax.stop_gradient(colour / sigma)))
        deep = resized(out["features"], colour.shape[1:3])
        return dynamic_feature_loss(assignment, colour / sigma, deep, energy,
                                    static_weight=settings.static_weight)

    @staticmethod
    def _window(settings):
        return dict(radius=settings.radius, dilations=tuple(settings.dilations),
                    position_sigma=settings.position_sigma)

    def _smoothness(self, features, images):
        """Between tokens: the same kernel as the regularizer's, on the coarser grid."""
        settings = self.settings.regularizer
        colour = resized(images, features.shape[1:3])
        return feature_smoothness(features, colour / settings.colour_sigma, radius=_SMOOTH_RADIUS,
                                  position_sigma=settings.position_sigma / self.decoder.upsample)

    def _stroke_loss(self, out, tokens, label, key):
        """Deep cues: g of the consistency head, and the encoder's tokens by their cosine."""
        settings = self.settings.regularizer.strokes
        grid = out["logits"].shape[1:3]
        cues = resized(out["features"], grid)
        if settings.token_distance:
            tokens = tokens.astype(jnp.float32)
            tokens = unit_length(resized(tokens - jnp.mean(tokens, axis=-1, keepdims=True), grid))
            # |u - v|^2 / 2 of unit vectors is 1 - cosine.
            cues = jnp.concatenate([cues, tokens / settings.token_distance ** 0.5], axis=-1)
        drawn = _sampled({"cues": cues}, label, settings.number, key)
        return stroke_agreement_loss(jax.nn.softmax(out["logits"]), cues, drawn["cues"],
                                     drawn["label"], drawn["valid"], apart=settings.apart)

    def _pair_loss(self, out, label, ramp, key):
        """Pairs of labelled pixels; after the ramp also of pixels the model is sure of."""
        settings = self.settings.consistency
        key_drawn, key_sure = jax.random.split(key)
        maps = {name: out[name] for name in ("features", "logits")}
        samples = [_sampled(maps, label, settings.pairs, key_drawn)]
        if settings.confident:
            unlabelled = jnp.where(label == IGNORE_LABEL, 0, IGNORE_LABEL)
            guess = _sampled(maps, unlabelled, settings.pairs, key_sure)
            probability = jax.lax.stop_gradient(jax.nn.softmax(guess["logits"]))
            sure = (jnp.max(probability, axis=-1) > settings.confident) & (ramp >= 1)
            samples.append(guess | {"label": jnp.argmax(probability, axis=-1),
                                    "valid": guess["valid"] & sure})
        features, labels, valid = (
            jnp.concatenate([x[name].reshape(-1, *x[name].shape[2:]) for x in samples])
            for name in ("features", "label", "valid"))
        return pair_loss(features, labels, valid, self.num_classes)

    def keep(self, params, batch):
        """What a frozen encoder sees of a batch, float16: "levels" [b, l, h, w, d]."""
        levels = self._levels(params["encoder"], normalize_images(batch["image"]))
        return {"levels": levels.astype(jnp.float16)}

    def update_teacher(self, teacher, trained, step):
        """Exponential average; faster at the start, where the average knows nothing yet."""
        return running_mean(teacher, trained,
                            early_momentum(step, self.settings.teacher_momentum))

    def inference_params(self, params, teacher):
        return {**params, **teacher}

    def predict(self, params, images):
        images = normalize_images(images)
        levels = self._levels(params["encoder"], images)
        out = self.decoder.apply({"params": params["decoder"]}, levels, images)
        return {"logits": out["logits"], "embedding": out["embedding"],
                "patch_tokens": levels[:, -1]}

    def classify(self, params, embedding):
        classifier = params["decoder"]["classifier"]
        return embedding @ classifier["kernel"] + classifier["bias"]


def _sampled(maps, label, number, key):
    """Maps {name: [b, h, w, ...]} at no more than `number` labelled pixels of each image.

    Returns:
      {name: [b, n, ...]}, with "label" int [b, n] and "valid" bool [b, n], for images that have
      fewer.
    """
    b, height, width = label.shape
    labelled = (label != IGNORE_LABEL).reshape(b, -1)
    order = jax.random.uniform(key, labelled.shape) + labelled
    chosen = jax.lax.top_k(order, min(number, labelled.shape[1]))[1]
    place = (jnp.stack([chosen // width, chosen % width], axis=-1) + 0.5) / jnp.array(
        [height, width])
    samples = {name: sample_at(x, place * jnp.array(x.shape[1:3]) - 0.5)
               for name, x in maps.items()}
    pick = functools.partial(jnp.take_along_axis, axis=1)
    return samples | {"label": pick(label.reshape(b, -1), chosen),
                      "valid": pick(labelled, chosen)}


def telemetry(logits, label):
    """labelled_share: of the pixels of a batch, 0 to 1. entropy: of a pixel's classes, in nats;
    near 0 the regularizer has decided everything."""
    probability = jax.nn.softmax(logits.astype(jnp.float32))
    entropy = -jnp.sum(probability * jnp.log(probability + 1e-12), axis=-1)
    return {"labelled_share": jnp.mean((label != IGNORE_LABEL).astype(jnp.float32)),
            "entropy": jnp.mean(entropy)}
