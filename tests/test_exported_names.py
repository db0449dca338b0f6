"""``__all__`` of every package is complete and true (its order is the linter's)."""

from __future__ import annotations

import importlib
import types
from pathlib import Path

import pytest

import zpala

ROOT = Path(zpala.__file__).parent
PACKAGES = sorted(
    ".".join(("zpala", *path.parent.relative_to(ROOT).parts))
    for path in ROOT.rglob("__init__.py")
    if "import" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", PACKAGES)
def test_all_is_complete(name: str) -> None:
    package = importlib.import_module(name)
    public = {
        key
        for key, value in vars(package).items()
        if not key.startswith("_") and key != "annotations" and not isinstance(value, types.ModuleType)
    }
    exported = list(package.__all__)
    assert len(exported) == len(set(exported))
    assert public | {key for key in exported if key.startswith("__")} == set(exported)


def test_the_version_is_one() -> None:
    assert zpala.__version__.count(".") == 2
