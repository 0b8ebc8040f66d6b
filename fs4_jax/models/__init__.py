"""Encoders and what stands on them. `import fs4_jax` alone does not import this package.

A name is imported when it is asked for: commands in this package answer --help without jax.
"""

from fs4_jax.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, {
    "VARIANTS": "vit", "ViT": "vit", "make_encoder": "vit", "normalize_images": "vit",
    "WeightsError": "weight_files", "export_encoder": "encoder_files",
    "load_encoder": "encoder_files", "read_architecture": "encoder_files"})
