"""The distributions against ``torch.distributions``, against frequencies and against integrals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical as Reference
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from zpala.rl.action_spaces import Box, Discrete, MultiDiscrete
from zpala.rl.policies import Gaussian, Policy, SquashedGaussian, policy_for

INFINITY = float("inf")
BOX = Box((-2.0, 0.0), (2.0, 10.0), (2,))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draws_of(policy: Policy, outputs: Tensor, seed: int = 0) -> Tensor:
    noise = torch.empty((len(outputs), *policy.noise_shape))
    policy.fill(noise, torch.Generator().manual_seed(seed))
    return policy.draw(outputs, noise)


def test_one_choice() -> None:
    policy, logits = policy_for(Discrete(4)), numbers(50, 4)
    actions = draws_of(policy, logits)
    reference = Reference(logits=logits)
    found = policy.evaluate(logits, actions)
    torch.testing.assert_close(found.log_probabilities, reference.log_prob(actions))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found.entropies, reference.entropy())  # type: ignore[no-untyped-call]
    torch.testing.assert_close(policy.log_probabilities(logits, actions), found.log_probabilities)
    assert torch.equal(policy.mode(logits), reference.probs.argmax(-1))
    assert policy.actions(actions) is actions


def test_several_choices_are_independent() -> None:
    """Every pair of actions comes as often as the product of both chances says, within four standard errors."""
    policy, logits = policy_for(MultiDiscrete((2, 3))), numbers(5).expand(60_000, 5)
    assert (policy.outputs, policy.noise_shape) == (5, (5,))
    actions = draws_of(policy, logits)
    first, second = Reference(logits=logits[0, :2]), Reference(logits=logits[0, 2:])
    for i in range(2):
        for j in range(3):
            chance = float(first.probs[i] * second.probs[j])
            share = float(((actions[:, 0] == i) & (actions[:, 1] == j)).float().mean())
            assert abs(share - chance) < 4 * math.sqrt(chance * (1 - chance) / 60_000)
    found = policy.evaluate(logits, actions)
    torch.testing.assert_close(found.log_probabilities, first.log_prob(actions[:, 0]) + second.log_prob(actions[:, 1]))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found.entropies[0], first.entropy() + second.entropy())  # type: ignore[no-untyped-call]
    assert policy.mode(logits)[0].tolist() == [int(first.probs.argmax()), int(second.probs.argmax())]


def test_gaussian() -> None:
    policy, outputs = policy_for(BOX), numbers(40_000, 4) * 0.5
    reference = Independent(Normal(outputs[:, :2], outputs[:, 2:].exp()), 1)
    actions = draws_of(policy, outputs)
    found = policy.evaluate(outputs, actions)
    torch.testing.assert_close(found.log_probabilities, reference.log_prob(actions))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found.entropies, reference.entropy())  # type: ignore[no-untyped-call]
    assert torch.equal(policy.mode(outputs), outputs[:, :2])
    standard = (actions - outputs[:, :2]) / outputs[:, 2:].exp()
    assert standard.mean(0).abs().max() < 4 / math.sqrt(40_000)
    assert (standard.var(0) - 1).abs().max() < 0.03
    assert policy.actions(actions) is actions  # the environment clips them


def test_squashed_gaussian_stays_within_the_space() -> None:
    policy, outputs = policy_for(BOX, squash=True), numbers(10_000, 4) * 2
    draws = draws_of(policy, outputs)
    actions = policy.actions(draws)
    low, high = torch.tensor(BOX.low), torch.tensor(BOX.high)
    assert bool(((actions >= low) & (actions <= high)).all())
    assert actions.min(0).values.tolist() == pytest.approx(BOX.low, abs=0.01)
    assert actions.max(0).values.tolist() == pytest.approx(BOX.high, abs=0.01)
    assert torch.equal(policy.actions(torch.zeros(1, 2)), torch.tensor([[0.0, 5.0]]))


def test_squashed_densities_are_those_of_a_transformed_gaussian() -> None:
    policy, outputs = policy_for(BOX, squash=True), numbers(500, 4) * 0.7
    reference = Independent(TransformedDistribution(Normal(outputs[:, :2], outputs[:, 2:].exp()), [TanhTransform(cache_size=1)]), 1)
    draws = draws_of(policy, outputs).clamp(-4, 4)  # beyond it, the reference has to invert a rounded tanh
    found = policy.evaluate(outputs, draws)
    torch.testing.assert_close(found.log_probabilities, reference.log_prob(draws.tanh()), rtol=1e-3, atol=2e-3)  # type: ignore[no-untyped-call]
    far = policy.evaluate(outputs[:1], torch.full((1, 2), 60.0)).log_probabilities
    assert bool(far.isfinite().all())


def test_the_entropy_of_a_squashed_gaussian_and_its_gradient_are_right_on_average() -> None:
    """Against the integral of -p log p over (-1, 1), and its difference quotient."""

    def entropy(mean: float, log_std: float) -> float:
        u = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
        std = math.exp(log_std)
        log_p = -0.5 * ((u - mean) / std) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
        log_slope = 2 * (math.log(2) - u - torch.nn.functional.softplus(-2 * u))
        return float(torch.trapezoid(log_p.exp() * (log_slope - log_p), u))

    mean, log_std, count = 0.4, -0.2, 200_000
    policy = SquashedGaussian((-1.0,), (1.0,))
    outputs = torch.tensor([mean, log_std], requires_grad=True)
    rows = outputs.expand(count, 2)
    found = policy.evaluate(rows, draws_of(policy, rows.detach())).entropies.mean()
    assert found.item() == pytest.approx(entropy(mean, log_std), abs=0.01)
    found.backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None
    step = 1e-3
    slopes = [
        (entropy(mean + step, log_std) - entropy(mean - step, log_std)) / (2 * step),
        (entropy(mean, log_std + step) - entropy(mean, log_std - step)) / (2 * step),
    ]
    assert outputs.grad.tolist() == pytest.approx(slopes, abs=0.02)


def test_what_cannot_be_squashed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"squash_actions is for Box action spaces, not for discrete 3"):
        policy_for(Discrete(3), squash=True)
    with pytest.raises(ValueError, match=r"squash_actions needs an action space with finite ends"):
        policy_for(Box((-1.0,), (INFINITY,), (1,)), squash=True)
    assert isinstance(policy_for(Box((-1.0,), (INFINITY,), (1,))), Gaussian)


def test_descriptions_tell_policies_apart() -> None:
    policies = [policy_for(Discrete(4)), policy_for(MultiDiscrete((2, 2))), policy_for(BOX), policy_for(BOX, squash=True)]
    assert len({policy.describe() for policy in policies}) == 4
