"""Environments with one mistake each, and one without, for the tests of ``zpala env check``."""

from __future__ import annotations

import random
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper

Observation = Any  # what is wrong is often the type


class Walk(gymnasium.Env[Observation, np.int64]):
    """A walk from 0 on with noise; it ends beyond 1 and -1 and is truncated after 40 steps. Nothing is wrong with it."""

    observation_space: spaces.Space[Any] = spaces.Box(-2.0, 2.0, (2,), np.float32)
    action_space: spaces.Space[Any] = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.place, self.steps = float(self.np_random.uniform(-0.1, 0.1)), 0
        return self.look(), {}

    def step(self, action: np.int64) -> Any:
        self.place += 0.2 * (int(action) - 0.5) + float(self.np_random.uniform(-0.1, 0.1))
        self.steps += 1
        return self.look(), float(self.place > 1), abs(self.place) > 1, self.steps >= 40, {}

    def look(self) -> Observation:
        return np.array([self.place, self.steps / 40], dtype=np.float32)


class Doubles(Walk):
    def look(self) -> Observation:
        return super().look().astype(np.float64)


class Lists(Walk):
    def look(self) -> Observation:
        return super().look().tolist()


class Objects(Walk):
    def look(self) -> Observation:
        return super().look().astype(object)


class Longer(Walk):
    def look(self) -> Observation:
        return np.append(super().look(), np.float32(0))


class Outside(Walk):
    observation_space = spaces.Box(-2.0, 0.5, (2,), np.float32)


class Blind(Walk):
    def look(self) -> Observation:
        return super().look() / np.float32(self.steps != 20)


class NanReward(Walk):
    def step(self, action: np.int64) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward if self.steps != 9 else float("nan"), terminated, truncated, info


class ArrayReward(Walk):
    def step(self, action: np.int64) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, np.array([reward]), terminated, truncated, info


class NumberForBool(Walk):
    def step(self, action: np.int64) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, int(terminated), truncated, info


class FourValues(Walk):
    def step(self, action: np.int64) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, info


class OldReset(Walk):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed)[0]


class Raises(Walk):
    def step(self, action: np.int64) -> Any:
        if self.steps == 7:
            raise ZeroDivisionError("a leg broke")
        return super().step(action)


class ReusesItsBuffer(Walk):
    def __init__(self) -> None:
        self.buffer = np.zeros(2, dtype=np.float32)

    def look(self) -> Observation:
        self.buffer[:] = super().look()
        return self.buffer


class SharesItsPlace(Walk):
    """Every instance walks the same walker. Alone that does not show."""

    shared: ClassVar[dict[str, float]] = {}

    @property
    def place(self) -> float:
        return self.shared["place"]

    @place.setter
    def place(self, value: float) -> None:
        self.shared["place"] = value


class OwnDice(Walk):
    """Draws from a generator that no seed reaches."""

    dice = random.Random()

    def step(self, action: np.int64) -> Any:
        self.place += self.dice.uniform(-0.01, 0.01)
        return super().step(action)


class Endless(Walk):
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def step(self, action: np.int64) -> Any:
        return self.look(), 0.0, False, False, {}


class Loud(Walk):
    observation_space = spaces.Box(-1e6, 1e6, (2,), np.float32)

    def look(self) -> Observation:
        return super().look() * np.float32(5000)


class ChannelsLast(Walk):
    observation_space = spaces.Box(0, 255, (40, 40, 3), np.uint8)

    def look(self) -> Observation:
        return np.full((40, 40, 3), self.steps, dtype=np.uint8)


class NoConstruction(Walk):
    def __init__(self) -> None:
        raise FileNotFoundError("track.png")


def not_installed() -> Walk:
    raise gymnasium.error.DependencyNotInstalled("pip install box")


class RewardsItsResets(SyncVectorEnv):
    """Says NEXT_STEP, and pays for the step that only begins the next game."""

    def step(self, actions: Any) -> Any:
        resetting = self._autoreset_envs.copy()
        observation, reward, terminated, truncated, info = super().step(actions)
        reward[resetting] = 1.0
        return observation, reward, terminated, truncated, info


class ForgetsTheFinal(SyncVectorEnv):
    """Says SAME_STEP, and does not hand out the last observation of a game."""

    def step(self, actions: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(actions)
        return observation, reward, terminated, truncated, {key: value for key, value in info.items() if key != "final_obs"}


class NanRewards(SyncVectorEnv):
    def step(self, actions: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(actions)
        return observation, reward * np.nan, terminated, truncated, info


def vector(num_envs: int) -> SyncVectorEnv:
    return SyncVectorEnv([Walk for _ in range(num_envs)])


def next_step_walks(num_envs: int) -> VectorEnv[Any, Any, Any]:
    return VectorWrapper(SyncVectorEnv([Walk for _ in range(num_envs)]))


def rewards_its_resets(num_envs: int) -> SyncVectorEnv:
    return RewardsItsResets([Walk for _ in range(num_envs)])


def forgets_the_final(num_envs: int) -> SyncVectorEnv:
    return ForgetsTheFinal([Walk for _ in range(num_envs)], autoreset_mode=AutoresetMode.SAME_STEP)


def nan_rewards(num_envs: int) -> SyncVectorEnv:
    return NanRewards([Walk for _ in range(num_envs)])


def doubles_in_a_vector(num_envs: int) -> SyncVectorEnv:
    env = SyncVectorEnv([Walk for _ in range(num_envs)])
    env.single_observation_space = spaces.Box(-2.0, 2.0, (2,), np.float64)
    return env


def disabled(num_envs: int) -> SyncVectorEnv:
    return SyncVectorEnv([Walk for _ in range(num_envs)], autoreset_mode=AutoresetMode.DISABLED)
