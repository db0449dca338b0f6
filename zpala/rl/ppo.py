"""Proximal policy optimisation with a clipped objective (Schulman et al. 2017, arXiv 1707.06347, equation 7).

``ppo_loss`` is the arithmetic; ``PPO`` turns one rollout into several epochs of minibatches. Results depend on details that the paper does
not have. Those here, numbered as in Huang et al. 2022, "The 37 implementation details of proximal policy optimization" (ICLR blog track):

==================================================  =================================================================================
 1 vectorised environments                          node/actor.py; a rollout is num_steps x num_envs
 2 orthogonal weights, biases 0                     networks.py: gain sqrt 2, policy head 0.01, value head 1
 3 Adam with epsilon 1e-5                           optimizer.epsilon
 4 the learning rate falls to 0                     optimizer.anneal, over the cluster's budget; clip_range by anneal_clip_range
 5 generalised advantages                           algorithm.gae_lambda; returns are advantages + values, once per rollout
 6 minibatches of shuffled steps                    every step once per epoch
 7 advantages normalised per minibatch              algorithm.normalize_advantage, on by default
 8 clipped objective                                clip_range
 9 clipped value loss                               clip_range_values, off by default: Andrychowicz et al. 2021 (arXiv 2006.05990)
                                                    found that it hurts
10 one loss: policy, value and entropy              their coefficients; the value loss is the mean squared error, without OpenAI's 1/2
11 global gradient norm 0.5                         algorithm.max_grad_norm
12 approximate KL, clip fraction                    statistics; KL by mean((ratio - 1) - log ratio) (Schulman 2020, "Approximating KL
                                                    divergence"). target_kl: stable-baselines3 stops above 1.5 times it
13 separate networks for policy and value           networks.py: on vectors two towers, on images one shared body
14-22 Atari                                         environments.py; rewards are clipped by algorithm.clip_rewards
==================================================  =================================================================================

Beyond those: time limits bootstrap from the final observation, and reset steps are in no minibatch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zpala.rl.algorithm import Statistics
from zpala.rl.descent import downhill, stepped
from zpala.rl.execution import Fixed
from zpala.rl.flat import FlatParameters
from zpala.rl.networks import Network, Output
from zpala.rl.optimizers import Optimizer
from zpala.rl.policies import Evaluated
from zpala.rl.policy_gradient import (
    DRAWS,
    LOG_PROBABILITIES,
    VALUES,
    Batch,
    Columns,
    PolicyGradient,
    PolicyGradientSettings,
    explained_variance,
)
from zpala.rl.rollout import PerStep, Rollout
from zpala.rl.schedules import linear

KL_TOLERANCE = 1.5  # stable-baselines3, ppo.py: no further step when the approximate KL is above so many times target_kl
RETURNS = "returns"
STATISTICS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "grad_norm", "explained_variance", "minibatches")

KL = STATISTICS.index("approx_kl")


@dataclass(frozen=True, slots=True)
class PPOSettings(PolicyGradientSettings):
    """Constants of the algorithm, beside those of ``PolicyGradientSettings``.

    Attributes:
        epochs: how often every step of a rollout is learnt from.
        minibatch_size: valid steps per optimiser step, about: they are cut into equal parts (to within one) of nearly this size.
        clip_range: the objective is flat where the ratio of new to old probability has left [1 - clip_range, 1 + clip_range].
        anneal_clip_range: it falls linearly to 0 with the cluster's progress.
        clip_range_values: a value further than this from its old one is not pushed further; None: values are not clipped.
        target_kl: an update ends early when the approximate KL divergence from the old policy exceeds 1.5 times this; None: never.
    """

    normalize_advantage: bool = True
    epochs: int = 10
    minibatch_size: int = 64
    clip_range: float = 0.2
    anneal_clip_range: bool = False
    clip_range_values: float | None = None
    target_kl: float | None = None


class PPOLoss(NamedTuple):
    """Scalars f32; ``total`` carries the graph."""

    total: Tensor
    policy: Tensor
    value: Tensor
    entropy: Tensor
    approx_kl: Tensor
    clip_fraction: Tensor


def ppo_loss(
    evaluated: Evaluated,
    values: Tensor,
    old_log_probabilities: Tensor,
    old_values: Tensor,
    returns: Tensor,
    *,
    clip_range: float | Tensor,
    clip_range_values: float | None = None,
    entropy_coefficient: float,
    value_coefficient: float,
    normalize_advantage: bool = False,
) -> PPOLoss:
    """total = -mean(min(ratio A, clip(ratio) A)) + value_coefficient mean((R - V)^2) - entropy_coefficient mean(H(pi(.|s))).

    ratio = pi(a|s) / pi_old(a|s), clip(ratio) = ratio limited to [1 - clip_range, 1 + clip_range], A = R - V_old, normalised to mean 0 and
    (population) standard deviation 1 with ``normalize_advantage``. With ``clip_range_values`` the squared error is the larger one of V and
    of V limited to [V_old - clip_range_values, V_old + clip_range_values].

    Args:
        evaluated: log pi(a|s) and H(pi(.|s)), f32[B] each, B at least 1.
        values, old_log_probabilities, old_values, returns: f32[B]; all but ``values`` without a graph.
    """
    log_probabilities, entropies = evaluated
    columns = (log_probabilities, entropies, old_log_probabilities, old_values, returns)
    if values.dim() != 1 or any(x.shape != values.shape for x in columns):
        raise ValueError(
            f"shapes do not fit: log-probabilities {tuple(log_probabilities.shape)}, values {tuple(values.shape)}, "
            f"returns {tuple(returns.shape)}"
        )
    advantage = returns - old_values
    if normalize_advantage:
        advantage = advantage - advantage.mean()
        advantage = advantage / (advantage.square().mean().sqrt() + 1e-8)
    log_ratio = log_probabilities - old_log_probabilities
    ratio = log_ratio.exp()
    low: Any = 1.0 - clip_range
    high: Any = 1.0 + clip_range
    policy = -torch.min(ratio * advantage, ratio.clamp(low, high) * advantage).mean()
    squares = (returns - values).square()
    if clip_range_values is not None:
        limited = old_values + (values - old_values).clamp(-clip_range_values, clip_range_values)
        squares = torch.max(squares, (returns - limited).square())
    value = squares.mean()
    entropy = entropies.mean()
    with torch.no_grad():
        approx_kl = (ratio - 1.0 - log_ratio).mean()
        clip_fraction = ((ratio - 1.0).abs() > clip_range).float().mean()
    total = policy + value_coefficient * value - entropy_coefficient * entropy
    return PPOLoss(total, policy, value, entropy, approx_kl, clip_fraction)


class Minibatch(NamedTuple):
    """``clip_range``: None: that of the settings."""

    chosen: Tensor  # i64[B], cells of the flattened rollout
    clip_range: Tensor | None  # f32 scalar


class PPO(PolicyGradient):
    """Several epochs of minibatches per rollout. Averaged: all parameters. Local: the optimiser's state, the random stream.

    The slab has the log-probability of every action and the value of every observation, as acting found them.
    """

    Settings = PPOSettings

    def __init__(self, network: Network, flat: FlatParameters, optimizer: Optimizer, settings: PPOSettings, *, seed: int) -> None:
        super().__init__(network, flat, optimizer, settings, seed=seed)
        self.settings = settings

    def per_step(self) -> dict[str, PerStep]:
        return {**super().per_step(), LOG_PROBABILITIES: PerStep(), VALUES: PerStep()}

    def update(self, rollout: Rollout, learning_rate: float, progress: float) -> Statistics:
        """``epochs`` passes over the valid steps of the rollout, whose every action ``act`` has chosen with the present parameters.

        The statistics are means over the minibatches that were used; ``minibatches`` counts them.
        """
        settings = self.settings
        valid = self._move(rollout.valid.flatten().nonzero().squeeze(-1))
        if len(valid) == 0:
            return Statistics(True, dict.fromkeys(STATISTICS, 0.0))
        fixed = self._fixed(rollout)
        batch, returns, variance = self.executor.run(self._look_back, self._columns(rollout), fixed)
        explained = float(variance)
        cells = {RETURNS: self.executor.hold(RETURNS, returns), DRAWS: self.executor.hold(DRAWS, batch.draws)}
        fixed = {name: tensor.flatten(0, 1) for name, tensor in {**fixed, **cells}.items() if name not in ("fresh", "first_state")}
        clip_range = None
        if settings.anneal_clip_range:
            clip_range = torch.tensor(linear(settings.clip_range, progress))
        sums, used, finite = [0.0] * 6, 0, True
        for found in self._gradients(batch, valid, clip_range, fixed):
            _, grad_norm, *numbers = found
            if settings.target_kl is not None and numbers[KL] > KL_TOLERANCE * settings.target_kl:
                break
            finite = stepped(found, self.flat, self.optimizer, learning_rate)
            sums, used = [a + b for a, b in zip(sums, (*numbers, grad_norm), strict=True)], used + 1
            if not finite:
                break
        if finite:
            self._observe(rollout)
        means = [total / max(used, 1) for total in sums]
        return Statistics(finite, dict(zip(STATISTICS, (*means, explained, float(used)), strict=True)))

    def _look_back(self, columns: Columns, fixed: Fixed) -> tuple[Batch, Tensor, Tensor]:
        """The rollout, what the values of its steps should be f32[T, N], and how much of that the old values explain."""
        batch = self._batch(columns, fixed)
        returns = self._returns(batch, fixed[VALUES])
        return batch, returns, explained_variance(fixed[VALUES], returns, batch.valid)

    def _gradients(self, batch: Batch, valid: Tensor, clip_range: Tensor | None, cells: Fixed) -> Iterator[list[float]]:
        """``epochs`` times all valid steps in a new order: of every minibatch the gradient, and what ``downhill`` says of it.

        Args:
            valid: i64[V], the cells of the flattened rollout that may be learnt from.
            cells: the rollout flattened, [T * N, ...] each.
        """
        parts = max(1, round(len(valid) / self.settings.minibatch_size))
        for _ in range(self.settings.epochs):
            if self.network.state_size:  # how many of its cells are valid decides the shape of a minibatch
                for chosen, output in self._sequences(batch, parts):
                    yield self._descent(output, Minibatch(chosen, clip_range), cells).tolist()
                continue
            order = valid[torch.randperm(len(valid), generator=self._generator, device=self.device)]
            for chosen in order.tensor_split(parts):
                yield self.executor.run(self._learn, Minibatch(chosen, clip_range), cells).tolist()

    def _learn(self, minibatch: Minibatch, cells: Fixed) -> Tensor:
        # Whole rows: indexing would copy byte by byte.
        return self._descent(self.network(cells["observations"].index_select(0, minibatch.chosen)), minibatch, cells)

    def _descent(self, output: Output, minibatch: Minibatch, cells: Fixed) -> Tensor:
        """The gradient, and what ``downhill`` returns with the statistics, from what the network says of the chosen cells."""
        settings, chosen = self.settings, minibatch.chosen
        loss = ppo_loss(
            self.policy.evaluate(output.policy, cells[DRAWS][chosen]),
            output.values,
            *(cells[name][chosen] for name in (LOG_PROBABILITIES, VALUES, RETURNS)),
            clip_range=settings.clip_range if minibatch.clip_range is None else minibatch.clip_range,
            clip_range_values=settings.clip_range_values,
            entropy_coefficient=settings.entropy_coefficient,
            value_coefficient=settings.value_coefficient,
            normalize_advantage=settings.normalize_advantage,
        )
        return downhill(self.flat, loss.total, settings.max_grad_norm, loss[1:])

    def _sequences(self, batch: Batch, parts: int) -> Iterator[tuple[Tensor, Output]]:
        """One epoch for a network with a memory: a minibatch is the whole rollout of some environments, at least of one."""
        steps, envs = batch.valid.shape
        cells = torch.arange(steps * envs, device=self.device).view(steps, envs)
        order = torch.randperm(envs, generator=self._generator, device=self.device)
        for columns in order.tensor_split(min(parts, envs)):
            learnt = batch.valid[:, columns].flatten().nonzero().squeeze(-1)
            if len(learnt):
                outputs, values = self.network.unroll(batch.observations[:, columns], self._fresh[:, columns], self._first_state[columns])
                yield cells[:, columns].flatten()[learnt], Output(outputs[learnt], values[learnt])
