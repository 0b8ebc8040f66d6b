"""FS^4's fine clusters and its pyramid: classes, shares, guidance, what predicts."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from absl.testing import absltest, parameterized

from fs4_jax.config import ConfigError
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

    def test_a_class_that_was_large_when_fitted_scores_higher(self):
        params = self.params | {"prior": jnp.full(9, 1 / 9)}
        logits = self.method.predict(params, self.batches[0]["view1"])["logits"]
        prior = np.where(self.params["groups"] == 1, 0.2, 0.02)
        prior /= prior.sum()
        more = self.method.predict(params | {"prior": jnp.float32(prior)},
                                   self.batches[0]["view1"])["logits"]
        change = np.asarray(more - logits)
        np.testing.assert_allclose(change[..., 1], 0.1 * np.log(9 * prior.max()), atol=1e-4)
        np.testing.assert_allclose(change[..., 0], 0.1 * np.log(9 * prior.min()), atol=1e-4)


class PyramidTest(parameterized.TestCase):

    def made(self, **pgg):
        config = tiny_config()
        config.fs4.pgg.update(pgg)
        return prepare(config), config

    @parameterized.parameters("heads", "pooled")
    def test_groups_guide_the_assignment(self, form):
        """Where the images' group holds one cluster alone, more is assigned to it."""
        _, config = self.made(form=form)
        config.fs4.sinkhorn.enabled = False       # it takes away what all of a batch share
        run = prepare(config)
        batch = next(iter(run.fit_batches(checked_source(config, "train"), 1)))
        params, extra = run.method.init(jax.random.key(0), batch["view1"][:1])
        self.assertEqual(any("pyramid" in name for name in params["head"]), form == "heads")
        loss = jax.jit(run.method.loss)

        def share(shares):
            _, (metrics, after) = loss(params, params, extra | {"shares": shares}, batch,
                                       jax.random.key(2), 0)
            self.assertTrue(np.isfinite(metrics["loss_pgg"]))
            return np.asarray(after["share"])

        only = {level: jnp.tile(jnp.array([0.98, 0.01, 0.01]), (len(x), 1))
                for level, x in extra["shares"].items()}
        self.assertGreater(share(only)[0], share(extra["shares"])[0] + 0.005)
        unguided = only | {"1": extra["shares"]["1"]}        # level 2 does not guide
        np.testing.assert_allclose(share(unguided), share(extra["shares"]), atol=1e-6)

    def test_pooled_assignment_trains_the_prototypes(self):
        run, config = self.made(form="pooled", weight=1.0)
        config.fs4.pixel.weight, config.fs4.kernel.enabled = 0.0, False
        run = prepare(config)
        batch = next(iter(run.fit_batches(checked_source(config, "train"), 1)))
        params, extra = run.method.init(jax.random.key(0), batch["view1"][:1])
        skewed = {level: jnp.tile(jnp.array([0.8, 0.1, 0.1]), (len(x), 1))
                  for level, x in extra["shares"].items()}
        trained, frozen = ({k: v for k, v in params.items() if (k in run.method.frozen) == still}
                           for still in (False, True))
        extra = extra | {"shares": skewed}
        grads = jax.grad(lambda trained: run.method.loss(
            trained | frozen, params, extra, batch, jax.random.key(2), 0)[0])(trained)
        self.assertGreater(np.abs(grads["head"]["classifier"]["prototypes"]).max(), 1e-4)

    def test_numbers_of_groups(self):
        def sizes(**pgg):
            return self.made(**pgg)[0].method.pyramid

        self.assertEqual(sizes(), {"1": 9, "2": 9})              # three for each of 3 classes
        self.assertEqual(sizes(num_groups=5), {"1": 5, "2": 5})
        self.assertEqual(sizes(num_groups=(4, 6)), {"1": 4, "2": 6})
        self.assertEqual(sizes(enabled=False), {})

    @parameterized.parameters(
        (dict(num_groups=(4, 6, 8)), r"num_groups=\(4, 6, 8\) has 3 numbers"),
        (dict(num_groups=(4, 6), shared=True), "give one number"),
        (dict(guides=(4,)), r"guides=\(4,\) must be among config.fs4.pgg.levels=\(1, 2\)"))
    def test_what_can_not_be(self, pgg, message):
        with self.assertRaisesRegex(ConfigError, message):
            self.made(**pgg)

    def test_a_round_keeps_what_the_groups_are(self):
        """Fitted again, from its own groups or from nothing, each is matched with itself."""
        for begin in ("previous", "fresh"):
            run, config = self.made()
            config.fs4.bootstrap.start = begin
            method = prepare(config).method
            batches = list(run.fit_batches(checked_source(config, "train"), 1))
            params, extra = method.init(jax.random.key(0), batches[0]["view1"][:1])
            params, extra = method.fit(params, extra, batches, jax.random.key(1))
            after = method.refit(params, params, extra, batches, jax.random.key(3))
            self.assertEqual(jax.tree.map(jnp.shape, after), jax.tree.map(jnp.shape, extra))
            for level, number in (("1", 4), ("2", 9)):      # 16 images make 4 groups of images
                before, now = (np.asarray(e["centroids"][level])[:number] for e in (extra, after))
                cost = ((before[:, None] - now) ** 2).sum(-1)
                _, order = scipy.optimize.linear_sum_assignment(cost)
                np.testing.assert_array_equal(order, np.arange(number), (begin, level))


if __name__ == "__main__":
    absltest.main()
