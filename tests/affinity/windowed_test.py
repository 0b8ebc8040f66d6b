"""Tests of fs4_jax.affinity.windowed, against loops over all pairs of pixels in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.affinity import windowed_average, windowed_kernel_energy

# float32 against float64: exponentials and sums of at most a few hundred terms of order 1.
_TOLERANCE = dict(rtol=1e-5, atol=1e-6)


def random_maps(h=6, w=7, d=4, c=2, b=2, seed=0):
    """(rows that sum to 1 [b, h, w, d], cues [b, h, w, c]), float64."""
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(d), (b, h, w)), rng.normal(size=(b, h, w, c))


def pairs(cues, radius, sigma, dilation):
    """(image, row, column, other row, other column, k) of every ordered pair in a window."""
    b, h, w, _ = cues.shape
    steps = [dilation * i for i in range(-radius, radius + 1)]
    for n, y, x, dy, dx in itertools.product(range(b), range(h), range(w), steps, steps):
        if 0 <= y + dy < h and 0 <= x + dx < w:
            distance = np.sum((cues[n, y, x] - cues[n, y + dy, x + dx]) ** 2)
            k = np.exp(-(dy * dy + dx * dx) / (2 * sigma ** 2) - distance / 2)
            yield n, y, x, y + dy, x + dx, k


def loop_average(values, cues, radius, sigma, dilation=1):
    total, weight = np.zeros_like(values), np.zeros(values.shape[:3])
    for n, y, x, other_y, other_x, k in pairs(cues, radius, sigma, dilation):
        total[n, y, x] += k * values[n, other_y, other_x]
        weight[n, y, x] += k
    return total / weight[..., None]


def loop_energy(assignment, cues, radius, sigma, dilation=1):
    energy, weight = np.zeros(len(cues)), np.zeros(len(cues))
    for n, y, x, other_y, other_x, k in pairs(cues, radius, sigma, dilation):
        if (y, x) != (other_y, other_x):
            energy[n] += k * (1 - assignment[n, y, x] @ assignment[n, other_y, other_x])
            weight[n] += k
    return energy / np.maximum(weight, 1e-12)


class WindowedTest(parameterized.TestCase):

    @parameterized.parameters((1, 1), (2, 1), (3, 1), (1, 2), (2, 3), (9, 1))
    def test_average_and_energy_are_the_loops(self, radius, dilation):
        """Also where the window is larger than the image."""
        a, cues = random_maps()
        settings = dict(radius=radius, position_sigma=1.7, dilation=dilation)
        np.testing.assert_allclose(
            windowed_average(jnp.float32(a), jnp.float32(cues), **settings),
            loop_average(a, cues, radius, 1.7, dilation), **_TOLERANCE)
        np.testing.assert_allclose(
            windowed_kernel_energy(jnp.float32(a), jnp.float32(cues), **settings),
            loop_energy(a, cues, radius, 1.7, dilation), **_TOLERANCE)

    @parameterized.parameters((1, 5), (5, 1), (1, 1))
    def test_thin_images(self, h, w):
        a, cues = random_maps(h, w)
        settings = dict(radius=2, position_sigma=1.0)
        np.testing.assert_allclose(windowed_average(jnp.float32(a), jnp.float32(cues), **settings),
                                   loop_average(a, cues, 2, 1.0), **_TOLERANCE)
        np.testing.assert_allclose(
            windowed_kernel_energy(jnp.float32(a), jnp.float32(cues), **settings),
            loop_energy(a, cues, 2, 1.0), **_TOLERANCE)

    def test_written_out(self):
        """Three pixels in a row, one window step, e = exp(-1/2): energies of two pairs."""
        a = jnp.array([[1.0, 0], [1, 0], [0, 1]])[None, None]
        cues = jnp.array([0.0, 0, 1])[None, None, :, None]
        near, far = np.exp(-0.5), np.exp(-0.5 - 0.5)
        energy = windowed_kernel_energy(a, cues, radius=1, position_sigma=1.0)
        np.testing.assert_allclose(energy, [far / (near + far)], rtol=1e-6)
        average = windowed_average(a, cues, radius=1, position_sigma=1.0)
        np.testing.assert_allclose(average[0, 0, 2], [far / (1 + far), 1 / (1 + far)], rtol=1e-6)

    def test_hard_assignments_give_the_potts_model(self):
        """The energy is then the kernel mass of pairs with different labels, over all mass."""
        _, cues = random_maps()
        labels = np.random.default_rng(3).integers(0, 3, cues.shape[:3])
        cut, mass = np.zeros(2), np.zeros(2)
        for n, y, x, other_y, other_x, k in pairs(cues, 2, 1.5, 1):
            if (y, x) != (other_y, other_x):
                cut[n] += k * (labels[n, y, x] != labels[n, other_y, other_x])
                mass[n] += k
        energy = windowed_kernel_energy(jax.nn.one_hot(labels, 3), jnp.float32(cues), radius=2,
                                        position_sigma=1.5)
        np.testing.assert_allclose(energy, cut / mass, **_TOLERANCE)

    def test_energy_of_one_label_is_zero_and_of_undecided_pixels_is_not(self):
        _, cues = random_maps()
        one = jnp.zeros((2, 6, 7, 4)).at[..., 2].set(1.0)
        settings = dict(radius=2, position_sigma=1.5)
        np.testing.assert_array_equal(windowed_kernel_energy(one, jnp.float32(cues), **settings), 0)
        even = windowed_kernel_energy(jnp.full((2, 6, 7, 4), 0.25), jnp.float32(cues), **settings)
        np.testing.assert_allclose(even, 0.75, rtol=1e-6)

    def test_constant_values_are_kept(self):
        _, cues = random_maps()
        average = windowed_average(jnp.full((2, 6, 7, 3), 5.0), jnp.float32(cues), radius=3,
                                   position_sigma=1.0)
        np.testing.assert_allclose(average, 5.0, rtol=1e-6)

    def test_an_edge_in_the_cues_is_not_crossed(self):
        values = jnp.zeros((1, 4, 6, 1)).at[:, :, 3:].set(1.0)
        average = windowed_average(values, 100 * values, radius=2, position_sigma=2.0)
        np.testing.assert_array_equal(average, values)

    def test_flips_commute(self):
        a, cues = map(jnp.float32, random_maps())
        settings = dict(radius=2, position_sigma=1.5)
        energy, average = (f(a, cues, **settings)
                           for f in (windowed_kernel_energy, windowed_average))
        for axes in ((1,), (2,), (1, 2)):
            flipped = [jnp.flip(x, axes) for x in (a, cues)]
            np.testing.assert_allclose(windowed_kernel_energy(*flipped, **settings), energy,
                                       **_TOLERANCE)
            np.testing.assert_allclose(windowed_average(*flipped, **settings),
                                       jnp.flip(average, axes), **_TOLERANCE)

    def test_shifts(self):
        """A patch in an empty frame may move; only differences of cues count."""
        a, cues = map(jnp.float32, random_maps(3, 3))
        settings = dict(radius=2, position_sigma=1.5)

        def framed(top, left):
            frame = ((0, 0), (top, 5 - top), (left, 4 - left), (0, 0))
            far = jnp.pad(jnp.ones((2, 3, 3, 1)), frame) * 1e4      # no frame pixel is like one
            return jnp.pad(a, frame), jnp.concatenate([jnp.pad(cues, frame), far], axis=-1)

        first = windowed_kernel_energy(*framed(2, 2), **settings)
        # The frame agrees with nothing (rows of zeros), so its own pairs count 1 each: the same
        # number of them while it is wider than the window on all sides.
        np.testing.assert_allclose(windowed_kernel_energy(*framed(3, 2), **settings), first,
                                   **_TOLERANCE)
        np.testing.assert_allclose(windowed_kernel_energy(a, cues + 3.0, **settings),
                                   windowed_kernel_energy(a, cues, **settings), **_TOLERANCE)

    def test_gradients_are_finite_differences(self):
        """Of the float64 loops, central, step 1e-5: their own error is about 1e-9."""
        a, cues = random_maps(3, 4, 2, 2, b=1)
        probe = np.random.default_rng(5).normal(size=a.shape)

        def average(a, cues):
            return jnp.sum(probe * windowed_average(a, cues, radius=1, position_sigma=1.5))

        def energy(a, cues):
            return jnp.sum(windowed_kernel_energy(a, cues, radius=1, position_sigma=1.5))

        for got, reference in ((average, lambda *x: np.sum(probe * loop_average(*x, 1, 1.5))),
                               (energy, lambda *x: np.sum(loop_energy(*x, 1, 1.5)))):
            grads = jax.jit(jax.grad(got, argnums=(0, 1)))(jnp.float32(a), jnp.float32(cues))
            for i, grad in enumerate(grads):
                want = np.zeros_like((a, cues)[i])
                for place in np.ndindex(want.shape):
                    step = np.zeros_like(want)
                    step[place] = 1e-5
                    moved = [[x + s * step if j == i else x for j, x in enumerate((a, cues))]
                             for s in (1, -1)]
                    want[place] = (reference(*moved[0]) - reference(*moved[1])) / 2e-5
                np.testing.assert_allclose(grad, want, rtol=1e-4, atol=1e-5)

    def test_gradient_is_finite_where_nothing_is_alike(self):
        a, cues = map(jnp.float32, random_maps())
        for f in (windowed_kernel_energy, windowed_average):
            def total(a, cues, f=f):
                return jnp.sum(f(a, cues, radius=1, position_sigma=1.0) ** 2)

            grads = jax.jit(jax.grad(total, argnums=(0, 1)))(a, 1e4 * cues)
            self.assertTrue(all(np.isfinite(g).all() for g in grads))


if __name__ == "__main__":
    absltest.main()
