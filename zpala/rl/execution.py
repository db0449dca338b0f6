"""How the work of an algorithm gets onto its device: plainly, or by CUDA graphs (``graphs``). The algorithm does not know which.

An algorithm writes what it computes on the device as functions of tensors and lets an ``Executor`` run them. What makes such a function fit
to be captured once and replayed ever after:

* it reads its arguments, and memory that keeps its place as long as the algorithm lives (parameters, gradients, a target network);
* it writes such memory, and nothing of the host: what a function counts is counted once, when it is captured;
* it draws no random numbers, asks no tensor for its value, and no shape depends on one.

Whatever cannot be so (games that were truncated, the optimiser's step, which waits for the host's consent) is done beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

Inputs = TypeVar("Inputs", bound=tuple[Tensor | None, ...])
Outputs = TypeVar("Outputs")
Fixed = Mapping[str, Tensor]


class Executor(Protocol):
    """Belongs to one algorithm, and to its thread."""

    def run(self, function: Callable[[Inputs, Fixed], Outputs], inputs: Inputs, fixed: Fixed) -> Outputs:
        """What ``function(inputs, fixed)`` gives, the inputs moved to the device.

        Args:
            function: a method of the algorithm, as above.
            inputs: a named tuple of tensors on any device, or None in a place that is empty.
            fixed: tensors on the device, taken as they are: best ones that lie in the same place every time.
        Returns:
            tensors that hold these values until the executor is used again.
        """

    def hold(self, name: str, tensor: Tensor) -> Tensor:
        """``tensor`` on the device, in the same place for every tensor of that name and shape: to be ``fixed``."""


class Eager:
    """Calls functions as they are."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def run(self, function: Callable[[Inputs, Fixed], Outputs], inputs: Inputs, fixed: Fixed) -> Outputs:
        return function(rebuilt(inputs, [None if each is None else self.hold("", each) for each in inputs]), fixed)

    def hold(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True)


def rebuilt(inputs: Inputs, tensors: list[Tensor | None]) -> Inputs:
    """``tensors`` as the kind of tuple that ``inputs`` are."""
    kind: Any = type(inputs)
    return cast(Inputs, kind._make(tensors) if hasattr(kind, "_make") else kind(tensors))
