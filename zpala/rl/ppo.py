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

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from zpala.rl.algorithm import Statistics
from zpala.rl.flat import FlatParameters
from zpala.rl.networks import ActorCritic
from zpala.rl.optimizers import Optimizer
from zpala.rl.policy_gradient import PolicyGradient, PolicyGradientSettings, explained_variance
from zpala.rl.rollout import PerStep, Rollout
from zpala.rl.schedules import linear

KL_TOLERANCE = 1.5  # stable-baselines3, ppo.py: no further step when the approximate KL is above so many times target_kl
LOG_PROBABILITIES, VALUES = "log_probabilities", "values"
STATISTICS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "grad_norm", "explained_variance", "minibatches")


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
    logits: Tensor,
    values: Tensor,
    actions: Tensor,
    old_log_probabilities: Tensor,
    old_values: Tensor,
    returns: Tensor,
    *,
    clip_range: float,
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
        logits: f32[B, A], B at least 1.
        values, old_log_probabilities, old_values, returns: f32[B]; all but ``values`` without a graph.
        actions: i64[B] in [0, A).
    """
    if logits.dim() != 2 or any(x.shape != logits.shape[:1] for x in (values, actions, old_log_probabilities, old_values, returns)):
        raise ValueError(f"shapes do not fit: logits {tuple(logits.shape)}, values {tuple(values.shape)}, returns {tuple(returns.shape)}")
    advantage = returns - old_values
    if normalize_advantage:
        advantage = advantage - advantage.mean()
        advantage = advantage / (advantage.square().mean().sqrt() + 1e-8)
    log_policy = torch.log_softmax(logits, dim=-1)
    log_ratio = log_policy.gather(-1, actions.unsqueeze(-1)).squeeze(-1) - old_log_probabilities
    ratio = log_ratio.exp()
    policy = -torch.min(ratio * advantage, ratio.clamp(1.0 - clip_range, 1.0 + clip_range) * advantage).mean()
    squares = (returns - values).square()
    if clip_range_values is not None:
        limited = old_values + (values - old_values).clamp(-clip_range_values, clip_range_values)
        squares = torch.max(squares, (returns - limited).square())
    value = squares.mean()
    entropy = -(log_policy.exp() * log_policy).sum(-1).mean()
    with torch.no_grad():
        approx_kl = (ratio - 1.0 - log_ratio).mean()
        clip_fraction = ((ratio - 1.0).abs() > clip_range).float().mean()
    total = policy + value_coefficient * value - entropy_coefficient * entropy
    return PPOLoss(total, policy, value, entropy, approx_kl, clip_fraction)


class PPO(PolicyGradient):
    """Several epochs of minibatches per rollout. Averaged: all parameters. Local: the optimiser's state, the random stream.

    The slab has the log-probability of every action and the value of every observation, as acting found them.
    """

    Settings = PPOSettings

    def __init__(self, network: ActorCritic, flat: FlatParameters, optimizer: Optimizer, settings: PPOSettings, *, seed: int) -> None:
        super().__init__(network, flat, optimizer, settings, seed=seed)
        self.settings = settings

    def per_step(self) -> dict[str, PerStep]:
        return {LOG_PROBABILITIES: PerStep(), VALUES: PerStep()}

    @torch.inference_mode()
    def act(self, rollout: Rollout, t: int, start: int, stop: int) -> Tensor:
        logits, values = self.network(self._observation(rollout, t, start, stop))
        actions = self._sample(logits, t, start, stop)
        log_policy = torch.log_softmax(logits, dim=-1)
        rollout.extra[LOG_PROBABILITIES][t, start:stop] = log_policy.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        rollout.extra[VALUES][t, start:stop] = values
        return actions

    def update(self, rollout: Rollout, learning_rate: float, progress: float) -> Statistics:
        """``epochs`` passes over the valid steps of the rollout, whose every action ``act`` has chosen with the present parameters.

        The statistics are means over the minibatches that were used; ``minibatches`` counts them.
        """
        settings = self.settings
        valid = self._move(rollout.valid.flatten().nonzero().squeeze(-1))
        if len(valid) == 0:
            return Statistics(True, dict.fromkeys(STATISTICS, 0.0))
        batch = self._batch(rollout)
        old_values = rollout.extra[VALUES]
        returns = self._returns(batch, old_values)
        explained = explained_variance(old_values, returns, batch.valid).item()
        columns = [x.flatten() for x in (batch.actions, rollout.extra[LOG_PROBABILITIES], old_values, returns)]
        clip_range = linear(settings.clip_range, progress) if settings.anneal_clip_range else settings.clip_range
        parts = max(1, round(len(valid) / settings.minibatch_size))
        sums, used, finite = [0.0] * 6, 0, True
        for _ in range(settings.epochs):
            order = valid[torch.randperm(len(valid), generator=self._generator, device=self.device)]
            for chosen in order.tensor_split(parts):
                logits, values = self.network(batch.observations[chosen])
                loss = ppo_loss(
                    logits,
                    values,
                    *(column[chosen] for column in columns),
                    clip_range=clip_range,
                    clip_range_values=settings.clip_range_values,
                    entropy_coefficient=settings.entropy_coefficient,
                    value_coefficient=settings.value_coefficient,
                    normalize_advantage=settings.normalize_advantage,
                )
                if settings.target_kl is not None and loss.approx_kl.item() > KL_TOLERANCE * settings.target_kl:
                    return self._statistics(finite, sums, used, explained)
                finite, grad_norm, numbers = self._descend(loss.total, learning_rate, loss[1:])
                sums, used = [a + b for a, b in zip(sums, (*numbers, grad_norm), strict=True)], used + 1
                if not finite:
                    return self._statistics(finite, sums, used, explained)
        return self._statistics(finite, sums, used, explained)

    def _statistics(self, finite: bool, sums: list[float], used: int, explained: float) -> Statistics:
        means = [total / max(used, 1) for total in sums]
        return Statistics(finite, dict(zip(STATISTICS, (*means, explained, float(used)), strict=True)))
