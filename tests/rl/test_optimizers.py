from __future__ import annotations

import numpy as np
import pytest
import torch

from zpala.rl.optimizers import SHARED, Adam, OptimizerSettings, RMSprop, build_optimizer, clip_gradient_norm

NUMEL, STEPS = 64, 20


def gradients() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(NUMEL, generator=generator) for _ in range(STEPS)]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("initial", [0.0, 1.0])
def test_rmsprop_equals_a_numpy_reference(inside: bool, initial: float) -> None:
    alpha, epsilon, lr = 0.9, 0.1, 0.03
    x, v = np.ones(NUMEL), np.full(NUMEL, initial)
    parameters = torch.ones(NUMEL)
    optimizer = RMSprop(NUMEL, alpha=alpha, epsilon=epsilon, epsilon_inside_root=inside, initial_square_average=initial)
    for gradient in gradients():
        optimizer.step(parameters, gradient, lr)
        g = gradient.numpy().astype(np.float64)
        v = alpha * v + (1 - alpha) * g * g
        x = x - lr * g / (np.sqrt(v + epsilon) if inside else np.sqrt(v) + epsilon)
    np.testing.assert_allclose(parameters.numpy(), x, rtol=1e-5)
    np.testing.assert_allclose(optimizer.state["square_average"].numpy(), v, rtol=1e-5)
    assert optimizer.steps == STEPS


def test_rmsprop_with_epsilon_outside_equals_torch() -> None:
    expected = torch.nn.Parameter(torch.ones(NUMEL))
    reference = torch.optim.RMSprop([expected], lr=0.01, alpha=0.99, eps=1e-5)
    parameters, optimizer = torch.ones(NUMEL), RMSprop(NUMEL, alpha=0.99, epsilon=1e-5)
    for gradient in gradients():
        expected.grad = gradient
        reference.step()
        optimizer.step(parameters, gradient, 0.01)
    torch.testing.assert_close(parameters, expected.detach())


def test_a_slot_that_starts_at_one_makes_the_first_step_small() -> None:
    """Without a history the first step is lr / sqrt(1 - alpha) = 10 lr; with v = 1 before, about lr for a gradient of 1."""
    steps = []
    for initial in (0.0, 1.0):
        parameters = torch.zeros(1)
        RMSprop(1, alpha=0.99, epsilon=1e-12, initial_square_average=initial).step(parameters, torch.ones(1), 1.0)
        steps.append(-parameters.item())
    assert steps == pytest.approx([10.0, 1.0])


def test_adam_equals_torch() -> None:
    expected = torch.nn.Parameter(torch.ones(NUMEL))
    reference = torch.optim.Adam([expected], lr=0.01, betas=(0.8, 0.95), eps=1e-5)
    parameters, optimizer = torch.ones(NUMEL), Adam(NUMEL, beta1=0.8, beta2=0.95, epsilon=1e-5)
    for gradient in gradients():
        expected.grad = gradient
        reference.step()
        optimizer.step(parameters, gradient, 0.01)
    torch.testing.assert_close(parameters, expected.detach())


def test_an_adopted_state_continues_exactly() -> None:
    stream = gradients()
    parameters, first = torch.ones(NUMEL), Adam(NUMEL)
    for gradient in stream[:10]:
        first.step(parameters, gradient, 0.01)
    adopted, second = parameters.clone(), Adam(NUMEL)
    for name, vector in first.state.items():
        second.state[name].copy_(vector)
    second.steps = first.steps
    for gradient in stream[10:]:
        first.step(parameters, gradient, 0.01)
        second.step(adopted, gradient, 0.01)
    assert torch.equal(parameters, adopted)


def test_settings_reach_the_optimizer() -> None:
    inside = build_optimizer(OptimizerSettings(epsilon=0.25, epsilon_inside_root=True, initial_square_average=0.75, alpha=0.0), 1)
    assert inside.state["square_average"].item() == 0.75
    parameters = torch.zeros(1)
    inside.step(parameters, torch.full((1,), 2.0), 1.0)
    assert parameters.item() == pytest.approx(-2.0 / 4.25**0.5)
    assert set(build_optimizer(OptimizerSettings(name="adam"), 1).state) == {"first_moment", "second_moment"}


def test_clipping() -> None:
    vector = torch.tensor([3.0, 4.0])
    assert clip_gradient_norm(vector, 10.0).item() == 5.0
    assert vector.tolist() == [3.0, 4.0]
    assert clip_gradient_norm(vector, 0.5).item() == 5.0
    assert vector.tolist() == pytest.approx([0.3, 0.4])


def test_a_vector_that_threads_share_is_clipped_as_a_small_one() -> None:
    for numel in (SHARED - 1, SHARED, 1_000_003):
        vector = torch.randn(numel, generator=torch.Generator().manual_seed(numel))
        wide = vector.double()
        torch.testing.assert_close(clip_gradient_norm(vector, 0.5).double(), wide.norm(), rtol=2e-5, atol=0.0)
        torch.testing.assert_close(vector.double(), wide * (0.5 / wide.norm()), rtol=2e-5, atol=0.0)
        vector[-1] = torch.inf
        assert not clip_gradient_norm(vector, 0.5).isfinite()


def test_a_gradient_that_becomes_small_is_not_lost_beside_the_one_before() -> None:
    """RMSprop has no first moment, however it is computed."""
    parameters, optimizer = torch.zeros(NUMEL), RMSprop(NUMEL, alpha=0.5, epsilon=1.0)
    optimizer.step(parameters, torch.full((NUMEL,), 1e3), 0.0)
    optimizer.state["square_average"].zero_()
    small = torch.linspace(1e-6, 1e-5, NUMEL)
    optimizer.step(parameters, small, 1.0)
    torch.testing.assert_close(parameters, -small / ((0.5 * small.square()).sqrt() + 1.0), rtol=1e-6, atol=0.0)
