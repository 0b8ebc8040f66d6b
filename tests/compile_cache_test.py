"""The compilation cache: on by default, jax's own settings stand; what a start took is told."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

from absl.testing import absltest, parameterized

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_CODE = """
import jax
from fs4_jax.compile_cache import StartUp, keep_compiled_programs
keep_compiled_programs()
start_up = StartUp()
jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((8, 8)))
print(start_up.told())
jax.jit(lambda x: x + 1)(1.0)
assert start_up.told() == ""
print(jax.config.jax_compilation_cache_dir)
"""


class CompileCacheTest(parameterized.TestCase):

    def start(self, folder, **settings):
        env = {name: value for name, value in os.environ.items()
               if name != "JAX_COMPILATION_CACHE_DIR"} | settings
        env |= {"XDG_CACHE_HOME": f"{folder}/cache", "JAX_PLATFORMS": "cpu",
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0"}
        return subprocess.run([sys.executable, "-c", _CODE], cwd=_ROOT, env=env, check=True,
                              text=True, stdout=subprocess.PIPE).stdout.splitlines()

    def test_a_second_start_reads_what_the_first_compiled(self):
        with tempfile.TemporaryDirectory() as folder:
            lines = [self.start(folder)[0] for _ in range(2)]
            form = r"first step after [\d.]+ s, [\d.]+ s for (\d+) programs, (\d+) of them from"
            (number, none), (again, read) = (re.match(form, line).groups() for line in lines)
            self.assertEqual((none, again), ("0", number))
            self.assertEqual(read, number)
            self.assertIn(f"{folder}/cache/fs4_jax/compiled/", lines[0])

    @parameterized.parameters(
        (dict(JAX_ENABLE_COMPILATION_CACHE="0"), "no cache is kept", "None"),
        (dict(JAX_COMPILATION_CACHE_DIR="{}/mine"), "{}/mine", "{}/mine"))
    def test_jaxs_own_settings_stand(self, settings, told, where):
        with tempfile.TemporaryDirectory() as folder:
            lines = self.start(folder, **{k: v.format(folder) for k, v in settings.items()})
            self.assertIn(told.format(folder), lines[0])
            self.assertEqual(lines[1], where.format(folder))
            self.assertFalse(pathlib.Path(folder, "cache").exists())


if __name__ == "__main__":
    absltest.main()
