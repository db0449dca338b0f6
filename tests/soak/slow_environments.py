"""CartPole and Pong whose steps take a set time, so that a node's speed is its environments' and not its share of the cores.

zpala node --env tests/soak/slow_environments.py:cartpole --env-arg step_s=0.004
ZPALA_BENCH_SLOWNESS=5 zpala node --env tests/soak/slow_environments.py:pong

All environments of a node sleep together, once per step. The variable makes one node's slower, as in ``zpala.tools.sleeping_environment``.
"""

from __future__ import annotations

import os
import time
from typing import Any

import gymnasium
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from zpala.tools.sleeping_environment import SLOWNESS_VARIABLE


class Slowed(VectorWrapper):
    """Sleeps so many seconds before every step."""

    def __init__(self, env: VectorEnv[Any, Any, Any], seconds: float) -> None:
        super().__init__(env)
        self._seconds = seconds * float(os.environ.get(SLOWNESS_VARIABLE, "1"))

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        time.sleep(self._seconds)
        return self.env.step(actions)


def cartpole(num_envs: int, step_s: float = 0.002) -> VectorEnv[Any, Any, Any]:
    return Slowed(gymnasium.make_vec("CartPole-v1", num_envs=num_envs, vectorization_mode="vector_entry_point"), step_s)


def pong(num_envs: int, step_s: float = 0.02) -> VectorEnv[Any, Any, Any]:
    """Raw rewards; what is clipped is the algorithm's business."""
    same_step = AutoresetMode.SAME_STEP
    return Slowed(AtariVectorEnv("pong", num_envs, num_threads=1, autoreset_mode=same_step, reward_clipping=False), step_s)
