"""FS^4's fine clusters: their classes, their running shares, what predicts."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from fs4_jax.run import checked_source, prepare
from tests.train_test import tiny_config


class FineClustersTest(absltest.TestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        config = tiny_config()
        config.fs4.overcluster, config.fs4.sinkhorn.prior = 3, "running"
        cls.run_ = prepare(config)
        cls.method = cls.run_.method
        cls.batches = list(cls.run_.fit_batches(checked_source(config, "train"), 1))
        params, extra = cls.method.init(jax.random.key(0), cls.batches[0]["view1"][:1])
        cls.params, cls.extra = cls.method.fit(params, extra, cls.batches, jax.random.key(1))
        cls.loss = staticmethod(jax.jit(cls.method.loss))

    def test_the_fit_gives_every_class_fine_clusters(self):
        self.assertEqual(self.params["head"]["classifier"]["prototypes"].shape[0], 9)
        self.assertEqual(set(np.asarray(self.params["groups"]).tolist()), {0, 1, 2})
        self.assertAlmostEqual(float(np.sum(self.extra["share"])), 1.0, places=5)

    def test_classes_of_an_embedding_are_those_of_its_image(self):
        out = self.method.predict(self.params, self.batches[0]["view1"])
        self.assertEqual(out["logits"].shape[-1], 3)
        np.testing.assert_allclose(self.method.classify(self.params, out["embedding"]),
                                   out["logits"], atol=1e-5)      # float32, another order

    def test_shares_run_after_the_assignment_and_are_its_prior(self):
        def after(share):
            loss, (metrics, extra) = self.loss(
                self.params, self.params, self.extra | {"share": jnp.asarray(share)},
                self.batches[0], jax.random.key(2), 0)
            return float(metrics["loss_pixel"]), np.asarray(extra["share"])

        equal = np.full(9, 1 / 9, np.float32)
        skewed = np.array([0.6] + [0.05] * 8, np.float32)
        (loss_equal, from_equal), (loss_skewed, from_skewed) = after(equal), after(skewed)
        self.assertNotAlmostEqual(loss_equal, loss_skewed, places=3)
        for before, now in ((equal, from_equal), (skewed, from_skewed)):
            self.assertAlmostEqual(now.sum(), 1.0, places=5)
            # A twentieth of the way to this batch's shares: no entry moves by more.
            self.assertLessEqual(np.abs(now - before).max(), 0.05 + 1e-6)
            self.assertGreater(np.abs(now - before).max(), 0)
        self.assertGreater(from_skewed[0], from_equal[0])


if __name__ == "__main__":
    absltest.main()
