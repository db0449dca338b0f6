"""The long test of ``soak/learning.py``, played short: what it says of a run, what it keeps, and that it goes on where it ended."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.soak import learning
from tests.soak.learning import TASKS, judge

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(150)]


def test_a_run_that_is_too_short_is_unsolved_and_not_played_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of Pendulum: a policy that hardly learnt may balance CartPole's pole by chance, but not swing this one up."""
    results = tmp_path / "results.jsonl"
    options = [
        "--task",
        "pendulum",
        "--algorithms",
        "ppo",
        "--seeds",
        "1",
        "--nodes",
        "1",
        "--budget",
        "2000",
        "--games",
        "2",
        "--limit-minutes",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", ["learning", *options, "--json", str(results), "--resume"])
    assert learning.main() == 1
    text = capsys.readouterr().out
    drawn, result = map(json.loads, results.read_text().splitlines())
    assert (drawn["kind"], drawn["task"], len(drawn["seeds"])) == ("seeds", "pendulum", 1)
    assert (result["algorithm"], result["seed"], result["problem"]) == ("ppo", drawn["seeds"][0], "")
    assert result["env_steps"] >= 2000
    assert -3300 < result["returns"]["n0"] < -250
    assert not result["solved"]
    assert "| pendulum | ppo | 0 of 1 |" in text
    assert "ppo: solved 0 of 1, 1 are asked for" in text

    before = results.read_bytes()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--share", "0"])
    assert learning.main() == 0
    assert f"| pendulum | ppo | {drawn['seeds'][0]} |" in capsys.readouterr().out
    assert results.read_bytes() == before, "it was not played again"


def test_the_worst_node_decides_and_where_a_task_must_stay_unsolved_the_best() -> None:
    cartpole, masked = TASKS["cartpole"], TASKS["masked_cartpole"]
    assert judge(cartpole, cartpole.variants["a2c"], {"n0": 475.0, "n1": 500.0}) == (True, True)
    assert judge(cartpole, cartpole.variants["a2c"], {"n0": 474.9, "n1": 500.0}) == (False, False)
    assert judge(masked, masked.variants["mlp"], {"n0": 40.0, "n1": 400.0}) == (True, False)
    assert judge(masked, masked.variants["mlp"], {"n0": 40.0, "n1": 399.0}) == (False, True)
    assert judge(masked, masked.variants["mlp"], {}) == (False, False), "a run that failed proves nothing"


def test_every_task_names_what_is_there() -> None:
    for name, task in TASKS.items():
        for variant in task.variants.values():
            file = next((word for word in variant.options if ".py:" in word), None)
            assert file is None or Path(file.rpartition(":")[0]).is_file(), name
