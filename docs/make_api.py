"""Writes docs/api.md from the docstrings: python docs/make_api.py (a test checks that it is so)."""

import importlib
import inspect
import pathlib

PAGE = pathlib.Path(__file__).with_name("api.md")

# (module, names; () for its __all__)
PUBLIC = (
    ("fs4_jax.segmenter", ("Segmenter",)),
    ("fs4_jax.train", ("train",)),
    ("fs4_jax.predict", ("predict",)),
    ("fs4_jax.config", ("default_config", "recall_config")),
    ("fs4_jax.cluster_names", ("mask_classes", "MaskClasses", "read_cluster_names",
                               "write_cluster_names", "check_cluster_names", "ClusterNames")),
    ("fs4_jax.models", ()),
    ("fs4_jax.clustering", ()),
    ("fs4_jax.clustering.choose_k", ("measure", "recommend", "Candidate")),
    ("fs4_jax.affinity", ()),
    ("fs4_jax.evaluation", ()),
    ("fs4_jax.evaluation.pictures", ("palette", "colour_labels", "colour_tokens", "overlay",
                                     "save_indexed_png", "contact_sheet")),
    ("fs4_jax.methods", ("Method",)),
)


def page():
    """The page, Markdown."""
    parts = ["# API\n\nPublic names and what they promise, written from the docstrings by "
             "`python docs/make_api.py`. Arrays\nare NumPy's or jax's; [b, h, w, d] are batch, "
             "rows, columns and channels.\n"]
    for name, names in PUBLIC:
        module = importlib.import_module(name)
        parts.append(f"\n## `{name}`\n\n{first_line(module)}\n")
        for public in names or sorted(module.__all__):
            parts.append(entry(public, getattr(module, public)))
    return "".join(parts)


def entry(name, thing):
    """A heading with the signature, and the docstring as it stands."""
    if not callable(thing):
        told = ": " + ", ".join(f"`{x}`" for x in thing) if isinstance(thing, dict) else \
            f", {thing!r}"
        return f"\n### `{name}`\n\n{type(thing).__name__}{told}.\n"
    told = inspect.getdoc(thing) or ""
    for method, function in vars(thing).items() if inspect.isclass(thing) else ():
        own = inspect.isfunction(function) and function.__module__.startswith("fs4_jax")
        if own and function.__doc__ and (method == "__call__" or method[0] != "_"):
            told += f"\n\n.{method}{inspect.signature(function)}\n" + indented(
                inspect.getdoc(function))
    return f"\n### `{name}`\n\n```\n{name}{signature(thing)}\n\n{told}\n```\n"


def signature(thing):
    """Of a function or a small class; a Linen module's attributes are in its docstring."""
    text = str(inspect.signature(thing)) if inspect.isroutine(thing) or not (
        issubclass(thing, Exception) or hasattr(thing, "apply")
        or getattr(thing, "_is_protocol", False)) else ""
    return text.replace("<class 'jax.numpy.float32'>", "float32")


def indented(text):
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())


def first_line(module):
    return inspect.getdoc(module).split("\n\n")[0].replace("\n", " ")


if __name__ == "__main__":
    PAGE.write_text(page())
