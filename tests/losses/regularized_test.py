"""Tests of fs4_jax.losses.regularized, against loops over all pairs of pixels in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax.affinity import dense_kernel_energy, windowed_kernel_energy
from fs4_jax.losses.regularized import (
    dense_crf_loss,
    dynamic_feature_loss,
    feature_smoothness,
    gated_crf_loss,
    normalized_cut_loss,
    stroke_agreement_loss,
)
from tests.affinity.dense_test import kernel_matrix, loop_energies
from tests.affinity.windowed_test import pairs, random_maps

# float32 against float64, as in the tests of the kernels themselves.
_TOLERANCE = dict(rtol=2e-5, atol=2e-6)


def picture(h=6, w=7, b=2, seed=4):
    """Smooth colours in 0..255, float64 [b, h, w, 3]: neighbours are alike to a sigma of 15."""
    rng = np.random.default_rng(seed)
    return 120 + np.cumsum(rng.normal(size=(b, h, w, 3)) * 5, axis=2)


class DenseCrfLossTest(parameterized.TestCase):

    def test_rloss_number(self):
        """-(1/N) sum_k a^T W a: unnormalised, own pairs in it, mean over the images."""
        a, _ = random_maps()
        image = picture()
        matrix = kernel_matrix(image / 15, 100.0)
        flat = a.reshape(2, 42, -1)
        want = -np.einsum("bik,bij,bjk->b", flat, matrix, flat).mean()
        got = dense_crf_loss(jnp.float32(a), jnp.float32(image), normalized=False)
        np.testing.assert_allclose(got, want, rtol=2e-5)

    def test_rloss_gradient(self):
        """-(2/N) (W a) inside the region of interest, nothing outside."""
        a, _ = random_maps()
        image = picture()
        roi = np.float64(np.random.default_rng(2).random((2, 6, 7)) < 0.7)
        matrix = kernel_matrix(image / 15, 100.0)
        masked = (a * roi[..., None]).reshape(2, 42, -1)
        want = -2 / 2 * np.einsum("bij,bjk->bik", matrix, masked).reshape(a.shape) * roi[..., None]
        got = jax.grad(lambda a: dense_crf_loss(a, jnp.float32(image), roi=jnp.float32(roi),
                                                normalized=False))(jnp.float32(a))
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)

    def test_scale_factor_is_rloss_geometry(self):
        """Half the size: every second pixel of the image, means of two of the assignment (bilinear
        at half is just that), position sigma halved."""
        a, _ = random_maps(6, 8)
        image = picture(6, 8)
        half = a.reshape(2, 3, 2, 4, 2, 4).mean((2, 4))
        want = dense_crf_loss(jnp.float32(half), jnp.float32(image[:, ::2, ::2]),
                              position_sigma=20.0, normalized=False)
        got = dense_crf_loss(jnp.float32(a), jnp.float32(image), position_sigma=40.0,
                             scale_factor=0.5, normalized=False)
        np.testing.assert_allclose(got, want, rtol=1e-5)

    def test_the_normalised_form_is_the_energy(self):
        a, _ = random_maps()
        image = picture()
        want = loop_energies(a, image / 15, 100.0)[0].mean()
        np.testing.assert_allclose(dense_crf_loss(jnp.float32(a), jnp.float32(image)), want,
                                   **_TOLERANCE)

    def test_the_normalised_form_hardly_knows_the_resolution(self):
        """The same picture and segmentation at twice the size: sigma scales, the number stays."""
        y, x = np.meshgrid(*[(np.arange(48) + 0.5) / 48] * 2, indexing="ij")
        image = np.stack([100 + 60 * np.sin(6 * x), 120 + 40 * y, 90 + 30 * x * y], -1)[None]
        a = np.stack([x, 1 - x], -1)[None]
        small, large = (dense_crf_loss(jnp.float32(a[:, ::step, ::step]),
                                       jnp.float32(image[:, ::step, ::step]),
                                       position_sigma=12.0 / step) for step in (2, 1))
        np.testing.assert_allclose(small, large, rtol=0.03)     # what is left is the sampling

    def test_no_gradient_reaches_the_image(self):
        a, _ = random_maps()
        for normalized in (True, False):
            grad = jax.grad(lambda x: dense_crf_loss(jnp.float32(a), x, normalized=normalized))(
                jnp.float32(picture()))
            np.testing.assert_array_equal(grad, 0)


class CutsTest(absltest.TestCase):

    def test_normalized_and_kernel_cut(self):
        a, cues = random_maps()
        potts, cut = loop_energies(a, cues, 2.0)
        args = jnp.float32(a), jnp.float32(cues)
        np.testing.assert_allclose(normalized_cut_loss(*args, position_sigma=2.0),
                                   cut.mean() / 4, **_TOLERANCE)
        np.testing.assert_allclose(
            normalized_cut_loss(*args, position_sigma=2.0, crf_weight=0.5),
            cut.mean() / 4 + 0.5 * potts.mean(), **_TOLERANCE)

    def test_a_balanced_split_of_two_groups_costs_nothing(self):
        """Two colours far apart: cutting between them is free, across them is not."""
        colour = jnp.zeros((1, 4, 6, 1)).at[:, :, 3:].set(30.0)
        side = jax.nn.one_hot((jnp.arange(6) >= 3).astype(int), 2) * jnp.ones((1, 4, 1, 1))
        across = jax.nn.one_hot((jnp.arange(4) >= 2).astype(int), 2)[:, None] * jnp.ones(
            (1, 1, 6, 1))
        self.assertLess(float(normalized_cut_loss(side, colour, position_sigma=5.0)), 1e-5)
        self.assertGreater(float(normalized_cut_loss(across, colour, position_sigma=5.0)), 0.3)


class GatedCrfTest(absltest.TestCase):

    def test_two_kernels_are_the_loop(self):
        a, cues = random_maps()
        roi = np.float64(np.random.default_rng(2).random((2, 6, 7)) < 0.7)
        for gate in (np.ones_like(roi), roi):
            energy, weight = np.zeros(2), np.zeros(2)
            for share, colours in ((0.9, cues / 0.5), (0.1, np.zeros_like(cues))):
                for n, y, x, v, u, k in pairs(colours, 2, 1.7):
                    if (y, x) != (v, u):
                        k *= share * gate[n, y, x] * gate[n, v, u]
                        energy[n] += k * (1 - a[n, y, x] @ a[n, v, u])
                        weight[n] += k
            got = gated_crf_loss(jnp.float32(a), jnp.float32(cues), radius=2, position_sigma=1.7,
                                 colour_sigma=0.5, position_weight=0.1, roi=jnp.float32(gate))
            np.testing.assert_allclose(got, (energy / weight).mean(), **_TOLERANCE)


class DynamicFeatureTest(parameterized.TestCase):

    def energies(self):
        return (functools.partial(windowed_kernel_energy, radius=2, position_sigma=1.5),
                functools.partial(dense_kernel_energy, position_sigma=1.5))

    def test_product_and_sum(self):
        a, shallow = map(jnp.float32, random_maps())
        deep = jnp.float32(np.random.default_rng(7).normal(size=(2, 6, 7, 5)))
        for energy in self.energies():
            product = jnp.mean(energy(a, jnp.concatenate([shallow, deep], -1)))
            np.testing.assert_allclose(dynamic_feature_loss(a, shallow, deep, energy), product,
                                       rtol=1e-6)
            both = dynamic_feature_loss(a, shallow, deep, energy, static_weight=0.3)
            np.testing.assert_allclose(both, product + 0.3 * jnp.mean(energy(a, shallow)),
                                       rtol=1e-6)

    def test_gradient_reaches_the_assignment_alone(self):
        a, shallow = map(jnp.float32, random_maps())
        deep = jnp.float32(np.random.default_rng(7).normal(size=(2, 6, 7, 5)))
        for energy in self.energies():
            grads = jax.grad(lambda *x: dynamic_feature_loss(*x, energy, static_weight=0.5),
                             (0, 1, 2))(a, shallow, deep)
            self.assertGreater(float(jnp.max(jnp.abs(grads[0]))), 0)
            for grad in grads[1:]:
                np.testing.assert_array_equal(grad, 0)

    def test_deep_features_part_what_colours_join(self):
        """One colour, two halves of features: a boundary between them is free with DFR alone."""
        a = jax.nn.one_hot((jnp.arange(6) >= 3).astype(int), 2) * jnp.ones((1, 4, 1, 1))
        shallow, deep = jnp.zeros((1, 4, 6, 3)), 10 * a
        energy = self.energies()[0]
        self.assertGreater(float(jnp.mean(energy(a, shallow))), 0.1)
        self.assertLess(float(dynamic_feature_loss(a, shallow, deep, energy)), 1e-6)

    def test_smoothness_is_the_loop(self):
        features, cues = random_maps()
        energy, weight = np.zeros(2), np.zeros(2)
        for n, y, x, v, u, k in pairs(cues, 2, 1.7):
            if (y, x) != (v, u):
                energy[n] += k * 0.5 * np.sum((features[n, y, x] - features[n, v, u]) ** 2)
                weight[n] += k
        got, grad = jax.value_and_grad(lambda f: feature_smoothness(
            f, jnp.float32(cues), radius=2, position_sigma=1.7))(jnp.float32(features))
        np.testing.assert_allclose(got, (energy / weight).mean(), **_TOLERANCE)
        step = 1e-2 * np.random.default_rng(0).normal(size=features.shape)
        ahead, behind = (feature_smoothness(jnp.float32(features + s * step), jnp.float32(cues),
                                            radius=2, position_sigma=1.7) for s in (1, -1))
        # A quadratic: central differences are exact but for float32's rounding of the loss.
        np.testing.assert_allclose(jnp.sum(grad * step), (ahead - behind) / 2, rtol=2e-3)


class StrokeAgreementTest(parameterized.TestCase):

    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(0)
        self.assignment = rng.dirichlet(np.ones(3), (2, 4, 5))
        self.cues = rng.normal(size=(2, 4, 5, 6), scale=0.5)
        self.strokes = rng.normal(size=(2, 7, 6), scale=0.5)
        self.label = rng.integers(0, 3, (2, 7))
        self.valid = np.array([[True] * 7, [True] * 4 + [False] * 3])

    def loss(self, **changes):
        given = {name: jnp.float32(getattr(self, name))
                 for name in ("assignment", "cues", "strokes")}
        given |= dict(label=self.label, valid=self.valid, apart=0.02)
        return stroke_agreement_loss(**given | changes)

    def test_equal_to_a_loop(self):
        want = []
        for b, row, column in np.ndindex(2, 4, 5):
            tied = np.zeros(3)
            for s in np.flatnonzero(self.valid[b]):
                away = self.cues[b, row, column] - self.strokes[b, s]
                tied[self.label[b, s]] += np.exp(-away @ away / 2) / self.valid[b].sum()
            agreeing = tied @ self.assignment[b, row, column]
            want.append(np.log(tied.sum() + 0.02) - np.log(agreeing + 0.02))
        # float32: the exponent is a difference of numbers near 2, half an ulp of each in it.
        np.testing.assert_allclose(self.loss(), np.mean(want), rtol=2e-5)

    def test_gradient_is_that_of_a_cross_entropy_to_what_model_and_kernel_say(self):
        logits = jnp.log(jnp.float32(self.assignment))
        got = jax.grad(lambda x: self.loss(assignment=jax.nn.softmax(x), apart=1e-9))(logits)
        away = self.cues[:, :, :, None] - self.strokes[:, None, None]
        member = np.eye(3)[self.label] * self.valid[..., None]
        tied = np.einsum("bhws,bsk->bhwk", np.exp(-0.5 * (away ** 2).sum(-1)), member)
        target = self.assignment * tied
        target /= target.sum(-1, keepdims=True)
        np.testing.assert_allclose(got, (self.assignment - target) / 40, atol=1e-6)

    def test_nothing_is_asked_where_no_stroke_is_near(self):
        self.assertEqual(self.loss(valid=np.zeros_like(self.valid)), 0.0)
        self.assertLess(self.loss(cues=self.cues + 50.0), 1e-6)
        without = self.loss(valid=self.valid & np.array([[True], [False]]))
        np.testing.assert_allclose(without, 0.5 * stroke_agreement_loss(
            *(jnp.float32(x[:1]) for x in (self.assignment, self.cues, self.strokes)),
            self.label[:1], self.valid[:1], apart=0.02), rtol=1e-6)

    def test_no_gradient_reaches_the_cues(self):
        gradient = jax.grad(lambda cues, strokes: self.loss(cues=cues, strokes=strokes),
                            argnums=(0, 1))(jnp.float32(self.cues), jnp.float32(self.strokes))
        self.assertFalse(any(np.any(x) for x in gradient))


if __name__ == "__main__":
    absltest.main()
