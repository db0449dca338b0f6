from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zpala.rl.returns import discounts, n_step_returns


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
