"""CartPole-v1 without its velocities: where the cart is and how the pole leans, and a policy has to remember how both were before.

zpala launch --env tests/soak/masked_cartpole.py:make
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv, VectorObservationWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

POSITIONS = [0, 2]  # of the cart and of the pole; 1 and 3 are their velocities


class Positions(VectorObservationWrapper):
    """Leaves the positions of CartPole's observations."""

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        space = env.single_observation_space
        assert isinstance(space, Box)
        self.single_observation_space = Box(space.low[POSITIONS], space.high[POSITIONS])
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def observations(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        return observations[:, POSITIONS]


def make(num_envs: int) -> VectorEnv[Any, Any, Any]:
    return Positions(gymnasium.make_vec("CartPole-v1", num_envs=num_envs, vectorization_mode="vector_entry_point"))
