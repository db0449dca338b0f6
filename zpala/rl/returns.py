"""From rewards to returns. The only place where the end of a game becomes a discount.

Arrays are f32[T, N]: time first, environments second. What follows step t of environment n is worth

* nothing, when the game *terminated* there;
* the value of the final observation, when it was *truncated* there (a time limit: the game would have gone on);
* what the next step of the rollout is worth, otherwise, and behind the last step the value of the observation after it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Discounts(NamedTuple):
    """What ``discounts`` returns. Both f32[T, N] in [0, gamma]."""

    through: Tensor  # of the next step in the rollout: 0 where the game ended in any way
    final: Tensor  # of the value of the final observation: 0 unless the game was truncated


def discounts(terminated: Tensor, truncated: Tensor, gamma: float) -> Discounts:
    """Turns the two ways in which a game ends into discounts; termination wins where both are set.

    Args:
        terminated, truncated: bool[T, N].
        gamma: discount per step, in [0, 1].
    """
    if terminated.dtype is not torch.bool or truncated.dtype is not torch.bool or terminated.shape != truncated.shape:
        raise ValueError(
            f"terminated and truncated must be bool of one shape, not {terminated.dtype}{tuple(terminated.shape)} and "
            f"{truncated.dtype}{tuple(truncated.shape)}"
        )
    ended = terminated | truncated
    return Discounts(through=gamma * (~ended).float(), final=gamma * (truncated & ~terminated).float())


def n_step_returns(rewards: Tensor, discount: Discounts, final_values: Tensor | None, bootstrap_values: Tensor) -> Tensor:
    """R_t = r_t + through_t * R_{t+1} + final_t * V(final observation of t), with R_T = V(observation T).

    Args:
        rewards: f32[T, N].
        discount: from ``discounts``.
        final_values: f32[T, N], the value of the final observation where a game was truncated, anything finite elsewhere; None when no game
            of the rollout was truncated.
        bootstrap_values: f32[N], the value of the observation behind the last step.
    Returns:
        f32[T, N] without a graph. See Mnih et al. 2016, arXiv 1602.01783, algorithm S3.
    """
    if rewards.dim() != 2 or rewards.shape != discount.through.shape or bootstrap_values.shape != rewards.shape[1:]:
        raise ValueError(
            f"shapes do not fit: rewards {tuple(rewards.shape)}, discounts {tuple(discount.through.shape)}, "
            f"bootstrap values {tuple(bootstrap_values.shape)}"
        )
    with torch.no_grad():
        returns = rewards.clone() if final_values is None else torch.addcmul(rewards, discount.final, final_values)
        following = bootstrap_values
        for return_t, through_t in zip(reversed(returns.unbind(0)), reversed(discount.through.unbind(0)), strict=True):
            following = return_t.addcmul_(through_t, following)
        return returns


def lambda_returns(
    rewards: Tensor, discount: Discounts, values: Tensor, final_values: Tensor | None, bootstrap_values: Tensor, gae_lambda: float
) -> Tensor:
    """R_t = r_t + through_t * ((1 - lambda) V_{t+1} + lambda R_{t+1}) + final_t * V(final observation of t), with R_T = V_T.

    R_t - V_t is the generalised advantage: the sum of (through lambda)^k delta_{t+k}, delta_t = r_t + through_t V_{t+1} + final_t V(final)
    - V_t (Schulman et al. 2016, arXiv 1506.02438, equation 16). lambda = 1 gives the n-step returns, lambda = 0 one-step targets.

    Args:
        values: f32[T, N], V_t, used without a graph.
        rewards, discount, final_values, bootstrap_values: as for ``n_step_returns``; V_T is ``bootstrap_values``.
        gae_lambda: in [0, 1].
    Returns:
        f32[T, N] without a graph.
    """
    if gae_lambda == 1.0:
        return n_step_returns(rewards, discount, final_values, bootstrap_values)
    if values.shape != rewards.shape:
        raise ValueError(f"shapes do not fit: values {tuple(values.shape)}, rewards {tuple(rewards.shape)}")
    with torch.no_grad():
        following_values = torch.cat([values[1:], bootstrap_values.unsqueeze(0)])
        one_step = torch.addcmul(rewards, discount.through, following_values, value=1.0 - gae_lambda)
        return n_step_returns(one_step, Discounts(gae_lambda * discount.through, discount.final), final_values, bootstrap_values)
