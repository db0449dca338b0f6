"""Python of the person's own, named on the command line: ``package.module`` on the import path, or ``path/to/file.py``.

Whatever the code raises while it is imported comes through as it is; ``raised_at`` says where that was.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).resolve().parent.parent
_INSTALLED = [Path(sysconfig.get_path(kind)) for kind in ("stdlib", "purelib", "platlib")]


class NoSuchModule(Exception):
    """There is no module, or no file, of that name; the text says so and how to mend it."""


def import_named(name: str, attribute: str, purpose: str) -> ModuleType:
    """The module or the file ``name``, imported once.

    Args:
        attribute: what is wanted from it, for the text of an error.
        purpose: becomes a part of the module's name, so that files of one name for two purposes stay two modules.
    Raises:
        NoSuchModule: there is none.
    """
    if name.endswith(".py"):
        return _import_file(Path(name), purpose)
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # ``python -m zpala`` looks here for modules, the script ``zpala`` does not
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise
        raise NoSuchModule(
            f"there is no module {name!r}. Install it, put its folder on PYTHONPATH, or name the file: path/to/{name}.py:{attribute}"
        ) from None


def raised_at(error: BaseException) -> str:
    """Where ``error`` was raised, as `` (file:line)``: the person's own line, else a package's; empty if it was zpala's."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}:{error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    own = [frame for frame in frames if not _is_within(frame.filename, [PACKAGE, *_INSTALLED])]
    if not own and (not frames or _is_within(frames[-1].filename, [PACKAGE])):
        return ""
    frame = (own or frames)[-1]
    return f" ({frame.filename}:{frame.lineno})"


def _is_within(file: str, folders: Iterable[Path]) -> bool:
    return any(folder in Path(file).parents for folder in folders)


def _import_file(path: Path, purpose: str) -> ModuleType:
    if not path.is_file():
        raise NoSuchModule(f"there is no file {str(path)!r}" + ("" if path.is_absolute() else f" in {Path.cwd()}"))
    name = f"zpala_{purpose}_{path.stem}"
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path.resolve()):
        return known
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise NoSuchModule(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a dataclass looks itself up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
