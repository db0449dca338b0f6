"""Advantage actor-critic, synchronous (PAAC, Clemente et al. 2017, arXiv 1705.04862; A2C of Mnih et al. 2016, arXiv 1602.01783).

``a2c_loss`` is the arithmetic; ``A2C`` acts and turns one rollout into one optimiser step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from zpala.rl.algorithm import Statistics
from zpala.rl.descent import downhill, stepped
from zpala.rl.execution import Fixed
from zpala.rl.flat import FlatParameters
from zpala.rl.networks import Network
from zpala.rl.optimizers import Optimizer
from zpala.rl.policies import Evaluated
from zpala.rl.policy_gradient import Columns, PolicyGradient, PolicyGradientSettings, explained_variance
from zpala.rl.rollout import Rollout

STATISTICS = ("policy_loss", "value_loss", "entropy", "explained_variance", "grad_norm")


@dataclass(frozen=True, slots=True)
class A2CSettings(PolicyGradientSettings):
    """Constants of the algorithm, beside those of ``PolicyGradientSettings``.

    Attributes:
        reuse_activations: what convolutions computed when the actions were chosen need not be computed again to learn (``activations``);
            otherwise there is a second forward pass. Both give the same gradients: no parameter changes inside a rollout.
    """

    reuse_activations: bool = False


class A2CLoss(NamedTuple):
    """Scalars f32; ``total`` carries the graph."""

    total: Tensor
    policy: Tensor
    value: Tensor
    entropy: Tensor


def a2c_loss(
    evaluated: Evaluated,
    values: Tensor,
    returns: Tensor,
    valid: Tensor,
    *,
    advantages: Tensor | None = None,
    entropy_coefficient: float,
    value_coefficient: float,
    normalize_advantage: bool = False,
) -> A2CLoss:
    """total = mean(-log pi(a|s) (R - V)) + value_coefficient mean((R - V)^2) - entropy_coefficient mean(H(pi(.|s))), over valid steps.

    No gradient flows through the advantage into the value. With ``normalize_advantage`` the advantage A = R - V in the policy's part is
    (A - mean(A)) / (std(A) + 1e-8), mean and population standard deviation over the valid steps (OpenAI baselines' PPO; option of
    stable-baselines3's A2C).

    Args:
        evaluated: log pi(a|s) and H(pi(.|s)), f32[B] each, anything finite where not valid.
        values: f32[B].
        returns: f32[B], without a graph.
        valid: bool[B].
        advantages: f32[B] in place of R - V in the policy's part, without a graph.
    Returns:
        All 0 when no step is valid.
    """
    chosen, entropies = evaluated
    if values.dim() != 1 or any(x.shape != values.shape for x in (chosen, entropies, returns, valid)):
        raise ValueError(
            f"shapes do not fit: log-probabilities {tuple(chosen.shape)}, values {tuple(values.shape)}, returns {tuple(returns.shape)}, "
            f"valid {tuple(valid.shape)}"
        )
    weight = valid.to(torch.float32)
    weight = weight / weight.sum().clamp_(min=1.0)
    error = returns - values
    advantage = error.detach() if advantages is None else advantages
    if normalize_advantage:
        advantage = advantage - torch.dot(advantage, weight)
        advantage = advantage / (torch.dot(advantage.square(), weight).sqrt() + 1e-8)
    policy = -torch.dot(chosen, advantage * weight)
    value = torch.dot(error.square(), weight)
    entropy = torch.dot(entropies, weight)
    return A2CLoss(policy + value_coefficient * value - entropy_coefficient * entropy, policy, value, entropy)


class A2C(PolicyGradient):
    """One optimiser step per rollout. Averaged: all parameters. Local: the optimiser's state, the random stream. See ``Algorithm``."""

    Settings = A2CSettings

    def __init__(self, network: Network, flat: FlatParameters, optimizer: Optimizer, settings: A2CSettings, *, seed: int) -> None:
        super().__init__(network, flat, optimizer, settings, seed=seed, reuse_activations=settings.reuse_activations)
        self.settings = settings

    def update(self, rollout: Rollout, learning_rate: float, progress: float) -> Statistics:
        """One step from the whole rollout, whose every action ``act`` has chosen with the present parameters.

        ``value_loss`` is the mean squared error, ``grad_norm`` the L2 norm before clipping.
        """
        if not rollout.valid.any():
            return Statistics(True, dict.fromkeys(STATISTICS, 0.0))
        found = self.executor.run(self._learn, self._columns(rollout), self._fixed(rollout)).tolist()
        finite = stepped(found, self.flat, self.optimizer, learning_rate)
        if finite:
            self._observe(rollout)
        _, grad_norm, *numbers = found
        return Statistics(finite, dict(zip(STATISTICS, (*numbers, grad_norm), strict=True)))

    def _learn(self, columns: Columns, fixed: Fixed) -> Tensor:
        """The gradient, and what ``downhill`` returns with the statistics."""
        settings = self.settings
        batch = self._batch(columns, fixed)
        outputs, values = self._forward(batch)
        returns = self._returns(batch, values.detach().view_as(batch.rewards)).flatten()
        valid = batch.valid.flatten()
        loss = a2c_loss(
            self._evaluate(outputs, batch),
            values,
            returns,
            valid,
            entropy_coefficient=settings.entropy_coefficient,
            value_coefficient=settings.value_coefficient,
            normalize_advantage=settings.normalize_advantage,
        )
        numbers = (loss.policy, loss.value, loss.entropy, explained_variance(values.detach(), returns, valid))
        return downhill(self.flat, loss.total, settings.max_grad_norm, numbers, self._differentiated)
