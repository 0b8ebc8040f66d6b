"""Gaussian kernels over position, colour and features."""

from fs4_jax.affinity.windowed import windowed_average, windowed_kernel_energy

__all__ = ["windowed_average", "windowed_kernel_energy"]
