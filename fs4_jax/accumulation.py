"""A batch in several micro-batches, one after the other: the memory of one, the update of all.

Gradients and metrics are averaged, `extra` is handed from each micro-batch to the next. Where the
loss is a mean over examples, the gradient is the whole batch's, to rounding. It is not where
examples of a batch see each other: Sinkhorn balances and KoLeo spreads each micro-batch by itself,
means over valid places weigh micro-batches alike, a centre in `extra` moves once for each, and
random draws are others. Gradients are summed over devices once a micro-batch, not once a step.
"""

import jax
import jax.numpy as jnp


def accumulated(gradient, number):
    """gradient(trained, extra, batch, key) -> (grads, (metrics, extra)), in micro-batches.

    Takes and returns what `gradient` does; the batch's first axis is divisible by `number`.
    Micro-batch i draws from fold_in(key, i).
    """
    def run(trained, extra, batch, key):
        def add(carry, part):
            total, extra = carry
            i, batch = part
            grads, (metrics, extra) = gradient(trained, extra, batch, jax.random.fold_in(key, i))
            return (jax.tree.map(jnp.add, total, grads), extra), metrics

        start = (jax.tree.map(jnp.zeros_like, trained), extra)
        (total, extra), metrics = jax.lax.scan(
            add, start, (jnp.arange(number), micro_batches(batch, number)))
        metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)
        return jax.tree.map(lambda x: x / number, total), (metrics, extra)

    return run


def micro_batches(batch, number):
    """Every array [b, ...] as [number, b / number, ...]; micro-batch i has rows i, i + number, ...

    A device holds a block of consecutive rows. Interleaved, each micro-batch has the same number
    of every device's rows, and none of them moves.
    """
    return jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(-1, number, *x.shape[1:]), 0, 1), batch)
