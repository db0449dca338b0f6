"""Epsilon-greedy acting: how often each environment gets an action by chance, and the chance itself.

An environment's epsilon falls from 1 to its final value while the cluster's progress goes from 0 to ``fraction``, and stays there. Final
values are dealt to the environments of a node by their number. All chance of a rollout is drawn at once, so that neither epsilon nor
actions depend on how the environments are grouped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

EVALUATION_EPSILON = 0.05  # of a policy that is sampled in evaluation (Mnih et al. 2015, table of hyper-parameters)

# 2^64 / golden ratio: multiples of it, modulo 2^64, lie evenly spread however many there are (Knuth, volume 3, section 6.4).
_FIBONACCI = 0x9E3779B97F4A7C15


def check_epsilons(finals: Sequence[float], shares: Sequence[float]) -> None:
    """Raises ValueError unless ``finals`` are probabilities and ``shares``, as many, are not negative and sum to 1."""
    if not finals or min(finals) < 0.0 or max(finals) > 1.0:
        raise ValueError(f"final epsilons must be one or more probabilities, not {list(finals)}")
    if len(shares) != len(finals) or min(shares) < 0.0 or abs(sum(shares) - 1.0) > 1e-6:
        raise ValueError(f"{len(finals)} final epsilon(s) need as many shares that sum to 1, not {list(shares)}")


def deal(finals: Sequence[float], shares: Sequence[float], num_envs: int, seed: int) -> list[float]:
    """The final epsilon of every environment [0, num_envs).

    Of ``num_envs`` environments ``finals[k]`` gets ``shares[k] * num_envs``, rounded down or up; over nodes with consecutive seeds
    the roundings even out, over nodes with any seeds on average. Systematic sampling: environment i has the quantile (i + u) / num_envs,
    one u in [0, 1) from the seed.
    """
    check_epsilons(finals, shares)
    offset = (seed * _FIBONACCI % 2**64) / 2**64
    dealt = []
    for number in range(num_envs):
        quantile, k = (number + offset) / num_envs, 0
        while k + 1 < len(shares) and quantile >= sum(shares[: k + 1]):
            k += 1
        dealt.append(finals[k])
    return dealt


def annealed(final: float, fraction: float, progress: float) -> float:
    """1 at progress 0, ``final`` from progress ``fraction`` on, a straight line between. ``fraction`` 0: always ``final``."""
    if progress >= fraction:
        return final
    return 1.0 + (final - 1.0) * max(progress, 0.0) / fraction


class Chance(NamedTuple):
    """Of one action in each of B environments."""

    explores: Tensor  # bool[B]: it is any action
    uniform: Tensor  # f32[B] in [0, 1): then this one


class EpsilonGreedy:
    """Chooses the action of the highest value, or with probability epsilon any action.

    Args:
        finals, shares: see ``deal``.
        fraction: of the cluster's progress in which epsilon falls.
        seed: of the chance, and of how epsilons are dealt.
    """

    def __init__(self, finals: Sequence[float], shares: Sequence[float], fraction: float, seed: int, device: torch.device) -> None:
        check_epsilons(finals, shares)
        self._finals, self._shares, self._fraction, self._seed = tuple(finals), tuple(shares), fraction, seed
        self._device = device
        self._generator = torch.Generator(device).manual_seed(seed)
        self._chance = torch.empty(0)
        self._dealt: list[float] = []
        self._explores = torch.empty(0)  # bool[T, N]
        self.mean_epsilon = 1.0  # over the environments, of the present rollout

    def begin(self, num_steps: int, num_envs: int, progress: float) -> None:
        """A new rollout: who explores when, and two uniform numbers f32 for each of its actions."""
        if len(self._dealt) != num_envs:
            self._dealt = deal(self._finals, self._shares, num_envs, self._seed)
        if self._chance.shape != (2, num_steps, num_envs):
            self._chance = torch.empty((2, num_steps, num_envs), device=self._device)
        epsilons = [annealed(final, self._fraction, progress) for final in self._dealt]
        self.mean_epsilon = sum(epsilons) / num_envs
        self._chance.uniform_(generator=self._generator)
        self._explores = self._chance[0] < torch.tensor(epsilons).to(self._device, non_blocking=True)

    def chance(self, t: int, start: int, stop: int) -> Chance:
        """That of step ``t``, for the environments [start, stop)."""
        return Chance(self._explores[t, start:stop], self._chance[1, t, start:stop])

    def actions(self, values: Tensor, t: int, start: int, stop: int) -> Tensor:
        """Actions i64[stop - start] of step ``t`` from the ``values`` f32[stop - start, A] of the environments [start, stop)."""
        return explored(values, self.chance(t, start, stop))

    def state(self) -> Tensor:
        """Of the random stream, u8 on the CPU."""
        return self._generator.get_state()

    def load_state(self, state: Tensor) -> None:
        """Takes over what ``state`` once gave."""
        self._generator.set_state(state)


def explored(values: Tensor, chance: Chance) -> Tensor:
    """Actions i64[B] from ``values`` f32[B, A]: the best ones, and any where ``chance`` says so."""
    return torch.where(chance.explores, _any_action(chance.uniform, values.shape[-1]), values.argmax(dim=-1))


def sampled(values: Tensor, epsilon: float, sampler: torch.Generator) -> Tensor:
    """Actions i64[B] from ``values`` f32[B, A] of the CPU, with one ``epsilon`` for all; ``sampler`` is the CPU's."""
    chance = torch.rand((2, len(values)), generator=sampler)
    return explored(values, Chance(chance[0] < epsilon, chance[1]))


def _any_action(uniform: Tensor, num_actions: int) -> Tensor:
    """Uniform numbers in [0, 1) -> actions i64 in [0, num_actions)."""
    return (uniform * num_actions).long().clamp_(max=num_actions - 1)
