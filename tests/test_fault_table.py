"""The table of faults in tests/README.md names tests that exist, and every row once."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from zpala.sim.faults import NAMES

TESTS = Path(__file__).resolve().parent
TABLE = (TESTS / "README.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`(?:(\w+)/)?(\w+)::(\w+)`")


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


def rows() -> Iterator[tuple[int, str]]:
    yield from ((int(number), text) for number, text in re.findall(r"^\| (\d+) \| (.+) \|$", TABLE, re.MULTILINE))


def test_every_test_it_names_exists() -> None:
    named = [match for _, text in rows() for match in NAMED.findall(text)]
    assert len(named) > 80
    missing = [
        f"{folder}/{file}::{name}"
        for folder, file, name in named
        if not (path := TESTS / folder / f"test_{file}.py").exists() or f"test_{name}" not in functions(path)
    ]
    assert not missing


def test_every_row_stands_once_and_says_something() -> None:
    numbers = [number for number, _ in rows()]
    assert numbers == sorted(set(numbers))
    classes = {
        name for _, text in rows() for found in re.findall(r"sim ((?:`\w+`(?:, )?)+)", text) for name in re.findall(r"`(\w+)`", found)
    }
    assert classes == set(NAMES)
    assert all(NAMED.search(text) or "sim" in text for _, text in rows())
