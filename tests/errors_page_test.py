"""docs/errors.md knows every error that a user can mend, and none that is gone."""

import ast
import pathlib
import re

from absl.testing import absltest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_EXPLAINED = {"ConfigError", "DataError", "WeightsError", "UnreadableImage", "NonFinite",
              "CheckpointError"}


def text_of(node):
    """The text of a message, "{}" for what is put in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}"
                       for part in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "fail":
        return text_of(node.args[0])
    return "{}"


def messages():
    """{text: file} of all explained errors that say something of their own."""
    found = {}
    for path in sorted((_ROOT / "fs4_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(getattr(node, "func", None), "id", None)
            if isinstance(node, ast.Call) and name in _EXPLAINED and node.args:
                text = text_of(node.args[0])
                if re.search("[a-z]{3}", text.replace("{}", "")):
                    found[text] = path.relative_to(_ROOT)
    return found


class ErrorsPageTest(absltest.TestCase):

    def setUp(self):
        super().setUp()
        page = (_ROOT / "docs" / "errors.md").read_text()
        self.entries = re.findall(r"^\| `(.+?)` \| .+ \|$", page, flags=re.M)
        self.known = {entry: re.compile(re.escape(entry).replace(r"\.\.\.", r".*"), re.S)
                      for entry in self.entries}
        self.messages = messages()

    def test_every_message_has_an_entry(self):
        self.assertGreater(len(self.messages), 100)
        missing = [f"{path}: {text}" for text, path in self.messages.items()
                   if not any(known.search(text) for known in self.known.values())]
        self.assertEmpty(missing, "add to docs/errors.md a piece of each message and its cure:\n"
                         + "\n".join(missing))

    def test_no_entry_is_stale(self):
        source = "\n".join([*self.messages, *(
            text_of(node) for path in (_ROOT / "fs4_jax").rglob("*.py")
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant | ast.JoinedStr))])
        stale = [entry for entry, known in self.known.items() if not known.search(source)]
        self.assertEmpty(stale, "no error says this any more: " + ", ".join(stale))
        self.assertLen(set(self.entries), len(self.entries))


if __name__ == "__main__":
    absltest.main()
