"""AdamW with warm-up, cosine decay, clipping and layer-wise learning rates."""

import re

import jax
import jax.numpy as jnp
import optax


def make_schedule(settings, total_steps):
    """Linear warm-up to the peak, then a cosine to zero at `total_steps`.

    With settings.halve_every, half the rate after so many steps, counted from the first.
    """
    warmup = min(settings.warmup_steps, max(total_steps - 1, 0))
    if settings.halve_every:
        def halved(step):
            rate = settings.learning_rate * 0.5 ** (step // settings.halve_every)
            return rate * jnp.minimum(1.0, step / warmup) if warmup else rate
        return halved
    return optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, warmup, total_steps)


def decay_schedule(settings, total_steps):
    """Weight decay along a half cosine from weight_decay to final_weight_decay (DINO's)."""
    first, last = settings.weight_decay, settings.final_weight_decay
    if last < 0:
        return first
    return lambda step: last + (first - last) * (1 + jnp.cos(jnp.pi * step / total_steps)) / 2


def make_optimizer(settings, total_steps, depth):
    """The optimizer of every method.

    Args:
      settings: config.optimizer.
      total_steps: length of the schedule.
      depth: number of encoder blocks that are run, for `layer_decay`.

    Returns:
      optax.GradientTransformation. Weight decay reaches matrices only (no biases, norms, class
      token, positions, prototypes); rates of the encoder are scaled by `encoder_scale` and by
      layer_decay^(layers above: the final norm has none, the last block one).
    """
    def decayed(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: _name(path).endswith("kernel") and leaf.ndim > 1, params)

    def scaled(updates, params=None):
        return jax.tree_util.tree_map_with_path(
            lambda path, u: u * _rate(_name(path), settings, depth), updates)

    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm > 0
        else optax.identity(),
        optax.scale_by_adam(b2=settings.beta2),
        optax.add_decayed_weights(decay_schedule(settings, total_steps), mask=decayed),
        optax.stateless(scaled),
        optax.scale_by_learning_rate(make_schedule(settings, total_steps)),
    )


def _name(path):
    return "/".join(str(getattr(key, "key", key)) for key in path)


def _rate(name, settings, depth):
    """Relative learning rate of a parameter, by its path."""
    if not name.startswith("encoder/"):
        return 1.0
    block = re.search(r"blocks_(\d+)", name)
    if block:
        above = depth - int(block.group(1))
    else:
        above = 0 if "/norm/" in name else depth + 1      # embeddings lie below the first block
    return settings.encoder_scale * settings.layer_decay ** above
