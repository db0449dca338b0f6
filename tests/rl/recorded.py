"""Environments that write down every transition themselves, whatever steps them, for the tests of the replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import xxhash
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from tests.rl.rollouts import spec
from tests.rl.scripted import Game
from zpala.rl.environments import EnvironmentSpec, VectorEnvironments


class Told(NamedTuple):
    """One transition; observations by digest. ``after`` is empty behind a termination: nobody may look there."""

    observation: bytes
    action: int
    reward: float
    after: bytes
    terminated: bool


def digest(observation: NDArray[Any]) -> bytes:
    return xxhash.xxh3_128_digest(observation.tobytes())


class RecordedEnv(gymnasium.Env[NDArray[Any], np.int64]):
    """Plays ``games`` one after the other, for ever; ``told`` has what happened. Rewards count the steps.

    With ``size`` observations are stacks of four pictures, size x size bytes each, of which the newest shows (number, game, step). What is
    below it at the beginning, and in the final observation, is another thing in every game: black, the same picture, noise, the end of the
    game before. Without, they are rows of the three numbers.
    """

    action_space = spaces.Discrete(4)

    def __init__(self, number: int, games: Sequence[Game], size: int = 0, noise_only: bool = False) -> None:
        self._number, self._games, self._size, self._noise_only = number, games, size, noise_only
        self._game, self._step, self._steps = -1, 0, 0
        self._random = np.random.default_rng(number)
        self.told: list[Told] = []
        box = spaces.Box(0, 255, (4, size, size), np.uint8) if size else spaces.Box(-1e6, 1e6, (3,), np.float32)
        self.observation_space = box
        self._observation: NDArray[Any] = np.zeros(box.shape, box.dtype)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[Any], dict[str, Any]]:
        self._game, self._step = self._game + 1, 0
        self._show(2 if self._noise_only else self._game % 4)
        return self._observation.copy(), {}

    def step(self, action: np.int64) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        before = digest(self._observation)
        self._step += 1
        self._steps += 1
        game = self._games[self._game % len(self._games)]
        ended = self._step == game.length
        self._show(2 if ended and (self._noise_only or self._game % 3 == 0) else 3)
        terminated = ended and game.terminated
        after = b"" if terminated else digest(self._observation)
        self.told.append(Told(before, int(action), float(self._steps), after, terminated))
        return self._observation.copy(), float(self._steps), terminated, ended and game.truncated, {}

    def _show(self, kind: int) -> None:
        if not self._size:
            self._observation[:] = (self._number, self._game, self._step)
            return
        stack = self._observation
        picture = np.full(stack.shape[1:], 255, np.uint8)
        picture.reshape(-1)[:5] = (self._number, self._game & 255, self._game >> 8, self._step & 255, self._step >> 8)
        below = (np.zeros_like(stack[1:]), np.stack([picture] * 3), self._random.integers(0, 255, stack[1:].shape, np.uint8), stack[1:])
        self._observation = np.concatenate([below[kind], picture[np.newaxis]])


def recorded(
    scripts: Sequence[Sequence[Game]], mode: AutoresetMode, size: int = 0, noise_only: bool = False
) -> tuple[VectorEnvironments, list[list[Told]]]:
    """One environment for each script, and where they write."""
    envs = [RecordedEnv(number, games, size, noise_only) for number, games in enumerate(scripts)]
    left = list(reversed(envs))
    vector = SyncVectorEnv([left.pop for _ in envs], autoreset_mode=mode)
    return VectorEnvironments(vector, spec_of(size), None), [env.told for env in envs]


def spec_of(size: int) -> EnvironmentSpec:
    """Pictures are declared as Atari's: the replay shares their frames."""
    return replace(spec((4, size, size), "uint8", 4), atari=True) if size else spec((3,), "float32", 4)
