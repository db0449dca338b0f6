"""What an agent chooses from, named as in Gymnasium, and what becomes of an action on its way from the rollout to the simulator.

=================  ==============================  ==============================================================================
space              one action in the rollout       what the simulator receives
=================  ==============================  ==============================================================================
``Discrete``       i64[], 0 .. n - 1               the same, plus the space's ``start``
``MultiDiscrete``  i64[K], each 0 .. sizes[k] - 1  plus ``start``, in its shape and type. MultiBinary is this with sizes of 2
``Box``            f32[D], as the policy drew it   clipped to [low, high], whole numbers rounded, in its shape and type
=================  ==============================  ==============================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

Actions = NDArray[Any]  # [N, *space.shape] of the space's dtype

_WHOLE_MAX = 2.0**53  # whole numbers beyond it have no float64 of their own


@dataclass(frozen=True, slots=True)
class Discrete:
    """One of ``n`` choices."""

    n: int

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    @property
    def dtype(self) -> torch.dtype:
        return torch.int64

    def describe(self) -> str:
        return f"discrete {self.n}"

    def sample(self, rng: np.random.Generator, *size: int) -> Actions:
        """Actions [*size] by chance, all equally likely."""
        return rng.integers(0, self.n, size)


@dataclass(frozen=True, slots=True)
class MultiDiscrete:
    """Several choices at once: the k-th is one of ``sizes[k]``."""

    sizes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.sizes),)

    @property
    def dtype(self) -> torch.dtype:
        return torch.int64

    def describe(self) -> str:
        return f"multi_discrete {','.join(map(str, self.sizes))}"

    def sample(self, rng: np.random.Generator, *size: int) -> Actions:
        """Actions [*size, K] by chance, all equally likely."""
        return rng.integers(0, self.sizes, (*size, *self.shape))


@dataclass(frozen=True, slots=True)
class Box:
    """D numbers, in one row whatever shape the simulator gives them.

    Attributes:
        low, high: D bounds each; infinite where there is none.
        shape: of one action in the rollout, (D,).
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.low) == len(self.high) == self.shape[0] or len(self.shape) != 1:
            raise ValueError(f"a Box of shape {self.shape} with {len(self.low)} lower and {len(self.high)} upper bounds")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def describe(self) -> str:
        return f"box {len(self.low)}: {_bounds(self.low)} to {_bounds(self.high)}"

    def sample(self, rng: np.random.Generator, *size: int) -> Actions:
        """Actions [*size, D] by chance: uniform between two bounds, exponential from a single one, normal without any."""
        low, high = np.array(self.low), np.array(self.high)
        below, above = np.isfinite(low), np.isfinite(high)
        found = rng.standard_normal((*size, *self.shape))
        far = rng.standard_exponential(found.shape)
        near = rng.random(found.shape)
        with np.errstate(invalid="ignore"):  # of the infinite bounds, whose results are not taken
            found = np.where(below & above, low + near * (high - low), found)
            found = np.where(below & ~above, low + far, np.where(above & ~below, high - far, found))
        return found.astype(np.float32)


ActionSpace = Discrete | MultiDiscrete | Box


def action_space(space: spaces.Space[Any]) -> ActionSpace | None:
    """What an agent chooses from when the simulator wants actions of ``space``; None: zpala has nothing for it."""
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n))
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        return MultiDiscrete(sizes(space)) if sizes(space) else None
    if not isinstance(space, spaces.Box) or 0 in space.shape:
        return None
    low, high = _flat(space.low), _flat(space.high)
    if np.issubdtype(space.dtype, np.integer) and max(map(abs, (*low, *high))) > _WHOLE_MAX:
        return None
    return Box(low, high, (len(low),))


def for_simulator(space: spaces.Space[Any]) -> Callable[[Actions], Actions]:
    """The function that turns N actions of the rollout into what a simulator with actions of ``space`` takes.

    What it returns is no view of what it was given, unless nothing is to be done: a simulator may write into an array that it gets.
    """
    shape = tuple(space.shape or ())
    if isinstance(space, spaces.Box):
        # Bounds of another type would not be the space's own: 0.1 as a float32 lies above 0.1.
        between = np.result_type(np.float32, space.dtype)
        low, high = space.low.reshape(-1).astype(between), space.high.reshape(-1).astype(between)
        whole = bool(np.issubdtype(space.dtype, np.integer))

        def clip(actions: Actions) -> Actions:
            clipped: Actions = np.clip(actions.astype(between), low, high)
            return (np.rint(clipped) if whole else clipped).astype(space.dtype, copy=False).reshape(-1, *shape)

        return clip
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        start = starts(space)

        def shift(actions: Actions) -> Actions:
            shifted: Actions = (actions + start).astype(space.dtype, copy=False)
            return shifted.reshape(-1, *shape)

        return shift
    first = int(getattr(space, "start", 0))
    return (lambda actions: actions + first) if first else _same


def sizes(space: spaces.MultiDiscrete[Any] | spaces.MultiBinary) -> tuple[int, ...]:
    """How many values each number of ``space`` can take, in one row."""
    if isinstance(space, spaces.MultiBinary):
        return (2,) * int(np.prod(space.shape))
    return tuple(int(size) for size in space.nvec.reshape(-1))


def starts(space: spaces.MultiDiscrete[Any] | spaces.MultiBinary) -> NDArray[np.int64]:
    """The lowest value of each number of ``space``, in one row."""
    if isinstance(space, spaces.MultiBinary):
        return np.zeros(int(np.prod(space.shape)), dtype=np.int64)
    return space.start.reshape(-1).astype(np.int64)


def _same(actions: Actions) -> Actions:
    return actions


def _flat(bounds: NDArray[Any]) -> tuple[float, ...]:
    return tuple(float(bound) for bound in bounds.reshape(-1))


def _bounds(bounds: Sequence[float]) -> str:
    return f"{bounds[0]:.9g}" if len(set(bounds)) == 1 else f"({', '.join(f'{bound:.9g}' for bound in bounds)})"


__all__ = ["ActionSpace", "Box", "Discrete", "MultiDiscrete", "action_space", "for_simulator", "sizes", "starts"]
