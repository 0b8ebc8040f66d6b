"""Tests of fs4_jax.affinity.dense and pairs, against loops over all pairs of pixels in float64."""

import functools
import itertools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.affinity import (dense, dense_filter, dense_kernel_energy, normalized_cut, pair_sums,
                              potts_energy)
from fs4_jax.sharding import batch_sharding, make_mesh
from tests.affinity.windowed_test import random_maps

# float32 against float64: the exponent is a difference of products of order 10, the sums have at
# most a few dozen terms of order 1.
_TOLERANCE = dict(rtol=2e-5, atol=2e-6)


def kernel_matrix(cues, sigma):
    """float64 [b, n, n] of cues [b, h, w, c], pair by pair."""
    b, h, w, _ = cues.shape
    matrix = np.empty((b, h * w, h * w))
    places = list(itertools.product(range(h), range(w)))
    for n, (i, (y, x)), (j, (v, u)) in itertools.product(
            range(b), enumerate(places), enumerate(places)):
        near = ((y - v) ** 2 + (x - u) ** 2) / sigma ** 2
        matrix[n, i, j] = np.exp(-0.5 * (near + np.sum((cues[n, y, x] - cues[n, v, u]) ** 2)))
    return matrix


def loop_energies(assignment, cues, sigma, roi=None):
    """(Potts energy, normalised cut) float64 [b] each, without the pixels' own pairs."""
    b, h, w, k = assignment.shape
    roi = np.ones((b, h * w)) if roi is None else roi.reshape(b, -1)
    a = assignment.reshape(b, -1, k) * roi[..., None]
    matrix = kernel_matrix(cues, sigma) * (1 - np.eye(h * w)) * roi[:, :, None] * roi[:, None]
    potts, cut = np.zeros(b), np.zeros(b)
    for n in range(b):
        degree = matrix[n].sum(1)
        potts[n] = sum(matrix[n, i, j] * (1 - a[n, i] @ a[n, j])
                       for i in range(h * w) for j in range(h * w)) / degree.sum()
        for c in range(k):
            volume = a[n, :, c] @ degree
            cut[n] += (volume - a[n, :, c] @ matrix[n] @ a[n, :, c]) / volume
    return potts, cut


def finite_differences(function, x, step=1e-5):
    """Central, float64: their own error is about 1e-9."""
    gradient = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        change = np.zeros_like(x)
        change[place] = step
        gradient[place] = (function(x + change) - function(x - change)) / (2 * step)
    return gradient


def cut_energy(assignment, cues, sigma, roi=None):
    kernel = functools.partial(dense_filter, position_sigma=sigma)
    return normalized_cut(pair_sums(kernel, assignment, cues, roi))


class DenseTest(parameterized.TestCase):

    @parameterized.parameters((6, 7, 2.0), (1, 5, 0.7), (5, 1, 3.0), (1, 1, 1.0))
    def test_the_filter_is_the_loop(self, h, w, sigma):
        a, cues = random_maps(h, w)
        want = np.einsum("bij,bjk->bik", kernel_matrix(cues, sigma), a.reshape(2, h * w, -1))
        for self_pairs in (True, False):
            got = dense_filter(jnp.float32(a), jnp.float32(cues), position_sigma=sigma,
                               self_pairs=self_pairs).reshape(want.shape)
            np.testing.assert_allclose(got, want - (not self_pairs) * a.reshape(want.shape),
                                       **_TOLERANCE)

    def test_position_alone(self):
        a, cues = random_maps()
        np.testing.assert_allclose(dense_filter(jnp.float32(a), None, position_sigma=2.0),
                                   dense_filter(jnp.float32(a), jnp.zeros_like(cues),
                                                position_sigma=2.0), **_TOLERANCE)

    @parameterized.parameters(1, 40, 100)
    def test_blocks_do_not_show(self, entries):
        a, cues = map(jnp.float32, random_maps())
        whole = dense_filter(a, cues, position_sigma=2.0)
        with mock.patch.object(dense, "_BLOCK_ENTRIES", {"cpu": entries, "default": entries}):
            np.testing.assert_allclose(dense_filter(a, cues, position_sigma=2.0), whole,
                                       **_TOLERANCE)

    def test_energies_are_the_loops(self):
        a, cues = random_maps(4, 5)
        roi = np.float64(np.random.default_rng(2).random((2, 4, 5)) < 0.7)
        for region in (None, roi):
            masked = a if region is None else a * region[..., None]
            potts, cut = loop_energies(a, cues, 1.7, region)
            args = jnp.float32(masked), jnp.float32(cues)
            roi32 = None if region is None else jnp.float32(region)
            got = dense_kernel_energy(*args, position_sigma=1.7, roi=roi32)
            # Inside the region the Potts energy counts pairs of it alone.
            np.testing.assert_allclose(got, potts if region is None else
                                       loop_energies(masked, cues, 1.7, region)[0], **_TOLERANCE)
            np.testing.assert_allclose(cut_energy(*args, 1.7, roi32), cut, **_TOLERANCE)

    def test_gradients_are_finite_differences(self):
        """Of both energies, by assignment and by cues."""
        a, cues = random_maps(3, 3, 2, 2, b=1)
        for which, function in enumerate((
                lambda *x: dense_kernel_energy(*x, position_sigma=1.5)[0],
                lambda *x: cut_energy(*x, 1.5)[0])):
            grads = jax.jit(jax.grad(function, (0, 1)))(jnp.float32(a), jnp.float32(cues))
            wanted = (finite_differences(lambda x: loop_energies(x, cues, 1.5)[which][0], a),
                      finite_differences(lambda x: loop_energies(a, x, 1.5)[which][0], cues))
            for grad, want in zip(grads, wanted):
                np.testing.assert_allclose(grad, want, rtol=1e-4, atol=1e-5)

    def test_potts_identity(self):
        """sum_k a_k^T W (1 - a_k) = 1^T W 1 - sum_k a_k^T W a_k where classes sum to 1."""
        a, cues = map(jnp.float32, random_maps())
        sums = pair_sums(functools.partial(dense_filter, position_sigma=2.0), a, cues)
        np.testing.assert_allclose(jnp.sum(sums.volume, -1), sums.total, rtol=1e-5)
        np.testing.assert_allclose(
            potts_energy(sums), jnp.sum(sums.volume - sums.agreement, -1) / sums.total, rtol=1e-4)

    def test_an_empty_class_has_no_part_in_the_cut(self):
        a, cues = map(jnp.float32, random_maps())
        more = jnp.concatenate([a, jnp.zeros_like(a[..., :1])], axis=-1)
        np.testing.assert_allclose(cut_energy(more, cues, 2.0), cut_energy(a, cues, 2.0), rtol=1e-6)
        grad = jax.grad(lambda x: jnp.sum(cut_energy(x, cues, 2.0)))(more)
        self.assertTrue(jnp.all(jnp.isfinite(grad)))

    def test_invariances(self):
        """Flips, and shifts of all the cues together, however far."""
        a, cues = map(jnp.float32, random_maps())
        energy = dense_kernel_energy(a, cues, position_sigma=2.0)
        for axes in ((1,), (2,), (1, 2)):
            np.testing.assert_allclose(dense_kernel_energy(
                jnp.flip(a, axes), jnp.flip(cues, axes), position_sigma=2.0), energy, **_TOLERANCE)
        np.testing.assert_allclose(dense_kernel_energy(a, cues + 100.0, position_sigma=2.0),
                                   energy, rtol=1e-4)

    def test_of_the_kernel_no_gradient_is_computed_that_nobody_wants(self):
        """Energy and gradient with fixed cues take one kernel: the work of the energy alone."""
        a, cues = (jnp.float32(x) for x in random_maps(24, 24))

        def work(function):
            return jax.jit(function).lower(a).compile().cost_analysis()["flops"]

        def energy(a, fixed=True):
            kept = jax.lax.stop_gradient(cues) if fixed else cues * jnp.mean(a)
            return jnp.sum(dense_kernel_energy(a, kept, position_sigma=2.0))

        self.assertLess(work(jax.grad(energy)), 1.1 * work(energy))
        moving = functools.partial(energy, fixed=False)
        self.assertGreater(work(jax.grad(moving)), 1.5 * work(moving))


class LeavesTest(parameterized.TestCase):

    @parameterized.parameters(2, 5, 16, 1000)
    def test_every_pixel_counts_once(self, leaf_size):
        """Where the kernel is 1 everywhere, the sum of ones is the number of pixels."""
        ones = jnp.ones((2, 6, 7, 1))
        filtered = dense_filter(ones, jnp.zeros((2, 6, 7, 2)), position_sigma=1e4,
                                leaf_size=leaf_size, self_pairs=True)
        np.testing.assert_allclose(filtered, 42, rtol=1e-5)

    def test_exact_where_leaves_are_of_one_colour(self):
        """Four flat quarters, position without weight: leaves have no spread."""
        rng = np.random.default_rng(0)
        colour = np.kron(rng.normal(size=(2, 2, 3)), np.ones((4, 4, 1)))[None]
        a = jnp.float32(rng.dirichlet(np.ones(4), (1, 8, 8)))
        exact, leaves = (dense_filter(a, jnp.float32(colour), position_sigma=1e5, leaf_size=size)
                         for size in (1, 16))
        np.testing.assert_allclose(leaves, exact, rtol=1e-4, atol=1e-4)

    def test_smaller_leaves_are_closer(self):
        """Gradients of smooth assignments on a smooth picture, relative to the exact ones."""
        y, x = np.meshgrid(*[np.linspace(0, 6, 32)] * 2, indexing="ij")
        cues = jnp.float32(np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1))[None]
        a = jax.nn.softmax(jnp.float32(np.stack([np.sin(y), np.cos(x), x / 6], -1)))[None]
        grad = jax.jit(jax.grad(lambda a, size: jnp.sum(dense_kernel_energy(
            a, cues, position_sigma=8.0, leaf_size=size))), static_argnums=1)
        centred = [g - jnp.mean(g, -1, keepdims=True) for g in
                   (grad(a, size) for size in (1, 4, 16, 64))]
        errors = [float(jnp.linalg.norm(g - centred[0]) / jnp.linalg.norm(centred[0]))
                  for g in centred[1:]]
        self.assertLess(errors[0], 0.02, errors)
        self.assertLess(errors[1], 0.08, errors)
        self.assertEqual(errors, sorted(errors))

    @parameterized.parameters(1, 8)
    def test_on_eight_devices_as_on_one(self, leaf_size):
        a, cues = (jnp.float32(x) for x in random_maps(4, 6, b=8))
        mesh = make_mesh({"data": 8, "fsdp": 1})
        energy = functools.partial(dense_kernel_energy, position_sigma=2.0, leaf_size=leaf_size)
        spread = jax.jit(jax.value_and_grad(lambda a, cues: jnp.sum(energy(a, cues))))(
            *jax.device_put((a, cues), batch_sharding(mesh)))
        alone = jax.value_and_grad(lambda a, cues: jnp.sum(energy(a, cues)))(a, cues)
        for got, want in zip(spread, alone):
            np.testing.assert_allclose(got, want, **_TOLERANCE)


if __name__ == "__main__":
    absltest.main()
