"""The dense CRF: exact sums against a loop, the lattice against exact sums and pydensecrf."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from fs4_jax.affinity import dense_crf, dense_crf_exact
from fs4_jax.affinity.crf import exact_sums
from fs4_jax.affinity.permutohedral import build_lattice, filter_lattice
from tests.shared import shared_path


def scene(h=14, w=12, num_classes=3, seed=0):
    """A noisy picture of coloured stripes, and unsure probabilities of them."""
    rng = np.random.default_rng(seed)
    ids = np.broadcast_to(np.arange(w) * num_classes // w, (h, w))
    colours = rng.integers(0, 255, (num_classes, 3))
    image = np.clip(colours[ids] + rng.normal(0, 4, (h, w, 3)), 0, 255).astype(np.uint8)
    logits = 1.5 * np.eye(num_classes)[ids] + rng.normal(0, 1.0, (h, w, num_classes))
    p = np.exp(logits)
    return image, (p / p.sum(-1, keepdims=True)).astype(np.float32), ids


def loop_crf(image, p, sxy, srgb, weights, num_iters):
    """Mean field by float64 double loops over pixels."""
    h, w, k = p.shape
    position = [(y, x) for y in range(h) for x in range(w)]
    colour = image.reshape(-1, 3).astype(float)
    kernels = []
    for sigma, use_colour in zip(sxy, (False, True)):
        kernel = np.zeros((h * w, h * w))
        for i, (yi, xi) in enumerate(position):
            for j, (yj, xj) in enumerate(position):
                d = ((yi - yj) ** 2 + (xi - xj) ** 2) / sigma ** 2
                d += ((colour[i] - colour[j]) ** 2).sum() / srgb ** 2 if use_colour else 0.0
                kernel[i, j] = np.exp(-d / 2)
        root = 1 / np.sqrt(kernel.sum(1))
        kernels.append(kernel * root[:, None] * root)
    unary = np.log(np.maximum(p.reshape(-1, k).astype(float), 1e-5))
    q = np.exp(unary) / np.exp(unary).sum(1, keepdims=True)
    for _ in range(num_iters):
        logits = unary + sum(weight * kernel @ q for weight, kernel in zip(weights, kernels))
        q = np.exp(logits - logits.max(1, keepdims=True))
        q /= q.sum(1, keepdims=True)
    return q.reshape(h, w, k)


class ExactTest(absltest.TestCase):

    def test_against_a_double_loop(self):
        image, p, _ = scene()
        settings = dict(sxy_gaussian=1.5, sxy_bilateral=6, srgb=9, compat_gaussian=2,
                        compat_bilateral=5, num_iters=4)
        want = loop_crf(image, p, (1.5, 6), 9, (2, 5), 4)
        # float32 against float64: 168 terms a sum, logits of order 10.
        np.testing.assert_allclose(dense_crf_exact(image, p, **settings), want, atol=1e-5)

    def test_blocks_do_not_matter(self):
        rng = np.random.default_rng(0)
        features, values = rng.normal(size=(50, 3)), rng.random((50, 2))
        whole = exact_sums(jnp.asarray(features), jnp.asarray(values))
        blocks = exact_sums(jnp.asarray(features), jnp.asarray(values), block=8)
        np.testing.assert_allclose(blocks, whole, rtol=1e-6)


class LatticeTest(parameterized.TestCase):

    def filtered(self, features, values):
        lattice = build_lattice(features)
        return np.asarray(jax.jit(filter_lattice)(lattice, jnp.asarray(values)))

    @parameterized.parameters(2, 3, 5)
    def test_is_close_to_the_gaussian(self, d):
        """Normalised averages of values in -1..1: the lattice's kernel is a Gaussian up to some
        per cent (0.09, 0.10 and 0.12 measured), the published filter's own error."""
        rng = np.random.default_rng(d)
        features = rng.uniform(0, 2.5, (600, d)).astype(np.float32)
        values = np.stack([np.ones(600), np.sin(features.sum(1))], 1).astype(np.float32)
        got, want = self.filtered(features, values), exact_sums(features, values)
        got, want = got[:, 1] / got[:, 0], want[:, 1] / want[:, 0]
        self.assertLess(np.abs(got - want).max(), 0.15)

    def test_barycentric_weights_and_vertices(self):
        features = np.random.default_rng(1).uniform(-9, 9, (300, 5)).astype(np.float32)
        lattice = build_lattice(features)
        np.testing.assert_allclose(lattice.weight.sum(1), 1, atol=1e-5)
        self.assertGreaterEqual(lattice.weight.min(), -1e-5)
        for row in lattice.vertex:
            self.assertLen(set(row.tolist()), 6)
        ahead, back = lattice.neighbours[2]
        real = ahead[:-1] < len(ahead) - 1
        np.testing.assert_array_equal(back[ahead[:-1][real]], np.flatnonzero(real))

    def test_many_points_of_one_vertex(self):
        """More than a chunk holds: the mean of 1000 equal points is their mean."""
        values = np.random.default_rng(0).random((1000, 2)).astype(np.float32)
        got = self.filtered(np.ones((1000, 3), np.float32), np.c_[values, np.ones(1000)])
        np.testing.assert_allclose(got[:, :2] / got[:, 2:], np.tile(values.mean(0), (1000, 1)),
                                   rtol=1e-4)

    def test_the_gradient_is_the_transposed_filter(self):
        rng = np.random.default_rng(0)
        lattice = build_lattice(rng.uniform(0, 3, (40, 3)))
        a, b = (jnp.asarray(rng.random((40, 2)), jnp.float32) for _ in range(2))
        value, pull = jax.vjp(lambda x: filter_lattice(lattice, x), a)
        # <K a, b> = <a, K^T b>
        self.assertAlmostEqual(float(jnp.vdot(value, b)), float(jnp.vdot(a, pull(b)[0])), places=2)

    def test_errors(self):
        with self.assertRaisesRegex(ValueError, r"\[n, d\] with d of 1 to 5"):
            build_lattice(np.zeros((4, 6)))
        with self.assertRaisesRegex(ValueError, "no number"):
            build_lattice(np.full((4, 2), np.nan))
        with self.assertRaisesRegex(ValueError, "too wide"):
            build_lattice(np.array([[0.0, 0.0], [4000.0, 0.0]]))


class DenseCrfTest(parameterized.TestCase):

    def test_is_close_to_the_exact_one(self):
        image, p, ids = scene(40, 36, seed=3)
        got, want = dense_crf(image, p), dense_crf_exact(image, p)
        self.assertGreater(np.mean(got.argmax(-1) == want.argmax(-1)), 0.99)
        self.assertGreater(np.mean(got.argmax(-1) == ids), np.mean(p.argmax(-1) == ids) + 0.1)
        np.testing.assert_allclose(got.sum(-1), 1, atol=1e-5)

    def test_a_batch_is_its_pictures(self):
        pictures = [scene(seed=seed)[:2] for seed in range(2)]
        images, p = (np.stack(x) for x in zip(*pictures))
        both = dense_crf(images, p, num_iters=3)
        for i, (image, q) in enumerate(pictures):
            np.testing.assert_allclose(both[i], dense_crf(image, q, num_iters=3), atol=1e-6)

    def test_what_must_not_change_the_answer(self):
        image, p, _ = scene()
        got = dense_crf(image, p, num_iters=3)
        np.testing.assert_allclose(dense_crf(image[..., ::-1], p, num_iters=3).argmax(-1),
                                   got.argmax(-1))
        order = [2, 0, 1]
        np.testing.assert_allclose(dense_crf(image, p[..., order], num_iters=3), got[..., order],
                                   atol=1e-5)
        np.testing.assert_allclose(dense_crf(image, p, num_iters=0), p, atol=1e-5)
        off = dense_crf(image, p, compat_gaussian=0, compat_bilateral=0)
        np.testing.assert_allclose(off, p, atol=1e-5)

    def test_gradients_against_finite_differences(self):
        image, p, _ = scene(6, 5)
        weights = np.random.default_rng(5).normal(size=p.shape)

        def loss(q):
            return jnp.sum(dense_crf(image, q, num_iters=2) * weights)

        gradient = jax.grad(loss)(jnp.asarray(p))
        direction = np.random.default_rng(6).normal(size=p.shape).astype(np.float32)
        step = 1e-3
        slope = (loss(p + step * direction) - loss(p - step * direction)) / (2 * step)
        # float32 differences of a sum of order 1, over 2e-3.
        self.assertAlmostEqual(float(jnp.vdot(gradient, direction)), float(slope), delta=0.02 * (
            1 + abs(float(slope))))

    def test_errors(self):
        image, p, _ = scene()
        with self.assertRaisesRegex(ValueError, r"image must be \[h, w, 3\]"):
            dense_crf(image[..., :2], p)
        with self.assertRaisesRegex(ValueError, r"probabilities .* do not fit"):
            dense_crf(image, p[:-1])


class PydensecrfTest(absltest.TestCase):
    """STEGO's settings on real photographs, 320 x 320, 27 classes."""

    def reference(self, image, p):
        try:
            import pydensecrf.densecrf as dcrf
            from pydensecrf.utils import unary_from_softmax
        except ImportError:
            self.skipTest("needs pydensecrf2, which is not installed (extra bench)")
        h, w, k = p.shape
        crf = dcrf.DenseCRF2D(w, h, k)
        crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(
            np.ascontiguousarray(p.transpose(2, 0, 1)))))
        crf.addPairwiseGaussian(sxy=1, compat=3)
        crf.addPairwiseBilateral(sxy=67, srgb=3, rgbim=np.ascontiguousarray(image), compat=4)
        return np.array(crf.inference(10)).reshape(k, h, w).transpose(1, 2, 0)

    def test_the_same_masks(self):
        rng = np.random.default_rng(0)
        files = sorted(shared_path("data", "voc_animals", "JPEGImages").glob("*.jpg"))[::245]
        for file in files:
            with Image.open(file) as opened:
                image = np.array(opened.convert("RGB").resize((320, 320)))
            p = colour_probabilities(image, rng)
            want, got = self.reference(image, p), dense_crf(image, p)
            agreement = np.mean(want.argmax(-1) == got.argmax(-1))
            # Measured 0.99999 and more; ties that rounding decides.
            self.assertGreaterEqual(agreement, 0.999, file.name)
            self.assertLess(np.mean(want.argmax(-1) == p.argmax(-1)), 0.95)


def colour_probabilities(image, rng, num_classes=27):
    """Unsure classes of a photograph: near colours on a 40 x 40 grid, noisy, upsampled."""
    small = np.asarray(Image.fromarray(image).resize((40, 40))).astype(np.float32)
    centres = small.reshape(-1, 3)[rng.choice(1600, num_classes, replace=False)]
    logits = -((small[:, :, None] - centres) ** 2).sum(-1) / 1500
    logits = logits + rng.normal(0, 1.5, logits.shape)
    full = jax.image.resize(jnp.asarray(logits), (*image.shape[:2], num_classes), "bilinear")
    return np.asarray(jax.nn.softmax(full, axis=-1), np.float32)


if __name__ == "__main__":
    absltest.main()
