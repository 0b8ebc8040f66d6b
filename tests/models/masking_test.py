"""Tests of fs4_jax.models.masking and fs4_jax.models.projection."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from absl.testing import absltest

from fs4_jax.models.masking import blob_masks
from fs4_jax.models.projection import ProjectionHead


class BlobMasksTest(absltest.TestCase):

    def masks(self, n=200, grid=(12, 16), **options):
        options = dict(ratio=(0.1, 0.5), probability=0.5) | options
        return jax.device_get(blob_masks(jax.random.key(0), n, grid, **options))

    def test_shares(self):
        masks = self.masks()
        count = masks["masked"].sum((1, 2))
        share = count[count > 0] / (12 * 16)
        self.assertBetween(len(share) / 200, 0.4, 0.6)
        self.assertBetween(share.min(), 0.09, 0.15)
        self.assertBetween(share.max(), 0.45, 0.51)
        self.assertAlmostEqual(share.mean(), 0.3, delta=0.03)

    def test_the_index_lists_just_the_masked_patches(self):
        masks = self.masks(20)
        for masked, index, valid in zip(masks["masked"], masks["index"], masks["valid"]):
            self.assertEqual(sorted(index[valid]), np.flatnonzero(masked).tolist())

    def test_they_are_blobs(self):
        """Few connected pieces beside those of as many patches drawn one by one."""
        masked = self.masks(40, probability=1.0)["masked"]
        rng = np.random.default_rng(0)
        scattered = [rng.permutation(m.reshape(-1)).reshape(m.shape) for m in masked]

        def pieces(maps):
            return np.mean([scipy.ndimage.label(m)[1] for m in maps])

        self.assertLess(pieces(masked), 0.5 * pieces(scattered))

    def test_none_and_all(self):
        self.assertFalse(self.masks(probability=0.0)["masked"].any())
        self.assertTrue(self.masks(4, ratio=(1.0, 1.0), probability=1.0)["masked"].all())


class ProjectionHeadTest(absltest.TestCase):

    def test_outputs_are_cosines_of_a_bottleneck(self):
        head = ProjectionHead(9, hidden=16, bottleneck=6)
        x = jax.random.normal(jax.random.key(1), (2, 3, 8))
        params = head.init(jax.random.key(0), x)["params"]
        out = np.asarray(head.apply({"params": params}, x))
        self.assertEqual(out.shape, (2, 3, 9))
        self.assertLessEqual(np.abs(out).max(), 1 + 1e-6)
        self.assertEqual({k: v["kernel"].shape for k, v in params.items() if k != "last_layer"},
                         {"mlp_0": (8, 16), "mlp_1": (16, 16), "mlp_2": (16, 6)})
        # Weight norm with its gain at 1: the length of a prototype does not matter.
        longer = {**params, "last_layer": jax.tree.map(lambda p: 3 * p, params["last_layer"])}
        np.testing.assert_allclose(head.apply({"params": longer}, x), out, atol=1e-6)
        self.assertEqual(head.apply({"params": params}, x.astype(jnp.bfloat16)).dtype, jnp.float32)


if __name__ == "__main__":
    absltest.main()
