"""``zpala eval``: the final agent of every node, and the mean of all of them, play whole games; how far apart the nodes' parameters lie.

Reads run directories, writes nothing. Every agent plays the same games (the same seeds), with the seeds never those of training. Each of E
environments plays a fixed share of the games, so that short games, which end first, are not counted more often than long ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from zpala.config import Config, ConfigError, load_config
from zpala.rl.algorithm import Algorithm
from zpala.rl.algorithms import AlgorithmError, build_algorithm, find_algorithm
from zpala.rl.environments import EnvironmentSpec, Episode, environment_spec, make_environments
from zpala.rl.flat import FlatParameters
from zpala.rl.inputs import STATISTICS
from zpala.rl.networks import build_network
from zpala.rl.optimizers import OptimizerSettings, build_optimizer
from zpala.rl.rollout import Rollout
from zpala.run_directory import Checkpoint, RunDirectoryError, load_checkpoint, node_directories

MEAN = "mean model"
ENVIRONMENTS_MAX = 16  # games played side by side
STEPS_MAX = 1_000_000  # env_steps of one environment: a game without an end must not keep this command for ever
_PURPOSE = 0x6576616C  # keeps the seeds of evaluation apart from those of training

Parameters = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Score:
    """One agent's games. Returns are raw and of whole games; ``distance`` = ||x - mean|| / ||mean||, 0 for the mean model itself."""

    node: str
    episodes: int
    mean: float
    median: float
    std: float
    minimum: float
    maximum: float
    length: float
    distance: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The scores of all agents, the mean model (if any) last."""

    environment: str
    greedy: bool
    scores: tuple[Score, ...]

    @property
    def max_distance(self) -> float:
        """The largest relative distance of a node from the mean."""
        return max(score.distance for score in self.scores)

    def json(self) -> str:
        """All numbers as one JSON document."""
        document: dict[str, Any] = {"environment": self.environment, "greedy": self.greedy, "max_distance": self.max_distance}
        return json.dumps({**document, "scores": [asdict(score) for score in self.scores]}, indent=2)

    def table(self) -> str:
        """One row per agent."""
        actions = "greedy" if self.greedy else "sampled"
        columns = ("agent", "games", "mean return", "median", "std", "min", "max", "length", "distance from mean")
        table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, title=f"{self.environment}, {actions} actions", title_justify="left")
        for column in table.columns[1:]:
            column.justify = "right"
        for score in self.scores:
            returns = (score.mean, score.median, score.std, score.minimum, score.maximum, score.length)
            table.add_row(score.node, str(score.episodes), *(f"{value:.1f}" for value in returns), f"{score.distance:.2e}")
        console = Console(file=StringIO(), width=120)
        console.print(table)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        return f"{text.rstrip()}\nlargest distance from the mean: {self.max_distance:.2e}"


def evaluate_runs(
    runs: Sequence[Path], *, episodes: int, node: str | None = None, stochastic: bool = False, seed: int = 0, device: str = "cpu"
) -> Evaluation:
    """Plays ``episodes`` games with every node of ``runs`` (run directories) and with the mean of their parameters.

    Args:
        node: only this node's agent, named as in hosts.txt or as its directory; distances are 0 then.
        stochastic: sample from the policy instead of taking its most probable action.

    Raises:
        RunDirectoryError: a checkpoint is missing or damaged, or the nodes' networks differ.
        ConfigError: there is no such CUDA device.
    """
    torch.set_flush_denormal(True)
    wanted_device = torch.device(device)
    if wanted_device.type == "cuda" and (wanted_device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {device}: this machine shows {torch.cuda.device_count()} CUDA device(s). Use --device cpu.")
    directories = [directory for run in runs for directory in node_directories(run)]
    checkpoints = [load_checkpoint(directory) for directory in directories]
    if node is not None:
        names = [(checkpoint.node, directory.name) for checkpoint, directory in zip(checkpoints, directories, strict=True)]
        wanted = [index for index, name in enumerate(names) if node in name]
        if not wanted:
            raise RunDirectoryError(f"{runs[0]}: there is no node {node!r}. Its nodes are {', '.join(name for name, _ in names)}.")
        directories, checkpoints = [directories[wanted[0]]], [checkpoints[wanted[0]]]
    config = load_config(directories[0] / "config.toml", {}, {})
    mean = mean_parameters(checkpoints)
    agents: list[tuple[str, Parameters]] = [(checkpoint.node, checkpoint.model) for checkpoint in checkpoints]
    if len(agents) > 1:
        agents.append((MEAN, mean))
    scores = []
    for name, parameters in agents:
        games = play(config, parameters, episodes=episodes, stochastic=stochastic, seed=seed, device=device)
        scores.append(_score(name, games, relative_distance(parameters, mean)))
    return Evaluation(config.environment.id, not stochastic, tuple(scores))


def mean_parameters(checkpoints: Sequence[Checkpoint]) -> dict[str, NDArray[np.float32]]:
    """The mean of every parameter over the nodes, name by name. Raises RunDirectoryError when names or shapes differ."""
    shapes = [{name: array.shape for name, array in checkpoint.model.items()} for checkpoint in checkpoints]
    for checkpoint, shape in zip(checkpoints, shapes, strict=True):
        if shape != shapes[0]:
            raise RunDirectoryError(f"{checkpoint.path}: its network differs from that of {checkpoints[0].path}. Evaluate one with --node.")
    names = checkpoints[0].model
    return {name: np.stack([c.model[name] for c in checkpoints]).mean(axis=0, dtype=np.float64).astype(np.float32) for name in names}


def relative_distance(parameters: Parameters, mean: Parameters) -> float:
    """||x - mean|| / ||mean|| over all parameters together, without running statistics, in double precision."""
    names = [name for name in mean if not name.startswith(STATISTICS)]
    difference = sum(float(np.sum(np.square(parameters[name].astype(np.float64) - mean[name]))) for name in names)
    norm = sum(float(np.sum(np.square(mean[name].astype(np.float64)))) for name in names)
    return float(np.sqrt(difference / norm)) if norm > 0 else 0.0


@torch.no_grad()
def play(
    config: Config, parameters: Parameters, *, episodes: int, stochastic: bool = False, seed: int = 0, device: str = "cpu"
) -> list[Episode]:
    """Plays exactly ``episodes`` whole games with one agent, a fixed share of them in each environment."""
    settings, atari = config.environment, config.environment.atari_settings()
    try:
        spec = environment_spec(settings.id, settings.args, atari, settings.max_episode_steps)
    except ValueError as error:
        raise ConfigError(f"environment.id: {error}") from None
    if len(spec.observation_shape) <= 1:
        torch.set_num_threads(1)  # as in a node (design D14): a second thread has nothing to do, and on a busy machine is waited for
    count = min(episodes, ENVIRONMENTS_MAX)
    quota = [episodes // count + (index < episodes % count) for index in range(count)]
    state = np.random.SeedSequence([_PURPOSE, seed]).generate_state(count + 1)
    seeds = [int(word) & 0x7FFFFFFF for word in state[:count]]
    sampler = torch.Generator().manual_seed(int(state[count]))
    agent = load_agent(config, spec, parameters, torch.device(device))
    rollout = Rollout(spec, 1, count)
    environments = make_environments(
        settings.id,
        count,
        seeds=seeds,
        num_threads=torch.get_num_threads(),
        args=settings.args,
        atari=atari,
        max_episode_steps=settings.max_episode_steps,
    )
    games: list[Episode] = []
    try:
        environments.reset(rollout.observation(0, 0, count))
        begins = torch.ones(count, dtype=torch.bool)
        for _ in range(STEPS_MAX):
            actions = agent.choose(torch.from_numpy(rollout.observation(0, 0, count)), begins, sampler if stochastic else None)
            for game in environments.step(actions.numpy(), rollout.row(0, 0, count)):
                if quota[game.environment] > 0:
                    quota[game.environment] -= 1
                    games.append(game)
            if not any(quota):
                return games
            begins = (rollout.terminated | rollout.truncated | ~rollout.valid)[0]
            rollout.carry()
    finally:
        environments.close()
    raise ConfigError(
        f"{settings.id}: {episodes} games did not end within {STEPS_MAX:,} env_steps per environment. Give the environment a time limit."
    )


def load_agent(config: Config, spec: EnvironmentSpec, parameters: Parameters, device: torch.device) -> Algorithm:
    """The algorithm of the run with these parameters, to ask for actions only: its optimiser never steps."""
    name = config.algorithm.name
    try:
        heads = find_algorithm(name).HEADS
    except AlgorithmError as error:
        raise ConfigError(f"algorithm: {error}.") from None
    try:
        network = build_network(spec, channels_last=False, seed=0, heads=heads, **config.network_values())
        flat = FlatParameters(network, device)
        flat.load({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in parameters.items()})
    except (RuntimeError, ValueError) as error:
        raise RunDirectoryError(f"the checkpoint does not fit the network of its config.toml: {error}") from None
    optimizer = build_optimizer(OptimizerSettings(), flat.numel, device)
    try:
        return build_algorithm(name, config.algorithm_values(), network, flat, optimizer, seed=0)
    except AlgorithmError as error:
        raise ConfigError(f"algorithm: {error}.") from None


def _score(name: str, games: Sequence[Episode], distance: float) -> Score:
    returns = np.array([game.return_ for game in games])
    return Score(
        node=name,
        episodes=len(games),
        mean=float(returns.mean()),
        median=float(np.median(returns)),
        std=float(returns.std()),
        minimum=float(returns.min()),
        maximum=float(returns.max()),
        length=float(np.mean([game.length for game in games])),
        distance=distance,
    )
