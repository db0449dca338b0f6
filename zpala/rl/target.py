"""A target network: the network's parameters of some time ago, from which value-based algorithms take the values that they learn.

Owned here: a second flat vector, on the node alone. Gossip never averages it; it follows the parameters, whoever has changed them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from zpala.rl.flat import FlatParameters


class TargetNetwork:
    """Calls ``network`` with parameters of its own.

    Args:
        network: its parameters are ``flat``'s views.
        update_steps: after so many optimiser steps the target goes towards the parameters,
        update_weight: by this share of the way: 1 copies them (Mnih et al. 2015), less is a moving average (Lillicrap et al. 2016).
    """

    def __init__(self, network: nn.Module, flat: FlatParameters, update_steps: int, update_weight: float = 1.0) -> None:
        if update_steps < 1 or not 0.0 < update_weight <= 1.0:
            raise ValueError(f"a target follows after 1 or more steps by more than 0 and at most 1, not {update_steps} and {update_weight}")
        self._network, self._parameters = network, flat.parameters
        self._update_steps, self._update_weight = update_steps, update_weight
        self.vector = flat.parameters.detach().clone()
        self._views = flat.views(self.vector)
        self._steps = 0  # since the target last followed

    @torch.no_grad()
    def __call__(self, observations: Tensor) -> Tensor:
        """Observations [B, ...] -> values f32[B, A], without a graph."""
        values: Tensor = functional_call(self._network, self._views, (observations,))
        return values

    def stepped(self) -> None:
        """The optimiser has made one step."""
        self._steps += 1
        if self._steps < self._update_steps:
            return
        self._steps = 0
        if self._update_weight == 1.0:
            self.follow()
        else:
            self.vector.lerp_(self._parameters, self._update_weight)

    def follow(self) -> None:
        """Copies the parameters, at once."""
        self._steps = 0
        self.vector.copy_(self._parameters)

    def state(self) -> dict[str, Tensor]:
        """For ``Algorithm.local_state``: a view and a number."""
        return {"target": self.vector, "target_steps": torch.tensor(self._steps)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what ``state`` once gave; other names are not looked at."""
        self.vector.copy_(state["target"])
        self._steps = int(state["target_steps"])
