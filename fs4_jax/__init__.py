"""Segmentation without pixel labels: FS^4, in JAX."""

__version__ = "0.1.0"
