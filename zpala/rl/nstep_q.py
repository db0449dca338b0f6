"""n-step Q-learning (Mnih et al. 2016, arXiv 1602.01783, section 4.3 and algorithm S2), synchronous: on-line, no replay.

One rollout is one optimiser step: the value of every action that was taken goes towards the rewards of the rest of the rollout and what the
best action behind it is worth. Actions by chance on the way are not corrected for.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from zpala.rl.algorithm import Statistics
from zpala.rl.descent import downhill
from zpala.rl.execution import Fixed
from zpala.rl.flat import FlatParameters
from zpala.rl.networks import Network
from zpala.rl.optimizers import Optimizer
from zpala.rl.q_learning import QLearning, QLearningSettings, q_loss
from zpala.rl.returns import discounts, n_step_returns
from zpala.rl.rollout import Rollout


@dataclass(frozen=True, slots=True)
class NStepQSettings(QLearningSettings):
    """Constants of the algorithm, beside those of ``QLearningSettings``.

    Attributes:
        final_epsilons, epsilon_shares: the shares of the environments that end with these epsilons (the paper's: section 5.1).
        reuse_activations: see ``A2CSettings``.
    """

    final_epsilons: tuple[float, ...] = (0.1, 0.01, 0.5)
    epsilon_shares: tuple[float, ...] = (0.4, 0.3, 0.3)
    reuse_activations: bool = False


class Columns(NamedTuple):
    """What learning takes from the slab. Where games were truncated it is known already what the values behind the rollout are."""

    rewards: Tensor  # f32[T, N], raw
    terminated: Tensor  # bool[T, N]
    truncated: Tensor  # bool[T, N]
    valid: Tensor  # bool[T, N]
    actions: Tensor  # i64[T, N]
    final_values: Tensor | None  # f32[T, N], 0 where no game was truncated; None: none was
    behind: Tensor  # the value of observation T, f32[N]; without final_values the observation, [N, ...]


class NStepQ(QLearning):
    """One optimiser step per rollout. Averaged: all parameters. Local: the target network, the optimiser's state, the random stream."""

    Settings = NStepQSettings

    def __init__(self, network: Network, flat: FlatParameters, optimizer: Optimizer, settings: NStepQSettings, *, seed: int) -> None:
        super().__init__(
            network,
            flat,
            optimizer,
            settings,
            seed=seed,
            final_epsilons=settings.final_epsilons,
            epsilon_shares=settings.epsilon_shares,
        )
        self.settings = settings
        self._reuses = settings.reuse_activations and self.network.activations.possible
        self._observations: Tensor | None = None  # of the whole rollout, on a device that is not the CPU

    def begin(self, rollout: Rollout, progress: float) -> None:
        super().begin(rollout, progress)
        if self.device.type != "cpu" and self._observations is None:
            self._observations = torch.empty_like(rollout.observations, device=self.device)
        if self._reuses:
            self.network.activations.begin(rollout.num_steps * rollout.num_envs)

    def act(self, rollout: Rollout, t: int, start: int, stop: int) -> Tensor:
        if not self._reuses:
            return super().act(rollout, t, start, stop)
        with self.network.activations.keeping(t * rollout.num_envs + start, t * rollout.num_envs + stop):
            values = self.network(self._observation(rollout, t, start, stop))
        return self.exploration.actions(values, t, start, stop)

    def update(self, rollout: Rollout, learning_rate: float, progress: float) -> Statistics:
        """One step from the whole rollout.

        ``td_loss`` is the mean loss and ``mean_q`` the mean value of the actions taken, over the valid steps; ``epsilon`` the mean over the
        environments; ``grad_norm`` the L2 norm before clipping.
        """
        epsilon = self.exploration.mean_epsilon
        if not rollout.valid.any():
            return Statistics(True, {"td_loss": 0.0, "mean_q": 0.0, "epsilon": epsilon, "grad_norm": 0.0})
        found = self.executor.run(self._learn, self._columns(rollout), {"observations": self._seen(rollout)}).tolist()
        finite = self._step(found, learning_rate)
        td_loss, grad_norm, mean_q = found
        if finite and self.network.inputs.normalizer is not None:
            self.network.observe(self._seen(rollout).flatten(0, 1), self._move(rollout.valid).flatten())
        return Statistics(finite, {"td_loss": td_loss, "mean_q": mean_q, "epsilon": epsilon, "grad_norm": grad_norm})

    def _learn(self, columns: Columns, fixed: Fixed) -> Tensor:
        """The gradient, and what ``downhill`` returns with the mean value of the actions taken."""
        actions, valid = columns.actions.flatten(), columns.valid.flatten()
        weights = valid.float()
        weights = weights / weights.sum().clamp_(min=1.0)
        returns = self._returns(columns).flatten()
        with self.network.activations.recalling() if self._reuses else nullcontext():
            values = self.network(fixed["observations"].flatten(0, 1))
        chosen = values.gather(-1, actions.where(valid, 0).unsqueeze(-1)).squeeze(-1)
        loss = q_loss(chosen, returns, weights, self.settings.loss)
        return downhill(self.flat, loss, self.settings.max_grad_norm, (torch.dot(chosen, weights),))

    @torch.no_grad()
    def _columns(self, rollout: Rollout) -> Columns:
        """Where games were truncated, the values behind them are found out here: how many there are decides a shape."""
        slab = rollout.rewards, rollout.terminated, rollout.truncated, rollout.valid, rollout.actions
        where = rollout.truncated.nonzero(as_tuple=True)  # the slab is the host's
        if len(where[0]) == 0:
            return Columns(*slab, None, rollout.observations[-1])
        behind = self._best_values(self._move(torch.cat([rollout.observations[-1], rollout.final_observations[where]])))
        final = torch.zeros(rollout.rewards.shape, device=self.device)
        final[self._move(where[0]), self._move(where[1])] = behind[rollout.num_envs :]
        return Columns(*slab, final, behind[: rollout.num_envs])

    @torch.no_grad()
    def _returns(self, columns: Columns) -> Tensor:
        """R_t f32[T, N]: the rewards of the rest of the rollout or game, and what the best action behind them is worth."""
        rewards = columns.rewards.clamp(-1.0, 1.0) if self.settings.clip_rewards else columns.rewards
        behind = self._best_values(columns.behind) if columns.final_values is None else columns.behind
        discount = discounts(columns.terminated, columns.truncated, self.settings.gamma)
        return n_step_returns(rewards, discount, columns.final_values, behind)

    def _seen(self, rollout: Rollout) -> Tensor:
        """The observations [T, N, ...] that actions were chosen from, on the device."""
        return (rollout.observations if self._observations is None else self._observations)[:-1]

    def _observation(self, rollout: Rollout, t: int, start: int, stop: int) -> Tensor:
        if self._observations is None:
            return rollout.observations[t, start:stop]
        return self._observations[t, start:stop].copy_(rollout.observations[t, start:stop], non_blocking=True)
