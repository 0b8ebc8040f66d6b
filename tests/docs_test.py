"""The pages of docs/: the API is the code's, links lead somewhere, tables are printed ones."""

import pathlib
import re
import subprocess
import sys

from absl.testing import absltest

from fs4_jax.evaluation.protocols import table

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PAGES = [*_ROOT.glob("*.md"), *(_ROOT / "docs").glob("*.md")]


class DocsTest(absltest.TestCase):

    def test_the_api_page_is_made_of_the_docstrings(self):
        code = "import make_api, sys; sys.exit(make_api.PAGE.read_text() != make_api.page())"
        result = subprocess.run([sys.executable, "-c", code], cwd=_ROOT, env={
            "PYTHONPATH": f"{_ROOT}:{_ROOT / 'docs'}", "JAX_PLATFORMS": "cpu"},
            capture_output=True, text=True)
        self.assertEqual(result.returncode, 0,
                         f"docs/api.md is old: run python docs/make_api.py\n{result.stderr}")

    def test_the_protocols_are_those_of_the_code(self):
        self.assertIn(table(), (_ROOT / "docs" / "protocols.md").read_text())

    def test_links_lead_somewhere(self):
        for page in _PAGES:
            for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text()):
                self.assertTrue((page.parent / link).exists(), f"{page.name}: {link}")

    def test_each_page_can_be_found(self):
        """From the README, over docs/start.md."""
        told = (_ROOT / "README.md").read_text() + (_ROOT / "docs" / "start.md").read_text()
        for page in (_ROOT / "docs").glob("*.md"):
            self.assertIn(f"{page.name})", told)

    def test_what_is_named_exists(self):
        """Modules that are run, configs, notebooks and benchmarks that the pages name."""
        for page in _PAGES:
            text = page.read_text()
            for module in re.findall(r"python -m ((?:fs4_jax|benchmarks)[\w.]*\w)", text):
                if module == "benchmarks.NAME":
                    continue
                path = _ROOT / module.replace(".", "/")
                self.assertTrue(path.with_suffix(".py").exists() or (path / "__init__.py").exists(),
                                f"{page.name}: {module}")
            for path in re.findall(r"\b((?:configs|colabs|launch|benchmarks|docs)/\w+\.\w+)", text):
                if path not in ("configs/leaves.py",):          # CONTRIBUTING's own example
                    self.assertTrue((_ROOT / path).exists(), f"{page.name}: {path}")


if __name__ == "__main__":
    absltest.main()
