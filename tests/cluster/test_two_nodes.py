"""Two shells, twice the same command: two processes that share nothing but hosts.txt become one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cluster.processes import Process, Processes, column, spread
from zpala.run_directory import load_checkpoint

pytestmark = pytest.mark.cluster

BUDGET = 60_000
OVERSHOOT_S = 1.5  # of the cluster's work: what is done before the news of the last steps has come round
FILES = {
    "config.toml",
    "run.json",
    "log.txt",
    "metrics.jsonl",
    "checkpoints/final/model.safetensors",
    "checkpoints/final/optimizer.safetensors",
    "checkpoints/final/local.safetensors",
    "checkpoints/final/state.json",
}


def run_twice(processes: Processes, *options: str) -> tuple[list[Process], list[Path]]:
    """The same command twice, to its end; the processes in the order of the lines that they took, and their directories."""
    hosts = processes.hosts(2)
    command = ("--total-env-steps", BUDGET, "--set", "gossip.max_staleness=64", *options)
    pair = [processes.node(hosts, *command), processes.node(hosts, *command)]
    assert [process.end() for process in pair] == [0, 0], pair[0].text + pair[1].text
    pair.sort(key=lambda process: process.wait_for(r"(n\d): line \d of ").group(1))
    return pair, [processes.folder / "run/nodes" / name for name in ("n0", "n1")]


def rate(directories: list[Path]) -> float:
    """env_steps per second of both, over their whole time."""
    return sum(column(directory, "env_steps")[-1] / column(directory, "time_s")[-1] for directory in directories)


def test_they_take_different_lines_and_become_one_run(processes: Processes) -> None:
    pair, directories = run_twice(processes)
    for index, process in enumerate(pair):
        process.wait_for(f"n{index}: line {index + 1} of ")
        process.wait_for("averaged with 1/1 peers")
        process.wait_for(r"ended \(budget\)")
    first, second = (process.ended_at or 0.0 for process in pair)
    assert abs(first - second) < 5.0

    states = [load_checkpoint(directory).state for directory in directories]
    total = sum(state["env_steps"] for state in states)
    assert BUDGET <= total <= BUDGET + OVERSHOOT_S * rate(directories)
    for state in states:
        assert state["env_steps"] > 0
        assert state["finish_reason"] == "budget"
        assert BUDGET <= state["cluster_env_steps"] <= total

    assert min(column(directory, "gossip/exchanges")[-1] for directory in directories) > 10
    assert {column(directory, "gossip/defects")[-1] for directory in directories} == {0.0}
    assert spread(directories) <= 0.01
    for directory in directories:
        assert {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()} >= FILES
        assert json.loads((directory / "run.json").read_text())["exit_code"] == 0
    run = processes.folder / "run"
    assert {path.name for path in run.iterdir()} == {"config.toml", "hosts.txt", "run.json", "nodes"}
    assert (run / "hosts.txt").read_text() == (processes.folder / "hosts.txt").read_text()


def test_without_gossip_they_share_the_budget_and_grow_apart(processes: Processes) -> None:
    _, directories = run_twice(processes, "--no-gossip")
    assert {column(directory, "gossip/exchanges")[-1] for directory in directories} == {0.0}
    states = [load_checkpoint(directory).state for directory in directories]
    assert min(state["env_steps"] for state in states) > 0
    assert BUDGET <= sum(state["env_steps"] for state in states) <= BUDGET + OVERSHOOT_S * rate(directories)
    assert spread(directories) > 0.1
