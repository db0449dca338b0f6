"""A node that is started when the others have given up waiting for it: it begins with their state, and ends with them (design D4)."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from tests.cluster.processes import Process, Processes, column, spread, vector
from zpala.config import load_config
from zpala.metrics import read_rows
from zpala.node.specification import specification
from zpala.rl.networks import build_network
from zpala.run_directory import load_checkpoint

pytestmark = pytest.mark.cluster

BUDGET = 150_000  # several times what a node does while another one starts


def start_late(processes: Processes, *options: str, late_options: tuple[str, ...] = ()) -> tuple[Process, Process]:
    """Two nodes; the second is started once the first, which waits for nobody, has learned for some updates."""
    hosts = processes.hosts(2)
    early = processes.node(hosts, "--start-timeout", "0.5", *options)
    early.wait_for(r"leading the start of run .* without \['n1'\]")
    early.wait_for(r"env_steps [1-9]")
    late = processes.node(hosts, *options, *late_options)
    joined = late.wait_for("joining run ([0-9a-f]{16}), which is under way")
    assert early.wait_for("leading the start of run ([0-9a-f]{16})").group(1) == joined.group(1)
    return early, late


def directories(processes: Processes) -> list[Path]:
    return [processes.folder / "run/nodes" / name for name in ("n0", "n1")]


PPO = ("--algorithm", "ppo", "--set", "ppo.epochs=3", "--set", "ppo.minibatch_size=32")  # of 64 env_steps: 6 steps per update


@pytest.mark.parametrize(("options", "steps", "budget"), [((), 1, BUDGET), (PPO, 6, BUDGET // 4)], ids=["a2c", "ppo"])
def test_it_adopts_before_its_first_update_and_ends_with_the_others(
    processes: Processes, options: tuple[str, ...], steps: int, budget: int
) -> None:
    early, late = start_late(processes, "--total-env-steps", str(budget), *options)
    assert (late.end(), early.end()) == (0, 0), early.text + late.text
    adopted = int(late.wait_for(r"adopted parameters, square_average of version (\d+)").group(1))
    first_row = next(index for index, line in enumerate(late.lines) if line.startswith("[n1]"))
    assert adopted > 0
    assert any("adopted" in line for line in late.lines[:first_row])

    early_directory, late_directory = directories(processes)
    state = load_checkpoint(late_directory).state
    assert state["updates"] > 0
    assert state["version"] == adopted + state["updates"], "the version goes on from the donor's"
    assert state["optimizer_steps"] == steps * (adopted + state["updates"]), "and so do the optimiser's steps"

    for process in (early, late):
        process.wait_for("averaged with 1/1 peers")
    assert abs((early.ended_at or 0.0) - (late.ended_at or 0.0)) < 5.0
    assert spread([early_directory, late_directory]) <= 0.01
    first = next(read_rows(late_directory / "metrics.jsonl"))
    assert first["cluster_env_steps"] > first["env_steps"], "what was done before it came counts"
    assert column(early_directory, "env_steps")[-1] + column(late_directory, "env_steps")[-1] >= budget


def test_what_it_adopts_are_the_learned_parameters(processes: Processes) -> None:
    """Without gossip and without learning, what the late node ends with is what it began with."""
    options = ("--no-gossip", "--total-env-steps", "2_000_000")
    early, late = start_late(processes, *options, late_options=("--lr", "1e-30"))
    late.wait_for(r"\[n1\]  env_steps [1-9]")
    for process in (late, early):
        process.send(signal.SIGTERM)
    assert (late.end(), early.end()) == (143, 143)
    early_end, late_end = map(vector, directories(processes))
    config = load_config(directories(processes)[1] / "config.toml", {}, {})
    network = build_network(specification(config.environment), "mlp", (16,), "tanh", False, config.run.seed)
    start = np.concatenate([tensor.detach().numpy().ravel().astype(float) for _, tensor in sorted(network.named_parameters())])
    assert distance(late_end, start) > 0.01, "it did not begin with the initial parameters"
    assert distance(late_end, early_end) < distance(start, early_end), "but on the early node's way"


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))
