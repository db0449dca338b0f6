"""The learner's end of the model as gossip sees it: one flat vector, and the optimiser's vectors beside it.

Runs in the learner's thread only. Everything here happens at an update boundary, never inside a rollout (design D2).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

PARAMETERS = "parameters"


class Weights:
    """Live parameters and optimiser vectors, each f32[numel], on the CPU or a CUDA device.

    Args:
        parameters: the flat vector that every parameter of the network is a view of; changed in place.
        optimizer_state: the optimiser's vectors by name, changed in place; they stay local in an exchange (design D15) and travel at
        adoption.
    """

    def __init__(self, parameters: torch.Tensor, optimizer_state: Mapping[str, torch.Tensor] | None = None) -> None:
        self.parameters = parameters
        self.optimizer_state = dict(optimizer_state or {})
        self._staging = torch.empty_like(parameters) if parameters.is_cuda else None

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of the vectors that a newcomer adopts, parameters first."""
        return (PARAMETERS, *sorted(self.optimizer_state))

    @torch.no_grad()
    def add(self, delta: NDArray[np.float32]) -> None:
        """Adds a queued delta f32[numel] of host memory. On CUDA the copy is queued on the learner's stream: the memory may be reused
        once a
        snapshot that was captured afterwards has completed."""
        vector = torch.from_numpy(delta)
        if self._staging is None:
            self.parameters.add_(vector)
        else:
            self._staging.copy_(vector, non_blocking=True)
            self.parameters.add_(self._staging)

    @torch.no_grad()
    def install(self, parts: Mapping[str, NDArray[np.float32]]) -> None:
        """Takes over the adopted vectors ``parts`` (f32[numel] each). Names that are missing stay as they are."""
        for name in self.part_names:
            if name in parts:
                self._vector(name).copy_(torch.from_numpy(parts[name]))

    @torch.no_grad()
    def capture(self, parts: Mapping[str, NDArray[np.float32]]) -> None:
        """Copies every vector into ``parts`` (f32[numel] each) for a newcomer; complete when the call returns."""
        for name in self.part_names:
            torch.from_numpy(parts[name]).copy_(self._vector(name))

    def _vector(self, name: str) -> torch.Tensor:
        return self.parameters if name == PARAMETERS else self.optimizer_state[name]
