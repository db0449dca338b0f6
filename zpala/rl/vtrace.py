"""A2C that may learn from an older policy's actions: V-trace (IMPALA, Espeholt et al. 2018, arXiv 1802.01561, section 4).

``vtrace_targets`` is the arithmetic; ``VTrace`` stores the log-probability of every action when it acts and corrects for what the policy
has become when it learns. With the policy that acted every ratio is 1 and this is A2C.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from zpala.rl.a2c import a2c_loss
from zpala.rl.algorithm import Statistics
from zpala.rl.descent import downhill, stepped
from zpala.rl.execution import Fixed
from zpala.rl.flat import FlatParameters
from zpala.rl.networks import Network
from zpala.rl.optimizers import Optimizer
from zpala.rl.policy_gradient import LOG_PROBABILITIES, Columns, PolicyGradient, PolicyGradientSettings, explained_variance
from zpala.rl.returns import Discounts
from zpala.rl.rollout import PerStep, Rollout

ROUNDING = 1e-4  # a ratio of 1 may come out so much larger: batches of another size are summed in another order
STATISTICS = ("policy_loss", "value_loss", "entropy", "explained_variance", "rho", "clip_fraction", "grad_norm")


@dataclass(frozen=True, slots=True)
class VTraceSettings(PolicyGradientSettings):
    """Constants of the algorithm, beside those of ``PolicyGradientSettings``; ``gae_lambda`` is the paper's lambda (remark 2).

    Attributes:
        rho_clip: the ratios that weigh the errors are at most this: it decides which policy the values are of.
        c_clip: the ratios that pass later errors on are at most this: it decides how fast the values get there.
        lag: the node acts with the parameters of so many updates ago.
        reuse_activations: see ``A2CSettings``; only with a lag of 0.
    """

    rho_clip: float = 1.0
    c_clip: float = 1.0
    lag: int = 0
    reuse_activations: bool = False


class VTraceTargets(NamedTuple):
    """Both f32[T, N] without a graph."""

    returns: Tensor  # v_t, what the values should be
    advantages: Tensor  # of the actions, times the clipped ratio


@torch.no_grad()
def vtrace_targets(
    log_ratios: Tensor,
    rewards: Tensor,
    discount: Discounts,
    values: Tensor,
    final_values: Tensor | None,
    bootstrap_values: Tensor,
    *,
    rho_clip: float,
    c_clip: float,
    gae_lambda: float,
) -> VTraceTargets:
    """v_t = V_t + delta_t + through_t c_t (v_{t+1} - V_{t+1}), with v_T = V_T, and

    delta_t = rho_t (r_t + through_t V_{t+1} + final_t V(final observation of t) - V_t),
    advantage_t = rho_t (r_t + through_t ((1 - lambda) V_{t+1} + lambda v_{t+1}) + final_t V(final observation of t) - V_t),
    rho_t = min(rho_clip, ratio_t), c_t = lambda min(c_clip, ratio_t), ratio_t = pi(a_t|s_t) / mu(a_t|s_t), mu the policy that acted.

    Args:
        log_ratios: f32[T, N], log pi(a_t|s_t) - log mu(a_t|s_t).
        values: f32[T, N], V_t of the present parameters.
        rewards, discount, final_values, bootstrap_values: as for ``n_step_returns``; V_T is ``bootstrap_values``.
    """
    if not rewards.shape == values.shape == log_ratios.shape == discount.through.shape or bootstrap_values.shape != rewards.shape[1:]:
        raise ValueError(
            f"shapes do not fit: log ratios {tuple(log_ratios.shape)}, rewards {tuple(rewards.shape)}, values {tuple(values.shape)}, "
            f"bootstrap values {tuple(bootstrap_values.shape)}"
        )
    ratios = log_ratios.exp()
    rho, c = ratios.clamp(max=rho_clip), gae_lambda * ratios.clamp(max=c_clip)
    gained = rewards - values if final_values is None else torch.addcmul(rewards, discount.final, final_values) - values
    next_values = torch.cat([values[1:], bootstrap_values.unsqueeze(0)])
    excess = rho * (gained + discount.through * next_values)  # becomes v_t - V_t, from the last step to the first
    following = torch.zeros_like(bootstrap_values)
    for excess_t, factor_t in zip(reversed(excess.unbind(0)), reversed((discount.through * c).unbind(0)), strict=True):
        following = excess_t.addcmul_(factor_t, following)
    returns = values + excess
    next_returns = torch.cat([returns[1:], bootstrap_values.unsqueeze(0)])
    return VTraceTargets(returns, rho * (gained + discount.through * torch.lerp(next_values, next_returns, gae_lambda)))


class VTrace(PolicyGradient):
    """One optimiser step per rollout. Averaged: all parameters. Local: the optimiser's state, the random stream, older parameters.

    The slab has the log-probability of every action as the policy that acted had it.
    """

    Settings = VTraceSettings

    def __init__(self, network: Network, flat: FlatParameters, optimizer: Optimizer, settings: VTraceSettings, *, seed: int) -> None:
        if settings.reuse_activations and settings.lag > 0:
            raise ValueError("reuse_activations needs lag = 0: with a lag the parameters that act are not those that learn")
        super().__init__(network, flat, optimizer, settings, seed=seed, reuse_activations=settings.reuse_activations)
        self.settings = settings
        self._older: deque[Tensor] = deque(maxlen=settings.lag + 1)  # the parameters of the last rollouts, this one's last
        self._acting: FlatParameters | None = None
        if settings.lag > 0:
            self._actor = copy.deepcopy(self.network)
            self._acting = FlatParameters(self._actor, self.device)

    def per_step(self) -> dict[str, PerStep]:
        return {**super().per_step(), LOG_PROBABILITIES: PerStep()}

    def begin(self, rollout: Rollout, progress: float) -> None:
        super().begin(rollout, progress)
        if self._acting is not None:
            self._older.append(self.flat.parameters.detach().clone())
            self._acting.parameters.copy_(self._older[0])

    def update(self, rollout: Rollout, learning_rate: float, progress: float) -> Statistics:
        """One step from the whole rollout. ``rho`` is the mean clipped ratio, ``clip_fraction`` how many ratios were above ``rho_clip``."""
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
        cells = batch.rewards.shape
        outputs, values = self._forward(batch)
        evaluated = self._evaluate(outputs, batch)
        log_ratios = evaluated.log_probabilities.detach().view(cells) - fixed[LOG_PROBABILITIES]
        targets = vtrace_targets(
            log_ratios,
            batch.rewards,
            batch.discount,
            values.detach().view(cells),
            batch.final_values,
            batch.bootstrap_values,
            rho_clip=settings.rho_clip,
            c_clip=settings.c_clip,
            gae_lambda=settings.gae_lambda,
        )
        valid, returns = batch.valid.flatten(), targets.returns.flatten()
        loss = a2c_loss(
            evaluated,
            values,
            returns,
            valid,
            advantages=targets.advantages.flatten(),
            entropy_coefficient=settings.entropy_coefficient,
            value_coefficient=settings.value_coefficient,
            normalize_advantage=settings.normalize_advantage,
        )
        ratios = log_ratios.exp()
        count = batch.valid.sum().clamp(min=1)
        rho = (ratios.clamp(max=settings.rho_clip) * batch.valid).sum() / count
        clipped = ((ratios > settings.rho_clip * (1.0 + ROUNDING)) & batch.valid).sum() / count
        numbers = (loss.policy, loss.value, loss.entropy, explained_variance(values.detach(), returns, valid), rho, clipped)
        return downhill(self.flat, loss.total, settings.max_grad_norm, numbers)

    def adopted(self) -> None:
        """The older parameters were of a policy that has been given up."""
        super().adopted()
        self._older.clear()

    def local_state(self) -> Mapping[str, Tensor]:
        return {**super().local_state(), **{f"older.{age}": vector for age, vector in enumerate(self._older)}}

    def load_local_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_local_state(state)
        self._older.clear()
        self._older.extend(state[f"older.{age}"].to(self.device) for age in range(len(state) - 1))
