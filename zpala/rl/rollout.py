"""The rollout slab: one rollout of a node, time first, environments second. Actors write columns of it, the learner reads it all.

Owns the memory and its layout, nothing else: who may touch which rows when is agreed by messages (node/). Fresh memory holds absurd
values, so that reading what was never written shows at once.

==================  =============================  =======================================================================
observations        dtype[T + 1, N, ...]           observation t is what action t was chosen from; row T is carried to row 0
actions             dtype[T, N, ...]               as the environment's action space says: i64[T, N], i64[T, N, K] or f32[T, N, D]
rewards             f32[T, N]                      raw
terminated          bool[T, N]                     the game ended
truncated           bool[T, N]                     the game was cut off, its value goes on
valid               bool[T, N]                     False: a reset step that the algorithm must not learn from
final_observations  dtype[T, N, ...]               the last observation of a game, where terminated or truncated
extra               by name: PerStep[T, N, ...]    what the algorithm keeps of every step, on its own device; actors never touch it
==================  =============================  =======================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zpala.rl.environments import EnvironmentSpec, StepRow

_ABSURD_FLOAT, _ABSURD_BYTE, _ABSURD_ACTION = -4242.42, 173, -(2**40)


@dataclass(frozen=True, slots=True)
class PerStep:
    """One more tensor of the slab, dtype[T, N, *shape]: what an algorithm keeps of every step."""

    dtype: torch.dtype = torch.float32
    shape: tuple[int, ...] = ()


class Rollout:
    """Memory for ``num_steps`` steps of ``num_envs`` environments that ``spec`` describes.

    Args:
        pinned: page-locked memory, from which a CUDA device copies asynchronously.
        extra: the algorithm's tensors by name, made on ``device``.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        num_steps: int,
        num_envs: int,
        *,
        pinned: bool = False,
        extra: Mapping[str, PerStep] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if num_steps < 1 or num_envs < 1:
            raise ValueError(f"a rollout needs at least one step and one environment, not {num_steps} x {num_envs}")
        dtype = torch.from_numpy(np.zeros(1, dtype=spec.observation_dtype)).dtype
        absurd = _ABSURD_BYTE if dtype is torch.uint8 else _ABSURD_FLOAT
        shape, cells = spec.observation_shape, (num_steps, num_envs)
        self.num_steps = num_steps
        self.num_envs = num_envs
        self.spec = spec
        self.observations = torch.full((num_steps + 1, num_envs, *shape), absurd, dtype=dtype, pin_memory=pinned)
        actions, absurd_action = spec.actions, _ABSURD_FLOAT if spec.actions.dtype.is_floating_point else _ABSURD_ACTION
        self.actions = torch.full((*cells, *actions.shape), absurd_action, dtype=actions.dtype, pin_memory=pinned)
        self.rewards = torch.full(cells, _ABSURD_FLOAT, dtype=torch.float32, pin_memory=pinned)
        self.terminated = torch.full(cells, True, dtype=torch.bool, pin_memory=pinned)
        self.truncated = torch.full(cells, True, dtype=torch.bool, pin_memory=pinned)
        self.valid = torch.full(cells, False, dtype=torch.bool, pin_memory=pinned)
        self.final_observations = torch.full((*cells, *shape), absurd, dtype=dtype, pin_memory=pinned)
        self._arrays: dict[str, NDArray[Any]] = {name: tensor.numpy() for name, tensor in self.tensors().items()}
        self.extra = {
            name: torch.full((*cells, *per_step.shape), _absurd(per_step.dtype), dtype=per_step.dtype, device=device)
            for name, per_step in (extra or {}).items()
        }
        if taken := self.extra.keys() & self._arrays.keys():
            raise ValueError(f"the slab has {', '.join(sorted(taken))} already: the algorithm's own tensors need other names")

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that the actors and the learner share, by name."""
        return {
            "observations": self.observations,
            "actions": self.actions,
            "rewards": self.rewards,
            "terminated": self.terminated,
            "truncated": self.truncated,
            "valid": self.valid,
            "final_observations": self.final_observations,
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The same memory as NumPy arrays."""
        return dict(self._arrays)

    def copies(self) -> dict[str, NDArray[Any]]:
        """Everything, the algorithm's tensors too, as arrays of their own."""
        return {name: tensor.cpu().numpy().copy() for name, tensor in {**self.tensors(), **self.extra}.items()}

    def observation(self, t: int, start: int, stop: int) -> NDArray[Any]:
        """Observation ``t`` in [0, T] of the environments [start, stop), a view to read or to write the first observations into."""
        view: NDArray[Any] = self._arrays["observations"][t, start:stop]
        return view

    def action(self, t: int, start: int, stop: int) -> NDArray[Any]:
        """The actions [stop - start, ...] of step ``t`` in [0, T), a view."""
        view: NDArray[Any] = self._arrays["actions"][t, start:stop]
        return view

    def set_actions(self, t: int, start: int, stop: int, actions: Tensor) -> None:
        """Copies ``actions`` [stop - start, ...] of any device into step ``t``; they are there when the call returns."""
        self.actions[t, start:stop].copy_(actions)

    def row(self, t: int, start: int, stop: int) -> StepRow:
        """Where the environments [start, stop) write what their step ``t`` in [0, T) gave: views."""
        arrays = self._arrays
        return StepRow(
            next_observation=arrays["observations"][t + 1, start:stop],
            reward=arrays["rewards"][t, start:stop],
            terminated=arrays["terminated"][t, start:stop],
            truncated=arrays["truncated"][t, start:stop],
            valid=arrays["valid"][t, start:stop],
            final_observation=arrays["final_observations"][t, start:stop],
        )

    def valid_steps(self) -> int:
        """env_steps in the rollout: every cell but the masked reset steps."""
        return int(np.count_nonzero(self._arrays["valid"]))

    def carry(self) -> None:
        """Begins the next rollout: the observation behind the last step becomes the first."""
        np.copyto(self._arrays["observations"][0], self._arrays["observations"][-1])


def _absurd(dtype: torch.dtype) -> float | int | bool:
    """What fresh memory of the algorithm holds: a float that spoils every sum, or a number that is no index."""
    if dtype.is_floating_point:
        return float("nan")
    return True if dtype is torch.bool else _ABSURD_BYTE if dtype is torch.uint8 else torch.iinfo(dtype).min
