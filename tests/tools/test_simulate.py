"""``zpala simulate``: the same outcomes with one process and with two, what it prints, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from zpala import cli
from zpala.config import ConfigError
from zpala.gossip.shadow import Shadow
from zpala.sim.simulation import Scenario, simulate
from zpala.tools.simulate import again, draw, run_campaign

OPTIONS = ["simulate", "--seeds", "2", "--nodes", "6-7", "--seconds", "60", "--limit", "100"]


def test_two_processes_play_what_one_plays() -> None:
    arguments = {"seeds": 3, "first_seed": 5, "nodes": "6", "seconds": 60.0, "faults": (), "topology": None, "limit_s": 100.0}
    alone, together = (run_campaign(**arguments, jobs=jobs) for jobs in (1, 2))  # type: ignore[arg-type]
    assert alone.outcomes == together.outcomes
    assert [outcome.seed for outcome in alone.outcomes] == [5, 6, 7]
    assert alone.outcomes[1] == simulate(Scenario(seed=6, seconds=60.0, sizes=(6, 6)))
    assert not alone.failures


def test_the_limit_ends_it_after_the_seed_that_is_played() -> None:
    campaign = run_campaign(seeds=50, first_seed=0, nodes="6", seconds=60.0, faults=(), topology=None, limit_s=1e-9, jobs=1)
    assert len(campaign.outcomes) == 1
    assert campaign.limit_reached
    assert "stopped by --limit" in campaign.text()


def test_it_says_how_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpala.tools.simulate.SAY_EVERY_S", 0.0)
    said: list[str] = []
    run_campaign(seeds=2, first_seed=0, nodes="6", seconds=60.0, faults=("none",), topology=None, limit_s=100.0, jobs=1, say=said.append)
    assert [text.split(" in ")[0] for text in said] == ["1 of 2 seeds", "2 of 2 seeds"]
    assert all(text.endswith(", 0 with a violation") for text in said)


def test_what_it_prints(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, [*OPTIONS, "--jobs", "1", "--json", "--plot", str(tmp_path / "new" / "distance.png")])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["seeds"], document["violations"], document["failing_seeds"]) == (2, 0, [])
    assert {outcome["nodes"] for outcome in document["outcomes"]} <= {6, 7}
    assert document["counts"]["applied"] == sum(outcome["counts"]["applied"] for outcome in document["outcomes"])
    assert (tmp_path / "new" / "distance.png").read_bytes().startswith(b"\x89PNG")
    text = CliRunner().invoke(cli.app, [*OPTIONS, "--jobs", "1", "--fault", "none"])
    assert text.exit_code == 0
    assert "faults      none" in text.stdout
    assert "violations  0 in 0 seed(s)" in text.stdout


def test_a_violation_is_told_with_its_trace_and_the_command_that_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    freeze = Shadow.freeze

    def freeze_another(self: Shadow) -> int:
        buffer = freeze(self)
        self._pool[buffer][:] += 1
        return buffer

    monkeypatch.setattr(Shadow, "freeze", freeze_another)
    options = ["simulate", "--seed", "3", "--seeds", "2", "--nodes", "6", "--seconds", "60", "--jobs", "1"]
    options += ["--fault", "lost_message", "--fault", "reset"]
    result = CliRunner().invoke(cli.app, options)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert result.stderr.startswith(("seed 3: ", "seed 4: ")), "at once, not at the end"
    told = next(line for line in lines if "again: " in line)
    seed = int(told.split()[1])
    assert seed == 3
    command = told.partition("again: zpala ")[2].split()
    assert command == [
        "simulate",
        "--seed",
        str(seed),
        "--seeds",
        "1",
        "--nodes",
        "6",
        "--seconds",
        "60",
        "--fault",
        "reset",
        "--fault",
        "lost_message",
    ]
    assert any(" -> " in line for line in lines)  # the last messages
    repeated = CliRunner().invoke(cli.app, [*command, "--jobs", "1"])
    assert repeated.exit_code == 1
    violation = lines[lines.index(told) + 1]
    assert violation in repeated.stdout


def test_the_command_names_only_what_is_not_usual() -> None:
    assert again(Scenario(seed=0, sizes=(6, 12)), 9) == "zpala simulate --seed 9 --seeds 1 --nodes 6-12"
    special = Scenario(seed=0, sizes=(5, 5), seconds=90.0, topology="ring", faults=())
    assert again(special, 1) == "zpala simulate --seed 1 --seeds 1 --nodes 5 --seconds 90 --topology ring --fault none"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fault", "flood"], "no fault 'flood'; there are reset,"),
        (["--nodes", "1"], "--nodes 1: give a number from 2 on"),
        (["--nodes", "9-6"], "--nodes 9-6"),
        (["--nodes", "x"], "--nodes x"),
    ],
)
def test_wrong_options(options: list[str], message: str) -> None:
    result = CliRunner().invoke(cli.app, ["simulate", *options])
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)


def test_a_picture_that_cannot_be_drawn(tmp_path: Path) -> None:
    campaign = run_campaign(seeds=1, first_seed=0, nodes="6", seconds=60.0, faults=(), topology=None, limit_s=100.0, jobs=1)
    with pytest.raises(ConfigError, match="PNG"):
        draw(campaign, tmp_path / "distance.pdf")
