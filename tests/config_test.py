"""Tests of fs4_jax.config: how settings are refused, remembered and recalled."""

import json
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest, parameterized

from fs4_jax.config import (
    ConfigError,
    default_config,
    evaluation_config,
    flatten,
    recall_config,
    remember_config,
)
from fs4_jax.config_checks import check_config

_ROOT = pathlib.Path(__file__).resolve().parents[1]


def changed(**changes):
    config = default_config()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


class DefaultConfigTest(parameterized.TestCase):

    def test_the_defaults_pass(self):
        check_config(default_config())

    def test_keys_that_scripts_may_count_on(self):
        flat = flatten(default_config())
        for key in ("seed", "total_steps", "batch_size", "num_clusters", "dtype", "mesh.data",
                    "data.name", "data.root", "data.images", "data.labels", "data.eval_images",
                    "data.eval_labels", "data.image_size", "encoder.variant", "encoder.weights",
                    "encoder.frozen", "encoder.block", "checkpoint.every", "checkpoint.keep",
                    "eval.every", "eval.protocol", "profile.steps"):
            self.assertIn(key, flat)

    def test_a_mistyped_key_gets_a_suggestion(self):
        config = default_config().lock()
        with self.assertRaisesRegex(AttributeError, 'Did you mean "batch_size"'):
            config.batchsize = 3
        with self.assertRaisesRegex(AttributeError, 'Did you mean "image_size"'):
            config.data.imagesize = 3

    def test_a_value_of_another_type_is_refused(self):
        with self.assertRaises(TypeError):
            default_config().total_steps = "many"

    def test_command_line(self):
        """Sizes may be one side or (height, width); a mistyped flag gets a suggestion."""
        script = ("import sys; from absl import app, flags; from fs4_jax import main\n"
                  "app.run(lambda _: print(main._CONFIG.value.data.image_size,"
                  " main._CONFIG.value.fs4.pgg.levels))")

        def run(*more):
            return subprocess.run(
                [sys.executable, "-c", script, f"--config={_ROOT}/configs/demo.py", *more],
                capture_output=True, text=True, cwd=_ROOT)

        self.assertEqual(run("--config.data.image_size=64", "--config.fs4.pgg.levels=1,2").stdout,
                         "64 (1, 2)\n")
        self.assertEqual(run("--config.data.image_size=(64,96)").stdout.split("(1")[0],
                         "(64, 96) ")
        wrong = run("--config.batch_sise=4")
        self.assertNotEqual(wrong.returncode, 0)
        self.assertIn('Did you mean "batch_size"', wrong.stderr)


class CheckConfigTest(parameterized.TestCase):

    @parameterized.parameters(
        ("total_steps", 0, "must be at least 1, got 0"),
        ("batch_size", -4, "must be at least 1"),
        ("accumulate_steps", 0, "must be at least 1"),
        ("encoder.remat", "all", "is 'all'; choose one of none, blocks"),
        ("num_clusters", 0, "must be at least 1"),
        ("log_every", 0, "must be at least 1"),
        ("num_clusters", 256, "is 256; masks are 8-bit: at most 255"),
        ("dtype", "float16", "is 'float16'; choose one of float32, bfloat16"),
        ("data.name", "coco", "choose one of folder, scenes, cocostuff"),
        ("data.label_set", "27", "is '27'; folder has none"),
        ("data.crops", "ten", "choose one of random, five"),
        ("fs4.teacher", "none", "choose one of ema, frozen"),
        ("fs4.cae.form", "dense", "is 'dense'; choose one of bilateral, attention"),
        ("fs4.cae.radius", -1, "must be at least 0, got -1"),
        ("fs4.kernel.radius", -1, "must be at least 0, got -1"),
        ("fs4.cae.dilations", (), r"is \(\); give steps of at least one token"),
        ("fs4.cae.dilations", (1, 0), r"is \(1, 0\); give steps"),
        ("fs4.cae.dilations", (1.5,), "give steps"),
        ("eval.protocol", "stego", "is 'stego'; choose one of hungarian, kmeans, "),
        ("eval.bug_compatible", "all", "is 'all'; choose one of stego-extra-clusters"),
        ("profile.steps", (3,), "takes two numbers"),
        ("data.image_size", "big", "is 'big'; give pixels: one side, or"),
        ("data.image_size", (1, 2, 3), "give pixels"),
        ("data.image_size", (), "give pixels"),
        ("data.image_size", 0, "give pixels"),
        ("data.eval_size", (64.0, 64), "give pixels"))
    def test_what_can_not_work_names_its_key(self, key, value, message):
        with self.assertRaisesRegex(ConfigError, f"config.{key} .*{message}"):
            check_config(changed(**{key: value}))

    def test_objects_are_scored_by_their_protocol_and_classes_by_the_others(self):
        scenes, objects = dict(data__name="scenes"), dict(data__label_set="objects")
        of_objects = scenes | objects | dict(eval__protocol="objects")
        for right in (scenes, of_objects, dict(eval__protocol="objects")):     # of a folder's ids
            check_config(changed(**right))
        for wrong, message in (
                (scenes | dict(eval__protocol="objects"), "protocol .*label_set=objects"),
                (scenes | dict(eval__also=("objects",)), "also .*label_set=objects"),
                (scenes | objects, "protocol is 'hungarian'.*--config.eval.protocol=objects"),
                (of_objects | dict(eval__also=("kmeans",)), "also .*--config.eval.also="),
                (of_objects | dict(eval__probes=True), "eval.probes learns classes")):
            with self.subTest(str(wrong)), self.assertRaisesRegex(ConfigError, message):
                check_config(changed(**wrong))

    @parameterized.parameters((64,), ((64, 96),))
    def test_sizes(self, size):
        check_config(changed(data__image_size=size, data__eval_size=size))


class WorkdirTest(parameterized.TestCase):

    def setUp(self):
        super().setUp()
        self.workdir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

    def test_round_trip_keeps_tuples_and_types(self):
        config = changed(data__image_size=(64, 96), fs4__pgg__levels=(1, 3), total_steps=7,
                         data__class_names=("sky", "ground"), optimizer__weight_decay=0.0)
        remember_config(config, self.workdir)
        recalled = recall_config(self.workdir)
        self.assertEqual(flatten(recalled), flatten(config))
        types = {key: type(value) for key, value in flatten(config).items()}
        self.assertEqual({k: type(v) for k, v in flatten(recalled).items()}, types)
        self.assertIsInstance(recalled.sharding[0], tuple)
        remember_config(recalled, self.workdir)              # and again is no change
        self.assertEqual([p.name for p in self.workdir.iterdir()], ["config.json"])

    def test_another_run_is_refused_with_both_values(self):
        remember_config(changed(seed=1), self.workdir)
        before = (self.workdir / "config.json").read_text()
        with self.assertRaises(ConfigError) as caught:
            remember_config(changed(seed=2, fs4__pgg__weight=0.25), self.workdir)
        message = str(caught.exception)
        self.assertIn("config.seed: there 1, now 2", message)
        self.assertIn("config.fs4.pgg.weight: there 0.5, now 0.25", message)
        self.assertEqual(message.count("there "), 2)
        self.assertIn("--workdir", message)
        self.assertEqual((self.workdir / "config.json").read_text(), before)

    @parameterized.parameters(
        ("eval.every", 5), ("checkpoint.keep", 9), ("log_every", 3), ("mesh.fsdp", 2),
        ("data.num_workers", 2), ("data.eval_images", "elsewhere"), ("data.eval_size", (32, 64)),
        ("profile.steps", (2, 4)), ("sharding", ((".*", "replicate"),)),
        ("encoder.remat", "blocks"))
    def test_what_does_not_touch_the_parameters_may_change(self, key, value):
        remember_config(default_config(), self.workdir)
        remember_config(changed(**{key: value}), self.workdir)
        self.assertEqual(flatten(recall_config(self.workdir))[key], value)

    @parameterized.parameters(("total_steps", 5), ("batch_size", 8), ("data.images", "x"),
                              ("data.image_size", 64), ("encoder.frozen", True),
                              ("optimizer.beta2", 0.9), ("dtype", "bfloat16"),
                              ("accumulate_steps", 2))
    def test_what_touches_the_parameters_may_not(self, key, value):
        remember_config(default_config(), self.workdir)
        with self.assertRaisesRegex(ConfigError, f"config.{key}: there "):
            remember_config(changed(**{key: value}), self.workdir)

    def test_a_key_that_came_later_was_its_default(self):
        remember_config(default_config(), self.workdir)
        path = self.workdir / "config.json"
        stored = json.loads(path.read_text())
        del stored["fs4"]["pgg"]["weight"]
        path.write_text(json.dumps(stored))
        with self.assertRaisesRegex(ConfigError, "config.fs4.pgg.weight: there 0.5, now 0.25"):
            remember_config(changed(fs4__pgg__weight=0.25), self.workdir)
        remember_config(default_config(), self.workdir)
        self.assertEqual(recall_config(self.workdir).fs4.pgg.weight, 0.5)

    def test_a_folder_that_is_no_workdir(self):
        with self.assertRaisesRegex(ConfigError, "holds no config.json: train there first"):
            recall_config(self.workdir)

    def test_config_json_is_readable_json(self):
        remember_config(default_config(), self.workdir)
        stored = json.loads((self.workdir / "config.json").read_text())
        self.assertEqual(stored["fs4"]["pgg"]["levels"], [1, 2, 4])
        self.assertEqual(stored["data"]["image_size"], 224)

    def test_evaluation_takes_where_and_how_but_never_the_model(self):
        remember_config(changed(num_clusters=9, data__eval_images="old"), self.workdir)
        given = changed(num_clusters=5, data__eval_images="new", data__ignore_ids=(0,),
                        eval__batch_size=4, mesh__fsdp=2)
        merged = evaluation_config(recall_config(self.workdir), given)
        self.assertEqual(merged.num_clusters, 9)
        self.assertEqual((merged.data.eval_images, merged.data.ignore_ids), ("new", (0,)))
        self.assertEqual((merged.eval.batch_size, merged.mesh.fsdp), (4, 2))

    def test_evaluation_in_another_tree(self):
        remember_config(changed(data__root="old", data__eval_images="own"), self.workdir)
        merged = evaluation_config(recall_config(self.workdir), changed(data__root="new"))
        self.assertEqual((merged.data.root, merged.data.eval_images), ("new", ""))


if __name__ == "__main__":
    absltest.main()
