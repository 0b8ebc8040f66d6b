"""Gaussian kernels over position, colour and features."""

from fs4_jax.affinity.crf import dense_crf, dense_crf_exact
from fs4_jax.affinity.windowed import (windowed_attention, windowed_average,
                                       windowed_kernel_energy)

__all__ = ["dense_crf", "dense_crf_exact", "windowed_attention", "windowed_average",
           "windowed_kernel_energy"]
