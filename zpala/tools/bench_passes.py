"""How long the learner's parts take alone: the network's passes, the optimiser's step, a snapshot; and the whole update beside them.

Everything is measured at every setting that makes sense (one thread and one per core, channels-last or not for images) on observations that
the environments have given. A pass is measured at the batch that the algorithm of the run file makes of its rollout (``bench_floor``), and
what is left of a forward and backward pass without the forward pass counts as the backward pass. Runs in the calling thread and process,
which must be one that ``node.threads.prepare_process`` has prepared; see ``bench_parts``.

================  =====================================================================================================================
acting            a forward pass without a graph over one observation of every environment
forward           a forward pass with a graph over one batch of learning
forward+backward  the same and the way back, from the sum of all outputs
target            a forward pass without a graph over one batch of learning
optimiser         clipping the gradient's norm and one step over the flat vectors
snapshot          a copy of the flat vector
update            ``Algorithm.update`` of a whole rollout, at learning rate 0 so that no policy changes so much that it would end early
================  =====================================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zpala.config import Config
from zpala.node.build import Parts, build_parts
from zpala.rl.algorithm import Algorithm
from zpala.rl.environments import Environments, EnvironmentSpec
from zpala.rl.networks import ActorCritic, Network
from zpala.rl.optimizers import clip_gradient_norm
from zpala.rl.rollout import Rollout
from zpala.tools.bench_circumstances import cores_here
from zpala.tools.bench_floor import ACTING, BOTH, FORWARD, OPTIMISER, SNAPSHOT, TARGET, UPDATE, Learning, learning_of
from zpala.tools.bench_stepping import environments_of
from zpala.tools.bench_timing import Timing, rounds, timed, timings

_WHOLE = {OPTIMISER: "step", SNAPSHOT: "snapshot"}  # of what is measured over the whole flat vector: its unit
REPLAY = 8_192  # env_steps at most in the replay of a measured update: larger than any cache, and soon filled


@dataclass(frozen=True, slots=True)
class Setting:
    """``channels_last``: None where there are no images."""

    threads: int
    channels_last: bool | None

    def __str__(self) -> str:
        text = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return text if self.channels_last is None else f"{text}, {'channels-last' if self.channels_last else 'channels-first'}"


def settings_for(spec: EnvironmentSpec, device: torch.device) -> list[Setting]:
    """All that make sense: threads compute nothing where there is an accelerator."""
    counts = [cores_here()] if device.type == "cuda" else sorted({1, cores_here()})
    layouts: list[bool | None] = [True, False] if spec.dimensions == 3 else [None]
    return [Setting(threads, layout) for threads in counts for layout in layouts]


class LearnerParts:
    """A learner in one layout, and the observations of one rollout to measure its parts on.

    Args:
        observations: dtype[T + 1, N, ...] on the CPU.
    """

    def __init__(
        self, config: Config, spec: EnvironmentSpec, device: torch.device, channels_last: bool | None, observations: Tensor
    ) -> None:
        self.built = build_learner(config, spec, device, channels_last)
        self._learning = learning_of(config)
        self._settle = _settle(device)
        network, flat = self.built.algorithm.network, self.built.flat
        acting = observations[0].to(device)
        cells = observations[:-1].flatten(0, 1)
        batch = cells[torch.arange(self._learning.batch) % len(cells)].to(device)
        look, learn = _acting(config, network, acting), _learning(network, batch, self._learning)
        max_norm, snapshot = config.algorithm.max_grad_norm, torch.empty_like(flat.parameters)

        def both() -> None:
            flat.zero_gradients()
            learn().backward()  # type: ignore[no-untyped-call]

        def without_graph() -> None:
            with torch.inference_mode():
                learn()

        def step() -> None:
            clip_gradient_norm(flat.gradients, max_norm)
            self.built.algorithm.optimizer.step(flat.parameters, flat.gradients, 0.0)

        self._calls: dict[str, tuple[Callable[[], object], int]] = {
            ACTING: (look, len(acting)),
            FORWARD: (learn, len(batch)),
            BOTH: (both, len(batch)),
            OPTIMISER: (step, 1),
            SNAPSHOT: (lambda: snapshot.copy_(flat.parameters), 1),
        }
        if self._learning.targets:
            self._calls[TARGET] = (without_graph, len(batch))

    def measure(self, threads: int, seconds: float) -> dict[str, list[float]]:
        """Seconds per observation, or per call of what goes over the flat vectors, by part."""
        torch.set_num_threads(threads)
        return rounds({part: timed(call, units, settle=self._settle) for part, (call, units) in self._calls.items()}, seconds)

    def timings(self, setting: Setting, found: dict[str, list[float]]) -> list[Timing]:
        """Their medians."""

        def how(part: str) -> str:
            return str(setting) if part in _WHOLE else f"{setting}, batch {self._calls[part][1]}"

        return timings(found, how, str(setting), lambda part: _WHOLE.get(part, "observation"))


class Learner:
    """The learner of a run file on ``device``, measured at every setting.

    Args:
        config: see ``measurable`` for what is changed.
    """

    def __init__(self, config: Config, spec: EnvironmentSpec, device: torch.device) -> None:
        self._config, self._spec, self._device = measurable(config), spec, device
        self._settings = settings_for(spec, device)
        observations = _observations(self._config, spec)
        layouts = dict.fromkeys(setting.channels_last for setting in self._settings)
        self._parts = {layout: LearnerParts(self._config, spec, device, layout, observations) for layout in layouts}
        built = self._parts[self._settings[0].channels_last].built
        self.network = built.network
        self.reuses_activations = reuses_activations(built.algorithm)

    def pass_timings(self, seconds: float) -> list[Timing]:
        """Every part at every setting, in about ``seconds``; each setting twice, with the others in between."""
        found: dict[Setting, dict[str, list[float]]] = {setting: {} for setting in self._settings}
        for _ in range(2):
            for setting, times in found.items():
                more = self._parts[setting.channels_last].measure(setting.threads, seconds / (2 * len(found)))
                for part, measured in more.items():
                    times.setdefault(part, []).extend(measured)
        return [timing for setting, times in found.items() for timing in self._parts[setting.channels_last].timings(setting, times)]

    def update_timing(self, name: str, seconds: float) -> Timing:
        """``Algorithm.update`` at the setting of that name, in about ``seconds`` with the rollouts for it, which are not timed."""
        (setting,) = (setting for setting in self._settings if str(setting) == name)
        torch.set_num_threads(setting.threads)
        algorithm, device = self._parts[setting.channels_last].built.algorithm, self._device
        environments = environments_of(self._config, setting.threads)
        num_steps, num_envs = self._config.algorithm.num_steps, environments.num_envs
        pinned = device.type == "cuda"
        rollout = Rollout(self._spec, num_steps, num_envs, pinned=pinned, extra=algorithm.per_step(), device=device)
        settle = _settle(device)

        def measure() -> float:
            make_rollout(algorithm, environments, rollout)
            taken = timed(lambda: algorithm.update(rollout, 0.0, 0.0), 1, settle=settle)()
            env_steps = rollout.valid_steps()
            rollout.carry()
            return taken / max(env_steps, 1)

        try:
            environments.reset(rollout.observation(0, 0, num_envs))
            for _ in range(_rollouts_before(self._config)):
                measure()
            found = rounds({UPDATE: measure}, seconds)
        finally:
            environments.close()
        (timing,) = timings(found, lambda _: name, name, lambda _: "env_step")
        return timing


def make_rollout(algorithm: Algorithm, environments: Environments, rollout: Rollout) -> None:
    """A full rollout, as a node makes it. Its first observations lie there already."""
    stop = rollout.num_envs
    algorithm.begin(rollout, 0.0)
    for t in range(rollout.num_steps):
        rollout.set_actions(t, 0, stop, algorithm.act(rollout, t, 0, stop))
        environments.step(rollout.action(t, 0, stop), rollout.row(t, 0, stop))


def measurable(config: Config) -> Config:
    """``config`` with a replay that is soon full, and learnt from at once."""
    rollout = config.algorithm.num_steps * config.environment.num_envs
    capacity = min(config.dqn.capacity, max(REPLAY, rollout))
    return config.model_copy(update={"dqn": config.dqn.model_copy(update={"learning_starts": 0, "capacity": capacity})})


def build_learner(config: Config, spec: EnvironmentSpec, device: torch.device, channels_last: bool | None) -> Parts:
    """A learner's parts, as a node builds them. ``channels_last``: None where there are no images."""
    if channels_last is not None:
        config = config.model_copy(update={"network": config.network.model_copy(update={"channels_last": channels_last})})
    return build_parts(config, spec, 0, device)


def reuses_activations(algorithm: Algorithm) -> bool:
    """Whether it learns without a second forward pass through its trunk."""
    asked = getattr(getattr(algorithm, "settings", None), "reuse_activations", False) is True
    return asked and algorithm.network.activations.possible


def _rollouts_before(config: Config) -> int:
    """Until a replay has enough to draw from that its batches are not of one rollout."""
    if config.algorithm.name != "dqn":
        return 0
    return min(20, REPLAY // (config.algorithm.num_steps * config.environment.num_envs))


def _acting(config: Config, network: Network, observations: Tensor) -> Callable[[], object]:
    """What the network says of one observation of every environment, as far as the algorithm asks when it acts."""
    policy_only = config.algorithm.name in ("a2c", "vtrace")
    state = torch.empty(0)
    fresh = torch.zeros(len(observations), dtype=torch.bool, device=observations.device)
    if isinstance(network, ActorCritic) and network.state_size:
        state = torch.zeros((len(observations), network.state_size), device=observations.device)

    def look() -> object:
        with torch.inference_mode():
            if not isinstance(network, ActorCritic):
                return network(observations)
            if network.state_size:
                return network.step(observations, fresh, state)
            return network.policies(observations) if policy_only else network(observations)

    return look


def _learning(network: Network, batch: Tensor, learning: Learning) -> Callable[[], Tensor]:
    """A forward pass over one batch; the sum of all that comes out."""
    if isinstance(network, ActorCritic):
        games = len(batch) // learning.sequence
        memory = network.state_size > 0
        state = torch.zeros((games, network.state_size), device=batch.device)
        fresh = torch.zeros((learning.sequence, games), dtype=torch.bool, device=batch.device)

        def learn() -> Tensor:
            policy, values = network.unroll(batch.view(*fresh.shape, *batch.shape[1:]), fresh, state) if memory else network(batch)
            return policy.sum() + values.sum()

        return learn
    return lambda: network(batch).sum()


def _observations(config: Config, spec: EnvironmentSpec) -> Tensor:
    """One rollout's, [T + 1, N, ...], of actions by chance."""
    num_steps, num_envs = config.algorithm.num_steps, config.environment.num_envs
    rollout = Rollout(spec, num_steps, num_envs)
    environments = environments_of(config, cores_here())
    try:
        environments.reset(rollout.observation(0, 0, num_envs))
        rollout.arrays()["actions"][...] = spec.actions.sample(np.random.default_rng(0), num_steps, num_envs)
        for t in range(num_steps):
            environments.step(rollout.action(t, 0, num_envs), rollout.row(t, 0, num_envs))
    finally:
        environments.close()
    return rollout.observations


def _settle(device: torch.device) -> Callable[[], object]:
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None
