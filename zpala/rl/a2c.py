"""Advantage actor-critic, synchronous (PAAC, Clemente et al. 2017, arXiv 1705.04862; A2C of Mnih et al. 2016, arXiv 1602.01783).

``a2c_loss`` is the arithmetic; ``A2C`` acts, keeps what acting computed, and turns one rollout into one optimiser step. It knows no
threads: acting may go group by group, and the sampled actions do not depend on how the environments are grouped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from zpala.rl.flat import FlatParameters
from zpala.rl.networks import ActorCritic
from zpala.rl.optimizers import Optimizer, clip_gradient_norm
from zpala.rl.returns import discounts, n_step_returns
from zpala.rl.rollout import Rollout


@dataclass(frozen=True, slots=True)
class A2CSettings:
    """Constants of the algorithm.

    Attributes:
        gamma: discount per env_step.
        entropy_coefficient, value_coefficient: weights of the mean entropy and the mean squared value error in the loss.
        max_grad_norm: the gradient is scaled down to this L2 norm.
        normalize_advantage: the policy's part of the loss sees advantages with mean 0 and standard deviation 1 over the rollout.
        clip_rewards: learn from rewards clipped to [-1, 1].
        reuse_graph: the forward passes that chose the actions are the forward pass of the update; otherwise there is a second, batched one.
            Both give the same gradients: no parameter changes inside a rollout.
    """

    gamma: float = 0.99
    entropy_coefficient: float = 0.01
    value_coefficient: float = 0.5
    max_grad_norm: float = 0.5
    normalize_advantage: bool = False
    clip_rewards: bool = False
    reuse_graph: bool = False


class A2CLoss(NamedTuple):
    """Scalars f32; ``total`` carries the graph."""

    total: Tensor
    policy: Tensor
    value: Tensor
    entropy: Tensor


class UpdateStatistics(NamedTuple):
    """One update in numbers, means over the valid steps of the rollout.

    ``value_loss`` is the mean squared error, ``grad_norm`` the L2 norm before clipping, ``explained_variance`` 1 - Var(R - V) / Var(R), 0
    when all returns are equal. ``finite`` is False when loss or gradient are not finite: then the optimiser has not stepped.
    """

    policy_loss: float
    value_loss: float
    entropy: float
    explained_variance: float
    grad_norm: float
    finite: bool


def a2c_loss(
    logits: Tensor,
    values: Tensor,
    actions: Tensor,
    returns: Tensor,
    valid: Tensor,
    *,
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
    advantage = error.detach()
    if normalize_advantage:
        advantage = advantage - torch.dot(advantage, weight)
        advantage = advantage / (torch.dot(advantage.square(), weight).sqrt() + 1e-8)
    policy = -torch.dot(chosen, advantage * weight)
    value = torch.dot(error.square(), weight)
    entropy = -torch.dot((log_policy.exp() * log_policy).sum(-1), weight)
    return A2CLoss(policy + value_coefficient * value - entropy_coefficient * entropy, policy, value, entropy)


class A2C:
    """Acts for, and learns from, one rollout slab. Used by one thread.

    Args:
        network: its parameters are ``flat``'s views, on ``flat``'s device.
        optimizer: over ``flat``'s vectors.
        seed: of the generator that samples the actions (``seeding.torch_seed``).
    """

    def __init__(self, network: ActorCritic, flat: FlatParameters, optimizer: Optimizer, settings: A2CSettings, *, seed: int) -> None:
        self.network = network
        self.flat = flat
        self.optimizer = optimizer
        self.settings = settings
        self.device = flat.parameters.device
        self._generator = torch.Generator(self.device).manual_seed(seed)
        self._noise = torch.empty(0)
        self._stale = True
        self._observations: Tensor | None = None
        self._outputs: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def act(self, rollout: Rollout, t: int, start: int, stop: int) -> Tensor:
        """Samples actions i64[stop - start] for observation ``t`` in [0, T) of the environments [start, stop); on the network's device.

        The caller stores them in the rollout. Within one rollout every (t, environment) is asked once.
        """
        if self._stale:
            self._begin(rollout)
        observation = self._on_device(rollout, t, start, stop)
        if self.settings.reuse_graph:
            logits, values = self.network(observation)
            self._outputs[t, start] = logits, values
            logits = logits.detach()
        else:
            with torch.inference_mode():
                logits = self.network.logits(observation)
        return torch.argmax(logits + self._noise[t, start:stop], dim=-1)

    @torch.inference_mode()
    def policy(self, observations: Tensor) -> Tensor:
        """Observations [B, ...] on the network's device -> logits f32[B, A], without a graph: for evaluation."""
        return self.network.logits(observations)

    def update(self, rollout: Rollout, learning_rate: float) -> UpdateStatistics:
        """One optimiser step from the whole rollout, whose every action ``act`` has chosen with the present parameters."""
        settings = self.settings
        observations = self._observations if self._observations is not None else rollout.observations
        cells = (rollout.num_steps, rollout.num_envs)
        actions, rewards = self._move(rollout.actions), self._move(rollout.rewards)
        terminated, truncated, valid = self._move(rollout.terminated), self._move(rollout.truncated), self._move(rollout.valid)
        if settings.clip_rewards:
            rewards = rewards.clamp(-1.0, 1.0)

        final_values, bootstrap_values = self._values_behind(rollout)
        returns = n_step_returns(rewards, discounts(terminated, truncated, settings.gamma), final_values, bootstrap_values).flatten()

        if settings.reuse_graph:
            logits, values = self._collect(cells)
        else:
            logits, values = self.network(observations[:-1].flatten(0, 1))
        loss = a2c_loss(
            logits,
            values,
            actions.flatten(),
            returns,
            valid.flatten(),
            entropy_coefficient=settings.entropy_coefficient,
            value_coefficient=settings.value_coefficient,
            normalize_advantage=settings.normalize_advantage,
        )
        self.flat.zero_gradients()
        loss.total.backward()  # type: ignore[no-untyped-call]
        norm = clip_gradient_norm(self.flat.gradients, settings.max_grad_norm)
        self._outputs.clear()
        self._stale = True

        variance = _explained_variance(values.detach(), returns, valid.flatten())
        # The one moment when the host waits for the device: nothing may be applied before it is known to be finite.
        total, policy, value, entropy, explained, grad_norm = torch.stack(
            [loss.total.detach(), loss.policy.detach(), loss.value.detach(), loss.entropy.detach(), variance, norm]
        ).tolist()
        finite = math.isfinite(total) and math.isfinite(grad_norm)
        if finite:
            self.optimizer.step(self.flat.parameters, self.flat.gradients, learning_rate)
        return UpdateStatistics(policy, value, entropy, explained, grad_norm, finite)

    def _begin(self, rollout: Rollout) -> None:
        """Before the first action of a rollout: all its noise at once. Gumbel noise on the logits makes argmax a sample of the softmax."""
        shape = (rollout.num_steps, rollout.num_envs, self.network.num_actions)
        if self._noise.shape != shape:
            self._noise = torch.empty(shape, device=self.device)
            if self.device.type != "cpu":
                self._observations = torch.empty_like(rollout.observations, device=self.device)
        self._noise.exponential_(generator=self._generator).clamp_(min=torch.finfo(torch.float32).tiny).log_().neg_()
        self._stale = False

    def _on_device(self, rollout: Rollout, t: int, start: int, stop: int) -> Tensor:
        observation = rollout.observations[t, start:stop]
        if self._observations is None:
            return observation
        if self.settings.reuse_graph:  # the graph keeps it: a part of a tensor that is written again would not do
            return self._move(observation)
        return self._observations[t, start:stop].copy_(observation, non_blocking=True)

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    @torch.no_grad()
    def _values_behind(self, rollout: Rollout) -> tuple[Tensor | None, Tensor]:
        """V of every truncated game's final observation, f32[T, N] with 0 elsewhere (None: no such game); V of observation T, f32[N]."""
        last = self._move(rollout.observations[-1])
        where = rollout.truncated.nonzero(as_tuple=True)
        if len(where[0]) == 0:
            return None, self.network.values(last)
        values = self.network.values(torch.cat([last, self._move(rollout.final_observations[where])]))
        final = torch.zeros((rollout.num_steps, rollout.num_envs), device=self.device)
        final[self._move(where[0]), self._move(where[1])] = values[rollout.num_envs :]
        return final, values[: rollout.num_envs]

    def _collect(self, cells: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """What acting computed, in the order [T, N] flattened."""
        outputs = [self._outputs[key] for key in sorted(self._outputs)]
        logits, values = torch.cat([logits for logits, _ in outputs]), torch.cat([values for _, values in outputs])
        if len(values) != cells[0] * cells[1]:
            raise RuntimeError(f"the rollout has {cells[0] * cells[1]} steps, but actions were chosen for {len(values)}")
        return logits, values


def _explained_variance(values: Tensor, returns: Tensor, valid: Tensor) -> Tensor:
    if not bool(valid.all()):
        values, returns = values[valid], returns[valid]
    variance = torch.var(returns, correction=0)
    return torch.where(variance > 0.0, 1.0 - torch.var(returns - values, correction=0) / variance, 0.0)
