"""Deep Q-learning from replay (Mnih et al. 2015, doi 10.1038/nature14236), double (van Hasselt et al. 2016, arXiv 1509.06461) unless told
otherwise, and with prioritised replay (Schaul et al. 2016, arXiv 1511.05952) and returns of several steps (Hessel et al. 2018, arXiv
1710.02298) if wanted.

After every rollout the replay takes it, and then there are as many optimiser steps as its env_steps ask for, each of them from transitions
that are drawn anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from zpala.rl.algorithm import Statistics
from zpala.rl.descent import downhill
from zpala.rl.environments import EnvironmentSpec
from zpala.rl.execution import Fixed
from zpala.rl.flat import FlatParameters
from zpala.rl.networks import Network
from zpala.rl.optimizers import Optimizer
from zpala.rl.q_learning import QLearning, QLearningSettings, q_loss
from zpala.rl.replay import Replay, bytes_needed
from zpala.rl.rollout import Rollout


@dataclass(frozen=True, slots=True)
class DQNSettings(QLearningSettings):
    """Constants of the algorithm, beside those of ``QLearningSettings``.

    Attributes:
        final_epsilon: what epsilon falls to, in all environments.
        capacity: steps of the environments that the node's replay holds, those that only reset one among them.
        batch_size: transitions of one optimiser step.
        train_frequency: env_steps of the node for one optimiser step.
        learning_starts: no optimiser step before so many env_steps have been stored.
        n_steps: a target sums the discounted rewards of so many steps, clipped one by one, before it takes the target network's value;
            fewer where the game ended or the replay's newest step is reached.
        prioritized: transitions are drawn in proportion to |error| ** priority_exponent, and weigh in the loss (size P) ** -beta;
            beta goes from ``priority_beta`` to 1 with the cluster's progress. Otherwise all are drawn alike.
    """

    final_epsilon: float = 0.05
    capacity: int = 100_000
    batch_size: int = 32
    train_frequency: float = 4.0
    learning_starts: int = 1_000
    n_steps: int = 1
    prioritized: bool = False
    priority_exponent: float = 0.6
    priority_beta: float = 0.4


class Drawn(NamedTuple):
    """A batch of the replay as learning takes it."""

    observations: Tensor  # [B, ...]
    actions: Tensor  # i64[B]
    rewards: Tensor  # f32[B], of all its steps
    next_observations: Tensor  # [B, ...]
    terminated: Tensor  # bool[B]
    discounts: Tensor  # f32[B], of the value of the next observation
    weights: Tensor  # f32[B], of the loss


class DQN(QLearning):
    """Several optimiser steps per rollout. Averaged: all parameters. Local: target network, replay, optimiser's state, random streams.

    A checkpoint has no replay: whoever goes on from one fills a new replay first.
    """

    Settings = DQNSettings

    def __init__(self, network: Network, flat: FlatParameters, optimizer: Optimizer, settings: DQNSettings, *, seed: int) -> None:
        super().__init__(network, flat, optimizer, settings, seed=seed, final_epsilons=(settings.final_epsilon,), epsilon_shares=(1.0,))
        self.settings = settings
        self.replay: Replay | None = None  # made with the first rollout: evaluation needs none
        self._draws = torch.Generator().manual_seed(seed ^ 0x5265706C6179)  # another stream than exploration's, always of the CPU
        self._env_steps = 0  # ever stored
        self._owed = 0.0  # optimiser steps
        self._means = [0.0, 0.0, 0.0]  # loss, gradient's norm, value: of the last update that made a step

    @classmethod
    def check_memory(cls, settings: DQNSettings, spec: EnvironmentSpec, num_envs: int, available_bytes: int) -> None:
        """The replay must fit, all of it, from the beginning. See ``Algorithm``."""
        alpha = _exponent(settings)
        needed = bytes_needed(spec, settings.capacity, num_envs, priority_alpha=alpha)
        if needed <= available_bytes:
            return
        fits, too_many = 0, settings.capacity  # between them lies the largest capacity that fits
        while too_many - fits > max(num_envs, fits // 100):
            middle = (fits + too_many) // 2
            if middle >= num_envs and bytes_needed(spec, middle, num_envs, priority_alpha=alpha) > available_bytes:
                too_many = middle
            else:
                fits = middle
        raise ValueError(
            f"dqn.capacity = {settings.capacity:,} env_steps of {spec.id} need {needed / 1e9:.1f} GB, and this node may have "
            f"{available_bytes / 1e9:.1f} GB. About {_rounded(fits):,} would fit"
        )

    def update(self, rollout: Rollout, learning_rate: float, progress: float) -> Statistics:
        """As many optimiser steps as the rollout's env_steps ask for, none before enough of them are stored.

        ``td_loss`` (weighted), ``mean_q`` of the actions taken and ``grad_norm`` before clipping are means over these steps, or the last
        ones where there is no step; ``epsilon`` is that of the rollout, ``replay_fill`` the share of the replay that can be drawn from.
        """
        settings, replay = self.settings, self._replay_for(rollout)
        if not _finite(rollout):  # here and now: when it is drawn one day, nobody knows any more where it came from
            return self._statistics(False, replay)
        replay.add(rollout)
        self._env_steps += (env_steps := rollout.valid_steps())
        finite, steps = True, 0
        if self._env_steps >= settings.learning_starts and len(replay) > 0:
            self._owed += env_steps / settings.train_frequency
            steps, sums = int(self._owed), [0.0, 0.0, 0.0]
            self._owed -= steps
            for step in range(1, steps + 1):
                finite, numbers = self._learn(replay, learning_rate, progress)
                sums = [a + b for a, b in zip(sums, numbers, strict=True)]
                self._means = [total / step for total in sums]
                if not finite:
                    break
        if finite and self.network.inputs.normalizer is not None:
            # Not in the background: the slab's first row is written again when this returns.
            self.network.observe(rollout.observations[:-1].flatten(0, 1).to(self.device), rollout.valid.flatten().to(self.device))
        return self._statistics(finite, replay)

    def local_state(self) -> Mapping[str, Tensor]:
        """The two random streams and the target network; not the replay."""
        return {**super().local_state(), "draws": self._draws.get_state()}

    def load_local_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_local_state(state)
        self._draws.set_state(state["draws"])

    def _statistics(self, finite: bool, replay: Replay) -> Statistics:
        td_loss, grad_norm, mean_q = self._means
        shown = {"td_loss": td_loss, "mean_q": mean_q, "epsilon": self.exploration.mean_epsilon, "grad_norm": grad_norm}
        return Statistics(finite, {**shown, "replay_fill": len(replay) / replay.capacity})

    def _replay_for(self, rollout: Rollout) -> Replay:
        if self.replay is None:
            alpha = _exponent(self.settings)
            pinned = self.device.type == "cuda"
            self.replay = Replay(rollout.spec, self.settings.capacity, rollout.num_envs, priority_alpha=alpha, pinned=pinned)
        return self.replay

    def _learn(self, replay: Replay, learning_rate: float, progress: float) -> tuple[bool, list[float]]:
        """One optimiser step from one batch; returns whether it was finite, and loss, gradient's norm, mean value of the actions taken."""
        settings = self.settings
        beta = settings.priority_beta + (1.0 - settings.priority_beta) * min(progress, 1.0)
        batch = replay.sample(
            settings.batch_size,
            self._draws,
            beta=beta,
            n_steps=settings.n_steps,
            gamma=settings.gamma,
            clip_rewards=settings.clip_rewards,
        )
        drawn = Drawn(
            batch.observations,
            batch.actions,
            batch.rewards,
            batch.next_observations,
            batch.terminated,
            batch.discounts,
            batch.weights / settings.batch_size,
        )
        found, errors = self.executor.run(self._descent, drawn, {})
        numbers: list[float] = found.tolist()
        finite = self._step(numbers, learning_rate)
        if finite and settings.prioritized:
            replay.update_priorities(batch.indices, errors)
        return finite, numbers

    def _descent(self, drawn: Drawn, fixed: Fixed) -> tuple[Tensor, Tensor]:
        """The gradient, what ``downhill`` returns with the mean value of the actions taken, and the errors f32[B]."""
        targets = torch.addcmul(drawn.rewards, drawn.discounts * ~drawn.terminated, self._best_values(drawn.next_observations))
        values = self.network(drawn.observations)
        chosen = values.gather(-1, drawn.actions.unsqueeze(-1)).squeeze(-1)
        loss = q_loss(chosen, targets, drawn.weights, self.settings.loss)
        return downhill(self.flat, loss, self.settings.max_grad_norm, (chosen.mean(),)), targets - chosen.detach()


def _finite(rollout: Rollout) -> bool:
    """Rewards that count, and observations of numbers."""
    observations = rollout.observations
    numbers = not observations.is_floating_point() or bool(observations.isfinite().all())
    return numbers and bool(torch.where(rollout.valid, rollout.rewards, 0.0).isfinite().all())


def _exponent(settings: DQNSettings) -> float:
    return settings.priority_exponent if settings.prioritized else 0.0


def _rounded(number: int) -> int:
    """Down to two digits."""
    unit: int = 10 ** max(len(str(number)) - 2, 0)
    return number // unit * unit
