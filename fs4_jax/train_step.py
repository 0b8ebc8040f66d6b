"""One step of training, for every method: a pure function of (state, batch, key)."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from fs4_jax.accumulation import accumulated
from fs4_jax.nonfinite import FIRST, first_nonfinite, tensors_of_step, unless
from fs4_jax.state import TrainState


def make_train_step(method, optimizer, accumulate_steps=1, skip_nonfinite=False):
    """Returns train_step(state, batch, key) -> (state, metrics).

    Pure: no jit, mesh, config or IO inside; the caller jits it and says where things live.
    metrics: float32 scalars "loss", its terms "loss_*", the method's telemetry, "grad_norm"; and
    int32 "first_nonfinite", see `nonfinite`.

    accumulate_steps: micro-batches that share a batch and its one update, see `accumulation`.
    skip_nonfinite: a step with a tensor that is no number changes nothing but the step's number.
    """
    def train_step(state, batch, key):
        trained, frozen = split(state.params, method.frozen)

        def loss_fn(trained, extra, batch, key):
            loss, (metrics, extra) = method.loss({**trained, **frozen}, state.teacher, extra,
                                                 batch, key, state.step)
            return loss, (metrics | {"loss": loss}, extra)

        gradient = jax.grad(loss_fn, has_aux=True)
        if accumulate_steps > 1:
            gradient = accumulated(gradient, accumulate_steps)
        grads, (metrics, extra) = gradient(trained, state.extra, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        moved = optax.apply_updates(trained, updates)
        new = dataclasses.replace(
            state, step=state.step + 1, params={**moved, **frozen}, opt_state=opt_state,
            extra=extra, teacher=method.update_teacher(state.teacher, moved, state.step))
        metrics |= {"grad_norm": optax.tree.norm(grads)}
        first = first_nonfinite(tensors_of_step(batch, trained, metrics, grads, extra, updates))
        if skip_nonfinite:
            new = _kept_where(first >= 0, new, state)
        return new, metrics | {FIRST: first}

    return train_step


def _kept_where(bad, new, old):
    """The new state, or the old one with the new step's number."""
    kept = {name: unless(bad, getattr(new, name), getattr(old, name))
            for name in ("params", "opt_state", "teacher", "extra")}
    return dataclasses.replace(new, **kept)


def init_state(method, optimizer, key, images, encoder_params=None):
    """The TrainState before the first step; pure, jitted by the caller.

    Args:
      method, optimizer: as for the step.
      key: the run's random key.
      images: uint8 [b, H, W, 3], only their shape matters.
      encoder_params: trained weights that replace the encoder's random ones, or None.
    """
    key_init, key_run = jax.random.split(key)
    params, extra = method.init(key_init, images)
    if encoder_params is not None:
        params = {**params, "encoder": encoder_params}
    return restarted(TrainState(step=jnp.zeros((), jnp.int32), key=key_run, params=params,
                                opt_state=(), teacher=(), extra=extra), method, optimizer)


def restarted(state, method, optimizer):
    """The state with a fresh optimizer and the teacher made equal to the student."""
    trained, _ = split(state.params, method.frozen)
    return dataclasses.replace(state, opt_state=optimizer.init(trained),
                               teacher=jax.tree.map(jnp.copy, trained))


def split(params, frozen):
    """(trained, frozen) parts of a parameter tree, by its top-level keys."""
    return ({k: v for k, v in params.items() if k not in frozen},
            {k: v for k, v in params.items() if k in frozen})
