"""Advantage actor-critic, synchronous (PAAC, Clemente et al. 2017, arXiv 1705.04862; A2C of Mnih et al. 2016, arXiv 1602.01783).

``a2c_loss`` is the arithmetic; ``A2C`` acts, keeps what acting computed, and turns one rollout into one optimiser step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from zpala.rl.algorithm import Statistics
from zpala.rl.flat import FlatParameters
from zpala.rl.networks import ActorCritic
from zpala.rl.optimizers import Optimizer
from zpala.rl.policy_gradient import PolicyGradient, PolicyGradientSettings, explained_variance
from zpala.rl.rollout import Rollout


@dataclass(frozen=True, slots=True)
class A2CSettings(PolicyGradientSettings):
    """Constants of the algorithm, beside those of ``PolicyGradientSettings``.

    Attributes:
        reuse_graph: the forward passes that chose the actions are the forward pass of the update; otherwise there is a second, batched one.
            Both give the same gradients: no parameter changes inside a rollout.
    """

    reuse_graph: bool = False


class A2CLoss(NamedTuple):
    """Scalars f32; ``total`` carries the graph."""

    total: Tensor
    policy: Tensor
    value: Tensor
    entropy: Tensor


def a2c_loss(
    logits: Tensor,
    values: Tensor,
    actions: Tensor,
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
        logits: f32[B, A].
        values: f32[B].
        actions: i64[B] in [0, A), anything where not valid.
        returns: f32[B], without a graph.
        valid: bool[B].
        advantages: f32[B] in place of R - V in the policy's part, without a graph.
    Returns:
        All 0 when no step is valid.
    """
    if logits.dim() != 2 or values.shape != returns.shape or values.shape != logits.shape[:1] or valid.shape != values.shape:
        raise ValueError(
            f"shapes do not fit: logits {tuple(logits.shape)}, values {tuple(values.shape)}, returns {tuple(returns.shape)}, "
            f"valid {tuple(valid.shape)}"
        )
    weight = valid.to(torch.float32)
    weight = weight / weight.sum().clamp_(min=1.0)
    log_policy = torch.log_softmax(logits, dim=-1)
    chosen = log_policy.gather(-1, actions.where(valid, 0).unsqueeze(-1)).squeeze(-1)
    error = returns - values
    advantage = error.detach() if advantages is None else advantages
    if normalize_advantage:
        advantage = advantage - torch.dot(advantage, weight)
        advantage = advantage / (torch.dot(advantage.square(), weight).sqrt() + 1e-8)
    policy = -torch.dot(chosen, advantage * weight)
    value = torch.dot(error.square(), weight)
    entropy = -torch.dot((log_policy.exp() * log_policy).sum(-1), weight)
    return A2CLoss(policy + value_coefficient * value - entropy_coefficient * entropy, policy, value, entropy)


class A2C(PolicyGradient):
    """One optimiser step per rollout. Averaged: all parameters. Local: the optimiser's state, the random stream. See ``Algorithm``."""

    Settings = A2CSettings

    def __init__(self, network: ActorCritic, flat: FlatParameters, optimizer: Optimizer, settings: A2CSettings, *, seed: int) -> None:
        super().__init__(network, flat, optimizer, settings, seed=seed)
        self.settings = settings
        self._outputs: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def act(self, rollout: Rollout, t: int, start: int, stop: int) -> Tensor:
        observation = self._observation(rollout, t, start, stop, kept=self.settings.reuse_graph)
        if self.settings.reuse_graph:
            logits, values = self.network(observation)
            self._outputs[t, start] = logits, values
            logits = logits.detach()
        else:
            with torch.inference_mode():
                logits = self.network.logits(observation)
        return self._sample(logits, t, start, stop)

    def update(self, rollout: Rollout, learning_rate: float, progress: float) -> Statistics:
        """One step from the whole rollout, whose every action ``act`` has chosen with the present parameters.

        ``value_loss`` is the mean squared error, ``grad_norm`` the L2 norm before clipping.
        """
        settings = self.settings
        batch = self._batch(rollout)
        logits, values = self._collect(batch.actions.numel()) if settings.reuse_graph else self.network(batch.observations)
        returns = self._returns(batch, values.detach().view_as(batch.rewards)).flatten()
        valid = batch.valid.flatten()
        loss = a2c_loss(
            logits,
            values,
            batch.actions.flatten(),
            returns,
            valid,
            entropy_coefficient=settings.entropy_coefficient,
            value_coefficient=settings.value_coefficient,
            normalize_advantage=settings.normalize_advantage,
        )
        numbers = (loss.policy, loss.value, loss.entropy, explained_variance(values.detach(), returns, valid))
        finite, grad_norm, (policy, value, entropy, explained) = self._descend(loss.total, learning_rate, numbers)
        self._outputs.clear()
        return Statistics(
            finite,
            {
                "policy_loss": policy,
                "value_loss": value,
                "entropy": entropy,
                "explained_variance": explained,
                "grad_norm": grad_norm,
            },
        )

    def _collect(self, cells: int) -> tuple[Tensor, Tensor]:
        """What acting computed, in the order [T, N] flattened."""
        outputs = [self._outputs[key] for key in sorted(self._outputs)]
        logits, values = torch.cat([logits for logits, _ in outputs]), torch.cat([values for _, values in outputs])
        if len(values) != cells:
            raise RuntimeError(f"the rollout has {cells} steps, but actions were chosen for {len(values)}")
        return logits, values
