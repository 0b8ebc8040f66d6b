"""The pages of docs/: the API is the code's, links lead somewhere, tables are printed ones."""

import pathlib
import re
import runpy
import subprocess
import sys

from absl.testing import absltest

from fs4_jax.config_checks import check_config
from fs4_jax.evaluation.protocols import table

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PAGES = [*_ROOT.glob("*.md"), *(_ROOT / "docs").glob("*.md")]
_WITHOUT_PICTURE = {"api.md": "made of the docstrings", "errors.md": "what a terminal says",
                    "clustering.md": "tables of numbers; its bars are in performance.md"}
_LARGEST_PICTURE = 80_000       # bytes


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

    def test_each_page_has_a_picture(self):
        """Small, told in words too, and made by a command that the page names."""
        for page in (_ROOT / "docs").glob("*.md"):
            pictures = re.findall(r"!\[([^\]]+)\]\(([\w/.]+)\)", page.read_text())
            if page.name not in _WITHOUT_PICTURE:
                self.assertNotEmpty(pictures, f"{page.name} has no picture")
                self.assertRegex(page.read_text(), r"python (docs/pictures\.py|-m benchmarks\.\w+)",
                                 f"{page.name} does not say what makes its picture")
            for words, picture in pictures:
                self.assertGreater(len(words.split()), 1, f"{page.name}: {picture}")
                self.assertLess((page.parent / picture).stat().st_size, _LARGEST_PICTURE, picture)

    def test_each_picture_has_its_maker_and_its_page(self):
        makers = "".join(file.read_text() for file in (_ROOT / "docs").glob("*.py"))
        shown = "".join(page.read_text() for page in _PAGES)
        for picture in (_ROOT / "docs").glob("*.png"):
            self.assertIn(f"{picture.name})", shown)
            if picture.name != "scribble.png":          # of benchmarks/scribble_pictures.py
                self.assertIn(f'save("{picture.name}"' if f'save("{picture.name}"' in makers
                              else f'screenshot("{picture.name}"', makers)

    def test_the_bars_are_of_all_rows_with_numbers(self):
        """docs/performance.md: a row whose numbers could not be read would miss in the picture."""
        sys.path.insert(0, str(_ROOT / "docs"))
        self.addCleanup(sys.path.remove, str(_ROOT / "docs"))
        from chart_pictures import peers
        page = (_ROOT / "docs" / "performance.md").read_text()
        rows = peers(page)
        self.assertLen(rows, len(re.findall(r"^\|.*\| [\d.]+[^|]* \|$", page, flags=re.M)))
        self.assertGreater(len(rows), 10)
        for what, peer, ratios in rows:
            self.assertTrue(what and peer and 0.1 < min(ratios) <= max(ratios) < 100, what)

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

    def test_variants_of_configs_that_are_named_can_be_made(self):
        text = "".join(page.read_text() for page in [*_PAGES, *(_ROOT / "configs").glob("*.py")])
        named = set(re.findall(r"\b(configs/\w+\.py):([A-Za-z0-9]+(?:/\d+)?)", text))
        self.assertIn(("configs/camvid.py", "tuned"), named)
        for path, variant in sorted(named - {("configs/cocostuff.py", "SIZE")}):     # SIZE/PATCH
            with self.subTest(path, variant=variant):
                check_config(runpy.run_path(_ROOT / path)["get_config"](variant))


if __name__ == "__main__":
    absltest.main()
