"""What the value-based algorithms share: acting epsilon-greedily, the values of next observations, the loss, one clipped step downhill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from zpala.rl.algorithm import Algorithm
from zpala.rl.descent import stepped
from zpala.rl.execution import Fixed
from zpala.rl.exploration import EVALUATION_EPSILON, Chance, EpsilonGreedy, explored, sampled
from zpala.rl.flat import FlatParameters
from zpala.rl.networks import ActionValues, Heads, Network
from zpala.rl.optimizers import Optimizer
from zpala.rl.rollout import Rollout
from zpala.rl.target import TargetNetwork

LossName = Literal["huber", "squared"]


@dataclass(frozen=True, slots=True)
class QLearningSettings:
    """Constants that all of them have.

    Attributes:
        gamma: discount per env_step.
        max_grad_norm: the gradient is scaled down to this L2 norm.
        clip_rewards: learn from rewards clipped to [-1, 1].
        double: the network says which next action is the best, the target what it is worth (van Hasselt et al. 2016, arXiv 1509.06461);
            otherwise the target says both and is too optimistic.
        loss: of an error d: "squared": d^2 / 2; "huber": the same up to 1 and |d| - 1/2 beyond, which limits the gradient as Mnih et al.
            2015 do.
        target_update_steps, target_update_weight: how the target network follows, see ``TargetNetwork``.
        exploration_fraction: of the cluster's progress in which epsilon falls from 1.
    """

    gamma: float = 0.99
    max_grad_norm: float = 0.5
    clip_rewards: bool = False
    double: bool = True
    loss: LossName = "huber"
    target_update_steps: int = 100
    target_update_weight: float = 1.0
    exploration_fraction: float = 0.1


class Sight(NamedTuple):
    """What acting goes by, for N environments."""

    observation: Tensor  # [N, ...]
    explores: Tensor  # bool[N]
    uniform: Tensor  # f32[N]


def q_loss(values: Tensor, targets: Tensor, weights: Tensor, loss: LossName) -> Tensor:
    """sum(weights l(targets - values)), l as in ``QLearningSettings.loss``; a f32 scalar.

    Args:
        values: f32[B], of the actions that were taken; carry the graph.
        targets: f32[B] without a graph; anything where the weight is 0.
        weights: f32[B].
    """
    if not values.shape == targets.shape == weights.shape:
        raise ValueError(f"shapes do not fit: values {tuple(values.shape)}, targets {tuple(targets.shape)}, weights {tuple(weights.shape)}")
    error = (targets - values).where(weights != 0.0, 0.0)
    each = 0.5 * error.square()
    if loss == "huber":
        size = error.abs()
        each = torch.where(size <= 1.0, each, size - 0.5)
    return torch.dot(each, weights)


class QLearning(Algorithm):
    """Learns action values, acts on the best of them or, with probability epsilon, by chance. See ``Algorithm``.

    Args:
        final_epsilons, epsilon_shares: see ``exploration.deal``.
    """

    HEADS: ClassVar[Heads] = "action_values"
    Settings = QLearningSettings
    network: ActionValues

    def __init__(
        self,
        network: Network,
        flat: FlatParameters,
        optimizer: Optimizer,
        settings: QLearningSettings,
        *,
        seed: int,
        final_epsilons: Sequence[float],
        epsilon_shares: Sequence[float],
    ) -> None:
        super().__init__(network, flat, optimizer, settings, seed=seed)
        self._constants = settings
        self.target = TargetNetwork(network, flat, settings.target_update_steps, settings.target_update_weight)
        self.exploration = EpsilonGreedy(final_epsilons, epsilon_shares, settings.exploration_fraction, seed, self.device)

    def begin(self, rollout: Rollout, progress: float) -> None:
        self.exploration.begin(rollout.num_steps, rollout.num_envs, progress)

    @torch.inference_mode()
    def act(self, rollout: Rollout, t: int, start: int, stop: int) -> Tensor:
        sight = Sight(self._observation(rollout, t, start, stop), *self.exploration.chance(t, start, stop))
        return self.executor.run(self._act, sight, {})

    @torch.inference_mode()
    def choose(self, observations: Tensor, begins: Tensor, sampler: torch.Generator | None) -> Tensor:
        """With a ``sampler``: any action with probability ``EVALUATION_EPSILON``, else the best one."""
        values: Tensor = self.network(observations.to(self.device)).cpu()
        return values.argmax(dim=-1) if sampler is None else sampled(values, EVALUATION_EPSILON, sampler)

    def adopted(self) -> None:
        """The target network follows at once: it was of other parameters."""
        self.target.follow()

    def local_state(self) -> Mapping[str, Tensor]:
        """The random stream of exploration and the target network."""
        return {"exploration": self.exploration.state(), **self.target.state()}

    def load_local_state(self, state: Mapping[str, Tensor]) -> None:
        self.exploration.load_state(state["exploration"])
        self.target.load_state(state)

    # -- for subclasses ----------------------------------------------------------------------------------------------------------------

    def _act(self, sight: Sight, fixed: Fixed) -> Tensor:
        return explored(self.network(sight.observation), Chance(sight.explores, sight.uniform))

    def _observation(self, rollout: Rollout, t: int, start: int, stop: int) -> Tensor:
        """Observation ``t``, on the device or on its way there."""
        return rollout.observations[t, start:stop]

    def _best_values(self, observations: Tensor) -> Tensor:
        """Observations [B, ...] on the device -> what their best action is worth, f32[B], by the target network, without a graph."""
        values = self.target(observations)
        if not self._constants.double:
            return values.amax(dim=-1)
        with torch.no_grad():
            best = self.network(observations).argmax(dim=-1, keepdim=True)
        return values.gather(-1, best).squeeze(-1)

    def _step(self, found: Sequence[float], learning_rate: float) -> bool:
        """See ``stepped``; the target network follows."""
        finite = stepped(found, self.flat, self.optimizer, learning_rate)
        if finite:
            self.target.stepped()
        return finite

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)
