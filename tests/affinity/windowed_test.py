"""Tests of fs4_jax.affinity.windowed, against loops over all pairs of pixels in float64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from absl.testing import absltest, parameterized

from fs4_jax.affinity import windowed_attention, windowed_average, windowed_kernel_energy
from fs4_jax.sharding import batch_sharding, make_mesh

# float32 against float64: exponentials and sums of at most a few hundred terms of order 1.
_TOLERANCE = dict(rtol=1e-5, atol=1e-6)

# (radius, dilations); images are 6 x 7, so the last three reach beyond them.
_WINDOWS = ((0, (1,)), (1, (1,)), (2, (1,)), (1, (2,)), (2, (1, 2)), (1, (4, 1, 2)), (2, (3,)),
            (9, (1,)), (3, (1, 5)))


# Each as a function of (values, cues).
_FUNCTIONS = (windowed_average, windowed_kernel_energy,
              lambda a, cues, **window: windowed_attention(a, a, a, cues, **window))


def random_maps(h=6, w=7, d=4, c=2, b=2, seed=0):
    """(rows that sum to 1 [b, h, w, d], cues [b, h, w, c]), float64."""
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(d), (b, h, w)), rng.normal(size=(b, h, w, c))


def pairs(cues, radius, sigma, dilations=(1,)):
    """(image, row, column, other row, other column, k) of every ordered pair of an image."""
    b, h, w, _ = cues.shape
    for n, y, x, other_y, other_x in itertools.product(range(b), range(h), range(w), range(h),
                                                       range(w)):
        dy, dx = other_y - y, other_x - x
        near = sum(np.exp(-(dy * dy + dx * dx) / (2 * (s * sigma) ** 2)) for s in dilations
                   if dy % s == dx % s == 0 and max(abs(dy), abs(dx)) <= s * radius)
        if near:
            distance = np.sum((cues[n, y, x] - cues[n, other_y, other_x]) ** 2)
            yield n, y, x, other_y, other_x, near * np.exp(-distance / 2)


def loop_average(values, cues, radius, sigma, dilations=(1,)):
    total, weight = np.zeros_like(values), np.zeros(values.shape[:3])
    for n, y, x, other_y, other_x, k in pairs(cues, radius, sigma, dilations):
        total[n, y, x] += k * values[n, other_y, other_x]
        weight[n, y, x] += k
    return total / weight[..., None]


def loop_attention(queries, keys, values, cues, radius, sigma, dilations=(1,)):
    """Softmax, written as such: over one row of logits for each pixel."""
    b, h, w, d = queries.shape
    logits = np.full((b, h, w, h, w), -np.inf)
    for n, y, x, other_y, other_x, k in pairs(cues, radius, sigma, dilations):
        content = queries[n, y, x] @ keys[n, other_y, other_x] / np.sqrt(d)
        logits[n, y, x, other_y, other_x] = content + np.log(k)
    attention = scipy.special.softmax(logits, axis=(3, 4))
    return np.einsum("nyxvu,nvud->nyxd", attention, values)


def loop_energy(assignment, cues, radius, sigma, dilations=(1,)):
    energy, weight = np.zeros(len(cues)), np.zeros(len(cues))
    for n, y, x, other_y, other_x, k in pairs(cues, radius, sigma, dilations):
        if (y, x) != (other_y, other_x):
            energy[n] += k * (1 - assignment[n, y, x] @ assignment[n, other_y, other_x])
            weight[n] += k
    return energy / np.maximum(weight, 1e-12)


class WindowedTest(parameterized.TestCase):

    @parameterized.parameters(*_WINDOWS)
    def test_all_are_the_loops(self, radius, dilations):
        """Also where the window is larger than the image."""
        a, cues = random_maps()
        queries, keys = 3 * np.random.default_rng(1).normal(size=(2, 2, 6, 7, 5))
        settings = dict(radius=radius, position_sigma=1.7, dilations=dilations)
        for f, loop, maps in ((windowed_average, loop_average, (a, cues)),
                              (windowed_kernel_energy, loop_energy, (a, cues)),
                              (windowed_attention, loop_attention, (queries, keys, a, cues))):
            np.testing.assert_allclose(f(*map(jnp.float32, maps), **settings),
                                       loop(*maps, radius, 1.7, dilations), **_TOLERANCE)

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
        for n, y, x, other_y, other_x, k in pairs(cues, 2, 1.5):
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

    @parameterized.parameters((1, (1,)), (1, (2, 1)))
    def test_gradients_are_finite_differences(self, radius, dilations):
        """Of the float64 loops, central, step 1e-5: their own error is about 1e-9."""
        a, cues = random_maps(3, 4, 2, 2, b=1)
        queries, keys = np.random.default_rng(1).normal(size=(2, 1, 3, 4, 3))
        probe = np.random.default_rng(5).normal(size=a.shape)
        for f, loop, maps, weight in (
                (windowed_average, loop_average, (a, cues), probe),
                (windowed_kernel_energy, loop_energy, (a, cues), 1.0),
                (windowed_attention, loop_attention, (queries, keys, a, cues), probe)):
            def total(*maps, f=f, weight=weight):
                return jnp.sum(weight * f(*maps, radius=radius, position_sigma=1.5,
                                          dilations=dilations))

            grads = jax.jit(jax.grad(total, range(len(maps))))(*map(jnp.float32, maps))
            for i, grad in enumerate(grads):
                want = np.zeros_like(maps[i])
                for place in np.ndindex(want.shape):
                    step = np.zeros_like(want)
                    step[place] = 1e-5
                    ahead, behind = (
                        np.sum(weight * loop(*maps[:i], maps[i] + s * step, *maps[i + 1:], radius,
                                             1.5, dilations)) for s in (1, -1))
                    want[place] = (ahead - behind) / 2e-5
                np.testing.assert_allclose(grad, want, rtol=1e-4, atol=1e-5)

    def test_gradient_is_finite_where_nothing_is_alike(self):
        a, cues = map(jnp.float32, random_maps())
        for f in _FUNCTIONS:
            def total(a, cues, f=f):
                return jnp.sum(f(a, cues, radius=1, position_sigma=1.0) ** 2)

            grads = jax.jit(jax.grad(total, argnums=(0, 1)))(a, 1e4 * cues)
            self.assertTrue(all(np.isfinite(g).all() for g in grads))

    @parameterized.parameters(-3000.0, 3000.0)
    def test_attention_does_not_see_what_all_logits_share(self, shift):
        """More than exp can hold, of either sign; nor are the zeros of the frame attended to."""
        a, cues = map(jnp.float32, random_maps())
        queries, keys = jnp.float32(np.random.default_rng(1).normal(size=(2, 2, 6, 7, 4)))

        @functools.partial(jax.jit, static_argnums=2)
        def value_and_grads(queries, keys, shift):
            def total(queries, keys):
                queries = jnp.concatenate([queries, jnp.ones((2, 6, 7, 1))], axis=-1)
                keys = jnp.concatenate([keys, jnp.full((2, 6, 7, 1), shift)], axis=-1)
                return jnp.sum(windowed_attention(queries, keys, a, cues, radius=2,
                                                  position_sigma=1.5) ** 2)

            return jax.value_and_grad(total, (0, 1))(queries, keys)

        # Logits of about 1300 are rounded to 1e-4.
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3),
                     value_and_grads(queries, keys, shift), value_and_grads(queries, keys, 0.0))


class ProgramTest(absltest.TestCase):
    """What is compiled, forward and backward."""

    def compiled(self, f, shape, radius, **shardings):
        def total(a, cues):
            return jnp.sum(f(a, cues, radius=radius, position_sigma=1.5) ** 2)

        maps = [jax.ShapeDtypeStruct(shape, jnp.float32, **shardings) for _ in range(2)]
        return jax.jit(jax.grad(total, (0, 1))).lower(*maps).compile()

    def test_of_a_step_of_the_window_nothing_is_kept(self):
        """81 steps need the memory of 9, but for the wider frame: 40^2 to 34^2."""
        for f in _FUNCTIONS:
            few, many = (self.compiled(f, (2, 32, 32, 8), radius).memory_analysis()
                         .temp_size_in_bytes for radius in (1, 4))
            self.assertLess(many, 2 * few)

    def test_no_image_needs_another_device(self):
        sharding = batch_sharding(make_mesh({"data": 8, "fsdp": 1}))
        for f in _FUNCTIONS:
            program = self.compiled(f, (8, 6, 7, 4), 2, sharding=sharding).as_text()
            self.assertIn("f32[1,6,7,4]", program)
            for move in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
                self.assertNotIn(move, program)


if __name__ == "__main__":
    absltest.main()
