"""Numbers that are none: which tensor of a step held the first, and steps that leave no trace.

Which is first goes by the order in which a step makes its tensors, as far as that can be said:
what it was given (the batch, the trained parameters), the loss's terms, the loss, the gradients
from the head back to the patch embedding, the rest of the metrics, `extra`, and the optimizer's
updates. The first of them is where to look: what is made of it is no number either.
"""

import re

import jax
import jax.numpy as jnp

FIRST = "first_nonfinite"        # the metric: place of the first bad tensor, -1 where there is none


def tensors_of_step(batch, params, metrics, grads, extra, updates):
    """[(name, array)] of the floating point tensors of a step, in the order they are made.

    Takes arrays or shape structs. `params` are the trained ones, as the step began with them: the
    frozen ones do not change, and to read them at every step would cost what the encoder weighs.
    """
    terms = sorted(name for name in metrics if name.startswith("loss_"))
    rest = sorted(metrics.keys() - {"loss", *terms})
    backward = sorted(_named("gradient of ", grads), key=lambda pair: _from_the_end(pair[0]))
    named = [*_named("batch/", batch), *_named("params/", params),
             *((name, metrics[name]) for name in (*terms, "loss")), *backward,
             *((name, metrics[name]) for name in rest), *_named("extra/", extra),
             *_named("update of ", updates)]
    return [(name, x) for name, x in named if jnp.issubdtype(x.dtype, jnp.floating)]


def first_nonfinite(tensors):
    """int32: the place of the first tensor of `tensors_of_step` with a NaN or infinity, or -1."""
    bad = jnp.stack([~jnp.all(jnp.isfinite(x)) for _, x in tensors])
    return jnp.where(jnp.any(bad), jnp.argmax(bad), -1).astype(jnp.int32)


def unless(bad, new, old):
    """The tree `new`, or `old` bit by bit where the scalar `bad` is true."""
    return jax.tree.map(lambda x, y: jnp.where(bad, y, x), new, old)


def _named(prefix, tree):
    return [(prefix + jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _from_the_end(name):
    """Sorts gradients as the backward pass makes them: heads, the norm, blocks from the last."""
    block = re.search(r"encoder/blocks_(\d+)/", name)
    if block:
        return 2, -int(block[1]), name
    return (0 if "encoder/" not in name else 1 if "encoder/norm" in name else 3), 0, name
