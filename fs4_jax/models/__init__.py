"""Encoders and what stands on them. `import fs4_jax` alone does not import this package."""

from fs4_jax.models.encoder_files import export_encoder, load_encoder, read_architecture
from fs4_jax.models.vit import VARIANTS, ViT, make_encoder, normalize_images
from fs4_jax.models.weight_files import WeightsError

__all__ = [
    "VARIANTS",
    "ViT",
    "WeightsError",
    "export_encoder",
    "load_encoder",
    "make_encoder",
    "normalize_images",
    "read_architecture",
]
