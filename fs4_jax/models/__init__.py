"""Encoders and what stands on them. `import fs4_jax` alone does not import this package.

A name is imported when it is asked for: commands in this package answer --help without jax.
"""

import importlib

_HOMES = {
    "VARIANTS": "vit", "ViT": "vit", "make_encoder": "vit", "normalize_images": "vit",
    "WeightsError": "weight_files", "export_encoder": "encoder_files",
    "load_encoder": "encoder_files", "read_architecture": "encoder_files"}
__all__ = sorted(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__():
    return sorted([*globals(), *_HOMES])
