"""The notebooks: tidy in git, and run from top to bottom, in kernels of their own, with few steps.

`FS4_COLABS_OUT=DIR` keeps executed copies there, to look at their pictures.
"""

import ast
import json
import os
import pathlib
import tempfile

from absl.testing import absltest, parameterized

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_NOTEBOOKS = sorted((_ROOT / "colabs").glob("*.ipynb"))
_MOST_LINES, _LONGEST_LINE = 25, 100

# What takes the place of each settings cell's values; in this order: the first trains an encoder,
# which others are given.
_ENCODER = "workdirs/encoder"
_SMALL = {
    "pretrain_to_segments": dict(PRETRAIN_STEPS=2, STEPS=2, BATCH=8, TRAIN=8, VAL=8, SIDE=32, K=10,
                                 ENCODER=_ENCODER),
    "demo": dict(STEPS=4, BATCH=8, TRAIN=8, VAL=8, SIDE=32),
    "your_images": dict(WEIGHTS=_ENCODER, CANDIDATES=(2, 4), STEPS=2, SIDE=32, BATCH=8),
    "alignseg": dict(WEIGHTS=_ENCODER, STEPS=2, BATCH=8, TRAIN=8, VAL=8, SIDE=32),
    "scribbles": dict(WEIGHTS=_ENCODER, STEPS=2, BATCH=8, SIDE=32, TRAIN=8, VAL=8),
}
# One device, and quick compilation: nothing here is measured.
_ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
                "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}


def read(path):
    return json.loads(path.read_text())


def source(cell):
    return "".join(cell["source"])


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


class ColabsTest(parameterized.TestCase):

    def test_there_is_a_setting_for_each(self):
        self.assertCountEqual(_SMALL, [path.stem for path in _NOTEBOOKS])

    @parameterized.parameters(*(path.stem for path in _NOTEBOOKS))
    def test_tidy(self, name):
        notebook = read(_ROOT / "colabs" / f"{name}.ipynb")
        cells = code_cells(notebook)
        self.assertIn("pip", source(cells[0]))
        self.assertEqual(source(cells[0]), source(code_cells(read(_NOTEBOOKS[0]))[0]))
        self.assertEqual([i for i, cell in enumerate(cells)
                          if "parameters" in cell["metadata"].get("tags", ())], [1])
        for cell in cells:
            ast.parse(source(cell))
            self.assertEqual((cell["outputs"], cell["execution_count"]), ([], None),
                             "outputs do not belong into git")
            lines = source(cell).splitlines()
            self.assertLessEqual(len(lines), _MOST_LINES, source(cell))
            self.assertLessEqual(max(map(len, lines)), _LONGEST_LINE, source(cell))
        settings = {target.id for node in ast.walk(ast.parse(source(cells[1])))
                    if isinstance(node, ast.Assign) for target in ast.walk(node.targets[0])
                    if isinstance(target, ast.Name)}
        self.assertContainsSubset(_SMALL[name], settings)

    def test_run_from_top_to_bottom(self):
        try:
            import nbclient
            import nbformat
        except ImportError:
            self.skipTest("needs nbclient and ipykernel: pip install '.[test]'")
        folder = self.enterContext(tempfile.TemporaryDirectory())
        environment = os.environ | _ENVIRONMENT | {
            "PYTHONPATH": f"{_ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        for name, small in _SMALL.items():
            notebook = nbformat.read(_ROOT / "colabs" / f"{name}.ipynb", as_version=4)
            cells = code_cells(notebook)
            cells[1]["source"] += "".join(f"\n{key} = {value!r}" for key, value in small.items())
            client = nbclient.NotebookClient(notebook, timeout=1800, kernel_name="python3",
                                             resources={"metadata": {"path": folder}})
            client.execute(env=environment)        # raises where a cell does
            if os.environ.get("FS4_COLABS_OUT"):
                nbformat.write(notebook, pathlib.Path(os.environ["FS4_COLABS_OUT"],
                                                      f"{name}.ipynb"))
            with self.subTest(f"pictures of {name}"):
                for section, pictures in self.sections(notebook).items():
                    self.assertGreater(pictures, 0, section)
        for path in ("workdirs/colab_demo/predicted/contact_sheet.jpg",
                     "workdirs/colab_yours_masks.zip"):
            self.assertTrue(pathlib.Path(folder, path).exists(), path)
        classes = json.loads(pathlib.Path(
            folder, "workdirs/colab_yours_masks/classes.json").read_text())
        self.assertEqual(classes[0]["name"], "first thing")

    def sections(self, notebook):
        """{heading: number of pictures below it}."""
        counts, heading = {}, None
        for cell in notebook["cells"]:
            for line in source(cell).splitlines() if cell["cell_type"] == "markdown" else ():
                if line.startswith("## "):
                    heading, counts[line] = line, 0
            if heading and cell["cell_type"] == "code":
                counts[heading] += sum(bool({"image/png", "image/jpeg", "text/html"}
                                            & output.get("data", {}).keys())
                                       for output in cell["outputs"])
        return counts


if __name__ == "__main__":
    absltest.main()
