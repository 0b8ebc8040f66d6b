"""Packages that import a name when it is asked for: commands in them answer --help at once."""

import importlib


def lazy_names(package, homes):
    """(__getattr__, __dir__, __all__) of a package; homes: {name: the module in it that has it}."""
    def getter(name):
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    names = sorted(homes)
    return getter, lambda: names, names
