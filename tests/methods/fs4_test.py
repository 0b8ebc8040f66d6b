"""FS^4's fine clusters and its pyramid: classes, shares, groups, what predicts."""

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

    def test_a_second_round_compiles_nothing(self):
        compiled = []

        def note(event, seconds, **_):
            if event == "/jax/core/compile/backend_compile_duration":
                compiled.append(seconds)

        for number in range(2):
            self.method.refit(self.params, self.params, self.extra, self.batches,
                              jax.random.key(number))
            if not number:
                jax.monitoring.register_event_duration_secs_listener(note)
                self.addCleanup(jax.monitoring.unregister_event_duration_listener, note)
        self.assertEmpty(compiled)

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


class BackgroundTest(absltest.TestCase):

    def test_class_0_is_what_the_class_token_looks_away_from(self):
        config = tiny_config()
        config.fs4.overcluster, config.fs4.background = 4, True
        run = prepare(config)
        method, batches = run.method, list(run.fit_batches(checked_source(config, "train"), 1))
        params, extra = method.init(jax.random.key(0), batches[0]["view1"][:1])
        fitted, _ = method.fit(params, extra, batches, jax.random.key(1))
        seen = [jax.device_get(method.keep({"encoder": params["encoder"]}, x)) for x in batches]
        self.assertEqual(set(seen[0]), set(method.kept))
        self.assertEqual(set(np.unique(fitted["groups"])), {0, 1, 2})
        of_class, of_cluster = {True: [], False: []}, {}
        for batch, kept in zip(batches, seen):
            embedding = method.predict(fitted, batch["view1"])["embedding"]
            prototypes = fitted["head"]["classifier"]["prototypes"]
            nearest = np.argmax(embedding @ prototypes.T, -1)
            own = np.asarray(fitted["groups"])[nearest]
            attention = kept["attention"][:, 0].astype(np.float32)
            attention /= attention.mean((1, 2), keepdims=True)
            for background, values in of_class.items():
                values.extend(attention[(own == 0) == background])
            for j, value in zip(nearest.ravel(), attention.ravel()):
                of_cluster.setdefault(int(j), []).append(value)
        self.assertLess(np.mean(of_class[True]), 1)
        self.assertGreater(np.mean(of_class[False]), 1)
        with self.subTest("cluster by cluster"):
            looked_at = {j: np.mean(values) for j, values in of_cluster.items()}
            # What is kept is float16: a cluster at the very edge may be on either side.
            told = {j: x < 1 for j, x in looked_at.items() if abs(x - 1) > 5e-3}
            self.assertGreater(len(told), 6)
            self.assertEqual({j: fitted["groups"][j] == 0 for j in told}, told)
        with self.subTest("a step of tokens that are kept"):
            batch = batches[0] | {name: jnp.asarray(value) for name, value in seen[0].items()}
            loss = jax.jit(method.loss)(fitted, fitted, extra, batch, jax.random.key(2), 0)[0]
            self.assertTrue(np.isfinite(loss))

    def test_one_class_has_no_background(self):
        config = tiny_config()
        config.num_clusters, config.fs4.background = 1, True
        with self.assertRaisesRegex(ConfigError, "num_clusters must be at least 2"):
            prepare(config)


class PyramidTest(parameterized.TestCase):

    def made(self, **pgg):
        config = tiny_config()
        config.fs4.sinkhorn.enabled = False       # it takes away what all of a batch share
        config.fs4.pgg.update(pgg)
        return prepare(config)

    def begun(self, run):
        """(params, extra, batches) before anything is fitted."""
        batches = list(run.fit_batches(checked_source(run.config, "train"), 1))
        return *jax.jit(run.method.init)(jax.random.key(0), batches[0]["view1"][:1]), batches

    @parameterized.parameters("heads", "pooled")
    def test_groups_are_learnt(self, form):
        run = self.made(form=form)
        method = run.method
        params, extra, batches = self.begun(run)
        self.assertEqual(any("pyramid" in name for name in params["head"]), form == "heads")
        still = {name: params[name] for name in method.frozen}
        trained = {name: part for name, part in params.items() if name not in still}

        @jax.jit
        def look(shares):
            """(PGG's loss, running share of the clusters, gradient to the prototypes)."""
            def pgg(trained):
                _, (metrics, after) = method.loss(trained | still, params, extra | {
                    "shares": shares}, batches[0], jax.random.key(2), 0)
                return metrics["loss_pgg"], after["share"]

            (loss, share), gradient = jax.value_and_grad(pgg, has_aux=True)(trained)
            return loss, share, gradient["head"]["classifier"]["prototypes"]

        only = {level: jnp.tile(jnp.array([0.98, 0.01, 0.01]), (len(x), 1))
                for level, x in extra["shares"].items()}
        loss, share, gradient = look(only)
        expected_equal, without, _ = look(extra["shares"])
        # Heads learn from the embedding; the pooled assignment is of the prototypes themselves,
        # and is asked for what the groups hold.
        self.assertEqual(float(np.abs(gradient).max()) > 1e-5, form == "pooled")
        self.assertEqual(abs(float(loss - expected_equal)) > 1e-3, form == "pooled")
        # Groups are of whole images, a step sees crops: its targets do not look at them.
        np.testing.assert_array_equal(share, without)

    def test_numbers_of_groups(self):
        def sizes(**pgg):
            return self.made(**pgg).method.pyramid

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
        run = self.made()
        params, extra, batches = self.begun(run)
        params, extra = run.method.fit(params, extra, batches, jax.random.key(1))
        for begin in ("previous", "fresh"):
            run.config.fs4.bootstrap.start = begin
            after = run.method.refit(params, params, extra, batches, jax.random.key(3))
            self.assertEqual(jax.tree.map(jnp.shape, after), jax.tree.map(jnp.shape, extra))
            for level, number in (("1", 4), ("2", 9)):      # 16 images make 4 groups of images
                before, now = (np.asarray(e["centroids"][level])[:number] for e in (extra, after))
                cost = ((before[:, None] - now) ** 2).sum(-1)
                _, order = scipy.optimize.linear_sum_assignment(cost)
                np.testing.assert_array_equal(order, np.arange(number), (begin, level))


if __name__ == "__main__":
    absltest.main()
