"""Environments as the actors see them: n of them stepped together, writing what happens straight into the rollout's memory.

Owns the differences between simulators: Atari's C++ vector environment, Gymnasium's native vector environments, single environments stepped
one after the other in the calling thread, their spaces, the two automatic ways of starting the next game, time limits, lost lives, and the
count of raw, whole-game returns. Nothing here clips rewards or turns the end of a game into a discount: the learner does.

Autoreset. SAME_STEP: the step that ends a game already returns the first observation of the next. NEXT_STEP: the step after it resets,
ignores its action and rewards nothing; it is reported with ``valid=False`` and is no env_step. Apart from these rows both give the same
transitions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from zpala.rl.action_spaces import ActionSpace, Discrete, action_space, for_simulator
from zpala.rl.environment_names import AtariGame, Factory, GymnasiumId, UnknownEnvironment, UnsupportedEnvironment, resolve
from zpala.rl.observations import ObservationPart, Packing, packing_of
from zpala.rl.simulators import AtariSettings, vector_environment


@dataclass(frozen=True, slots=True)
class EnvironmentSpec:
    """What the network and the memory must know of an environment.

    Attributes:
        id: the name as it was given.
        observation_shape, observation_dtype: of one observation as the rollout stores it: uint8 as it came, everything else float32.
        actions: what the agent chooses from.
        frame_skip: frames per env_step; 1 when not Atari.
        atari: whether it is an Atari game.
        protocol: what is simulated, with every setting, in one line.
        parts: what a packed row of bytes holds, see ``observations``; empty where an observation is one array.
    """

    id: str
    observation_shape: tuple[int, ...]
    observation_dtype: np.dtype[Any]
    actions: ActionSpace
    frame_skip: int
    atari: bool
    protocol: str
    parts: tuple[ObservationPart, ...] = ()

    @property
    def dimensions(self) -> int:
        """Of an observation, or of its part that has most: 1 of vectors, 3 of images."""
        return max(len(part.shape) for part in self.parts) if self.parts else len(self.observation_shape)

    def observation(self) -> str:
        """How an observation is stored, in one line."""
        parts = f" of {', '.join(part.describe() for part in self.parts)}" if self.parts else ""
        return f"{self.observation_dtype}[{','.join(map(str, self.observation_shape))}]{parts}"

    def agreement(self) -> dict[str, str]:
        """What nodes that average with each other must have in common (design D8)."""
        return {
            "observation": self.observation(),
            "action": self.actions.describe(),
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
    resets_on_next_step: bool  # NEXT_STEP: the step after the last one of a game begins the next game

    @abstractmethod
    def reset(self, observation_out: NDArray[Any]) -> None:
        """Starts the first game everywhere, with the seeds given at construction; writes the first observations [n, ...]."""

    @abstractmethod
    def step(self, actions: NDArray[Any], row: StepRow) -> list[Episode]:
        """Steps every environment once with ``actions`` [n, ...] as the rollout has them, fills ``row``, returns the games that ended."""

    @abstractmethod
    def close(self) -> None:
        """Frees the simulators. Never raises when called twice."""


class VectorEnvironments(Environments):
    """Any Gymnasium vector environment whose spaces ``spec`` describes, in either autoreset mode.

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
        self.resets_on_next_step = mode == AutoresetMode.NEXT_STEP
        self._for_simulator = for_simulator(env.single_action_space)
        self._packing = packing_of(env.single_observation_space)
        self._resetting = np.zeros(self.num_envs, dtype=np.bool_)
        self._any_resetting = False
        self._returns = np.zeros(self.num_envs, dtype=np.float64)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)
        self._info: dict[str, Any] = {}  # of the last reset or step

    def reset(self, observation_out: NDArray[Any]) -> None:
        observation, self._info = self._open_env().reset(seed=self._reset_seed)
        self._store(observation, observation_out)
        self._resetting[:] = False
        self._any_resetting = False
        self._returns[:] = 0.0
        self._lengths[:] = 0

    def step(self, actions: NDArray[Any], row: StepRow) -> list[Episode]:
        observation, reward, terminated, truncated, info = self._open_env().step(self._for_simulator(actions))
        self._store(observation, row.next_observation)
        row.reward[...] = reward
        row.terminated[...] = terminated
        row.truncated[...] = truncated
        row.valid[...] = True
        self._info = info
        self._returns += reward
        self._lengths += 1
        if self._any_resetting:
            self._mask_reset_steps(row)
        ended = row.terminated | row.truncated
        if self.resets_on_next_step:
            self._resetting = ended
            self._any_resetting = bool(ended.any())
        if not ended.any():
            return []
        indices = np.flatnonzero(ended)
        if self.resets_on_next_step:
            row.final_observation[indices] = row.next_observation[indices]
        else:
            for i in indices:
                self._store(info["final_obs"][i], row.final_observation[i : i + 1])
        return self._finish(indices)

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None

    def _store(self, observation: Any, rows: NDArray[Any]) -> None:
        """Writes what the simulator returned into ``rows`` [n, ...]; one observation by itself into one row."""
        if self._packing is None:
            rows[...] = observation
        else:
            self._packing.pack(observation, rows)

    def _finish(self, indices: NDArray[np.intp]) -> list[Episode]:
        """The games that have just ended, and the count of the next ones begun."""
        episodes = [Episode(int(i), float(self._returns[i]), int(self._lengths[i])) for i in indices]
        self._returns[indices] = 0.0
        self._lengths[indices] = 0
        return episodes

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


class AtariEnvironments(VectorEnvironments):
    """Atari games, with what ALE's vector environment cannot do: lives that end without a new game, and time limits in env_steps.

    ALE's own ``episodic_life`` would begin a whole new game at every lost life, its ``life_loss_info`` would make lives and games look the
    same, and its limit counts the no-ops of the start as frames.

    Args:
        env: resets with ``AutoresetMode.SAME_STEP``.
        life_loss: see ``AtariSettings``.
        max_episode_steps: a game is truncated after so many env_steps; None: only after ALE's own limit.
    """

    def __init__(
        self, env: VectorEnv[Any, Any, Any], spec: EnvironmentSpec, reset_seed: Any, life_loss: bool, max_episode_steps: int | None
    ) -> None:
        super().__init__(env, spec, reset_seed)
        self._life_loss, self._max_episode_steps = life_loss, max_episode_steps
        self._lives = np.zeros(self.num_envs, dtype=np.int32)

    def reset(self, observation_out: NDArray[Any]) -> None:
        super().reset(observation_out)
        self._lives = self._info["lives"]

    def step(self, actions: NDArray[Any], row: StepRow) -> list[Episode]:
        episodes = super().step(actions, row)
        if self._life_loss:
            self._mark_lost_lives(row)
        if self._max_episode_steps is not None:
            episodes += self._cut_off(row, self._max_episode_steps)
        return episodes

    def _mark_lost_lives(self, row: StepRow) -> None:
        # Where a game has ended, the lives are those of the next one already. Some games show 0 lives for some frames before they are over
        # (Qbert); that is one end and not two, as in OpenAI baselines' EpisodicLifeEnv.
        lives = self._info["lives"]
        lost = (lives < self._lives) & (lives > 0) & ~(row.terminated | row.truncated)
        self._lives = lives
        if lost.any():
            row.terminated[lost] = True
            row.final_observation[lost] = row.next_observation[lost]

    def _cut_off(self, row: StepRow, limit: int) -> list[Episode]:
        cut = self._lengths >= limit  # the length is 0 where a game has just ended by itself
        if not cut.any():
            return []
        row.truncated[cut] = True
        row.final_observation[cut] = row.next_observation[cut]
        observation, info = self._open_env().reset(options={"reset_mask": cut})
        row.next_observation[cut] = observation[cut]
        self._lives = info["lives"]
        return self._finish(np.flatnonzero(cut))


def make_environments(
    env_id: str,
    num_envs: int,
    *,
    seeds: list[int],
    num_threads: int = 1,
    args: Mapping[str, object] | None = None,
    atari: AtariSettings | None = None,
    max_episode_steps: int | None = None,
) -> Environments:
    """Makes ``num_envs`` environments, to be called in the thread that steps them.

    Args:
        env_id: see ``environment_names``.
        seeds: one in [0, 2**31) for each environment; a native vector environment that takes only one uses the first.
        num_threads: Atari: threads of the C++ stepper, at least 1.
        args: keyword arguments of the constructor or factory (not for Atari).
        atari: protocol of Atari games.
        max_episode_steps: a game is truncated after so many env_steps, at least 1. It takes the place of the limit that a Gymnasium id is
            registered with, and comes in addition to an Atari game's limit in frames and to what a factory's environments do themselves.
    Raises:
        UnknownEnvironment, UnsupportedEnvironment: the text says what to do.
    """
    if num_envs < 1 or len(seeds) != num_envs:
        raise ValueError(f"{num_envs} environments need as many seeds, not {len(seeds)}")
    named, args, atari = resolve(env_id), dict(args or {}), atari or AtariSettings()
    env = vector_environment(env_id, num_envs, num_threads=num_threads, args=args, atari=atari, max_episode_steps=max_episode_steps)
    if isinstance(named, AtariGame):
        spec = _atari_spec(env_id, named, env, atari, max_episode_steps)
        return AtariEnvironments(env, spec, np.array(seeds), atari.life_loss, max_episode_steps)
    spec = _spec(env_id, named, env.single_observation_space, env.single_action_space, args, max_episode_steps)
    return VectorEnvironments(env, spec, seeds if isinstance(env, SyncVectorEnv) else seeds[0])


def environment_spec(
    env_id: str,
    args: Mapping[str, object] | None = None,
    atari: AtariSettings | None = None,
    max_episode_steps: int | None = None,
) -> EnvironmentSpec:
    """The spec of an environment, from one that is made and closed again. Raises what ``make_environments`` raises."""
    environments = make_environments(env_id, 1, seeds=[0], args=args, atari=atari, max_episode_steps=max_episode_steps)
    environments.close()
    return environments.spec


def _atari_spec(
    env_id: str, game: AtariGame, env: VectorEnv[Any, Any, Any], atari: AtariSettings, max_episode_steps: int | None
) -> EnvironmentSpec:
    settings = " ".join(f"{name}={value}" for name, value in asdict(atari).items())
    space = env.single_observation_space
    actions = action_space(env.single_action_space)
    if not isinstance(space, spaces.Box) or not isinstance(actions, Discrete):
        raise UnsupportedEnvironment(f"environment {env_id!r}: unexpected spaces {space} and {env.single_action_space}")
    protocol = f"atari {game.rom} {settings}{_limit_text(max_episode_steps)}"
    return EnvironmentSpec(env_id, tuple(space.shape), np.dtype(np.uint8), actions, atari.frame_skip, True, protocol)


def _spec(
    env_id: str,
    named: GymnasiumId | Factory,
    observation: spaces.Space[Any],
    action: spaces.Space[Any],
    args: Mapping[str, object],
    max_episode_steps: int | None,
) -> EnvironmentSpec:
    name = named.name if isinstance(named, Factory) else named.id
    protocol = " ".join([name, *(f"{key}={args[key]!r}" for key in sorted(args))]) + _limit_text(max_episode_steps)
    shape, dtype, parts = _observation(env_id, observation)
    actions = action_space(action)
    if actions is None:
        raise UnsupportedEnvironment(
            f"environment {env_id!r}: the action space is {action}; zpala chooses from Discrete, MultiDiscrete, MultiBinary and Box spaces "
            "only. A factory of your own can return gymnasium.wrappers.TransformAction(env, function, space) with one of them."
        )
    return EnvironmentSpec(env_id, shape, dtype, actions, 1, False, protocol, parts)


def _observation(env_id: str, space: spaces.Space[Any]) -> tuple[tuple[int, ...], np.dtype[Any], tuple[ObservationPart, ...]]:
    """Shape, type and parts of one observation in the rollout."""
    problem = ""
    if isinstance(space, spaces.Dict):
        try:
            packing = Packing(space)
        except ValueError as error:
            problem = f"; {error}"
        else:
            return (packing.row_bytes,), np.dtype(np.uint8), packing.parts
    if not isinstance(space, spaces.Box):
        raise UnsupportedEnvironment(
            f"environment {env_id!r}: the observation space is {space}{problem}; zpala learns from Box spaces, and from a Dict of Box, "
            f"Discrete, MultiDiscrete and MultiBinary spaces only. {_other_observation(space)}"
        )
    if 0 in space.shape or not space.shape:
        raise UnsupportedEnvironment(
            f"environment {env_id!r}: observations of shape {space.shape} hold no row of numbers; a single number has the shape (1,)"
        )
    return tuple(space.shape), np.dtype(np.uint8 if space.dtype == np.uint8 else np.float32), ()


def _limit_text(max_episode_steps: int | None) -> str:
    return "" if max_episode_steps is None else f" max_episode_steps={max_episode_steps}"


def _other_observation(space: spaces.Space[Any]) -> str:
    wrapper = "FlattenObservation(env)" if space.is_np_flattenable else "TransformObservation(env, function, Box(...))"
    return f"A factory of your own can return gymnasium.wrappers.{wrapper}, which makes a row of numbers of them."


__all__ = [
    "AtariEnvironments",
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
