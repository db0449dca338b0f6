"""Environments as the actors see them: n of them stepped together, writing what happens straight into the rollout's memory.

Owns the differences between simulators: Atari's C++ vector environment, Gymnasium's native vector environments, single environments stepped
one after the other in the calling thread, the two automatic ways of starting the next game, and the count of raw, whole-game returns.
Nothing here clips rewards or turns the end of a game into a discount: the learner does.

Autoreset. SAME_STEP: the step that ends a game already returns the first observation of the next. NEXT_STEP: the step after it resets,
ignores its action and rewards nothing; it is reported with ``valid=False`` and is no env_step. Apart from these rows both give the same
transitions.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from zpala.rl.environment_names import AtariGame, Factory, UnknownEnvironment, UnsupportedEnvironment, resolve


@dataclass(frozen=True, slots=True)
class AtariSettings:
    """The protocol of Atari games, wherever their name came from (Machado et al. 2018, arXiv 1709.06009, is about these choices)."""

    frame_skip: int = 4
    sticky_action_probability: float = 0.0
    noop_max: int = 30
    max_episode_frames: int = 108_000
    full_action_space: bool = False


@dataclass(frozen=True, slots=True)
class EnvironmentSpec:
    """What the network and the memory must know of an environment.

    Attributes:
        id: the name as it was given.
        observation_shape, observation_dtype: of one observation as the rollout stores it: uint8 as it came, everything else float32.
        num_actions: actions are 0 .. num_actions - 1.
        frame_skip: frames per env_step; 1 when not Atari.
        atari: whether it is an Atari game.
        protocol: what is simulated, with every setting, in one line.
    """

    id: str
    observation_shape: tuple[int, ...]
    observation_dtype: np.dtype[Any]
    num_actions: int
    frame_skip: int
    atari: bool
    protocol: str

    def agreement(self) -> dict[str, str]:
        """What nodes that average with each other must have in common (design D8)."""
        return {
            "observation": f"{self.observation_dtype}[{','.join(map(str, self.observation_shape))}]",
            "action": f"discrete {self.num_actions}",
            "environment": self.protocol,
        }


class Episode(NamedTuple):
    """One finished game: the environment's index in [0, n), the sum of all its raw rewards, its length in env_steps."""

    environment: int
    return_: float
    length: int


class StepRow(NamedTuple):
    """Where one step of n environments is written: views of the rollout, see ``rollout`` for the dtypes."""

    next_observation: NDArray[Any]  # [n, ...]
    reward: NDArray[np.float32]  # [n] raw
    terminated: NDArray[np.bool_]  # [n]
    truncated: NDArray[np.bool_]  # [n]
    valid: NDArray[np.bool_]  # [n] False: a reset step
    final_observation: NDArray[Any]  # [n, ...] written only where terminated or truncated


class Environments(ABC):
    """n environments that step together. One thread makes, uses and closes them."""

    spec: EnvironmentSpec
    num_envs: int

    @abstractmethod
    def reset(self, observation_out: NDArray[Any]) -> None:
        """Starts the first game everywhere, with the seeds given at construction; writes the first observations [n, ...]."""

    @abstractmethod
    def step(self, actions: NDArray[np.int64], row: StepRow) -> list[Episode]:
        """Steps every environment once with ``actions`` i64[n], fills ``row``, returns the games that ended."""

    @abstractmethod
    def close(self) -> None:
        """Frees the simulators. Never raises when called twice."""


class VectorEnvironments(Environments):
    """Any Gymnasium vector environment with discrete actions and box observations, in either autoreset mode.

    Args:
        env: owned from now on.
        reset_seed: what ``env.reset`` takes as its seed.
    Raises:
        UnsupportedEnvironment: autoreset is disabled or not stated.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], spec: EnvironmentSpec, reset_seed: Any) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
            raise UnsupportedEnvironment(
                f"environment {spec.id!r}: autoreset_mode is {mode}; zpala needs AutoresetMode.SAME_STEP or NEXT_STEP in the metadata"
            )
        self.spec = spec
        self.num_envs: int = env.num_envs
        self._env: VectorEnv[Any, Any, Any] | None = env
        self._reset_seed = reset_seed
        self._resets_on_next_step = mode == AutoresetMode.NEXT_STEP
        self._first_action = int(getattr(env.single_action_space, "start", 0))
        self._resetting = np.zeros(self.num_envs, dtype=np.bool_)
        self._any_resetting = False
        self._returns = np.zeros(self.num_envs, dtype=np.float64)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)

    def reset(self, observation_out: NDArray[Any]) -> None:
        observation, _ = self._open_env().reset(seed=self._reset_seed)
        observation_out[...] = observation
        self._resetting[:] = False
        self._any_resetting = False
        self._returns[:] = 0.0
        self._lengths[:] = 0

    def step(self, actions: NDArray[np.int64], row: StepRow) -> list[Episode]:
        if self._first_action:
            actions = actions + self._first_action
        observation, reward, terminated, truncated, info = self._open_env().step(actions)
        row.next_observation[...] = observation
        row.reward[...] = reward
        row.terminated[...] = terminated
        row.truncated[...] = truncated
        row.valid[...] = True
        self._returns += reward
        self._lengths += 1
        if self._any_resetting:
            self._mask_reset_steps(row)
        ended = row.terminated | row.truncated
        if self._resets_on_next_step:
            self._resetting = ended
            self._any_resetting = bool(ended.any())
        if not ended.any():
            return []
        indices = np.flatnonzero(ended)
        final = row.next_observation if self._resets_on_next_step else info["final_obs"]
        for i in indices:
            row.final_observation[i] = final[i]
        episodes = [Episode(int(i), float(self._returns[i]), int(self._lengths[i])) for i in indices]
        self._returns[indices] = 0.0
        self._lengths[indices] = 0
        return episodes

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None

    def _mask_reset_steps(self, row: StepRow) -> None:
        row.valid[self._resetting] = False
        row.reward[self._resetting] = 0.0
        row.terminated[self._resetting] = False
        row.truncated[self._resetting] = False
        self._returns[self._resetting] = 0.0
        self._lengths[self._resetting] = 0

    def _open_env(self) -> VectorEnv[Any, Any, Any]:
        if self._env is None:
            raise RuntimeError("the environments have been closed")
        return self._env


def make_environments(
    env_id: str,
    num_envs: int,
    *,
    seeds: list[int],
    num_threads: int = 1,
    args: Mapping[str, object] | None = None,
    atari: AtariSettings | None = None,
) -> Environments:
    """Makes ``num_envs`` environments, to be called in the thread that steps them.

    Args:
        env_id: see ``environment_names``.
        seeds: one in [0, 2**31) for each environment; a native vector environment that takes only one uses the first.
        num_threads: Atari: threads of the C++ stepper, at least 1.
        args: keyword arguments of the constructor or factory (not for Atari).
        atari: protocol of Atari games.
    Raises:
        UnknownEnvironment, UnsupportedEnvironment: the text says what to do.
    """
    if num_envs < 1 or len(seeds) != num_envs:
        raise ValueError(f"{num_envs} environments need as many seeds, not {len(seeds)}")
    named, args, atari = resolve(env_id), dict(args or {}), atari or AtariSettings()
    if isinstance(named, AtariGame):
        env = _atari(env_id, named, num_envs, num_threads, args, atari)
        return VectorEnvironments(env, _atari_spec(env_id, named, env, atari), np.array(seeds))
    env = _vector(env_id, named, num_envs, args)
    spec = _spec(env_id, named, env.single_observation_space, env.single_action_space, args)
    return VectorEnvironments(env, spec, seeds if isinstance(env, SyncVectorEnv) else seeds[0])


def environment_spec(env_id: str, args: Mapping[str, object] | None = None, atari: AtariSettings | None = None) -> EnvironmentSpec:
    """The spec of an environment, from one that is made and closed again. Raises what ``make_environments`` raises."""
    environments = make_environments(env_id, 1, seeds=[0], args=args, atari=atari)
    environments.close()
    return environments.spec


def _atari(
    env_id: str, game: AtariGame, num_envs: int, num_threads: int, args: Mapping[str, object], atari: AtariSettings
) -> VectorEnv[Any, Any, Any]:
    if args:
        raise UnsupportedEnvironment(f"environment {env_id!r}: Atari takes no args ({', '.join(args)}); its settings are in [environment]")
    env: VectorEnv[Any, Any, Any] = AtariVectorEnv(
        game.rom,
        num_envs,
        num_threads=num_threads,
        max_num_frames_per_episode=atari.max_episode_frames,
        repeat_action_probability=atari.sticky_action_probability,
        full_action_space=atari.full_action_space,
        autoreset_mode=AutoresetMode.SAME_STEP,
        frameskip=atari.frame_skip,
        noop_max=atari.noop_max,
        episodic_life=False,  # would reset the whole game at every lost life
        reward_clipping=False,  # the raw score could not be recovered
    )
    return env


def _atari_spec(env_id: str, game: AtariGame, env: VectorEnv[Any, Any, Any], atari: AtariSettings) -> EnvironmentSpec:
    settings = " ".join(f"{name}={value}" for name, value in asdict(atari).items())
    space = env.single_observation_space
    if not isinstance(space, spaces.Box) or not isinstance(env.single_action_space, spaces.Discrete):
        raise UnsupportedEnvironment(f"environment {env_id!r}: unexpected spaces {space} and {env.single_action_space}")
    num_actions = int(env.single_action_space.n)
    return EnvironmentSpec(
        env_id, tuple(space.shape), np.dtype(np.uint8), num_actions, atari.frame_skip, True, f"atari {game.rom} {settings}"
    )


def _vector(env_id: str, named: Any, num_envs: int, args: dict[str, Any]) -> VectorEnv[Any, Any, Any]:
    """A Gymnasium vector environment for a Gymnasium id or a factory: the native one where it exists (design D13)."""
    if isinstance(named, Factory):
        make = named.make
        if "num_envs" in inspect.signature(make).parameters:
            env = make(num_envs=num_envs, **args)
            if not isinstance(env, VectorEnv) or env.num_envs != num_envs:
                raise UnsupportedEnvironment(
                    f"environment {env_id!r}: a factory that takes num_envs must return a gymnasium.vector.VectorEnv of {num_envs} "
                    f"environments, not {env!r}"
                )
            return env
        first = make(**args)
        if not isinstance(first, gymnasium.Env):
            raise UnsupportedEnvironment(
                f"environment {env_id!r}: the factory must return a gymnasium.Env, or take num_envs and return a "
                f"gymnasium.vector.VectorEnv, not {first!r}"
            )
        made = [first, *(make(**args) for _ in range(num_envs - 1))]
        return SyncVectorEnv([partial(_same, env) for env in made], autoreset_mode=AutoresetMode.SAME_STEP)
    registered = gymnasium.registry[named.id]
    try:
        if registered.vector_entry_point is not None:
            return gymnasium.make_vec(named.id, num_envs=num_envs, vectorization_mode="vector_entry_point", **args)
        vector_kwargs = {"autoreset_mode": AutoresetMode.SAME_STEP}
        return gymnasium.make_vec(named.id, num_envs=num_envs, vectorization_mode="sync", vector_kwargs=vector_kwargs, **args)
    except gymnasium.error.DependencyNotInstalled as error:
        raise UnsupportedEnvironment(f"environment {env_id!r} needs a package that is not installed: {error}") from error


def _same(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    return env


def _spec(
    env_id: str, named: Any, observation: spaces.Space[Any], action: spaces.Space[Any], args: Mapping[str, object]
) -> EnvironmentSpec:
    if not isinstance(observation, spaces.Box):
        raise UnsupportedEnvironment(f"environment {env_id!r}: the observation space is {observation}; zpala learns from Box spaces only")
    if not isinstance(action, spaces.Discrete):
        raise UnsupportedEnvironment(f"environment {env_id!r}: the action space is {action}; zpala chooses from Discrete spaces only")
    dtype = np.dtype(np.uint8) if observation.dtype == np.uint8 else np.dtype(np.float32)
    name = named.name if isinstance(named, Factory) else named.id
    protocol = " ".join([name, *(f"{key}={args[key]!r}" for key in sorted(args))])
    return EnvironmentSpec(env_id, tuple(observation.shape), dtype, int(action.n), 1, False, protocol)


__all__ = [
    "AtariSettings",
    "EnvironmentSpec",
    "Environments",
    "Episode",
    "StepRow",
    "UnknownEnvironment",
    "UnsupportedEnvironment",
    "VectorEnvironments",
    "environment_spec",
    "make_environments",
]
