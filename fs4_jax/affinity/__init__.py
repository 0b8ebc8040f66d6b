"""Gaussian kernels over position, colour and features."""

from fs4_jax.affinity.crf import dense_crf, dense_crf_exact
from fs4_jax.affinity.dense import dense_filter, dense_kernel_energy
from fs4_jax.affinity.pairs import PairSums, normalized_cut, pair_sums, potts_energy
from fs4_jax.affinity.windowed import (windowed_attention, windowed_average, windowed_filter,
                                       windowed_kernel_energy)

__all__ = ["PairSums", "dense_crf", "dense_crf_exact", "dense_filter", "dense_kernel_energy",
           "normalized_cut", "pair_sums", "potts_energy", "windowed_attention",
           "windowed_average", "windowed_filter", "windowed_kernel_energy"]
