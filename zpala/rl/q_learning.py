"""What the value-based algorithms share: acting epsilon-greedily, the values of next observations, the loss, one clipped step downhill."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from zpala.rl.algorithm import Algorithm
from zpala.rl.exploration import EVALUATION_EPSILON, EpsilonGreedy, sampled
from zpala.rl.flat import FlatParameters
from zpala.rl.networks import ActionValues, Heads, Network
from zpala.rl.optimizers import Optimizer, clip_gradient_norm
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
        return self.exploration.actions(self.network(self._observation(rollout, t, start, stop)), t, start, stop)

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

    def _observation(self, rollout: Rollout, t: int, start: int, stop: int) -> Tensor:
        """Observation ``t`` on the device."""
        return self._move(rollout.observations[t, start:stop])

    def _best_values(self, observations: Tensor) -> Tensor:
        """Observations [B, ...] on the device -> what their best action is worth, f32[B], by the target network, without a graph."""
        values = self.target(observations)
        if not self._constants.double:
            return values.amax(dim=-1)
        with torch.no_grad():
            best = self.network(observations).argmax(dim=-1, keepdim=True)
        return values.gather(-1, best).squeeze(-1)

    def _descend(self, total: Tensor, learning_rate: float, *numbers: Tensor) -> tuple[bool, list[float]]:
        """One optimiser step down the gradient of ``total``, scaled to ``max_grad_norm``; none if loss or gradient are not finite.

        Returns: whether they are finite; as floats, ``total``, the L2 norm before clipping, and ``numbers`` (scalars of the device).
        """
        self.flat.zero_gradients()
        total.backward()  # type: ignore[no-untyped-call]
        norm = clip_gradient_norm(self.flat.gradients, self._constants.max_grad_norm)
        # The one moment when the host waits for the device: nothing may be applied before it is known to be finite.
        floats: list[float] = torch.stack([number.detach() for number in (total, norm, *numbers)]).tolist()
        finite = math.isfinite(floats[0]) and math.isfinite(floats[1])
        if finite:
            self.optimizer.step(self.flat.parameters, self.flat.gradients, learning_rate)
            self.target.stepped()
        return finite, floats

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)
