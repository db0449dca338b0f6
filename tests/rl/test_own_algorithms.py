"""Algorithms of a person's own: how they are found, how their settings are filled, and what is said when that fails."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zpala.rl.a2c import A2C
from zpala.rl.algorithms import ALGORITHMS, AlgorithmError, build_settings, find_algorithm

GOOD = """
from __future__ import annotations
from dataclasses import dataclass
from zpala.rl.a2c import A2C, A2CSettings

@dataclass(frozen=True)
class MineSettings(A2CSettings):
    rate: float = 0.5
    sizes: tuple[int, ...] = ()
    kind: str = "plain"

class Mine(A2C):
    Settings = MineSettings

class Other(A2C):
    pass

number = 3
class NoAlgorithm:
    pass
"""
ABSTRACT = """
from zpala.rl.algorithm import Algorithm
class Mine(Algorithm):
    def act(self, rollout, t, start, stop):
        ...
"""
NO_SETTINGS = ABSTRACT + "    def update(self, *a): ...\n    def choose(self, *a): ...\n"
NEEDS = """
from dataclasses import dataclass
from zpala.rl.a2c import A2C

@dataclass(frozen=True)
class MineSettings:
    gamma: float
    num_steps: int
    depth: int

    def __post_init__(self):
        if self.depth < 1:
            raise ValueError("depth must be at least 1")

class Mine(A2C):
    Settings = MineSettings
"""


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test imports is gone after it."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def error_of(name: str) -> str:
    with pytest.raises(AlgorithmError) as caught:
        find_algorithm(name)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_class_of_a_file_and_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, GOOD)
    found = find_algorithm(f"{path}:Mine")
    assert issubclass(found, A2C)
    assert found.__name__ == "Mine"
    assert find_algorithm(f"{path}:Mine") is found, "imported once"
    monkeypatch.chdir(tmp_path)
    assert find_algorithm("mine.py:Mine") is found
    of_module = find_algorithm("mine:Mine")
    assert of_module.__module__ == "mine"
    assert of_module is not found


def test_names_that_zpala_brings_along_mean_what_they_did() -> None:
    assert {name: find_algorithm(name) for name in ALGORITHMS} == ALGORITHMS


def test_an_unknown_name_is_answered_with_the_list_and_the_closest() -> None:
    text = error_of("vtrac")
    assert "Did you mean 'vtrace'?" in text
    for name in ALGORITHMS:
        assert name in text
    assert "Did you mean" not in error_of("quixotic")


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        (None, "absent.py:Mine", ("absent.py", "there is no file")),
        (None, "absent_module:Mine", ("no module 'absent_module'", "PYTHONPATH", "path/to/absent_module.py:Mine")),
        (GOOD, "mine.py:Mien", ("has no class 'Mien'", "its algorithms are Mine, Other")),
        ("x = 1\n", "mine.py:Mine", ("has no class 'Mine'", "nothing there is a subclass")),
        (GOOD, "mine.py:NoAlgorithm", ("a class, but no subclass of Algorithm", "class NoAlgorithm(Algorithm)")),
        (GOOD, "mine.py:number", ("no class, but a int",)),
        (ABSTRACT, "mine.py:Mine", ("does not define choose, update", "zpala/rl/algorithm.py")),
        (NO_SETTINGS, "mine.py:Mine", ("Mine.Settings", "dataclass")),
        ("import os\n\nraise OSError('the arm is gone')\n", "mine.py:Mine", ("OSError: the arm is gone", "mine.py:3)")),
        ("import no_such_package\n", "mine.py:Mine", ("No module named 'no_such_package'", "mine.py:1)")),
        ("import no_such_package\n", "mine:Mine", ("No module named 'no_such_package'", "mine.py:1)")),
        ("def f(:\n", "mine.py:Mine", ("SyntaxError", "mine.py:1)")),
        ("from zpala.rl import AtariSettings, Rollout\n\nRollout(None, 0, 0)\n", "mine.py:Mine", ("ValueError", "mine.py:3)")),
        ("raise SystemExit(3)\n", "mine.py:Mine", ("SystemExit: 3", "mine.py:1)")),
        ("import json\njson.loads('{')\n", "mine.py:Mine", ("JSONDecodeError", "mine.py:2)")),
    ],
)
def test_each_mistake_is_named(
    text: str | None, name: str, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        write(tmp_path, text)
    said = error_of(name)
    assert name in said
    for word in words:
        assert word in said


def test_a_file_that_failed_is_read_again_once_it_is_mended(tmp_path: Path) -> None:
    path = write(tmp_path, "raise OSError\n")
    assert "OSError" in error_of(f"{path}:Mine")
    write(tmp_path, GOOD)
    assert find_algorithm(f"{path}:Mine").__name__ == "Mine"


# ---- settings


def fill(folder: Path, text: str, args: dict[str, object], **values: object) -> object:
    return build_settings(f"{write(folder, text)}:Mine", {**values, "args": args})


def test_settings_come_from_fields_of_the_same_name_and_from_the_table(tmp_path: Path) -> None:
    filled = fill(tmp_path, GOOD, {"rate": 1, "sizes": [3, 4]}, gamma=0.5, name="mine.py:Mine", unknown=1)
    assert (filled.gamma, filled.rate, filled.sizes, filled.kind) == (0.5, 1.0, (3, 4), "plain")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, "needs depth, which has no default: give --algorithm-arg depth=... (it has gamma, num_steps, depth)"),
        ({"depht": 3}, "algorithm.args.depht: FILE:Mine has no such setting (it has gamma, num_steps, depth); did you mean 'depth'?"),
        ({"gamma": 0.5, "depth": 2}, "algorithm.args.gamma: the run file has a field of its own for gamma"),
        ({"depth": "deep"}, "algorithm.args.depth = 'deep' is not allowed: expected int"),
        ({"depth": 1.5}, "algorithm.args.depth = 1.5 is not allowed: expected int"),
        ({"depth": True}, "algorithm.args.depth = True is not allowed: expected int"),
        ({"depth": 0}, "its settings are refused: ValueError: depth must be at least 1"),
    ],
)
def test_settings_that_are_unknown_missing_or_wrong_are_refused(args: dict[str, object], words: str, tmp_path: Path) -> None:
    assert fill(tmp_path, NEEDS, {"depth": 2}, gamma=0.5, num_steps=7).num_steps == 7  # type: ignore[attr-defined]
    with pytest.raises(AlgorithmError) as caught:
        fill(tmp_path, NEEDS, args, gamma=0.5, num_steps=7)
    assert words.replace("FILE", str(tmp_path / "mine.py")) in str(caught.value)


@pytest.mark.parametrize(
    ("hint", "given", "value"),
    [
        ("Path", "weights/a.pt", Path("weights/a.pt")),
        ("tuple[int, ...] | None", [3, 4], (3, 4)),
        ("Color", "red", "Color.RED"),
        ("float", 1, 1.0),
    ],
)
def test_settings_may_be_of_any_type_that_can_be_written(hint: str, given: object, value: object, tmp_path: Path) -> None:
    text = f"""
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from zpala.rl.a2c import A2C

class Color(Enum):
    RED = "red"

@dataclass(frozen=True)
class MineSettings:
    setting: {hint}

class Mine(A2C):
    Settings = MineSettings
"""
    found = fill(tmp_path, text, {"setting": given}).setting  # type: ignore[attr-defined]
    assert (str(found) if hint == "Color" else found) == value


def test_a_type_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    text = NEEDS.replace("depth: int", "depth: torch.device").replace("from dataclasses", "import torch\nfrom dataclasses")
    with pytest.raises(AlgorithmError, match=r"algorithm\.args\.depth: a <class 'torch\.device'> cannot be given by a run file"):
        fill(tmp_path, text, {"depth": "cpu"}, gamma=0.5, num_steps=7)


def test_zpalas_own_algorithms_take_no_setting_from_the_table() -> None:
    values: dict[str, object] = {"gamma": 0.5, "epochs": 3}
    with pytest.raises(AlgorithmError, match=r"algorithm\.args\.epochs: the run file has a field of its own"):
        build_settings("ppo", {**values, "args": {"epochs": 4}})
    with pytest.raises(AlgorithmError, match=r"algorithm\.args\.speed: ppo has no such setting"):
        build_settings("ppo", {**values, "args": {"speed": 4}})
