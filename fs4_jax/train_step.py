"""One step of training, for every method: a pure function of (state, batch, key)."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from fs4_jax.accumulation import accumulated
from fs4_jax.state import TrainState


def make_train_step(method, optimizer, accumulate_steps=1):
    """Returns train_step(state, batch, key) -> (state, metrics).

    Pure: no jit, mesh, config or IO inside; the caller jits it and says where things live.
    metrics: float32 scalars "loss", its terms "loss_*", the method's telemetry, "grad_norm".

    accumulate_steps: micro-batches that share a batch and its one update, see `accumulation`.
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
        trained = optax.apply_updates(trained, updates)
        new = dataclasses.replace(
            state, step=state.step + 1, params={**trained, **frozen}, opt_state=opt_state,
            extra=extra, teacher=method.update_teacher(state.teacher, trained, state.step))
        return new, metrics | {"grad_norm": optax.tree.norm(grads)}

    return train_step


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
