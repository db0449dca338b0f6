"""An environment whose steps take time and no work: it sleeps. For measurements of who waits for whom, on machines with few cores.

Named ``zpala.tools.sleeping_environment:sleeping`` wherever an environment is named. All environments of a node sleep together, once per
step. A step lasts ``step_s`` on average, always the same or drawn from a heavy-tailed distribution; the draws depend on the seed alone.
One node can be made slower than the others by the variable ``ZPALA_BENCH_SLOWNESS`` of its process: arguments of an environment must be
equal on all nodes of a run (design D8), and this must not.

What is to be learnt is easy: an observation is ``observation_size`` numbers, and the right action, rewarded by 1, is 1 where the first of
them is positive and 0 elsewhere.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

NAME = "zpala.tools.sleeping_environment:sleeping"
SLOWNESS_VARIABLE = "ZPALA_BENCH_SLOWNESS"
LONGEST = 100.0  # a drawn step lasts at most that many times the average: nothing waits without a limit
DEFAULT_SHAPES: Mapping[str, float] = {"fixed": 0.0, "pareto": 1.5, "lognormal": 1.0}


class StepTimes:
    """How long each step lasts.

    Args:
        mean_s: seconds on average, before ``LONGEST`` cuts the tail off.
        distribution: "fixed"; "pareto": P(x > t) = (m / t)^shape for t >= m, shape > 1, of infinite variance up to 2; "lognormal": e to the
            power of a normal variable with the standard deviation ``shape`` > 0.
        shape: None: 1.5 and 1.
        slowness: every step lasts that many times as long.
    Raises:
        ValueError: names the argument and what is allowed.
    """

    def __init__(self, mean_s: float, distribution: str, shape: float | None, slowness: float) -> None:
        if distribution not in DEFAULT_SHAPES:
            raise ValueError(f"distribution = {distribution!r} is unknown: use one of {', '.join(DEFAULT_SHAPES)}")
        shape = DEFAULT_SHAPES[distribution] if shape is None else shape
        least = 1.0 if distribution == "pareto" else 0.0
        if distribution != "fixed" and not (shape > least and math.isfinite(shape)):
            raise ValueError(f"shape = {shape!r} of {distribution} must be more than {least:g}")
        for name, value in (("step_s", mean_s), ("slowness", slowness)):
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} = {value!r} must be a number of at least 0")
        self._mean_s, self._distribution, self._shape, self._slowness = mean_s, distribution, shape, slowness
        self._rng = np.random.default_rng(0)

    def seed(self, seed: int | np.random.SeedSequence) -> None:
        """The same steps follow as after any other call with this ``seed``."""
        self._rng = np.random.default_rng(seed)

    def draw(self) -> float:
        """Seconds of the next step."""
        if self._distribution == "fixed":
            times = 1.0
        elif self._distribution == "pareto":
            times = (self._shape - 1.0) / self._shape * (1.0 - self._rng.random()) ** (-1.0 / self._shape)
        else:
            times = math.exp(self._shape * self._rng.standard_normal() - self._shape**2 / 2.0)
        return self._slowness * self._mean_s * min(times, LONGEST)


class SleepingEnvironments(VectorEnv[NDArray[np.float32], NDArray[Any], NDArray[Any]]):
    """``num_envs`` of them, which sleep together.

    Args:
        episode_steps: every game is truncated after so many steps.
        sleep: how a step takes its time.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 - Gymnasium declares it so

    def __init__(
        self,
        num_envs: int,
        times: StepTimes,
        *,
        observation_size: int,
        episode_steps: int,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if observation_size < 1 or episode_steps < 1:
            raise ValueError(f"observation_size = {observation_size} and episode_steps = {episode_steps} must be at least 1")
        self.num_envs = num_envs
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (observation_size,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._times, self._sleep = times, sleep
        self._episode_steps = episode_steps
        self._steps = 0
        self._rng = np.random.default_rng(0)
        self._observation = np.zeros((num_envs, observation_size), dtype=np.float32)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begins all games anew. ``seed``: of the observations and of the time that steps take; None: both go on."""
        if seed is not None:
            for_times, for_observations = np.random.SeedSequence(seed).spawn(2)
            self._times.seed(for_times)
            self._rng = np.random.default_rng(for_observations)
        self._steps = 0
        return self._next(), {}

    def step(self, actions: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Sleeps, and rewards f64[num_envs] the right ``actions`` i64[num_envs]."""
        self._sleep(self._times.draw())
        rewards = (np.asarray(actions) == (self._observation[:, 0] > 0)).astype(np.float64)
        observation = self._next()
        self._steps += 1
        over = np.full(self.num_envs, self._steps == self._episode_steps)
        info: dict[str, Any] = {}
        if over.any():
            info["final_obs"] = list(observation)
            observation = self._next()
            self._steps = 0
        return observation, rewards, np.zeros(self.num_envs, dtype=np.bool_), over, info

    def _next(self) -> NDArray[np.float32]:
        self._observation = self._rng.standard_normal(self._observation.shape, dtype=np.float32)
        return self._observation


def sleeping(
    num_envs: int,
    step_s: float = 0.02,
    distribution: str = "fixed",
    shape: float | None = None,
    observation_size: int = 8,
    episode_steps: int = 200,
) -> SleepingEnvironments:
    """The vector entry point; see ``StepTimes`` for ``step_s``, ``distribution`` and ``shape``. Raises ValueError for wrong arguments."""
    text = os.environ.get(SLOWNESS_VARIABLE, "1")
    try:
        slowness = float(text)
    except ValueError:
        raise ValueError(f"the variable {SLOWNESS_VARIABLE} is {text!r}, which is no number: unset it or give one") from None
    times = StepTimes(step_s, distribution, shape, slowness)
    return SleepingEnvironments(num_envs, times, observation_size=observation_size, episode_steps=episode_steps)
