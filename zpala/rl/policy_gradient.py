"""What the policy-gradient algorithms share: sampling actions, the values behind a rollout, one clipped step downhill.

Acting may go group by group: the sampled actions do not depend on how the environments are grouped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zpala.rl.algorithm import Algorithm
from zpala.rl.flat import FlatParameters
from zpala.rl.networks import ActorCritic
from zpala.rl.optimizers import Optimizer, clip_gradient_norm
from zpala.rl.returns import Discounts, discounts, lambda_returns
from zpala.rl.rollout import Rollout


@dataclass(frozen=True, slots=True)
class PolicyGradientSettings:
    """Constants that all of them have.

    Attributes:
        gamma: discount per env_step.
        gae_lambda: 1: advantages are n-step returns minus values; less: of lower variance and more bias (generalised advantages).
        entropy_coefficient, value_coefficient: weights of the mean entropy and the mean squared value error in the loss.
        max_grad_norm: the gradient is scaled down to this L2 norm.
        normalize_advantage: the policy's part of the loss sees advantages with mean 0 and standard deviation 1 over the steps of a loss.
        clip_rewards: learn from rewards clipped to [-1, 1].
    """

    gamma: float = 0.99
    gae_lambda: float = 1.0
    entropy_coefficient: float = 0.01
    value_coefficient: float = 0.5
    max_grad_norm: float = 0.5
    normalize_advantage: bool = False
    clip_rewards: bool = False


class Batch(NamedTuple):
    """A rollout on the network's device. ``final_values``: None when no game was truncated."""

    observations: Tensor  # [T * N, ...]
    actions: Tensor  # i64[T, N]
    rewards: Tensor  # f32[T, N], clipped if the settings say so
    discount: Discounts  # f32[T, N] each
    valid: Tensor  # bool[T, N]
    final_values: Tensor | None  # f32[T, N]
    bootstrap_values: Tensor  # f32[N]


class PolicyGradient(Algorithm):
    """Samples from a softmax policy and steps once per loss. See ``Algorithm``."""

    Settings = PolicyGradientSettings

    def __init__(self, network: ActorCritic, flat: FlatParameters, optimizer: Optimizer, settings: Any, *, seed: int) -> None:
        super().__init__(network, flat, optimizer, settings, seed=seed)
        self._constants: PolicyGradientSettings = settings
        self._generator = torch.Generator(self.device).manual_seed(seed)
        self._noise = torch.empty(0)
        self._observations: Tensor | None = None

    def begin(self, rollout: Rollout, progress: float) -> None:
        """All noise of the rollout at once. Gumbel noise on the logits makes argmax a sample of the softmax."""
        shape = (rollout.num_steps, rollout.num_envs, self.network.num_actions)
        if self._noise.shape != shape:
            self._noise = torch.empty(shape, device=self.device)
            if self.device.type != "cpu":
                self._observations = torch.empty_like(rollout.observations, device=self.device)
        self._noise.exponential_(generator=self._generator).clamp_(min=torch.finfo(torch.float32).tiny).log_().neg_()

    @torch.inference_mode()
    def choose(self, observations: Tensor, sampler: torch.Generator | None) -> Tensor:
        logits = self.network.logits(observations.to(self.device)).cpu()
        if sampler is None:
            return logits.argmax(dim=-1)
        return torch.multinomial(torch.softmax(logits, dim=-1), 1, generator=sampler).squeeze(-1)

    def local_state(self) -> Mapping[str, Tensor]:
        """The random stream that actions are drawn from."""
        return {"generator": self._generator.get_state()}

    def load_local_state(self, state: Mapping[str, Tensor]) -> None:
        self._generator.set_state(state["generator"])

    # -- for subclasses ----------------------------------------------------------------------------------------------------------------

    def _sample(self, logits: Tensor, t: int, start: int, stop: int) -> Tensor:
        """Actions i64[stop - start] drawn from the softmax of ``logits`` f32[stop - start, A]."""
        return torch.argmax(logits + self._noise[t, start:stop], dim=-1)

    def _observation(self, rollout: Rollout, t: int, start: int, stop: int, *, kept: bool = False) -> Tensor:
        """Observation ``t`` on the device. ``kept``: a graph keeps it, so a part of a tensor that is written again would not do."""
        observation = rollout.observations[t, start:stop]
        if self._observations is None:
            return observation
        if kept:
            return self._move(observation)
        return self._observations[t, start:stop].copy_(observation, non_blocking=True)

    def _batch(self, rollout: Rollout) -> Batch:
        """The whole rollout on the device, ends of games as discounts, with the values behind it by the present parameters."""
        observations = self._observations if self._observations is not None else rollout.observations
        actions, rewards = self._move(rollout.actions), self._move(rollout.rewards)
        terminated, truncated, valid = self._move(rollout.terminated), self._move(rollout.truncated), self._move(rollout.valid)
        if self._constants.clip_rewards:
            rewards = rewards.clamp(-1.0, 1.0)
        final_values, bootstrap_values = self._values_behind(rollout)
        discount = discounts(terminated, truncated, self._constants.gamma)
        return Batch(observations[:-1].flatten(0, 1), actions, rewards, discount, valid, final_values, bootstrap_values)

    def _returns(self, batch: Batch, values: Tensor) -> Tensor:
        """What the values of the rollout's steps should be, f32[T, N]; minus ``values`` f32[T, N] it is the advantage."""
        return lambda_returns(batch.rewards, batch.discount, values, batch.final_values, batch.bootstrap_values, self._constants.gae_lambda)

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

    def _descend(self, total: Tensor, learning_rate: float, numbers: Sequence[Tensor]) -> tuple[bool, float, list[float]]:
        """One optimiser step down the gradient of ``total``, scaled to ``max_grad_norm``; none if loss or gradient are not finite.

        Returns: whether they are finite, the L2 norm before clipping, and ``numbers`` (scalars of the device) as floats.
        """
        self.flat.zero_gradients()
        total.backward()  # type: ignore[no-untyped-call]
        norm = clip_gradient_norm(self.flat.gradients, self._constants.max_grad_norm)
        # The one moment when the host waits for the device: nothing may be applied before it is known to be finite.
        loss, grad_norm, *floats = torch.stack([total.detach(), norm, *(number.detach() for number in numbers)]).tolist()
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        if finite:
            self.optimizer.step(self.flat.parameters, self.flat.gradients, learning_rate)
        return finite, grad_norm, floats

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)


def explained_variance(values: Tensor, returns: Tensor, valid: Tensor) -> Tensor:
    """1 - Var(R - V) / Var(R) over the valid steps, a f32 scalar; 0 when all returns are equal. All arguments have one shape."""
    if not bool(valid.all()):
        values, returns = values[valid], returns[valid]
    variance = torch.var(returns, correction=0)
    return torch.where(variance > 0.0, 1.0 - torch.var(returns - values, correction=0) / variance, 0.0)
