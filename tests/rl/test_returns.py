from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zpala.rl.returns import discounts, lambda_returns, n_step_returns


def test_hand_worked_returns() -> None:
    """gamma 1/2, one environment per case: goes on, terminates at step 1, is truncated at step 1, both at step 1."""
    rewards = torch.tensor([[1.0] * 4, [2.0] * 4, [4.0] * 4])
    terminated = torch.tensor([[False] * 4, [False, True, False, True], [False] * 4])
    truncated = torch.tensor([[False] * 4, [False, False, True, True], [False] * 4])
    final_values = torch.zeros(3, 4)
    final_values[1] = 100.0
    returns = n_step_returns(rewards, discounts(terminated, truncated, 0.5), final_values, torch.tensor([8.0] * 4))
    # Last row: 4 + 8 / 2. Second: 2 + 8 / 2, 2, 2 + 100 / 2, 2. First: 1 + half of the second.
    assert returns.tolist() == [[4.0, 2.0, 27.0, 2.0], [6.0, 2.0, 52.0, 2.0], [8.0] * 4]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 100), st.integers(0, 2**32 - 1))
def test_equals_a_slow_loop(steps: int, envs: int, percent: int, seed: int) -> None:
    gamma = percent / 100
    rng = np.random.default_rng(seed)
    rewards, finals = rng.normal(size=(2, steps, envs))
    terminated, truncated = rng.random((2, steps, envs)) < 0.3
    bootstrap = rng.normal(size=envs)
    expected = np.empty((steps, envs))
    for n in range(envs):
        for t in range(steps):
            total, weight, i = 0.0, 1.0, t
            while True:
                total += weight * rewards[i, n]
                weight *= gamma
                if terminated[i, n]:
                    break
                if truncated[i, n]:
                    total += weight * finals[i, n]
                    break
                if i + 1 == steps:
                    total += weight * bootstrap[n]
                    break
                i += 1
            expected[t, n] = total
    f32 = torch.float32
    discount = discounts(torch.from_numpy(terminated), torch.from_numpy(truncated), gamma)
    found = n_step_returns(torch.tensor(rewards, dtype=f32), discount, torch.tensor(finals, dtype=f32), torch.tensor(bootstrap, dtype=f32))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_no_final_values_are_needed_when_nothing_was_truncated() -> None:
    never = torch.zeros(2, 3, dtype=torch.bool)
    rewards = torch.ones(2, 3)
    found = n_step_returns(rewards, discounts(never, never, 0.5), None, torch.zeros(3))
    assert found.tolist() == [[1.5] * 3, [1.0] * 3]
    assert rewards.tolist() == [[1.0] * 3] * 2


def test_returns_carry_no_graph() -> None:
    never = torch.zeros(2, 3, dtype=torch.bool)
    values = torch.ones(3, requires_grad=True)
    assert not n_step_returns(torch.ones(2, 3), discounts(never, never, 0.5), None, values).requires_grad


def test_wrong_shapes_and_types_are_refused() -> None:
    never = torch.zeros(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="bool"):
        discounts(torch.zeros(2, 3), never, 0.9)
    with pytest.raises(ValueError, match="shapes"):
        n_step_returns(torch.ones(2, 3), discounts(never, never, 0.9), None, torch.zeros(2))


def test_hand_worked_generalised_advantages() -> None:
    """gamma 1/2, lambda 1/2, all values 8: goes on, terminates at step 1, is truncated at step 1 (final value 100)."""
    rewards = torch.tensor([[1.0] * 3, [2.0] * 3, [4.0] * 3])
    terminated = torch.tensor([[False] * 3, [False, True, False], [False] * 3])
    truncated = torch.tensor([[False] * 3, [False, False, True], [False] * 3])
    values, final_values = torch.full((3, 3), 8.0), torch.zeros(3, 3)
    final_values[1] = 100.0
    found = lambda_returns(rewards, discounts(terminated, truncated, 0.5), values, final_values, torch.full((3,), 8.0), 0.5)
    # delta of the last row: 4 + 4 - 8 = 0. Second: 2 + 4 - 8 = -2; 2 - 8 = -6; 2 + 50 - 8 = 44. First: 1 + 4 - 8 = -3, plus a quarter.
    assert (found - values).tolist() == [[-3.5, -4.5, 8.0], [-2.0, -6.0, 44.0], [0.0] * 3]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 100), st.integers(0, 100), st.integers(0, 2**32 - 1))
def test_lambda_returns_equal_a_slow_sum_of_errors(steps: int, envs: int, percent: int, mix: int, seed: int) -> None:
    """A_t = sum over k of (gamma lambda)^k delta_{t+k}, until the game ends: equation 16 of the paper, term by term."""
    gamma, gae_lambda = percent / 100, mix / 100
    rng = np.random.default_rng(seed)
    rewards, finals, values = rng.normal(size=(3, steps, envs))
    terminated, truncated = rng.random((2, steps, envs)) < 0.3
    bootstrap = rng.normal(size=envs)
    expected = np.empty((steps, envs))
    for n in range(envs):
        for t in range(steps):
            total = 0.0
            for i in range(t, steps):
                following = bootstrap[n] if i + 1 == steps else values[i + 1, n]
                following = 0.0 if terminated[i, n] else finals[i, n] if truncated[i, n] else following
                total += (gamma * gae_lambda) ** (i - t) * (rewards[i, n] + gamma * following - values[i, n])
                if terminated[i, n] or truncated[i, n]:
                    break
            expected[t, n] = total + values[t, n]
    f32 = torch.float32
    discount = discounts(torch.from_numpy(terminated), torch.from_numpy(truncated), gamma)
    r, v, f, b = (torch.tensor(array, dtype=f32) for array in (rewards, values, finals, bootstrap))
    found = lambda_returns(r, discount, v, f, b, gae_lambda)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_lambda_1_is_the_n_step_return_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(3)
    rewards, values, finals = torch.randn(3, 6, 5, generator=generator).unbind(0)
    terminated, truncated = (torch.rand(2, 6, 5, generator=generator) < 0.2).unbind(0)
    discount, bootstrap = discounts(terminated, truncated, 0.97), torch.randn(5, generator=generator)
    expected = n_step_returns(rewards, discount, finals, bootstrap)
    assert torch.equal(lambda_returns(rewards, discount, values, finals, bootstrap, 1.0), expected)
    torch.testing.assert_close(lambda_returns(rewards, discount, values, finals, bootstrap, 1.0 - 1e-7), expected)


def test_values_of_another_shape_are_refused() -> None:
    never = torch.zeros(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="values"):
        lambda_returns(torch.ones(2, 3), discounts(never, never, 0.9), torch.ones(3, 2), None, torch.zeros(3), 0.9)
