"""AlignSeg: an image in, its segments out (Liu et al., TPAMI 2024, doi 10.1109/TPAMI.2024.3432326).

On a frozen encoder a small decoder adapts learnable prototypes to each image; a token belongs to
the prototype it is nearest to. Nothing is clustered to predict, but prototype 2 may be "dog" in one
image and "sky" in the next:

    L = w_correlation mean_i L_corr(global, local i) + w_contrast mean_i L_q(global, local i)

What differs from the released code, and why, stands in docs/alignseg.md.

Beyond the original: classes of the data set, without labels. The adapted prototypes of training
images (a few for each image, not their pixels) are clustered by spherical k-means into
config.num_clusters classes; a segment takes the class whose centroid is nearest to it. A token's
logit for a class is its cosine to the nearest segment of that class, -1 where the image has none,
so that the masks of classes are exactly those of segments, named. The centroids are a frozen part
of the parameters: they are fitted before an evaluation and before the last checkpoint (`finish`),
and no step reads them. So one model has both scores: `hungarian` is of its classes,
`per-image-m2o` of its "segments".

Beyond the original too: segments as a mixture (config.alignseg.mixture). The released losses lead
away from a good grouping; the mixture's likelihood, of an image's tokens weighted by the class
token's attention, does not. The decoder is trained to propose the mixture's centres, `settle` ends
its work in the image, and tokens are measured in a space that is fitted to them.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fs4_jax import distributed
from fs4_jax.clustering.image_mixture import settle
from fs4_jax.clustering.kmeans import unit_length
from fs4_jax.clustering.view_consistency import consistent_projection, scatter
from fs4_jax.config import ConfigError
from fs4_jax.data.aligned_crops import AlignedCrops
from fs4_jax.data.views import ViewSettings
from fs4_jax.evaluation.floors import token_places
from fs4_jax.losses.alignment import (
    cosines,
    mixture_loss,
    paired_crops,
    prototype_contrast,
    prototype_image_loss,
)
from fs4_jax.losses.assignment import sample_at
from fs4_jax.methods import alignseg_fit
from fs4_jax.methods.base import gather
from fs4_jax.models.alignseg_files import load_decoder
from fs4_jax.models.foreground import foreground_mask
from fs4_jax.models.prototype_decoder import PrototypeDecoder
from fs4_jax.models.vit import normalize_images

_PLAIN = dict(flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0,
              grey=0.0, blur=0.0)


def make_alignseg(config, encoder):
    """AlignSeg of a config; `encoder` is a Linen module."""
    settings = config.alignseg
    if not config.encoder.frozen:
        raise ConfigError("config.method='alignseg' trains a decoder on the tokens of an encoder "
                          "that does not change: set config.encoder.frozen=True")
    if encoder.width % settings.num_heads:
        raise ConfigError(f"config.alignseg.num_heads={settings.num_heads} does not divide the "
                          f"width of {config.encoder.variant}, {encoder.width}")
    if settings.weights and settings.mixture.fitted:
        raise ConfigError("config.alignseg.weights holds prototypes, which config.alignseg.mixture."
                          "fitted=True would replace: set one of them")
    if settings.mixture.place and not settings.mixture.rounds:
        raise ConfigError("config.alignseg.mixture.place is read by the rounds in each image: set "
                          "config.alignseg.mixture.rounds too")
    if settings.mixture.whitening and settings.mixture.consistent:
        raise ConfigError("config.alignseg.mixture.whitening and .consistent are two measures of "
                          "tokens: set one of them")
    terms = ("correlation", "contrast", "mixture")
    if not any(settings[term].weight for term in terms):
        raise ConfigError("nothing to train by: one of " + ", ".join(
            f"config.alignseg.{term}.weight" for term in terms) + " has to be above 0")
    decoder = PrototypeDecoder(settings.num_prototypes, settings.num_heads, settings.hidden,
                               settings.num_layers, settings.bug_compatible)
    return AlignSeg(encoder, decoder, settings, config.num_clusters)


@dataclasses.dataclass(frozen=True)
class AlignSeg:
    """The Method; it has no `classify`, for what tells classes apart is each image's own.

    params: {"encoder", "decoder", "classes": centroids float32 [num_clusters, d]}, and "space", a
    kernel and bias, with settings.mixture.whitening (`alignseg_fit.whitening`) or .consistent
    (`consistent_projection`). `extra` is {}.
    num_clusters: classes of the data set; an image's own segments are settings.num_prototypes.
    """
    encoder: Any
    decoder: PrototypeDecoder
    settings: Any
    num_clusters: int
    title = "AlignSeg"
    has_classes = True
    supervised = False
    kept = ("patch_tokens", "attention")
    temperature = 0.1             # no term has probabilities; FS^4's, whose logits are cosines too

    @property
    def frozen(self):
        return ("encoder", "classes") + (("space",) if self._measured else ())

    @property
    def _measured(self):
        """Whether tokens are measured in a space of their own."""
        return bool(self.settings.mixture.whitening or self.settings.mixture.consistent)

    @property
    def num_segments(self):
        """Segments that `predict` gives each image besides its classes."""
        return self.decoder.num_prototypes

    def make_views(self, data, image_size):
        settings = self.settings
        draws = ViewSettings.from_config(data) if settings.augment else ViewSettings(**_PLAIN)
        return AlignedCrops(draws, image_size, self.encoder.patch, settings.num_local,
                            tuple(settings.global_scale), tuple(settings.local_scale),
                            settings.intersection)

    def init(self, key, images):
        key_encoder, key_decoder, key_classes = jax.random.split(key, 3)
        images = normalize_images(images)
        encoder = self.encoder.init(key_encoder, images)["params"]
        width = self.encoder.width
        decoder = self.decoder.init(key_decoder, jnp.zeros((1, 1, width)))["params"]
        classes = unit_length(jax.random.normal(key_classes, (self.num_clusters, width)))
        params = {"encoder": encoder, "decoder": decoder, "classes": classes}
        if self._measured:
            params["space"] = {"kernel": jnp.eye(width), "bias": jnp.zeros(width)}
        return params, {}

    def loss(self, params, teacher, extra, batch, key, step):
        settings = self.settings
        tokens, attention = jax.lax.stop_gradient(self._look(params, batch))
        tokens = self.in_space(params, tokens)
        mask = foreground_mask(self._flat(attention)[:, None], mass=settings.mass)
        mask = mask.reshape(*attention.shape[:2], -1)                       # [b, v, n]
        tokens = tokens.reshape(*tokens.shape[:2], -1, tokens.shape[-1])    # [b, v, n, d]
        adapted = self._adapt(params, self._flat(tokens))
        adapted = adapted.reshape(*tokens.shape[:2], *adapted.shape[1:])    # [b, v, k, d]
        # As released, masks stay where they are: then they are not even of the crop beside them.
        local, local_adapted = (paired_crops(x[:, 1:], settings.released_pairing)
                                for x in (tokens, adapted))
        pairs = [((tokens[:, 0], local[:, i]), (adapted[:, 0], local_adapted[:, i]),
                  (mask[:, 0], mask[:, i + 1])) for i in range(local.shape[1])]
        terms = {}
        if settings.correlation.weight:
            terms["correlation"] = sum(prototype_image_loss(
                *pair, pressure=settings.correlation.pressure,
                reduction=settings.correlation.reduction) for pair in pairs) / len(pairs)
        if settings.contrast.weight:
            terms["contrast"] = sum(prototype_contrast(
                *ours, settings.contrast.temperature) for _, ours, _ in pairs) / len(pairs)
        if settings.mixture.weight:
            terms["mixture"] = mixture_loss(
                self._flat(tokens), self._flat(adapted),
                self._weight(self._flat(attention.reshape(*attention.shape[:2], -1))),
                settings.mixture.temperature)
        loss = sum(settings[name].weight * term for name, term in terms.items())
        metrics = {f"loss_{name}": term for name, term in terms.items()}
        metrics |= telemetry(cosines(tokens[:, 0], adapted[:, 0]))
        return loss, (metrics | {"foreground_share": jnp.mean(mask.astype(jnp.float32))}, extra)

    @staticmethod
    def _flat(x):
        """[b, v, ...] -> [b v, ...]: a device keeps the images it has."""
        return x.reshape(-1, *x.shape[2:])

    def _look(self, params, batch):
        """(tokens [b, v, h, w, d], attention [b, v, h, w]) of a batch's crops, or what is kept."""
        if "patch_tokens" in batch:
            return batch["patch_tokens"], batch["attention"]
        crops = batch["crops"]
        out = self.encoder.apply({"params": params["encoder"]}, normalize_images(
            self._flat(crops)), return_attention=True)
        seen = out["patch_tokens"], jnp.mean(out["attention"], axis=1)
        return tuple(x.reshape(*crops.shape[:2], *x.shape[1:]) for x in seen)

    def keep(self, params, batch):
        """What a frozen encoder sees of a batch's crops; `loss` reads it in their place.

        "patch_tokens" float16 [b, v, h, w, d], "attention" float32 [b, v, h, w], its heads' mean.
        """
        tokens, attention = self._look(params, batch)
        return {"patch_tokens": tokens.astype(jnp.float16), "attention": attention}

    def in_space(self, params, tokens):
        """Tokens [..., d] where they are measured: float32, as long as normalised ones."""
        if not self._measured:
            return tokens
        tokens = unit_length(tokens.astype(jnp.float32))
        tokens = jnp.matmul(tokens, params["space"]["kernel"], precision="highest")
        tokens = tokens + params["space"]["bias"]
        return tokens.shape[-1] ** 0.5 * unit_length(tokens)

    def _weight(self, attention):
        """What a token counts for in the mixture, of the class token's attention to it."""
        return attention ** self.settings.mixture.attention

    def _adapt(self, params, tokens):
        return self.decoder.apply({"params": params["decoder"]}, tokens)

    def _segmented(self, params, tokens, attention):
        """What an image is divided into, by tokens [b, h, w, d] and the class token's attention
        [b, h, w]: (segments [b, n, k], the tokens' cosines to its prototypes; each segment's
        signature [b, k, d])."""
        (b, h, w, d), mixture = tokens.shape, self.settings.mixture
        tokens = self.in_space(params, tokens.reshape(b, -1, d))
        adapted = self._adapt(params, tokens)
        if mixture.place:       # of which the decoder knows nothing: prototypes start in the middle
            place = jnp.broadcast_to(token_places(h, w).reshape(-1, 2), (b, h * w, 2))
            tokens = jnp.concatenate([unit_length(tokens), mixture.place * place], axis=-1)
            adapted = jnp.pad(unit_length(adapted), ((0, 0), (0, 0), (0, 2)))
        adapted = settle(tokens, adapted, self._weight(attention.reshape(b, -1)),
                         num_rounds=mixture.rounds, temperature=mixture.temperature)
        segments = cosines(tokens, adapted)
        if self.settings.merge < 1:
            segments = class_logits(segments, merged(adapted, self.settings.merge),
                                    self.num_segments)
        return segments, self._signature(tokens[..., :d], adapted[..., :d], segments)

    def update_teacher(self, teacher, trained, step):
        """There is none: what stands in its place is the decoder as it began."""
        return teacher

    def inference_params(self, params, teacher):
        return params

    def predict(self, params, images):
        """As `Method.predict`; "embedding" are the tokens. Besides, "segments" [b, h, w, n]:
        cosines to the image's own adapted prototypes."""
        tokens, attention = (x[:, 0] for x in self._look(params, {"crops": images[:, None]}))
        b, h, w, d = tokens.shape
        segments, signature = self._segmented(params, tokens, attention)
        classes = jnp.broadcast_to(params["classes"], (b, self.num_clusters, d))
        named = jnp.argmax(cosines(signature, classes), axis=-1)
        return {"logits": class_logits(segments, named, self.num_clusters).reshape(b, h, w, -1),
                "segments": segments.reshape(b, h, w, -1), "embedding": tokens,
                "patch_tokens": tokens}

    def _signature(self, tokens, adapted, segments):
        """What stands for each segment when classes are found, float32 [b, k, d]: its prototype,
        or the mean of its tokens (its prototype still, where it has none)."""
        if self.settings.signature == "prototype":
            return adapted
        own = jax.nn.one_hot(jnp.argmax(segments, axis=-1), segments.shape[-1])     # [b, n, k]
        mean = jnp.einsum("bnk,bnd->bkd", own, unit_length(tokens.astype(jnp.float32)))
        return jnp.where(jnp.sum(own, axis=1)[..., None] > 0, mean, adapted)

    def fit(self, params, extra, batches, key):
        """The decoder of config.alignseg.weights, if given; the mixture's start; first classes."""
        mixture = self.settings.mixture
        if self.settings.weights:
            params = {**params, "decoder": self._given_decoder(params["decoder"])}
        if self._measured or mixture.fitted:
            batches = [distributed.to_host(self._seen(params, batch)) for batch in batches]
            params = self._fitted_mixture(params, batches, key)
        return self.finish(params, batches, key), extra

    def _fitted_mixture(self, params, batches, key):
        """The space of the batches' tokens, and prototypes at centroids of attended ones."""
        mixture, seed = self.settings.mixture, np.asarray(jax.random.bits(key, (2,)))
        tokens, attention = (np.concatenate([batch[name] for batch in batches])
                             for name in ("patch_tokens", "attention"))
        tokens = tokens.reshape(-1, tokens.shape[-1])
        weight = self._weight(attention)
        weight = (weight / weight.sum(axis=(1, 2, 3), keepdims=True)).reshape(-1)
        if mixture.whitening:
            points = alignseg_fit.drawn(tokens, np.ones_like(weight), seed)
            params = {**params, "space": alignseg_fit.whitening(
                np.asarray(unit_length(jnp.asarray(points, jnp.float32))), mixture.whitening)}
        if mixture.consistent:
            sums = jax.tree.map(lambda *x: np.concatenate(x), *(b["scatter"] for b in batches))
            params = {**params, "space": consistent_projection(sums, tokens.shape[-1])}
        if mixture.fitted:
            points = self.in_space(params, alignseg_fit.drawn(tokens, weight, seed))
            start = alignseg_fit.starting_prototypes(points, self.num_segments, key)
            params = {**params, "decoder": {**params["decoder"], "prototypes": start}}
        return params

    def _given_decoder(self, params):
        decoder, given = load_decoder(self.settings.weights, num_heads=self.decoder.num_heads,
                                      bug_compatible=self.decoder.bug_compatible)
        pairs = [(f"config.alignseg.{name}", getattr(decoder, name), getattr(self.decoder, name))
                 for name in ("num_prototypes", "hidden", "num_layers")]
        pairs.append(("the encoder's width", *(x["prototypes"].shape[1] for x in (given, params))))
        differing = [f"  {name}: there {there}, now {now}" for name, there, now in pairs
                     if there != now]
        if differing:
            raise ConfigError(f"config.alignseg.weights={self.settings.weights} holds another "
                              "decoder:\n" + "\n".join(differing))
        return given

    def finish(self, params, batches, key):
        """The parameters with classes: k-means of the segments of the batches' global crops.

        Segments without a token have no vote.
        """
        seen = gather(self._segments, params, batches)
        points, owned = (x.reshape(-1, *x.shape[2:]) for x in (seen["signature"], seen["owned"]))
        if len(points) < self.num_clusters:
            raise ConfigError(
                f"{len(points)} segments of {len(points) // self.num_segments} images are fewer "
                f"than config.num_clusters={self.num_clusters} classes: raise config.alignseg."
                "fit_images, or give more images")
        return {**params, "classes": alignseg_fit.directions(points, self.num_clusters, key, owned)}

    @functools.cached_property
    def _seen(self):
        """Jitted once: see `_seen_of_batch`."""
        return jax.jit(functools.partial(_seen_of_batch, self))

    @functools.cached_property
    def _segments(self):
        """Jitted once for all calls of `finish`: see `_segments_of_batch`."""
        return jax.jit(functools.partial(_segments_of_batch, self))


def class_logits(segments, named, num_classes):
    """A token's cosine to the nearest segment of each class: float32 [b, n, num_classes].

    Args:
      segments: float [b, n, k], cosines. named: int [b, k], each segment's class.
      num_classes: of them; one that no segment has gets -1.
    """
    member = named[:, :, None] == jnp.arange(num_classes)                   # [b, k, c]
    return jnp.max(jnp.where(member[:, None], segments[..., None], -1.0), axis=2)


def merged(prototypes, least):
    """Which segment each of an image's segments is a part of, int [b, k]: the first of its group.

    Groups are what hangs together over pairs of prototypes float [b, k, d] whose cosine is at least
    `least`.
    """
    near = (cosines(prototypes, prototypes) >= least).astype(jnp.float32)
    for _ in range(near.shape[-1].bit_length()):        # twice as far with each
        near = (jnp.einsum("bij,bjk->bik", near, near) > 0).astype(jnp.float32)
    return jnp.argmax(near, axis=-1)


def telemetry(segments):
    """What images are divided into, by the cosines [b, n, k] of their tokens.

    segments_used: an image's segments that have a token, the mean over images.
    largest_segment_share: of an image's tokens, the mean over images. segment_entropy: of the
    prototypes' shares of all tokens, in nats (log k: each prototype has as many).
    """
    own = jax.nn.one_hot(jnp.argmax(segments, axis=-1), segments.shape[-1])
    share = jnp.mean(own, axis=1)
    mean = jnp.mean(share, axis=0)
    return {"segments_used": jnp.mean(jnp.sum(share > 0, axis=1).astype(jnp.float32)),
            "largest_segment_share": jnp.mean(jnp.max(share, axis=1)),
            "segment_entropy": -jnp.sum(mean * jnp.log(mean + 1e-12))}


def _seen_of_batch(method, params, batch):
    """What `keep` gives of a batch's global crops, [b, 1, ...]; with mixture.consistent "scatter"
    besides, of its local crops and the same places of the global ones."""
    if not method.settings.mixture.consistent:
        return method.keep(params, _global_crops(batch))
    seen = method.keep(params, batch)
    tokens = unit_length(seen["patch_tokens"].astype(jnp.float32))
    others = jax.vmap(sample_at, (None, 1), 1)(tokens[:, 0], batch["correspondence"])
    local, others, valid = (AlignSeg._flat(x) for x in (tokens[:, 1:], others, batch["valid"]))
    return _global_crops(seen) | {"scatter": scatter(local, others, valid)}


def _segments_of_batch(method, params, batch):
    """{"signature" [b, k, d], "owned" bool [b, k]: has a token} of a batch's global crops."""
    seen = (x[:, 0] for x in method._look(params, _global_crops(batch)))
    segments, signature = method._segmented(params, *seen)
    own = jax.nn.one_hot(jnp.argmax(segments, axis=-1), segments.shape[-1])
    return {"signature": signature, "owned": jnp.sum(own, axis=1) > 0}


def _global_crops(batch):
    """The first crop of each image, as `_look` reads it."""
    names = AlignSeg.kept if "patch_tokens" in batch else ("crops",)
    return {name: batch[name][:, :1] for name in names}
