"""A small network of action values, and agents that have it, for the tests of the value-based algorithms."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from zpala.rl.flat import FlatParameters
from zpala.rl.optimizers import OptimizerSettings, build_optimizer
from zpala.rl.q_learning import QLearning

Agent = TypeVar("Agent", bound=QLearning)


class SmallNetwork(nn.Module):
    """Observations [B, ``size``] -> values f32[B, ``num_actions``]; a table of values where ``hidden`` is 0."""

    def __init__(self, size: int = 3, num_actions: int = 4, hidden: int = 16) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = nn.Linear(size, hidden) if hidden else None
        self.last = nn.Linear(hidden or size, num_actions)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.7, generator=generator)

    def forward(self, observation: Tensor) -> Tensor:
        values: Tensor = self.last(observation if self.first is None else torch.tanh(self.first(observation)))
        return values


def q_agent(kind: type[Agent], settings: object, network: nn.Module | None = None, *, seed: int = 5, optimizer: str = "rmsprop") -> Agent:
    """An agent with the same parameters every time."""
    network = SmallNetwork() if network is None else network
    flat = FlatParameters(network)
    adam = OptimizerSettings(name="adam" if optimizer == "adam" else "rmsprop")
    return kind(network, flat, build_optimizer(adam, flat.numel), settings, seed=seed)  # type: ignore[arg-type, call-arg]
