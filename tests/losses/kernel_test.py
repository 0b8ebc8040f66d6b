"""Tests of fs4_jax.losses.kernel; the energy itself is tested in affinity/windowed_test.py."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from fs4_jax.affinity import windowed_kernel_energy
from fs4_jax.losses.kernel import kernel_loss

_SETTINGS = dict(radius=2, position_sigma=2.0, colour_sigma=0.5, feature_sigma=0.7)


def random_inputs(seed=0):
    rng = np.random.default_rng(seed)
    assignment = rng.dirichlet(0.3 * np.ones(4), (2, 6, 5)).astype(np.float32)
    colour = rng.normal(size=(2, 6, 5, 3)).astype(np.float32)
    return assignment, colour, rng.normal(size=(2, 6, 5, 8)).astype(np.float32)


class KernelLossTest(absltest.TestCase):

    def test_is_the_energy_of_scaled_cues(self):
        a, colour, features = random_inputs()
        unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
        cues = np.concatenate([colour / 0.5, unit / 0.7], axis=-1)
        want = np.mean(windowed_kernel_energy(a, cues, radius=2, position_sigma=2.0))
        np.testing.assert_allclose(kernel_loss(a, colour, features, **_SETTINGS), want, rtol=1e-5)

    def test_range(self):
        for seed in range(5):
            a, colour, features = random_inputs(seed)
            hard = jax.nn.one_hot(a.argmax(-1), 4)
            for assignment in (a, hard):
                loss = float(kernel_loss(assignment, colour, features, **_SETTINGS))
                self.assertBetween(loss, 0, 1)
        one = jnp.zeros_like(a).at[..., 1].set(1)
        self.assertEqual(float(kernel_loss(one, colour, features, **_SETTINGS)), 0)

    def test_what_does_not_matter(self):
        """Names of clusters, lengths of features, a shift of all colours, flips."""
        a, colour, features = random_inputs()
        loss = kernel_loss(a, colour, features, **_SETTINGS)
        lengths = np.random.default_rng(9).uniform(0.5, 9, (2, 6, 5, 1)).astype(np.float32)
        for same in ((a[..., [2, 0, 3, 1]], colour, features), (a, colour, features * lengths),
                     (a, colour + 1, features),
                     (a[:, :, ::-1], colour[:, :, ::-1], features[:, :, ::-1])):
            np.testing.assert_allclose(kernel_loss(*same, **_SETTINGS), loss, rtol=1e-5)

    def test_smoothing_along_the_kernel_lowers_it(self):
        colour = np.zeros((1, 4, 6, 3), np.float32)
        colour[:, :, 3:] = 2.0
        features = np.concatenate([colour, 2 - colour], axis=-1)
        along = jax.nn.one_hot(np.broadcast_to(np.arange(6) >= 3, (1, 4, 6)).astype(int), 2)
        across = jax.nn.one_hot(np.broadcast_to(np.arange(4)[:, None] >= 2, (1, 4, 6)).astype(int),
                                2)
        self.assertLess(float(kernel_loss(along, colour, features, **_SETTINGS)), 1e-3)
        self.assertGreater(float(kernel_loss(across, colour, features, **_SETTINGS)), 0.1)

    def test_gradient_reaches_the_assignment_alone(self):
        grads = jax.jit(jax.grad(lambda *x: kernel_loss(*x, **_SETTINGS), argnums=(0, 1, 2)))(
            *random_inputs())
        self.assertGreater(float(jnp.max(jnp.abs(grads[0]))), 0)
        self.assertTrue(np.isfinite(grads[0]).all())
        for grad in grads[1:]:
            np.testing.assert_array_equal(grad, 0)


if __name__ == "__main__":
    absltest.main()
