"""CONTRIBUTING.md: what it says is done in a copy of the package, which then trains."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import numpy as np
from absl.testing import absltest
from PIL import Image

_ROOT = pathlib.Path(__file__).resolve().parents[1]


def follow(page, root):
    """Does what the code blocks of the page say in the tree `root`."""
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.S):
        head, content = block.split("\n", 1)
        name, where = re.fullmatch(r"# (\S+): (a new file|into .+)", head).groups()
        path = root / name
        if where == "a new file":
            assert not path.exists(), path
            path.write_text(content)
        else:
            path.write_text(inserted(path.read_text(), where.removeprefix("into "), content))


def inserted(text, name, content):
    """The text with lines more behind the bracket that opens where `name` begins."""
    if name == "the imports":
        at = re.search(r"^from fs4_jax", text, flags=re.M).start()
        return text[:at] + content + text[at:]
    begin = re.search(rf"^\s*{re.escape(name)}\b", text, flags=re.M).start()
    # The first line that ends in an open bracket; or a set or dict that begins in it.
    at = re.compile(r".*[\[{(]\n|(.* = |^ {4})\{", flags=re.M).search(text, begin).end()
    return text[:at] + ("" if text[at - 1] == "\n" else "\n") + content + text[at:]


def write_leaves(root):
    """Photographs of a light leaf on dark ground, with its edge in the masks."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices((40, 40))
    for split, number in (("train", 8), ("val", 3)):
        (root / split).mkdir(parents=True)
        for i in range(number):
            away = np.hypot(rows - rng.integers(14, 26), columns - rng.integers(14, 26))
            label = np.where(away < 11, 1, np.where(away < 13, 9, 0)).astype(np.uint8)
            image = np.where(away[..., None] < 12, 210, 60) + rng.integers(-20, 20, (40, 40, 3))
            Image.fromarray(image.astype(np.uint8)).save(root / split / f"{i}.jpg")
            Image.fromarray(label).save(root / split / f"{i}_mask.png")


class ContributingTest(absltest.TestCase):

    def setUp(self):
        super().setUp()
        self.dir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        for folder in ("fs4_jax", "configs", "tests"):
            shutil.copytree(_ROOT / folder, self.dir / folder,
                            ignore=shutil.ignore_patterns("__pycache__"))
        follow((_ROOT / "CONTRIBUTING.md").read_text(), self.dir)

    def run_python(self, *arguments):
        result = subprocess.run(
            [sys.executable, *arguments], cwd=self.dir, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env=os.environ | {
                "PYTHONPATH": str(self.dir), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
                "XLA_FLAGS": "--xla_force_host_platform_device_count=1"})
        self.assertEqual(result.returncode, 0, result.stdout)
        return result.stdout

    def test_the_example_trains_and_is_scored(self):
        write_leaves(self.dir / "leaves")
        output = self.run_python("-m", "fs4_jax.main", "--config=configs/leaves.py",
                                 "--workdir=W", f"--config.data.root={self.dir}/leaves")
        self.assertIn("nearest colour on 8 images", output)
        scores = json.loads((self.dir / "W/eval.json").read_text())
        self.assertEqual(scores["protocol"], "leaves-m2o")
        self.assertEqual(scores["class_names"], ["ground", "leaf"])
        self.assertGreater(scores["miou"], 60)        # a leaf is light: colour finds it
        self.run_python("-m", "fs4_jax.predict", "--workdir=W", "--images=leaves/val",
                        "--out=masks")

    def test_the_house_stands(self):
        self.run_python("-m", "tests.layers_test")


if __name__ == "__main__":
    absltest.main()
