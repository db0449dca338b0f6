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


class Dashboard(Walk):
    """The walk seen by a camera and by instruments, and steered by a lever and a switch. Nothing is wrong with it."""

    observation_space = spaces.Dict(
        {
            "camera": spaces.Box(0, 255, (1, 8, 8), np.uint8),
            "dials": spaces.Dict({"place": spaces.Box(-2.0, 2.0, (1,), np.float32), "side": spaces.Discrete(3, start=-1)}),
        }
    )
    action_space = spaces.MultiDiscrete([3, 2], start=[-1, 0])

    def step(self, action: Any) -> Any:
        lever, switch = action
        return super().step(np.int64(lever + switch > 0))

    def look(self) -> Observation:
        camera = np.full((1, 8, 8), self.steps, dtype=np.uint8)
        side = np.int64(np.sign(round(self.place, 1)))
        return {"camera": camera, "dials": {"place": np.array([self.place], dtype=np.float32), "side": side}}


class BlindDashboard(Dashboard):
    def look(self) -> Observation:
        return {"dials": super().look()["dials"]}


class OtherDashboard(Dashboard):
    def look(self) -> Observation:
        seen = super().look()
        seen["dials"]["place"] = seen["dials"]["place"].astype(np.float64)
        return seen


class FarSide(Dashboard):
    def look(self) -> Observation:
        seen = super().look()
        seen["dials"]["side"] = np.int64(2)
        return seen


class SmallCamera(Dashboard):
    def look(self) -> Observation:
        return {**super().look(), "camera": np.zeros((1, 4, 4), dtype=np.uint8)}


class ReusesItsDashboard(Dashboard):
    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def look(self) -> Observation:
        self.seen.update(super().look())
        return self.seen


class LoudDashboard(Dashboard):
    observation_space = spaces.Dict({"camera": spaces.Box(0, 255, (8, 8, 3), np.uint8), "place": spaces.Box(-1e6, 1e6, (1,), np.float32)})

    def look(self) -> Observation:
        return {"camera": np.full((8, 8, 3), self.steps, dtype=np.uint8), "place": np.array([5000 * self.place], dtype=np.float32)}


class Steered(Walk):
    """Takes the noise of a wheel and a pedal: what is beyond their bounds is no action."""

    action_space = spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 0.5]), dtype=np.float64)

    def step(self, action: Any) -> Any:
        if not self.action_space.contains(action):
            raise ValueError(f"{action!r} is no action")
        return super().step(np.int64(action[0] > action[1]))


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


def dashboards(num_envs: int, mode: str = "NextStep") -> SyncVectorEnv:
    return SyncVectorEnv([Dashboard for _ in range(num_envs)], autoreset_mode=AutoresetMode(mode))


def far_sides(num_envs: int) -> SyncVectorEnv:
    return SyncVectorEnv([FarSide for _ in range(num_envs)])


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
