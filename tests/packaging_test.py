"""What is shipped: a light import, no heavy dependency, launchers that say what they would do."""

import contextlib
import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib

from absl.testing import absltest, parameterized

from fs4_jax import config_files
from tests.layers_test import LAYERS

_ROOT = pathlib.Path(__file__).resolve().parents[1]


def output_of(*command):
    return subprocess.run(command, cwd=_ROOT, check=True, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT).stdout


class PackagingTest(parameterized.TestCase):

    def test_import_is_light(self):
        heavy = "jax flax optax numpy scipy grain orbax PIL"
        code = (f"import sys, fs4_jax; "
                f"print([m for m in '{heavy}'.split() if m in sys.modules])")
        self.assertEqual(output_of(sys.executable, "-c", code).strip(), "[]")

    def test_core_needs_no_other_framework(self):
        project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
        for requirement in project["dependencies"]:
            self.assertNotRegex(requirement, "(?i)torch|tensorflow|keras")
        self.assertContainsSubset({"test", "bench", "cuda", "tpu"},
                                  project["optional-dependencies"])
        self.assertLen((_ROOT / "setup.py").read_text().splitlines(), 2)

    def test_the_default_export_needs_no_extra(self):
        """jax.export writes with flatbuffers, which jax does not ask for."""
        project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
        self.assertTrue([x for x in project["dependencies"] if x.startswith("flatbuffers")])

    def test_sources_hold_what_the_readme_names(self):
        lines = (_ROOT / "MANIFEST.in").read_text().splitlines()
        self.assertContainsSubset(
            {"include *.md CITATION.cff", *(f"graft {folder}" for folder in (
                "benchmarks", "colabs", "docs", "launch", "tests"))}, lines)

    @parameterized.parameters(sorted(LAYERS[-1]))
    def test_help_answers_without_jax(self, command):
        """Of every command: its flags are told, and nothing is imported that takes seconds."""
        result = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", f"fs4_jax.{command}", "--help"], cwd=_ROOT,
            text=True, capture_output=True)
        self.assertRegex(result.stdout, rf"fs4_jax/{command.replace('.', '/')}\.py:\n +--")
        imported = set(re.findall(r"\| +([\w.]+)$", result.stderr, flags=re.M))
        self.assertIn("absl", imported)
        if command == "clustering.choose_k":       # its package has functions, which need jax
            return
        self.assertEmpty(imported & {"jax", "flax", "optax", "orbax", "grain", "scipy.optimize"})

    def test_a_mistyped_key_names_the_nearest(self):
        for given, told in (
                ("--config.num_cluster=3", "'num_cluster'; did you mean \"num_clusters\"?"),
                ("--config.num_clusters.a=2", "'a'")):
            result = subprocess.run(
                [sys.executable, "-m", "fs4_jax.main", "--config=configs/demo.py", "--workdir=w",
                 given], cwd=_ROOT, text=True, capture_output=True)
            self.assertEqual((result.returncode, result.stderr),
                             (2, f"error: {given}: there is no such key, {told}\n"))

    def test_a_broken_config_file_is_told_whole(self):
        with tempfile.TemporaryDirectory() as folder:
            config = pathlib.Path(folder, "mine.py")
            config.write_text("from fs4_jax.config import default_config\n\n\ndef get_config():\n"
                              "    return default_config().num_cluster\n")
            result = subprocess.run([sys.executable, "-m", "fs4_jax.main", f"--config={config}",
                                     "--dry_run"], cwd=_ROOT, text=True, capture_output=True)
        self.assertIn("in get_config", result.stderr)

    def test_every_folder_is_shipped_and_the_configs_too(self):
        setuptools = tomllib.loads((_ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
        folders = {".".join(path.parent.relative_to(_ROOT).parts)
                   for path in (_ROOT / "fs4_jax").rglob("__init__.py")}
        self.assertEqual(set(setuptools["packages"]), folders | {"fs4_jax.configs"})
        self.assertEqual(setuptools["package-dir"], {"fs4_jax.configs": "configs"})

    def test_configs_are_found_from_anywhere(self):
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            demo = str(_ROOT / "configs/demo.py")
            for given, found in (
                    ("demo", demo), ("configs/demo.py", demo), ("demo.py:a", f"{demo}:a"),
                    ("mine/demo.py", "mine/demo.py"), ("other", "other")):
                self.assertEqual(config_files.find_config(given), found)
            pathlib.Path("demo.py").touch()
            self.assertEqual(config_files.find_config("demo.py:a"), "demo.py:a")     # one's own
            self.assertEqual(
                config_files.with_shipped_configs(["x", "--config", "demo", "--config.seed=1"]),
                ["x", "--config", demo, "--config.seed=1"])
            with self.assertRaisesRegex(SystemExit, "no such file, .*camvid, .*demo, folder"):
                config_files.with_shipped_configs(["x", "--config=demi"])

    @parameterized.parameters("demo.sh", "test.sh")
    def test_launchers(self, name):
        script = str(_ROOT / "launch" / name)
        output_of("bash", "-n", script)
        self.assertRegex(output_of("bash", script, "--dry-run"), "-m (fs4_jax.main|pytest)")


if __name__ == "__main__":
    absltest.main()
