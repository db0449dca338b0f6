"""How long a step of the environments takes: along the way that an actor goes, and by the simulator with nothing around it.

Every way is measured in slices of some tenth of a second, in turn, and the median slice counts: long enough to have its share of games
that end and begin. Actions are drawn by chance between two rollouts, which is not timed. For Atari every way is measured with one thread
and with one per core. Runs in the calling thread and process; see ``bench_parts`` for the process.

================  =====================================================================================================================
environments      ``rl.environments``, writing into a rollout slab, as an actor's thread steps them
simulator         ale_py's vector environment, or another native one; else plain Gymnasium environments, one after the other
one by one        the latter, where there is a native one: what that is worth
================  =====================================================================================================================
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
from gymnasium.vector import SyncVectorEnv

from zpala.config import Config, EnvironmentConfig
from zpala.rl.action_spaces import ActionSpace, for_simulator
from zpala.rl.environment_names import AtariGame, resolve
from zpala.rl.environments import Environments, make_environments
from zpala.rl.rollout import Rollout
from zpala.rl.seeding import environment_seeds
from zpala.rl.simulators import plain_environment, vector_environment
from zpala.tools.bench_circumstances import cores_here
from zpala.tools.bench_floor import ONE_BY_ONE, OWN, SIMULATOR
from zpala.tools.bench_timing import Timing, rounds, timings

SLICES = 10  # of each way, in the time that there is
_SEED = 20_000  # of the actions


class Stepper(ABC):
    """One way to step ``num_envs`` environments; a rollout is ``num_steps`` steps of all of them."""

    @abstractmethod
    def draw(self) -> None:
        """Draws the actions of the next rollout."""

    @abstractmethod
    def roll(self) -> None:
        """Steps all environments through a rollout: what is timed."""

    @abstractmethod
    def env_steps(self) -> float:
        """Of the rollout just made."""

    @abstractmethod
    def close(self) -> None:
        """Frees the simulators."""


class Slab(Stepper):
    """As an actor: through ``Environments`` into a rollout."""

    def __init__(self, environments: Environments, num_steps: int) -> None:
        self._environments = environments
        self._rollout = Rollout(environments.spec, num_steps, environments.num_envs)
        self._rng = np.random.default_rng(_SEED)
        self._valid = self._cells = 0
        environments.reset(self._rollout.observation(0, 0, environments.num_envs))

    def draw(self) -> None:
        cells = (self._rollout.num_steps, self._rollout.num_envs)
        self._rollout.arrays()["actions"][...] = self._environments.spec.actions.sample(self._rng, *cells)

    def roll(self) -> None:
        environments, rollout, stop = self._environments, self._rollout, self._rollout.num_envs
        for t in range(rollout.num_steps):
            environments.step(rollout.action(t, 0, stop), rollout.row(t, 0, stop))

    def env_steps(self) -> float:
        valid = self._rollout.valid_steps()
        self._valid += valid
        self._cells += self._rollout.num_steps * self._rollout.num_envs
        return valid

    def valid_share(self) -> float:
        """Steps of all rollouts so far that were not resets."""
        return self._valid / max(self._cells, 1)

    def close(self) -> None:
        self._environments.close()


class Vector(Stepper):
    """A native vector environment alone.

    Args:
        valid_share: of its steps, see ``Slab.valid_share``.
    """

    def __init__(
        self, config: EnvironmentConfig, actions: ActionSpace, num_steps: int, threads: int, valid_share: Callable[[], float]
    ) -> None:
        atari = config.atari_settings()
        limit = config.max_episode_steps
        self._env = vector_environment(
            config.id, config.num_envs, num_threads=threads, args=config.args, atari=atari, max_episode_steps=limit
        )
        self._for_simulator = for_simulator(self._env.single_action_space)
        self._actions, self._num_steps, self._valid_share = actions, num_steps, valid_share
        self._rng = np.random.default_rng(_SEED)
        self._drawn: list[Any] = []
        self._env.reset(seed=_SEED)

    def draw(self) -> None:
        self._drawn = [self._for_simulator(self._actions.sample(self._rng, self._env.num_envs)) for _ in range(self._num_steps)]

    def roll(self) -> None:
        for actions in self._drawn:
            self._env.step(actions)

    def env_steps(self) -> float:
        return self._num_steps * self._env.num_envs * self._valid_share()

    def close(self) -> None:
        self._env.close()


class Plain(Stepper):
    """Gymnasium environments, one after the other in a loop, each reset when its game ends."""

    def __init__(self, config: EnvironmentConfig, actions: ActionSpace, num_steps: int) -> None:
        made = (plain_environment(config.id, config.args, config.max_episode_steps) for _ in range(config.num_envs))
        self._envs = [env for env in made if env is not None]
        self._for_simulator = for_simulator(self._envs[0].action_space)
        self._actions, self._num_steps = actions, num_steps
        self._rng = np.random.default_rng(_SEED)
        self._drawn: list[Any] = []
        for number, env in enumerate(self._envs):
            env.reset(seed=_SEED + number)

    def draw(self) -> None:
        self._drawn = [list(self._for_simulator(self._actions.sample(self._rng, len(self._envs)))) for _ in range(self._num_steps)]

    def roll(self) -> None:
        for actions in self._drawn:
            for env, action in zip(self._envs, actions, strict=True):
                _, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    env.reset()

    def env_steps(self) -> float:
        return self._num_steps * len(self._envs)

    def close(self) -> None:
        for env in self._envs:
            env.close()


def environments_of(config: Config, threads: int) -> Environments:
    """All environments of a node, as its one actor has them; ``threads``: of Atari's stepper."""
    e = config.environment
    return make_environments(
        e.id,
        e.num_envs,
        seeds=environment_seeds(config.run.seed, 0, 0, e.num_envs),
        num_threads=threads,
        args=e.args,
        atari=e.atari_settings(),
        max_episode_steps=e.max_episode_steps,
    )


def slice_of(stepper: Stepper, seconds: float, clock: Callable[[], float] = time.perf_counter) -> Callable[[], float]:
    """What ``bench_timing.rounds`` takes: whole rollouts for ``seconds`` of stepping; returns seconds per env_step."""

    def measure() -> float:
        elapsed = env_steps = 0.0
        while elapsed < seconds or not env_steps:
            stepper.draw()
            begun = clock()
            stepper.roll()
            elapsed += clock() - begun
            env_steps += stepper.env_steps()
        return elapsed / env_steps

    return measure


def step_timings(config: Config, seconds: float, *, own: bool = True) -> list[Timing]:
    """The environments of a run file, every way and with every number of threads that makes sense, in about ``seconds``.

    Args:
        own: False leaves out what only explains, and so does less.
    Raises:
        UnknownEnvironment, UnsupportedEnvironment.
    """
    counts = sorted({1, cores_here()}) if isinstance(resolve(config.environment.id), AtariGame) else [1]
    return [timing for threads in counts for timing in _with_threads(config, threads, seconds / len(counts), own)]


def _with_threads(config: Config, threads: int, seconds: float, own: bool) -> list[Timing]:
    e, num_steps = config.environment, config.algorithm.num_steps
    with ExitStack() as stack:
        environments = environments_of(config, threads)
        stack.callback(environments.close)
        actions, resets = environments.spec.actions, environments.resets_on_next_step
        steppers: dict[str, Stepper] = {}
        valid_share: Callable[[], float] = lambda: 1.0  # noqa: E731
        if own or resets:
            steppers[OWN] = slab = Slab(environments, num_steps)
            valid_share = slab.valid_share
        if _one_by_one(e):
            steppers[SIMULATOR] = Plain(e, actions, num_steps)
        else:
            steppers[SIMULATOR] = Vector(e, actions, num_steps, threads, valid_share)
            if own and plain_environment(e.id, e.args, e.max_episode_steps) is not None:
                steppers[ONE_BY_ONE] = Plain(e, actions, num_steps)
        for stepper in steppers.values():
            stack.callback(stepper.close)
        each_s = seconds / (len(steppers) * (SLICES + 1))
        found = rounds({name: slice_of(stepper, each_s) for name, stepper in steppers.items()}, seconds * SLICES / (SLICES + 1))
    text = f"{threads} thread{'s' if threads > 1 else ''}"
    loop = {SIMULATOR: "plain Gymnasium environments in a loop"} if _one_by_one(e) else {}
    return timings(found, lambda part: f"{text}, {loop[part]}" if part in loop else text, text, lambda _: "env_step")


def _one_by_one(config: EnvironmentConfig) -> bool:
    """Whether zpala itself has nothing but plain environments of this name."""
    if isinstance(resolve(config.id), AtariGame):
        return False
    env = vector_environment(config.id, 1, args=config.args, atari=config.atari_settings(), max_episode_steps=config.max_episode_steps)
    env.close()
    return isinstance(env, SyncVectorEnv)
