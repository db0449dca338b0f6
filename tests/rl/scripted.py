"""Environments whose every reward and ending is written down beforehand, for the tests of rl/."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

Observation = NDArray[np.float32]


class Game(NamedTuple):
    """One game of the script; at least one of the two endings is set."""

    length: int
    terminated: bool
    truncated: bool


class ScriptedEnv(gymnasium.Env[Observation, np.int64]):
    """Plays ``games`` one after the other, for ever. Observation: (number, game, step); reward: number + game + step / 8 - action."""

    observation_space = spaces.Box(-1000.0, 1000.0, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, number: int = 0, games: Sequence[Game] = (Game(3, True, False),)) -> None:
        self._number, self._games = number, games
        self._game, self._step = -1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        self._game, self._step = self._game + 1, 0
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        reward = self._number + self._game + self._step / 8 - float(action)
        self._step += 1
        game = self._games[self._game % len(self._games)]
        ended = self._step == game.length
        return self._observe(), reward, ended and game.terminated, ended and game.truncated, {}

    def _observe(self) -> Observation:
        return np.array([self._number, self._game, self._step], dtype=np.float32)


class GuessEnv(gymnasium.Env[Observation, np.int64]):
    """Shows one of three marks and rewards the action of the same number with 1; a game lasts 8 guesses."""

    observation_space = spaces.Box(0.0, 1.0, (3,), np.float32)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self._left = 8
        return self._show(), {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        reward = float(action == self._mark)
        self._left -= 1
        return self._show(), reward, self._left == 0, False, {}

    def _show(self) -> Observation:
        self._mark = int(self.np_random.integers(3))
        shown = np.zeros(3, dtype=np.float32)
        shown[self._mark] = 1.0
        return shown


class RecallEnv(gymnasium.Env[Observation, np.int64]):
    """Shows one of two marks at first and nothing afterwards; the last of three actions must be the mark's number for a reward of 1."""

    observation_space = spaces.Box(0.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self._mark, self._left = int(self.np_random.integers(2)), 3
        return np.eye(2, dtype=np.float32)[self._mark], {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self._left -= 1
        over = self._left == 0
        return np.zeros(2, dtype=np.float32), float(over and action == self._mark), over, False, {}


class ShiftedActionsEnv(ScriptedEnv):
    """Actions are 5 and 6; the reward is the action."""

    action_space = spaces.Discrete(2, start=5)

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float(action), terminated, truncated, info


class WordsEnv(ScriptedEnv):
    observation_space = spaces.Text(5)  # type: ignore[assignment]


class LeversEnv(ScriptedEnv):
    """Takes a pair of numbers, one for each lever."""

    action_space = spaces.Tuple((spaces.Discrete(2), spaces.Discrete(3)))  # type: ignore[assignment]

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        left, right = action
        return super().step(np.int64(10 * left + right))


class MixedEnv(ScriptedEnv):
    """Sees a text beside its numbers."""

    observation_space = spaces.Dict({"place": spaces.Box(0.0, 1.0, (2,)), "inner": spaces.Dict({"word": spaces.Text(5)})})  # type: ignore[assignment]


class NumberEnv(ScriptedEnv):
    observation_space = spaces.Box(-1.0, 1.0, (), np.float32)


def make(number: int = 0) -> ScriptedEnv:
    return ScriptedEnv(number)


def make_shifted() -> ScriptedEnv:
    return ShiftedActionsEnv()


def make_words() -> ScriptedEnv:
    return WordsEnv()


def make_levers() -> ScriptedEnv:
    return LeversEnv()


def make_mixed() -> ScriptedEnv:
    return MixedEnv()


class DoublesEnv(ScriptedEnv):
    observation_space = spaces.Box(-1000.0, 1000.0, (3,), np.float64)  # type: ignore[arg-type]


def make_number() -> ScriptedEnv:
    return NumberEnv()


def make_nothing() -> str:
    return "no environment"


def make_vector(num_envs: int, mode: str = "NextStep") -> SyncVectorEnv:
    return SyncVectorEnv([ScriptedEnv for _ in range(num_envs)], autoreset_mode=AutoresetMode(mode))


def make_too_many(num_envs: int) -> SyncVectorEnv:
    return make_vector(num_envs + 1)
