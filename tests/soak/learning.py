"""Do the algorithms learn what they must? Real runs of several seeds, each judged by its final checkpoints: a long test, played by hand.

    python -m tests.soak.learning --task cartpole --algorithms a2c,ppo,vtrace --seeds 10 --json learning.jsonl
    python -m tests.soak.learning --task lunarlander --json learning.jsonl --resume
    python -m tests.soak.learning --task cartpole --against-sb3 --sb3-python ~/sb3/bin/python

For every algorithm and seed: ``zpala launch`` with the algorithm's preset for the task, to the end of the budget, then ``zpala eval``: 30
greedy games of every node. A run has solved the task when the *worst* node's mean return reaches the threshold. Where a variant must not
solve it (a network without memory), its *best* node's counts.

Seeds are drawn when it starts and printed; ``--first-seed N`` takes N, N + 1, ... instead. Every result is appended to the file of
``--json`` at once, one JSON object per line; ``--resume`` takes the seeds and the finished runs from there. ``--against-sb3`` trains
stable-baselines3 on the same environments, budgets and seeds (see ``learning_sb3.py``), in a Python that has it; its results decide
nothing.

One line per run and one per algorithm; exit status 1 when fewer than ``--share`` of an algorithm's seeds ended as they must.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from tests.cluster.processes import Processes

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MEAN_MODEL = "mean model"
EVALUATION_LIMIT_S = 600.0
RUN_HEADER = "| task | algorithm | seed | worst node | best node | env_steps | wall s | solved |"
SUMMARY_HEADER = "| task | algorithm | solved | worst node: minimum | median | env_steps | wall s |"


@dataclass(frozen=True)
class Variant:
    """How one algorithm is run. ``budget``: in place of the task's; ``solves``: it must, or it must not; ``sb3``: its name there."""

    options: tuple[str, ...]
    budget: int | None = None
    solves: bool = True
    sb3: str | None = None


@dataclass(frozen=True)
class Task:
    """What has to be learnt. ``threshold``: a mean return; ``budget``: env_steps of the cluster."""

    environment: str
    threshold: float
    budget: int
    nodes: int
    seeds: int
    variants: Mapping[str, Variant]


def preset(name: str, budget: int | None = None, sb3: str | None = None) -> Variant:
    return Variant(("--preset", name), budget, sb3=sb3)


# What is hidden shows after some steps only: longer rollouts and horizons than the preset's, with which one seed had a return of 164.
# Positions are small numbers (angles of some hundredths): without their statistics little is learnt.
LONGER = ("algorithm.num_steps=64", "algorithm.gamma=0.99", "algorithm.gae_lambda=0.95", "ppo.epochs=10")
NETWORK = ("network.normalize_observations=true", "network.separate_critic=true", "network.core_size=64")
MASKED = (
    *("--preset", "ppo-cartpole", "--env", str(HERE / "masked_cartpole.py:make")),
    *(word for setting in (*LONGER, *NETWORK) for word in ("--set", setting)),
)
TASKS: Mapping[str, Task] = {
    "cartpole": Task(
        "CartPole-v1",
        475.0,
        budget=500_000,
        nodes=4,
        seeds=10,
        variants={
            "a2c": preset("cartpole", sb3="a2c"),
            "ppo": preset("ppo-cartpole", sb3="ppo"),
            "vtrace": preset("vtrace-cartpole"),
            "nstep_q": preset("nstep_q-cartpole", budget=1_000_000),
            "dqn": preset("dqn-cartpole", budget=1_000_000, sb3="dqn"),
        },
    ),
    "acrobot": Task(
        "Acrobot-v1",
        -100.0,
        budget=300_000,
        nodes=2,
        seeds=3,
        variants={"ppo": preset("ppo-acrobot", sb3="ppo"), "a2c": preset("a2c-acrobot", sb3="a2c")},
    ),
    "lunarlander": Task(
        "LunarLander-v3",
        200.0,
        budget=1_000_000,
        nodes=2,
        seeds=3,
        variants={"ppo": preset("ppo-lunarlander", sb3="ppo")},
    ),
    "pendulum": Task("Pendulum-v1", -250.0, budget=300_000, nodes=2, seeds=3, variants={"ppo": preset("ppo-pendulum", sb3="ppo")}),
    "masked_cartpole": Task(
        "CartPole-v1 without velocities",
        400.0,
        budget=300_000,
        nodes=2,
        seeds=3,
        variants={
            "lstm": Variant((*MASKED, "--set", 'network.core="lstm"')),
            "mlp": Variant((*MASKED, "--set", 'network.core="none"'), solves=False),
        },
    ),
}


@dataclass(frozen=True)
class Result:
    """One run. ``returns``: the mean of every node's games, empty when the run failed; then ``problem`` says how. ``wall_s``: from the
    start of the process to the end of the training.
    """

    task: str
    algorithm: str
    seed: int
    nodes: int
    budget: int
    env_steps: int
    wall_s: float
    returns: Mapping[str, float]
    solved: bool
    good: bool
    problem: str = ""
    commit: str = ""
    kind: str = field(default="result")

    @property
    def key(self) -> tuple[object, ...]:
        return self.task, self.algorithm, self.seed, self.nodes, self.budget

    @property
    def worst(self) -> float:
        return min(self.returns.values(), default=-math.inf)

    def row(self) -> str:
        best = max(self.returns.values(), default=-math.inf)
        end = f"| {self.env_steps:,} | {self.wall_s:.0f} | {'yes' if self.solved else 'no'} |"
        return f"| {self.task} | {self.algorithm} | {self.seed} | {self.worst:.1f} | {best:.1f} {end}"


def source_commit() -> str:
    """Of the checkout that is played, with "-dirty" when something in it is not committed; "" without git."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def judge(task: Task, variant: Variant, returns: Mapping[str, float]) -> tuple[bool, bool]:
    """(solved, ended as it must)."""
    if not returns:
        return False, False
    solved = (min if variant.solves else max)(returns.values()) >= task.threshold
    return solved, solved == variant.solves


class Book:
    """The file of results; without one they are only kept here."""

    def __init__(self, path: Path | None, resume: bool) -> None:
        self.path, self.commit = path, source_commit()
        self.results: dict[tuple[object, ...], Result] = {}
        self.seeds: dict[str, list[int]] = {}  # of the tasks, as last drawn
        if path is not None and resume and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                self._take(json.loads(line))

    def _take(self, record: dict[str, Any]) -> None:
        if record["kind"] == "seeds":
            self.seeds[record["task"]] = record["seeds"]
        else:
            result = Result(**record)
            self.results[result.key] = result

    def _write(self, record: Mapping[str, Any]) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def draw(self, task: str, count: int, first: int | None) -> list[int]:
        """The seeds of this time: told, read from the file, or drawn (and more of them when the file has too few)."""
        if first is not None:
            return list(range(first, first + count))
        seeds = self.seeds.get(task, [])
        if len(seeds) < count:
            seeds = [*seeds, *random.SystemRandom().sample(range(2**31), count - len(seeds))]
            self.seeds[task] = seeds
            self._write({"kind": "seeds", "task": task, "seeds": seeds})
        return seeds[:count]

    def add(self, result: Result) -> None:
        result = replace(result, commit=self.commit)
        self.results[result.key] = result
        self._write(asdict(result))


def play(folder: Path, name: str, task: Task, algorithm: str, seed: int, nodes: int, budget: int, games: int, limit_s: float) -> Result:
    """One run of zpala and its evaluation, in real processes."""
    variant, run, began = task.variants[algorithm], folder / f"{name}-{algorithm}-{seed}", time.monotonic()
    processes = Processes(folder)
    try:
        options = ("--env", task.environment) if "--env" not in variant.options and ":" not in task.environment else ()
        asked = ("--seed", seed, "--total-env-steps", budget, "--run-dir", run)
        launched = processes("launch", "-n", nodes, *options, *variant.options, *asked, cwd=ROOT)
        status = launched.end(limit_s)
        wall_s = time.monotonic() - began
        found = re.search(r"finished \(budget\) after [\d.,]+ s and ([\d,]+) env_steps", launched.text)
        env_steps = int(found[1].replace(",", "")) if found else 0
        if status != 0 or not found:
            text = f"exit status {status}: {launched.text[-600:]}"
            return Result(name, algorithm, seed, nodes, budget, env_steps, wall_s, {}, False, False, text)
        # One thread of torch: two of them that wait for each other on a busy machine take ten times as long.
        evaluated = processes("eval", run, "--episodes", games, "--json", cwd=ROOT, OMP_NUM_THREADS="1")
        status = evaluated.end(EVALUATION_LIMIT_S)
        if status != 0:
            text = f"eval ended with {status}: {evaluated.text[-600:]}"
            return Result(name, algorithm, seed, nodes, budget, env_steps, wall_s, {}, False, False, text)
    finally:
        processes.close()
    document = json.loads(evaluated.text[evaluated.text.index("{") :])
    returns = {score["node"]: score["mean"] for score in document["scores"] if score["node"] != MEAN_MODEL}
    return Result(name, algorithm, seed, nodes, budget, env_steps, wall_s, returns, *judge(task, variant, returns))


def play_sb3(python: str, name: str, task: Task, algorithm: str, seed: int, budget: int, games: int, limit_s: float) -> Result:
    """The same with stable-baselines3, one agent."""
    settings = {"environment": task.environment, "algorithm": algorithm, "budget": budget, "seed": seed, "games": games}
    began = time.monotonic()
    processes = Processes(ROOT)
    try:
        trained = processes(HERE / "learning_sb3.py", json.dumps(settings), command=[python], OMP_NUM_THREADS="1")
        status = trained.end(limit_s)
    finally:
        processes.close()
    wall_s = time.monotonic() - began
    if status != 0:
        return Result(name, f"sb3 {algorithm}", seed, 1, budget, 0, wall_s, {}, False, False, f"status {status}: {trained.text[-600:]}")
    said = json.loads(trained.lines[-1])
    returns = {"sb3": said["mean"]}
    judged = judge(task, Variant(()), returns)
    return Result(name, f"sb3 {algorithm}", seed, 1, budget, said["env_steps"], wall_s - said["evaluation_s"], returns, *judged)


def summary(results: Sequence[Result]) -> Iterator[str]:
    """One row per algorithm, in the order of ``results``."""
    for key in dict.fromkeys((result.task, result.algorithm) for result in results):
        own = [result for result in results if (result.task, result.algorithm) == key]
        worst = [result.worst for result in own]
        middle = f"| {median(r.env_steps for r in own):,.0f} | {median(r.wall_s for r in own):.0f} |"
        yield f"| {key[0]} | {key[1]} | {sum(r.solved for r in own)} of {len(own)} | {min(worst):.1f} | {median(worst):.1f} {middle}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="cartpole", choices=sorted(TASKS))
    parser.add_argument("--algorithms", help="separated by commas; default: all of the task")
    parser.add_argument("--seeds", type=int, help="how many; default: the task's")
    parser.add_argument("--first-seed", type=int)
    parser.add_argument("--nodes", type=int)
    parser.add_argument("--budget", type=int, help="env_steps of the cluster, in place of the task's")
    parser.add_argument("--games", type=int, default=30)
    parser.add_argument("--share", type=float, default=0.8)
    parser.add_argument("--limit-minutes", type=float, default=60.0, help="of one run")
    parser.add_argument("--against-sb3", action="store_true")
    parser.add_argument("--sb3-python", default=sys.executable, help="a Python that has stable-baselines3")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--runs", type=Path, metavar="FOLDER", help="keep the run directories here")
    options = parser.parse_args()
    name, task = options.task, TASKS[options.task]
    algorithms = options.algorithms.split(",") if options.algorithms else list(task.variants)
    if unknown := [algorithm for algorithm in algorithms if algorithm not in task.variants]:
        parser.error(f"{name} has no {', '.join(unknown)}; it has {', '.join(task.variants)}")
    nodes, limit_s = options.nodes or task.nodes, 60 * options.limit_minutes
    book = Book(options.json, options.resume)
    seeds = book.draw(name, options.seeds or task.seeds, options.first_seed)
    print(f"{name}: {task.environment}, {nodes} nodes, threshold {task.threshold:g}, seeds {' '.join(map(str, seeds))}")
    print(RUN_HEADER)
    print("|---" * RUN_HEADER.count(" |") + "|", flush=True)

    results: list[Result] = []
    good: dict[str, int] = dict.fromkeys(algorithms, 0)
    with tempfile.TemporaryDirectory(prefix="zpala-learning-") as temporary:
        folder = options.runs.resolve() if options.runs else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            for algorithm in algorithms:
                variant = task.variants[algorithm]
                budget = options.budget or variant.budget or task.budget
                both = [(algorithm, nodes)]
                if options.against_sb3 and variant.sb3:
                    both.append((f"sb3 {variant.sb3}", 1))
                for label, count in both:
                    result = book.results.get((name, label, seed, count, budget))
                    if result is None and label == algorithm:
                        result = play(folder, name, task, algorithm, seed, nodes, budget, options.games, limit_s)
                        book.add(result)
                    elif result is None:
                        result = play_sb3(options.sb3_python, name, task, variant.sb3 or "", seed, budget, options.games, limit_s)
                        book.add(result)
                    results.append(result)
                    if label == algorithm:
                        good[algorithm] += result.good
                    print(result.row(), flush=True)
                    if result.problem:
                        print(f"  {result.problem}", flush=True)
    print(f"\n{SUMMARY_HEADER}")
    print("|---" * SUMMARY_HEADER.count(" |") + "|")
    for row in summary(results):
        print(row)
    needed = math.ceil(options.share * len(seeds))
    for algorithm, count in good.items():
        if count < needed:
            verb = "solved" if task.variants[algorithm].solves else "left unsolved"
            print(f"{algorithm}: {verb} {count} of {len(seeds)}, {needed} are asked for")
    return 0 if all(count >= needed for count in good.values()) else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # the run that is under way ends, too
    sys.exit(main())
