"""An environment of one's own, without registering anything: ``module:factory`` names it, ``--env-arg`` configures it.

    cd examples && zpala launch -n 2 --env custom_env:make --env-arg length=7 --total-env-steps 40000 --num-steps 8

``zpala env check custom_env:make`` in the same folder says whether zpala finds anything wrong with it.

The corridor: the agent starts in the middle and is paid 1 at the right end and 0 at the left one. A random walk gets 0.5 on average.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class Corridor(gymnasium.Env[np.ndarray, np.int64]):
    """Observation f32[length]: one at the agent's cell. Actions: 0 left, 1 right. Truncated after ``4 * length`` steps."""

    def __init__(self, length: int) -> None:
        if length < 3:
            raise ValueError(f"length must be at least 3, not {length}")
        self.length = length
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (length,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self._cell = self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._cell, self._steps = self.length // 2, 0
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._cell += 1 if action == 1 else -1
        self._steps += 1
        terminated = self._cell in (0, self.length - 1)
        reward = float(self._cell == self.length - 1)
        return self._observation(), reward, terminated, self._steps >= 4 * self.length, {}

    def _observation(self) -> np.ndarray:
        observation = np.zeros(self.length, dtype=np.float32)
        observation[self._cell] = 1.0
        return observation


def make(length: int = 7) -> Corridor:
    """What ``--env custom_env:make`` calls, once per environment, with the values of ``--env-arg``."""
    return Corridor(length)
