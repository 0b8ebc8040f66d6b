"""The systems: what is trained, with what loss, and how it predicts."""

from fs4_jax.config import ConfigError
from fs4_jax.methods.alignseg import AlignSeg, make_alignseg
from fs4_jax.methods.base import Method
from fs4_jax.methods.dino import DINO, make_dino
from fs4_jax.methods.fs4 import FS4, make_fs4
from fs4_jax.methods.scribble import Scribble, make_scribble

_METHODS = {"fs4": make_fs4, "alignseg": make_alignseg, "scribble": make_scribble,
            "dino": make_dino}


def make_method(config, encoder):
    """The method that config.method names, on an encoder (a Linen module)."""
    if config.method not in _METHODS:
        raise ConfigError(f"config.method is {config.method!r}; there is: {', '.join(_METHODS)}")
    return _METHODS[config.method](config, encoder)


__all__ = ["AlignSeg", "DINO", "FS4", "Method", "Scribble", "make_alignseg", "make_dino",
           "make_fs4", "make_method", "make_scribble"]
