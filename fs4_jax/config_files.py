"""Where the files of configs/ are: beside the package in a clone, inside it when installed."""

import pathlib
import re
import sys
import traceback

from absl import app

_PACKAGE = pathlib.Path(__file__).resolve().parent
_FLAG = "config"


def shipped_folder():
    """The folder of the configs that came with the package."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def shipped_configs():
    """Their names, sorted: "demo", "folder", ..."""
    return sorted(path.stem for path in shipped_folder().glob("*.py") if path.stem != "__init__")


def find_config(given):
    """The path of what --config names, FILE.py or FILE.py:ARG, with the argument.

    A file that is there is taken as it is; otherwise `configs/demo.py`, `demo.py` and `demo` are
    the config of that name that came with the package. Anything else is returned as it is.
    """
    path, colon, argument = given.partition(":")
    if pathlib.Path(path).is_file():
        return given
    asked = pathlib.PurePosixPath(path.replace("\\", "/"))
    if str(asked.parent) in (".", "configs") and asked.suffix in ("", ".py"):
        shipped = shipped_folder() / f"{asked.stem}.py"
        if shipped.is_file():
            return f"{shipped}{colon}{argument}"
    return given


def with_shipped_configs(argv):
    """argv with the value of --config found by `find_config`: for `absl.app.run(main, argv=...)`.

    Exits with a list of the shipped configs where the file is nowhere.
    """
    argv = list(argv)
    for i, word in enumerate(argv[1:], start=1):
        name, equals, value = word.partition("=")
        if name not in (f"-{_FLAG}", f"--{_FLAG}"):
            continue
        if equals:
            argv[i] = f"{name}={_checked(value)}"
        elif i + 1 < len(argv):
            argv[i + 1] = _checked(argv[i + 1])
    return argv


def parse_flags(argv):
    """For `absl.app.run(main, flags_parser=parse_flags)`: a mistyped key is one line, status 2."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:     # also a config file's own, which are told whole
        frames = traceback.extract_tb(error.__traceback__)
        told = str(error).replace("\\", "")
        key = re.search(r"lookup: .*\b(\w+)\W*$", told) or re.search(r"'(\w+)'", told)
        if not key or not any(frame.filename.endswith("config_path.py") for frame in frames):
            raise
        near = re.search(r'Did you mean "(\w+)"', told)
        word = next((word for word in argv if key[1] in re.split(r"[.=]", word)), f"--{_FLAG}")
        print(f"error: {word}: there is no such key, '{key[1]}'"
              + (f'; did you mean "{near[1]}"?' if near else ""), file=sys.stderr)
        sys.exit(2)


def _checked(given):
    found = find_config(given)
    if not pathlib.Path(found.partition(":")[0]).is_file():
        raise SystemExit(f"error: --config={given}: there is no such file, and the configs that "
                         f"came with the package are {', '.join(shipped_configs())}")
    return found
