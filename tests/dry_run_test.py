"""`--dry_run`: what it counts against formulas and the real thing, what it says, what it leaves."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
from absl.testing import absltest, parameterized

from fs4_jax import dry_run
from fs4_jax.data.folder import DataError
from fs4_jax.models import make_encoder
from fs4_jax.program_cost import live_bytes, product_flops
from fs4_jax.run import checked_source, prepare
from tests.pretrain_test import pretrain_config
from tests.train_test import quietly, tiny_config

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_CONFIGS = {"fs4": tiny_config, "dino": pretrain_config}


def jaxpr_of(function, *shapes):
    return jax.make_jaxpr(function)(
        *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).jaxpr


def cocostuff(size):
    spec = importlib.util.spec_from_file_location("cocostuff", _ROOT / "configs/cocostuff.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(size)


class ProgramCostTest(parameterized.TestCase):

    def test_products(self):
        self.assertEqual(product_flops(jaxpr_of(jnp.matmul, (3, 5), (5, 7))), 2 * 3 * 5 * 7)
        self.assertEqual(product_flops(jaxpr_of(jnp.matmul, (4, 3, 5), (4, 5, 7))),
                         2 * 4 * 3 * 5 * 7)
        self.assertEqual(product_flops(jaxpr_of(lambda x: jnp.sin(x) + x, (3, 5))), 0)
        self.assertEqual(product_flops(jaxpr_of(jnp.matmul, (3, 5), (5, 1))), 0)     # a sum

    def test_a_loop_counts_its_turns_and_branches_the_dearest(self):
        def loop(x):
            return jax.lax.scan(lambda x, _: (x @ x, None), x, length=6)[0]

        def branch(x):
            return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

        self.assertEqual(product_flops(jaxpr_of(loop, (4, 4))), 6 * 128)
        self.assertEqual(product_flops(jaxpr_of(branch, (4, 4))), 2 * 128)

    def test_a_convolution(self):
        def conv(x, kernel):       # [b,c,h,w] with [out,in,3,3], nothing padded
            return jax.lax.conv(x, kernel, (1, 1), "VALID")

        self.assertEqual(product_flops(jaxpr_of(conv, (2, 5, 8, 9), (7, 5, 3, 3))),
                         2 * 2 * 7 * 6 * 7 * 5 * 9)

    def test_an_encoder_by_its_formula(self):
        """2 n (12 d^2) and two products of [n,n] a block, and the patches' projection."""
        model, (b, n, d) = make_encoder("mu/8", image_size=32), (2, 17, 128)
        images = jax.ShapeDtypeStruct((b, 32, 32, 3), jnp.float32)
        params = jax.eval_shape(model.init, jax.random.key(0), images)
        jaxpr = jax.make_jaxpr(model.apply)(params, images).jaxpr
        self.assertEqual(product_flops(jaxpr), b * (2 * (n - 1) * 192 * d + 4 * (
            24 * n * d**2 + 4 * n**2 * d)))

    def test_live_arrays(self):
        """Bytes of 1000 float32: a chain holds two at once, what is used later stays."""
        chain = jaxpr_of(lambda x: jnp.sin(jnp.cos(jnp.sin(x))), (1000,))
        self.assertEqual(live_bytes(chain), 2 * 4000)
        kept = jaxpr_of(lambda x: jnp.sin(jnp.cos(jnp.sin(x))) * jnp.sin(x), (1000,))
        self.assertBetween(live_bytes(kept), 2 * 4000, 4 * 4000)
        loop = jaxpr_of(lambda x: jax.lax.scan(
            lambda x, _: (jnp.sin(jnp.cos(x)), x), x, length=5)[1], (1000,))
        self.assertEqual(live_bytes(loop), (1 + 5) * 4000)


class DryRunTest(parameterized.TestCase):

    def setUp(self):
        super().setUp()
        jax.config.update("jax_disable_most_optimizations", True)      # compile fast
        self.addCleanup(jax.config.update, "jax_disable_most_optimizations", False)
        before = os.getcwd()
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        os.chdir(self.folder)
        self.addCleanup(os.chdir, before)

    @parameterized.parameters("fs4", "dino")
    def test_it_tells_what_training_would_take(self, method):
        config = _CONFIGS[method](accumulate_steps=1, batch_size=16, total_steps=8)
        status, out = quietly(dry_run.dry_run, config)
        self.assertEqual(status, 0)
        self.assertEmpty(os.listdir(self.folder))
        self.assertIn("16 images, 1.0 steps an epoch; 8 steps are 8.0 epochs", out)
        self.assertIn("16 images in 1 micro-batch(es), on 8 cpu device(s): data=8 x fsdp=1", out)
        for name in (*dry_run.HARDWARE, "this machine"):
            self.assertRegex(out, rf"(?m)^{name} .* GB .* yes$")
        table = out[out.index("8 x, 40 % busy"):].splitlines()[:7]
        self.assertLen({line.rstrip().rfind(" ") for line in table[1:]}, 1, "columns")
        self.assertNotIn("too much for", out)

    @parameterized.parameters("fs4", "dino")
    def test_its_numbers_are_those_of_the_real_state_and_batch(self, method):
        run = prepare(_CONFIGS[method]())
        cost = dry_run.measure(run, 16)
        state = run.create_state()
        for name, part in state.params.items():
            self.assertEqual(cost.parameters[name], sum(x.size for x in jax.tree.leaves(part)))
        self.assertEqual(cost.trained, sum(x.size for x in jax.tree.leaves(state.teacher)))
        local = [x.addressable_shards[0].data for x in jax.tree.leaves(state)]
        self.assertEqual(cost.state, sum(x.size * x.dtype.itemsize for x in local))
        source = checked_source(run.config, "train")
        batch = next(iter(run.views(source, 0)))
        abstract = run.abstract_batch()
        for name, shape in abstract.items():
            self.assertEqual((shape.shape, shape.dtype, shape.sharding), (
                batch[name].shape, batch[name].dtype, batch[name].sharding), name)
        # One image on each of 8 devices: an eighth, and its forward and backward pass.
        self.assertEqual(8 * cost.batch, sum(batch[name].nbytes for name in abstract))
        self.assertGreater(cost.flops, 3 * 8 * 2 * 16 * 4 * 24 * 128**2)
        self.assertGreater(cost.temporaries, 0)

    def test_micro_batches_take_less_memory_for_the_same_work(self):
        costs = []
        for number in (1, 4):
            config = tiny_config(batch_size=64, accumulate_steps=number)
            config.data.image_size, config.encoder.block = 96, 1
            costs.append(dry_run.measure(prepare(config), 16))
        self.assertLess(costs[1].live, 0.6 * costs[0].live)
        self.assertLess(costs[1].temporaries, 0.8 * costs[0].temporaries)
        self.assertAlmostEqual(costs[1].flops / costs[0].flops, 1, delta=0.02)

    def test_what_does_not_fit_is_said_with_a_way_out(self):
        run = prepare(tiny_config(batch_size=32))
        cost = dry_run.Cost(parameters={"encoder": 10, "head": 5}, trained=15, num_images=320,
                            flops=197e12 * 0.4 * 8, xla_flops=0.0, state=int(9e9), batch=10,
                            temporaries=1, live=int(25e9))
        out = dry_run.report(run, cost)
        self.assertIn("too much for TPU v5e, TPU v6e: try --config.accumulate_steps=2; "
                      "--config.encoder.remat=blocks; --config.mesh.fsdp=8; ", out)
        self.assertRegex(out, r"(?m)^TPU v5e .* no$")
        self.assertRegex(out, r"(?m)^H100 .* yes$")
        # A second a step, ten steps an epoch, six steps in all, on eight chips.
        self.assertRegex(out, r"(?m)^TPU v5e +197 +16 GB +1 s +10 s +6 s +0\.0133 ")

    def test_a_missing_folder_is_the_usual_error(self):
        config = tiny_config()
        config.data.name, config.data.images = "folder", "nowhere"
        with self.assertRaisesRegex(DataError, "nowhere"):
            dry_run.dry_run(config)


class CommandTest(absltest.TestCase):

    def run_main(self, *arguments):
        return subprocess.run([sys.executable, "-m", "fs4_jax.main", *arguments], cwd=_ROOT,
                              capture_output=True, text=True, env=os.environ | {
                                  "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"})

    def test_without_a_workdir(self):
        done = self.run_main("--config=configs/demo.py", "--dry_run",
                             "--config.data.image_size=32", "--config.encoder.block=1")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("nothing is trained, nothing is written", done.stdout)

    def test_training_still_needs_one(self):
        done = self.run_main("--config=configs/demo.py")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("--workdir must be given, except with --dry_run", done.stderr)

    def test_help_tells_of_it(self):
        told = re.sub(r"\s+", " ", self.run_main("--help").stdout)
        self.assertIn("--[no]dry_run: Make all that training makes, up to the compiled step", told)


class CocoStuffTest(parameterized.TestCase):
    """configs/cocostuff.py: the encoders have their published numbers of parameters."""

    # timm's vit_{small,base}_patch{16,8}_224 without the classifier; DINOv2's 22,056,576 and
    # 86,580,480 without mask token (d) and LayerScale (24 d), with 256 positions, not 1369.
    @parameterized.parameters(
        ("S/16", 21_665_664), ("S/8", 21_670_272), ("B/8", 85_807_872),
        ("S/14", 22_056_576 - 25 * 384 - 1113 * 384),
        ("B/14", 86_580_480 - 25 * 768 - 1113 * 768))
    def test_a_size(self, size, parameters):
        config = cocostuff(size)
        run = prepare(config)
        params = run.abstract_state().params
        self.assertEqual(sum(x.size for x in jax.tree.leaves(params["encoder"])), parameters)
        self.assertEqual(config.data.image_size % run.method.encoder.patch, 0)
        self.assertEqual(config.batch_size % (8 * config.accumulate_steps), 0)

    def test_the_names(self):
        self.assertEqual(cocostuff("full").to_dict(), cocostuff("S/14").to_dict())
        self.assertEqual(cocostuff("small").encoder.variant, "mu/16")
        with self.assertRaisesRegex(ValueError, "choose full, small, S/16, S/8, B/8, S/14 or B/14"):
            cocostuff("S/15")

    @parameterized.parameters("S/8", "B/14", "B/8")
    def test_large_ones_are_ready_to_be_trained_too(self, size):
        """What makes them fit 16 GB is set; frozen as they are, remat changes nothing."""
        config = cocostuff(size)
        self.assertEqual((config.encoder.frozen, config.encoder.remat), (True, "blocks"))
        self.assertEqual(config.accumulate_steps, 2 if size == "B/8" else 1)


if __name__ == "__main__":
    absltest.main()
