"""Tests of fs4_jax.sharding, on 8 faked devices."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.sharding import AxisType

from fs4_jax.config import ConfigError, default_config
from fs4_jax.sharding import (batch_sharding, check_batch, make_mesh, replicated, round_up,
                              tree_sharding)


class MakeMeshTest(parameterized.TestCase):

    @parameterized.parameters(((-1, 1), (8, 1)), ((2, -1), (2, 4)), ((-1, 4), (2, 4)),
                              ((4, 2), (4, 2)), ((1, 8), (1, 8)))
    def test_sizes(self, asked, got):
        mesh = make_mesh({"data": asked[0], "fsdp": asked[1]})
        self.assertEqual(dict(mesh.shape), {"data": got[0], "fsdp": got[1]})
        self.assertEqual(mesh.axis_types, (AxisType.Auto, AxisType.Auto))

    def test_takes_a_config_and_some_of_the_devices(self):
        mesh = make_mesh(default_config().mesh, jax.devices()[:3])
        self.assertEqual(dict(mesh.shape), {"data": 3, "fsdp": 1})

    @parameterized.parameters((3, 1), (-1, 3), (-1, -1), (0, 8), (16, 1), (4, 4), (-2, -4), (8, 0))
    def test_sizes_that_do_not_fit_name_the_key(self, data, fsdp):
        with self.assertRaisesRegex(ConfigError, "config.mesh asks for .* but there are 8: set "
                                    "config.mesh.data=-1"):
            make_mesh({"data": data, "fsdp": fsdp})


class BatchTest(absltest.TestCase):

    def test_a_batch_is_split_over_every_device(self):
        for fsdp in (1, 4):
            mesh = make_mesh({"data": -1, "fsdp": fsdp})
            x = jax.device_put(np.arange(32).reshape(16, 2), batch_sharding(mesh))
            self.assertEqual({s.data.shape for s in x.addressable_shards}, {(2, 2)})
            self.assertLen({int(s.data[0, 0]) for s in x.addressable_shards}, 8)
            y = jax.device_put(np.arange(3), replicated(mesh))
            self.assertEqual({s.data.shape for s in y.addressable_shards}, {(3,)})

    def test_check_batch_names_the_key_and_the_number(self):
        mesh = make_mesh({"data": -1, "fsdp": 1})
        check_batch(16, mesh, "batch_size")
        with self.assertRaisesRegex(ConfigError, "config.eval.batch_size=12 is not divisible by "
                                    "the 8 devices of the mesh: use a multiple of 8"):
            check_batch(12, mesh, "eval.batch_size")

    def test_round_up(self):
        mesh = make_mesh({"data": -1, "fsdp": 1})
        self.assertEqual([round_up(n, mesh) for n in (1, 8, 9, 16)], [8, 8, 16, 16])


class TreeShardingTest(absltest.TestCase):

    def setUp(self):
        super().setUp()
        self.mesh = make_mesh({"data": 2, "fsdp": 4})
        self.tree = {"params": {"qkv": {"kernel": jnp.zeros((8, 24)), "bias": jnp.zeros(24)},
                                "odd": {"kernel": jnp.zeros((3, 5))},
                                "tall": {"kernel": jnp.zeros((16, 6))},
                                "patch": {"kernel": jnp.zeros((4, 4, 3, 12))}},
                     "moments": [jnp.zeros((4, 4)), jnp.zeros(())]}

    def specs(self, rules, mesh=None):
        shardings = tree_sharding(self.tree, rules, mesh or self.mesh)
        return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(s.spec)
                for path, s in jax.tree_util.tree_leaves_with_path(shardings)}

    def test_the_longest_axis_that_divides(self):
        specs = self.specs(default_config().sharding)
        self.assertEqual(specs["params/qkv/kernel"], (None, "fsdp"))
        self.assertEqual(specs["params/tall/kernel"], ("fsdp",))
        self.assertEqual(specs["params/patch/kernel"], (None, None, None, "fsdp"))
        self.assertEqual(specs["params/odd/kernel"], ())       # nothing divides
        for name in ("params/qkv/bias", "moments/0", "moments/1"):
            self.assertEqual(specs[name], (), name)

    def test_the_first_rule_wins(self):
        specs = self.specs((("params/qkv", "replicate"), (".*", "fsdp")))
        self.assertNotIn("fsdp", specs["params/qkv/kernel"])
        self.assertEqual(specs["moments/0"], ("fsdp",))
        self.assertNotIn("fsdp", specs["params/qkv/bias"])               # vectors never

    def test_one_shard_replicates_all(self):
        specs = self.specs(((".*", "fsdp"),), make_mesh({"data": 8, "fsdp": 1}))
        self.assertFalse(any("fsdp" in spec for spec in specs.values()))

    def test_takes_shape_structs_and_places_arrays(self):
        shapes = jax.eval_shape(lambda: self.tree)
        shardings = tree_sharding(shapes, default_config().sharding, self.mesh)
        placed = jax.device_put(self.tree, shardings)
        shard = placed["params"]["qkv"]["kernel"].addressable_shards[0].data
        self.assertEqual(shard.shape, (8, 6))

    def test_errors_name_the_leaf(self):
        with self.assertRaisesRegex(ConfigError, r"config.sharding: no rule .* moments/0 \(found "
                                    r"None\); end the rules with \('\.\*', 'replicate'\)"):
            self.specs((("kernel$|bias", "replicate"),))
        with self.assertRaisesRegex(ConfigError, "found 'split'"):
            self.specs(((".*", "split"),))


if __name__ == "__main__":
    absltest.main()
