"""A loss that is no number: what is named, and steps that are skipped or taken back."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from fs4_jax import train
from fs4_jax.batch_log import read_batch_log
from fs4_jax.checkpoint import Checkpoints
from fs4_jax.metrics import read_metrics
from fs4_jax.nonfinite import first_nonfinite, tensors_of_step
from fs4_jax.run import checked_source, prepare
from fs4_jax.watch import NonFinite
from tests.tiny_method import TinyRunCase, in_place, tiny_run


class NamesTest(parameterized.TestCase):

    def tensors(self):
        params = {"encoder": {"blocks_0": jnp.ones(2), "blocks_1": jnp.ones(2),
                              "blocks_10": jnp.ones(2), "norm": jnp.ones(2),
                              "patch_embed": jnp.ones(2)}, "head": {"kernel": jnp.ones(2)}}
        params["encoder"] = {name: {"kernel": x} for name, x in params["encoder"].items()}
        metrics = {"loss": jnp.float32(1), "loss_b": jnp.float32(1), "loss_a": jnp.float32(1),
                   "grad_norm": jnp.float32(1), "used": jnp.int32(3)}
        return tensors_of_step({"view1": jnp.zeros(3, jnp.uint8), "valid": jnp.zeros(3, bool)},
                               params, metrics, params, {"centroids": jnp.ones(2)}, params)

    def test_in_the_order_of_the_step(self):
        names = [name for name, _ in self.tensors()]
        self.assertEqual(names[6:9], ["loss_a", "loss_b", "loss"])
        self.assertEqual(names[9:15], [f"gradient of {name}/kernel" for name in (
            "head", "encoder/norm", "encoder/blocks_10", "encoder/blocks_1", "encoder/blocks_0",
            "encoder/patch_embed")])
        self.assertEqual(names[15:17], ["grad_norm", "extra/centroids"])
        self.assertTrue(names[17].startswith("update of encoder"))

    @parameterized.parameters(np.nan, np.inf, -np.inf)
    def test_the_first_bad_one(self, value):
        tensors = self.tensors()
        self.assertEqual(first_nonfinite(tensors), -1)
        for first in (0, 7, len(tensors) - 1):
            spoilt = [(name, x.at[...].set(value) if i >= first else x)
                      for i, (name, x) in enumerate(tensors)]
            self.assertEqual(jax.jit(lambda xs: first_nonfinite([("", x) for x in xs]))(
                [x for _, x in spoilt]), first)


class PoliciesTest(TinyRunCase):
    """The whole loop, with a method that compiles in a moment."""

    def train(self, name, **changes):
        """The exit status of a run in the folder `name`."""
        return train.train(tiny_run(**changes), self.dir / name)

    def column(self, name, metric):
        return [(row["step"], row[metric]) for row in read_metrics(
            self.dir / name / "metrics.jsonl") if metric in row]

    def poison(self, step):
        """(mean of an image of that step's batch, its name): no other of the first steps has it."""
        config = tiny_run()
        run, source = prepare(config), checked_source(config, "train")
        batches = iter(run.views(source, config.seed))
        index = [np.asarray(next(batches)["index"]) for _ in range(step + 1)][-1][0]
        return source[index]["image"].mean(), source.example_name(int(index))

    def test_stop_names_the_tensor_the_step_and_the_images(self):
        with in_place(bad_steps=(3,)), self.assertRaisesRegex(
                NonFinite, r"loss_colour is nan at step 3, on images scene_train_\d+.* The first "
                "tensor that is no number: loss_colour.*Nothing of it was saved"):
            self.train("w")
        with Checkpoints(self.dir / "w") as checkpoints:
            self.assertEqual(checkpoints.latest, 2)
        with in_place():       # goes on, with the settings of a policy changed at that
            self.assertEqual(self.train("w", **{"nonfinite.policy": "skip"}), 0)

    def test_names_are_of_what_is_trained(self):
        with in_place(bad_steps=(1,), frozen=("encoder",)):
            run = prepare(tiny_run())
            names = run.tensor_names(run.abstract_batch(), {"loss": jnp.float32(0)})
            self.assertContainsSubset(["params/head/kernel", "update of head/kernel"], names)
            self.assertEmpty([name for name in names if "encoder" in name])
            with self.assertRaisesRegex(NonFinite, "that is no number: loss_colour"):
                self.train("w")

    def test_a_bad_batch_is_named(self):
        with in_place():
            mean, name = self.poison(3)
        with in_place(poison=mean), self.assertRaisesRegex(
                NonFinite, f"loss_place is nan at step 3, .*{name}.*batch/correspondence"):
            self.train("w")

    def test_a_skipped_step_changes_nothing(self):
        with in_place(bad_steps=(4,)):          # checkpoints of steps 4 and 5
            self.assertEqual(self.train("w", **{"nonfinite.policy": "skip", "total_steps": 5,
                                                "checkpoint.every": 4}), 0)
            self.assertIn("skipped step 4 (1 so far): loss_colour is nan", self.log.getvalue())
            self.assertEqual(self.column("w", "skipped_steps"), [(5, 1)])
            step, *after = self.state("w")
            shutil.rmtree(self.dir / "w" / "checkpoints" / "5")
            before, *kept = self.state("w")
            self.assertEqual((before, step), (4, 5))
            jax.tree.map(np.testing.assert_array_equal, kept, after)

    def test_skipping_goes_on_and_gives_up(self):
        with in_place(bad_steps=(1, 2, 4)):
            self.assertEqual(self.train("w", **{"nonfinite.policy": "skip",
                                                "nonfinite.most": 3}), 0)
            self.assertEqual(self.column("w", "skipped_steps"), [(2, 1), (3, 2), (5, 3)])
        with in_place(bad_steps=(1, 2, 3)), self.assertRaisesRegex(
                NonFinite, "3 steps in a row that were skipped .config.nonfinite.most"):
            self.train("gives up", **{"nonfinite.policy": "skip", "nonfinite.most": 3})

    def test_rollback_goes_on_behind_the_bad_batch(self):
        with in_place():
            mean, name = self.poison(3)
            self.train("good")
        with in_place(poison=mean):
            self.assertEqual(self.train("back", **{"nonfinite.policy": "rollback"}), 0)
            for leaf in jax.tree.leaves(self.state("back")):
                self.assertTrue(np.isfinite(leaf).all())
        self.assertRegex(self.log.getvalue(), f"(?s)loss_place is nan at step 3, .*{name}.*going "
                         "back to the newest checkpoint.*resuming from step 2")
        self.assertEqual(self.column("back", "rollbacks"), [(2, 1)])
        self.assertEqual([step for step, _ in self.column("back", "loss")], [1, 2, 3, 4, 5, 6])
        good, back = read_batch_log(self.dir / "good"), read_batch_log(self.dir / "back")
        self.assertEqual([back[k] for k in (1, 2)], [good[k] for k in (1, 2)])
        self.assertEqual([back[k] for k in (3, 4)], [good[k] for k in (5, 6)])   # 3, 4 left out

    def test_rollback_before_the_first_checkpoint_and_giving_up(self):
        with in_place(bad_steps=(1,)), self.assertRaisesRegex(
                NonFinite, "after 2 returns to the checkpoint of step 0 .config.nonfinite.most"):
            self.train("w", **{"nonfinite.policy": "rollback", "nonfinite.most": 2})
        self.assertEqual(self.column("w", "rollbacks"), [(0, 1), (0, 2)])


class StateTest(absltest.TestCase):

    def test_all_of_a_state_is_kept_on_the_device(self):
        with in_place(bad_steps=(0,)):
            config = tiny_run(**{"nonfinite.policy": "skip"})
            run = prepare(config)
            state = run.create_state()
            step = run.jit_step(state)
            before = jax.device_get(dataclasses.replace(state, key=0))
            batch = next(iter(run.views(checked_source(config, "train"), 0)))
            with jax.transfer_guard("disallow"):
                after, metrics = step(state, {k: batch[k] for k in run.make_views.keys})
            after = jax.device_get(dataclasses.replace(after, key=0))
        self.assertGreaterEqual(metrics["first_nonfinite"], 0)
        self.assertEqual(after.step, before.step + 1)
        jax.tree.map(np.testing.assert_array_equal, dataclasses.replace(after, step=before.step),
                     before)


if __name__ == "__main__":
    absltest.main()
