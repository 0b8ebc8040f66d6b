"""Tests of fs4_jax.models.foreground: exact against scipy, known answers, borders."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import ndimage

from fs4_jax.models.foreground import blurred, foreground_mask, without_specks

_EIGHT = np.ones((3, 3))


def reference_blur(maps):
    """scipy's: its "mirror" is what torch calls "reflect"; radius 3 is 5 sigma of 0.6."""
    return np.stack([ndimage.gaussian_filter(x.astype(np.float64), 0.6, mode="mirror", radius=3)
                     for x in maps])


def reference_most(maps, mass):
    """Sorted and summed one image at a time, in double precision."""
    kept = np.zeros(maps.shape, bool)
    for image, mask in zip(maps, kept):
        order = np.argsort(image.ravel(), kind="stable")
        held = np.cumsum(image.ravel()[order])
        mask.ravel()[order[held > (1 - mass) * held[-1]]] = True
    return kept


def reference_without_specks(mask):
    kept = np.zeros(mask.shape, bool)
    for image, out in zip(mask, kept):
        labels, number = ndimage.label(image, structure=_EIGHT)
        for i in range(1, number + 1):
            if (labels == i).sum() > 2:
                out |= labels == i
    return kept


class ForegroundTest(parameterized.TestCase):

    @parameterized.parameters((14, 14), (28, 28), (5, 9), (4, 4))
    def test_it_is_that_of_scipy(self, h, w):
        rng = np.random.default_rng(h)
        scores = rng.normal(size=(24, 3, h, w)) + ndimage.gaussian_filter(
            rng.normal(size=(24, 1, h, w)), (0, 0, 1, 1)) * 6
        attention = np.asarray(jax.nn.softmax(scores.reshape(24, 3, -1)).reshape(scores.shape))
        blur = reference_blur(attention.mean(1))
        np.testing.assert_allclose(blurred(jnp.asarray(attention.mean(1))), blur, rtol=2e-5,
                                   atol=1e-8)
        want = reference_without_specks(reference_most(blur, 0.6))
        for function in (foreground_mask, jax.jit(foreground_mask)):
            np.testing.assert_array_equal(function(attention), want)
        self.assertTrue(want.any())
        self.assertTrue((want != reference_most(blur, 0.6)).any() or h < 10)

    @parameterized.parameters(0.02, 0.2, 0.4, 0.7)
    def test_specks_are_those_of_scipy(self, density):
        mask = np.random.default_rng(0).random((200, 12, 9)) < density
        want = reference_without_specks(mask)
        self.assertTrue((want != mask).any())
        np.testing.assert_array_equal(without_specks(jnp.asarray(mask)), want)

    def test_connection_by_a_corner_counts(self):
        diagonal = np.eye(6, dtype=bool)[None]
        np.testing.assert_array_equal(without_specks(jnp.asarray(diagonal)), diagonal)
        pair = np.zeros((1, 6, 6), bool)
        pair[0, 2, 2] = pair[0, 3, 3] = pair[0, 0, 5] = True
        self.assertFalse(without_specks(jnp.asarray(pair)).any())

    def test_mass_on_a_known_map(self):
        """Two flat levels: a 4 x 4 square of 3s holds 48 of 144 - it takes a part of the 1s."""
        attention = np.ones((1, 2, 10, 10), np.float32)
        attention[:, :, 2:6, 3:7] = 30.0
        mask = np.asarray(foreground_mask(attention))[0]
        inside = attention[0, 0] > 1
        self.assertTrue(mask[3:5, 4:6].all())              # its middle, which the blur leaves
        self.assertFalse(mask[~ndimage.binary_dilation(inside)].any())
        blur = reference_blur(attention.mean(1))[0]
        held, most = blur[mask].sum() / blur.sum(), blur[mask].min() / blur.sum()
        self.assertBetween(held, 0.6, 0.6 + most + 1e-6)
        np.testing.assert_array_equal(foreground_mask(attention, mass=1.0)[0], np.ones((10, 10)))

    def test_of_equal_entries_the_later_are_kept(self):
        mask = np.asarray(foreground_mask(np.ones((1, 1, 5, 4), np.float32)))[0].ravel()
        np.testing.assert_array_equal(mask, np.arange(20) >= 8)        # 12 of 20 hold 60 %


if __name__ == "__main__":
    absltest.main()
