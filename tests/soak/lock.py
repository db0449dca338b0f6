"""What does the lock buy? Four learning nodes with a tight, a loose and no bound on stale news, alike or with one slow one: an experiment.

    python -m tests.soak.lock --json lock.jsonl --resume
    python -m tests.soak.lock --task pong --seeds 2
    python -m tests.soak.lock --rule max_lead --bounds 1,4,16
    python -m tests.soak.lock --max-share 0.001

Real nodes on this machine, whose environments sleep in every step (``slow_environments.py``), so that the cores are not what is short; with
``slow`` those of the last node sleep ``SLOWNESS`` times as long. ``--max-share`` sets ``gossip.max_share``: the less, the rarer exchanges
that no gate asks for. A run ends when every node's last 100 games have reached the task's return or the budget is nearly spent; then all
nodes are told to leave at the same moment, so that their checkpoints are what they were in the middle of learning. Of every run:

==============  ===========================================================================================================================
env_steps       of the cluster until every node had the task's return; none when the budget ended first
return          the worst node's mean of its last 100 games in the end
gap             updates of the node that has most, less those of the one that has fewest: at the end
staleness       the most updates that any node made without fresh news from a neighbour
distance        ||x - mean|| / ||mean|| of the node that is furthest away, of the checkpoints
KL              mean KL divergence between the policies of two nodes, over all ordered pairs, on observations that the first node's sampled
                policy meets; nats
gate            share of the time that learners waited in the gate, mean over the nodes; and of the one that waited most
==============  ===========================================================================================================================

One line per run and one per cell (medians over the seeds); every run is appended to ``--json`` at once. Nothing is judged: exit status 0.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.cluster.processes import Process, Processes, spread
from tests.soak.learning import ROOT, source_commit
from tests.soak.new_rows import NewRows
from zpala.config import Config, load_config
from zpala.gossip.settings import GossipSettings
from zpala.rl.environments import EnvironmentSpec, environment_spec, make_environments
from zpala.rl.networks import ActorCritic
from zpala.rl.rollout import Rollout
from zpala.run_directory import load_checkpoint
from zpala.tools.evaluate import load_agent
from zpala.tools.sleeping_environment import SLOWNESS_VARIABLE

HERE = Path(__file__).resolve().parent
NODES = 4
SLOWNESS = 5.0
OFF = 1_000_000  # updates: no run has so many
NEARLY = 0.97  # of the budget: nobody has begun to drain
POLL_S = 0.1
LIMIT_S = 900.0
SPEEDS = ("even", "slow")
OBSERVATIONS = 2_000


@dataclass(frozen=True)
class Task:
    """``threshold``: the return at which a run ends; None: none does."""

    options: tuple[str, ...]
    budget: int
    threshold: float | None


TASKS: Mapping[str, Task] = {
    "cartpole": Task(("--preset", "cartpole", "--env", f"{HERE / 'slow_environments.py'}:cartpole"), 1_000_000, 475.0),
    "pong": Task(("--preset", "pala", "--env", f"{HERE / 'slow_environments.py'}:pong", "--num-envs", "8"), 60_000, None),
}


class Node:
    """One process and the newest of its rows."""

    def __init__(self, process: Process, directory: Path) -> None:
        self.process, self.directory = process, directory
        self.row: dict[str, Any] = {}
        self.stalest = 0.0
        self._rows = NewRows(directory)

    def look(self) -> None:
        self.process.read_on()
        for row in self._rows.read():
            self.row = row
            self.stalest = max(self.stalest, row.get("gossip/staleness_max", 0.0))

    @property
    def return_mean(self) -> float:
        """Of the last 100 games, or of all when there are fewer."""
        return float(self.row.get("charts/episodic_return", math.nan))

    def has_reached(self, threshold: float) -> bool:
        return self.row.get("charts/episodic_return_count", 0) >= 100 and self.return_mean >= threshold


def play(task: Task, rule: str, bound: int, speed: str, max_share: float, seed: int) -> dict[str, Any]:
    """One run. Raises AssertionError when a node ends by itself or nothing comes of it within ``LIMIT_S``."""
    with tempfile.TemporaryDirectory(prefix="zpala-lock-") as folder:
        processes = Processes(Path(folder))
        try:
            nodes = start(processes, task, rule, bound, speed, max_share, seed)
            began = time.monotonic()
            while True:
                time.sleep(POLL_S)
                for node in nodes:
                    node.look()
                    assert node.process.running(), f"a node has ended: {node.process.text[-2000:]}"
                env_steps = max(node.row.get("cluster_env_steps", 0) for node in nodes)
                solved = task.threshold is not None and all(node.has_reached(task.threshold) for node in nodes)
                if solved or env_steps >= NEARLY * task.budget:
                    break
                assert time.monotonic() - began < LIMIT_S, f"{env_steps} env_steps within {LIMIT_S:g} s: {nodes[0].process.text[-2000:]}"
            wall_s = time.monotonic() - began
            for node in nodes:
                node.process.send(signal.SIGTERM)
            for node in nodes:
                node.process.end()
                node.look()
            updates = [node.row["updates"] for node in nodes]
            gates = [node.row["gossip/gate_wait_fraction"] for node in nodes]
            directories = [node.directory for node in nodes]
            return {
                "env_steps": env_steps if solved else None,
                "return": min(node.return_mean for node in nodes),
                "wall_s": wall_s,
                "updates": updates,
                "gap": max(updates) - min(updates),
                "staleness": max(node.stalest for node in nodes),
                "distance": spread(directories),
                "kl": divergence(directories, seed),
                "gate_mean": statistics.fmean(gates),
                "gate_max": max(gates),
                "exchanges_per_update": sum(node.row["gossip/exchanges"] for node in nodes) / sum(updates),
                "cpu": sum(node.row["system/cpu_share"] for node in nodes),
            }
        finally:
            processes.close()


def start(processes: Processes, task: Task, rule: str, bound: int, speed: str, max_share: float, seed: int) -> list[Node]:
    hosts = processes.hosts(NODES)
    run = processes.folder / "run"
    settings = ["run.log_interval_s=0.25", "node.threads=1", f"gossip.{rule}={bound}", f"gossip.max_share={max_share}"]
    if rule == "max_lead":  # every peer is waited for, the slow one too
        settings += ["gossip.slow_factor=0", f"gossip.max_staleness={OFF}"]
    words = [word for setting in settings for word in ("--set", setting)]
    options = (*task.options, "--peers", hosts, "--run-dir", run, "--seed", seed, "--total-env-steps", task.budget, *words)
    nodes = []
    for line in range(NODES):
        slowness = str(SLOWNESS if speed == "slow" and line == NODES - 1 else 1.0)
        process = processes("node", *options, "--name", f"n{line}", cwd=ROOT, **{SLOWNESS_VARIABLE: slowness})
        nodes.append(Node(process, run / "nodes" / f"n{line}"))
    return nodes


@torch.no_grad()
def divergence(directories: Sequence[Path], seed: int) -> float:
    """Mean of KL(p_i || p_j) over all ordered pairs and over what n0's sampled policy sees; nats."""
    config = load_config(directories[0] / "config.toml", {}, {})
    e = config.environment
    spec = environment_spec(e.id, e.args, e.atari_settings(), e.max_episode_steps)
    networks: list[Any] = [load_agent(config, spec, load_checkpoint(each).model, torch.device("cpu")).network for each in directories]
    seen = observations(config, spec, networks[0], seed)
    logs = [torch.log_softmax(network.policies(seen), dim=-1).double() for network in networks]
    pairs = [(one, other) for one in logs for other in logs if one is not other]
    return statistics.fmean(float((one.exp() * (one - other)).sum(-1).mean()) for one, other in pairs)


def observations(config: Config, spec: EnvironmentSpec, network: ActorCritic, seed: int) -> torch.Tensor:
    """At least ``OBSERVATIONS`` of them, [B, ...], of 16 environments that ``network`` plays in."""
    e, count = config.environment, 16
    args = {**e.args, "step_s": 0.0}
    rollout = Rollout(spec, 1, count)
    generator = torch.Generator().manual_seed(seed)
    seeds = [1_000_000 + index for index in range(count)]
    environments = make_environments(
        e.id, count, seeds=seeds, num_threads=1, args=args, atari=e.atari_settings(), max_episode_steps=e.max_episode_steps
    )
    found = []
    try:
        environments.reset(rollout.observation(0, 0, count))
        for _ in range(math.ceil(OBSERVATIONS / count)):
            found.append(rollout.observations[0].clone())
            probabilities = torch.softmax(network.policies(found[-1]), dim=-1)
            actions = torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)
            environments.step(actions.numpy(), rollout.row(0, 0, count))
            rollout.carry()
    finally:
        environments.close()
    return torch.cat(found)


KEY = ("task", "rule", "bound", "speed", "max_share")
HEADER = (
    "| task | share | bound | nodes | env_steps to the return | return | gap | staleness | distance | KL | gate: mean | most "
    "| exchanges per update |"
)


def cell(key: Sequence[object], runs: Sequence[Mapping[str, Any]]) -> str:
    """One row: medians over ``runs``. ``key``: ``KEY``."""

    def middle(name: str) -> float:
        return float(statistics.median(run[name] for run in runs))

    task, rule, bound, speed, max_share = key
    solved = [run["env_steps"] for run in runs if run["env_steps"] is not None]
    steps = f"{statistics.median(solved):,.0f} ({len(solved)} of {len(runs)})" if solved else "-"
    name = "off" if bound == OFF else f"{rule} {bound}"
    numbers = f"{middle('return'):.1f} | {middle('gap'):,.0f} | {middle('staleness'):.0f} | {middle('distance'):.2e} | {middle('kl'):.2e}"
    waits = f"{100 * middle('gate_mean'):.1f} % | {100 * middle('gate_max'):.1f} % | {middle('exchanges_per_update'):.2f}"
    return f"| {task} | {max_share} | {name} | {speed} | {steps} | {numbers} | {waits} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="cartpole", choices=sorted(TASKS))
    parser.add_argument("--rule", default="max_staleness", choices=("max_staleness", "max_lead"))
    parser.add_argument("--bounds", default=f"1,4,16,{OFF}", help="in updates, separated by commas")
    parser.add_argument("--speeds", default=",".join(SPEEDS))
    parser.add_argument("--max-share", type=float, default=GossipSettings().max_share, metavar="SHARE")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--resume", action="store_true", help="runs that FILE has are not played again, and its seeds are taken")
    options = parser.parse_args()
    records = []
    if options.json is not None and options.resume and options.json.exists():
        records = [json.loads(line) for line in options.json.read_text(encoding="utf-8").splitlines()]
    known = list(dict.fromkeys(record["seed"] for record in records))
    drawn = known + random.SystemRandom().sample(range(2**31), max(0, options.seeds - len(known)))
    seeds = drawn[: options.seeds] if options.first_seed is None else list(range(options.first_seed, options.first_seed + options.seeds))
    print(f"seeds {' '.join(map(str, seeds))}")
    print(HEADER)
    print("|---" * HEADER.count(" |") + "|", flush=True)
    commit, cells = source_commit(), dict[tuple[object, ...], list[Mapping[str, Any]]]()
    done: dict[tuple[object, ...], Mapping[str, Any]] = {tuple(record[name] for name in (*KEY, "seed")): record for record in records}
    for seed in seeds:  # every cell once, then again: the machine is the same for all of them
        for speed in options.speeds.split(","):
            for bound in map(int, options.bounds.split(",")):
                key = (options.task, options.rule, bound, speed, options.max_share)
                record = done.get((*key, seed))
                if record is None:
                    named = dict(zip(KEY, key, strict=True))
                    played = play(TASKS[options.task], options.rule, bound, speed, options.max_share, seed)
                    record = {**named, "seed": seed, **played, "commit": commit}
                    if options.json is not None:
                        with options.json.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(record) + "\n")
                cells.setdefault(key, []).append(record)
                print(cell(key, [record]), flush=True)
    print("\nmedians:")
    for each, runs in cells.items():
        print(cell(each, runs))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # the run that is under way ends, too
    sys.exit(main())
