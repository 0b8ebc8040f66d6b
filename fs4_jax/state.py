"""What training changes: one pytree in, one out."""

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a run needs besides its config and its data iterator.

    step: int32, finished steps. key: the run's random key; step i uses fold_in(key, i).
    params: {"encoder": ..., "head": ...}, float32. opt_state: of the trained parameters.
    teacher: averages of the trained parameters. extra: what the method keeps (centroids).
    """
    step: jax.Array
    key: jax.Array
    params: Any
    opt_state: Any
    teacher: Any
    extra: Any
