"""Every shipped topology file for every size from 1 to 20, run as a user's file would be, apart from the loader."""

from __future__ import annotations

import ast
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "topologies"
FILES = sorted(FOLDER.glob("*.py"))
SIZES = range(1, 21)
Neighbours = Callable[[int, int], set[int]]


def function_of(path: Path) -> Neighbours:
    function: Neighbours = runpy.run_path(str(path))["neighbours"]
    return function


def rows_of(name: str, size: int) -> list[set[int]]:
    function = function_of(FOLDER / f"{name}.py")
    return [function(index, size) for index in range(size)]


def test_these_are_shipped() -> None:
    assert [path.stem for path in FILES] == ["exponential", "full", "hypercube", "ring", "small_world", "star", "torus"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("size", SIZES)
def test_a_usable_graph_or_a_clear_refusal(path: Path, size: int) -> None:
    function = function_of(path)
    if path.stem == "hypercube" and size.bit_count() != 1:
        below, above = 1 << (size.bit_length() - 1), 1 << size.bit_length()
        with pytest.raises(ValueError, match=f"a hypercube needs a power of two, {below} or {above} nodes"):
            function(0, size)
        return
    rows = [function(index, size) for index in range(size)]
    assert all(type(row) is set for row in rows)
    assert all(row <= set(range(size)) - {index} for index, row in enumerate(rows))
    assert all(index in rows[other] for index, row in enumerate(rows) for other in row)
    reached = {0}
    for _ in range(size):
        reached |= {other for index in reached for other in rows[index]}
    assert reached == set(range(size))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_file_draws_its_graph_and_has_one_public_function(path: Path) -> None:
    module = ast.parse(path.read_text(encoding="utf-8"))
    drawing = ast.get_docstring(module) or ""
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef)]
    assert "::\n" in drawing
    assert "─" in drawing
    assert [function.name for function in functions if not function.name.startswith("_")] == ["neighbours"]
    assert all(ast.get_docstring(function) for function in functions)


@pytest.mark.parametrize(
    ("name", "size", "index", "expected"),
    [
        ("full", 4, 2, {0, 1, 3}),
        ("ring", 6, 0, {1, 5}),
        ("ring", 2, 0, {1}),
        ("torus", 12, 5, {4, 6, 1, 9}),
        ("torus", 12, 0, {1, 3, 4, 8}),
        ("torus", 4, 0, {1, 2}),
        ("torus", 7, 0, {1, 6}),
        ("hypercube", 8, 5, {4, 7, 1}),
        ("exponential", 16, 0, {1, 2, 4, 8, 12, 14, 15}),
        ("exponential", 3, 0, {1, 2}),
        ("star", 5, 0, {1, 2, 3, 4}),
        ("star", 5, 3, {0}),
        ("small_world", 8, 0, {1, 7, 5, 2}),
        ("small_world", 8, 5, {4, 6, 0, 2, 7}),
    ],
)
def test_as_drawn(name: str, size: int, index: int, expected: set[int]) -> None:
    assert rows_of(name, size)[index] == expected


def test_the_small_world_lists_its_shortcuts() -> None:
    """The shortcuts in the docstring are those of the function."""
    drawing = ast.get_docstring(ast.parse((FOLDER / "small_world.py").read_text(encoding="utf-8"))) or ""
    shortcut = runpy.run_path(str(FOLDER / "small_world.py"))["_shortcut"]
    listed = [f"{start}-{shortcut(start, 8)}" for start in range(8)]
    assert all(pair in drawing for pair in listed)


@pytest.mark.parametrize("size", [32, 64, 100])
def test_small_world_is_small_and_sparse(size: int) -> None:
    """Few sessions per node, and ways of about log(size) where a ring needs size / 2."""
    rows = rows_of("small_world", size)
    assert 3 <= sum(map(len, rows)) / size <= 4
    assert max(map(len, rows)) <= 8
    for start in range(size):
        reached, steps = {start}, 0
        while len(reached) < size:
            reached |= {other for index in reached for other in rows[index]}
            steps += 1
        assert steps <= 8
