"""Compiled functions give what plain ones give, within rounding; what cannot be compiled runs as ever."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.rl.test_graphs import CASES, CPU, agent_of, learn
from zpala.rl.compiled import Compiled, missing_compiler
from zpala.rl.execution import Fixed

VECTORS = [case for case, (_, _, given, network, _) in CASES.items() if given.observation_dtype != "uint8" and "core" not in network]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What torch.compile remembers of one test is nothing to the next."""
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # torch of itself
@pytest.mark.parametrize(("case", "backend"), [*((case, "aot_eager") for case in VECTORS), ("a2c", "inductor")])
def test_compiling_changes_nothing_but_the_rounding(case: str, backend: str) -> None:
    if backend == "inductor" and missing_compiler() is not None:
        pytest.skip("no C++ compiler")
    given, expected = CASES[case][2], CASES[case][4]
    plain, other = agent_of(case, CPU), agent_of(case, CPU)
    other.executor = compiled = Compiled(CPU, backend)
    for wanted, found in zip(learn(plain, given, CPU), learn(other, given, CPU), strict=True):
        for one, another in zip(wanted, found, strict=True):
            torch.testing.assert_close(another, one, rtol=1e-3, atol=1e-4)
    assert compiled.compiled == expected
    assert not compiled.refused


class Doubling:
    calls = 0

    def twice(self, inputs: tuple[Tensor], fixed: Fixed) -> Tensor:
        self.calls += 1
        return 2.0 * inputs[0] + fixed["more"]


def test_what_cannot_be_compiled_runs_as_ever_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    def broken(graph: Any, example_inputs: Any) -> Any:
        raise RuntimeError("no such instruction")

    executor, doubling = Compiled(CPU, broken), Doubling()
    for number in range(3):
        assert torch.equal(
            executor.run(doubling.twice, (torch.ones(2) * number,), {"more": torch.ones(2)}), torch.ones(2) * (2 * number + 1)
        )
    assert executor.refused == {"Doubling.twice"}
    assert not executor.compiled
    (told,) = [text for text in caplog.messages if "Doubling.twice is not compiled" in text]
    assert "no such instruction" in told


def test_a_compiled_function_is_not_python_any_more() -> None:
    """After it has been compiled nobody asks the method: it would count."""
    seen = []

    def backend(graph: Any, example_inputs: Any) -> Any:
        seen.append(graph)
        return graph.forward

    executor, doubling = Compiled(CPU, backend), Doubling()
    for _ in range(5):
        assert torch.equal(executor.run(doubling.twice, (torch.ones(2),), {"more": torch.ones(2)}), torch.full((2,), 3.0))
    assert len(seen) >= 1
    assert executor.compiled == {"Doubling.twice"}


def test_the_compiler_is_looked_for_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert missing_compiler() == "no-such-compiler"
    monkeypatch.setenv("CXX", "/bin/sh")
    assert missing_compiler() is None
