"""An environment that goes wrong after some steps, in the way that ``--env-arg fault=...`` says."""

from __future__ import annotations

import threading
from typing import Any

import gymnasium
import numpy as np


class Faulty(gymnasium.Env[np.ndarray, np.int64]):
    """Observation f32[3], two actions, games of ten steps. At step ``after`` of its life the fault happens."""

    def __init__(self, fault: str, after: int) -> None:
        if fault == "construction":
            raise OSError("the arm is not connected")
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self._fault = fault
        self._after = after
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        reward = float(action)
        if self._steps == self._after:
            print(f"step {self._steps}: {self._fault}", flush=True)
            match self._fault:
                case "exception":
                    raise RuntimeError("the joint of the arm is broken")
                case "reward":
                    reward = float("nan")
                case "hang":
                    threading.Event().wait(120.0)  # longer than any test
        return self._observation(), reward, False, self._steps % 10 == 0, {}

    def _observation(self) -> np.ndarray:
        return self.np_random.uniform(-1.0, 1.0, 3).astype(np.float32)


def make(fault: str = "none", after: int = 50) -> Faulty:
    return Faulty(fault, after)
