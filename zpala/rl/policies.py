"""What the outputs of a policy head mean: the distribution over actions that they describe.

One object per action space; no parameters live here. ``outputs`` is always f32[B, P] of the network, ``actions`` what the rollout slab
holds (see ``action_spaces``), and noise is drawn beforehand, a rollout at a time, so that a draw does not depend on how environments are
grouped.

===============  =============  ===================================================================================
space            P              distribution
===============  =============  ===================================================================================
Discrete         n              softmax of n logits
MultiDiscrete    n_1 + .. n_K   K independent softmaxes; log-probabilities and entropies add up
Box              2 D            independent Gaussians: D means, then D log standard deviations
Box, squashed    2 D            tanh of such a Gaussian, stretched to [low, high] (Haarnoja et al. 2018, appendix C)
===============  =============  ===================================================================================
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from zpala.rl.action_spaces import ActionSpace, Box, Discrete, MultiDiscrete


class Evaluated(NamedTuple):
    """What a policy says of actions: both f32[B], with a graph if the outputs have one."""

    log_probabilities: Tensor
    entropies: Tensor


class Policy(ABC):
    """A distribution over actions for every row of outputs.

    Attributes:
        outputs: P.
        noise_shape: of the noise behind one action.
        latent: draws and actions differ; the draw is what ``evaluate`` takes.
    """

    outputs: int
    noise_shape: tuple[int, ...]
    latent = False

    @abstractmethod
    def fill(self, noise: Tensor, generator: torch.Generator) -> None:
        """Fills ``noise`` f32[..., *noise_shape] with what ``draw`` needs."""

    @abstractmethod
    def draw(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """One draw [B, ...] of the policy."""

    @abstractmethod
    def mode(self, outputs: Tensor) -> Tensor:
        """The most probable draw [B, ...]."""

    @abstractmethod
    def evaluate(self, outputs: Tensor, draws: Tensor) -> Evaluated:
        """Log-probabilities (of a Box: densities) of ``draws`` and entropies."""

    def log_probabilities(self, outputs: Tensor, draws: Tensor) -> Tensor:
        """f32[B], as ``evaluate`` gives them."""
        return self.evaluate(outputs, draws).log_probabilities

    def actions(self, draws: Tensor) -> Tensor:
        """What the environment is told for these draws."""
        return draws

    @abstractmethod
    def describe(self) -> str:
        """In a few characters; nodes whose policies differ must not average."""


class Categorical(Policy):
    """One of n actions."""

    def __init__(self, n: int) -> None:
        self.outputs = n
        self.noise_shape = (n,)

    def fill(self, noise: Tensor, generator: torch.Generator) -> None:
        # Gumbel noise on the logits makes argmax a draw of the softmax.
        noise.exponential_(generator=generator).clamp_(min=torch.finfo(torch.float32).tiny).log_().neg_()

    def draw(self, outputs: Tensor, noise: Tensor) -> Tensor:
        return torch.argmax(outputs + noise, dim=-1)

    def mode(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(dim=-1)

    def evaluate(self, outputs: Tensor, draws: Tensor) -> Evaluated:
        log_policy = torch.log_softmax(outputs, dim=-1)
        chosen = log_policy.gather(-1, draws.unsqueeze(-1)).squeeze(-1)
        return Evaluated(chosen, -(log_policy.exp() * log_policy).sum(-1))

    def log_probabilities(self, outputs: Tensor, draws: Tensor) -> Tensor:
        return torch.log_softmax(outputs, dim=-1).gather(-1, draws.unsqueeze(-1)).squeeze(-1)

    def describe(self) -> str:
        return str(self.outputs)


class MultiCategorical(Policy):
    """K independent choices."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._parts = [Categorical(n) for n in sizes]
        self._sizes = list(sizes)
        self.outputs = sum(sizes)
        self.noise_shape = (self.outputs,)

    def fill(self, noise: Tensor, generator: torch.Generator) -> None:
        self._parts[0].fill(noise, generator)  # independent numbers, whatever they are for

    def draw(self, outputs: Tensor, noise: Tensor) -> Tensor:
        return self.mode(outputs + noise)

    def mode(self, outputs: Tensor) -> Tensor:
        return torch.stack([part.argmax(dim=-1) for part in torch.split(outputs, self._sizes, dim=-1)], dim=-1)

    def evaluate(self, outputs: Tensor, draws: Tensor) -> Evaluated:
        parts = [
            part.evaluate(of_part, draw)
            for part, of_part, draw in zip(self._parts, torch.split(outputs, self._sizes, dim=-1), draws.unbind(-1), strict=True)
        ]
        return Evaluated(
            torch.stack([part.log_probabilities for part in parts]).sum(0), torch.stack([part.entropies for part in parts]).sum(0)
        )

    def describe(self) -> str:
        return "+".join(map(str, self._sizes))


class Gaussian(Policy):
    """D independent Gaussians. The environment clips what lies outside of the space; the policy does not know of it."""

    def __init__(self, dimensions: int) -> None:
        self._dimensions = dimensions
        self.outputs = 2 * dimensions
        self.noise_shape = (dimensions,)

    def fill(self, noise: Tensor, generator: torch.Generator) -> None:
        noise.normal_(generator=generator)

    def draw(self, outputs: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = outputs.chunk(2, dim=-1)
        return torch.addcmul(mean, log_std.exp(), noise)

    def mode(self, outputs: Tensor) -> Tensor:
        return outputs[..., : self._dimensions]

    def evaluate(self, outputs: Tensor, draws: Tensor) -> Evaluated:
        mean, log_std = outputs.chunk(2, dim=-1)
        error = (draws - mean) * torch.exp(-log_std)
        log_probabilities = -(0.5 * error.square() + log_std).sum(-1) - 0.5 * self._dimensions * math.log(2.0 * math.pi)
        return Evaluated(log_probabilities, log_std.sum(-1) + 0.5 * self._dimensions * math.log(2.0 * math.pi * math.e))

    def describe(self) -> str:
        return f"gaussian {self._dimensions}"


class SquashedGaussian(Gaussian):
    """low + (high - low) (tanh(u) + 1) / 2 with u of a ``Gaussian``: u is the draw, so nothing has to be inverted.

    Densities are those of the actions in units of half the space's width, log p(u) - sum log(1 - tanh(u)^2): the constant width changes no
    ratio and no gradient. The entropy has no closed form: the Gaussian's plus the change of width at the draw is an estimate without bias,
    and so is its gradient, because the draw moves with mean and deviation (-log p of the draw would have no gradient on average).

    Raises:
        ValueError: the space has no ends.
    """

    latent = True

    def __init__(self, low: Sequence[float], high: Sequence[float]) -> None:
        super().__init__(len(low))
        ends = torch.tensor([low, high], dtype=torch.float32)
        if not bool(ends.isfinite().all()):
            raise ValueError("network.squash_actions needs an action space with finite ends on all sides; leave it at false")
        self._middle, self._half = ends.mean(0), (ends[1] - ends[0]) / 2.0
        self._ends: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def evaluate(self, outputs: Tensor, draws: Tensor) -> Evaluated:
        gaussian = super().evaluate(outputs, draws)
        mean, log_std = outputs.chunk(2, dim=-1)
        noise = ((draws - mean) * torch.exp(-log_std)).detach()
        moving = torch.addcmul(mean, log_std.exp(), noise)
        return Evaluated(gaussian.log_probabilities - _log_slope(draws), gaussian.entropies + _log_slope(moving))

    def actions(self, draws: Tensor) -> Tensor:
        if draws.device not in self._ends:
            self._ends[draws.device] = self._middle.to(draws.device), self._half.to(draws.device)
        middle, half = self._ends[draws.device]
        return torch.addcmul(middle, half, draws.tanh())

    def describe(self) -> str:
        return f"squashed {super().describe()}"


def _log_slope(draws: Tensor) -> Tensor:
    """The sum of log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u)), which is exact where tanh rounds to 1."""
    return 2.0 * (math.log(2.0) - draws - functional.softplus(-2.0 * draws)).sum(-1)


def policy_for(space: ActionSpace, *, squash: bool = False) -> Policy:
    """The distribution for an action space.

    Args:
        squash: only for a Box, see ``SquashedGaussian``.
    Raises:
        ValueError: ``squash`` where nothing can be squashed.
    """
    if squash and not isinstance(space, Box):
        raise ValueError(f"network.squash_actions is for Box action spaces, not for {space.describe()}; leave it at false")
    match space:
        case Discrete(n):
            return Categorical(n)
        case MultiDiscrete(sizes):
            return MultiCategorical(sizes)
        case Box(low, high):
            return SquashedGaussian(low, high) if squash else Gaussian(len(low))
