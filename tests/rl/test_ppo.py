from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.rl.rollouts import act_everywhere, agent_of, categorical, fill_with_noise, noisy_rollout, spec
from zpala.rl.a2c import A2C, A2CSettings
from zpala.rl.networks import Output
from zpala.rl.ppo import PPO, PPOSettings, ppo_loss
from zpala.rl.rollout import Rollout


def test_the_clipped_objective_equals_a_slow_reference() -> None:
    """One step after the other, with numbers and ifs: inside, beyond and before the range, advantages of both signs, far values."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(200, 3, generator=generator)
    values, old_values, returns = torch.randn(3, 200, generator=generator).unbind(0)
    actions = torch.randint(3, (200,), generator=generator)
    old = torch.log_softmax(logits + 0.4 * torch.randn(200, 3, generator=generator), -1).gather(-1, actions[:, None])[:, 0]
    found = ppo_loss(
        categorical(logits, actions),
        values,
        old,
        old_values,
        returns,
        clip_range=0.2,
        clip_range_values=0.5,
        entropy_coefficient=0.03,
        value_coefficient=0.7,
    )
    policy, value, entropy, kl, cases = 0.0, 0.0, 0.0, 0.0, {"inside": 0, "helped": 0, "held": 0}
    for i in range(200):
        weights = [math.exp(x) for x in logits[i].tolist()]
        chances = [x / sum(weights) for x in weights]
        ratio = chances[int(actions[i])] / math.exp(float(old[i]))
        advantage = float(returns[i] - old_values[i])
        if 0.8 <= ratio <= 1.2:
            objective, case = ratio * advantage, "inside"
        elif (ratio > 1.2) == (advantage > 0):  # it has gone far enough in the right direction
            objective, case = (1.2 if ratio > 1.2 else 0.8) * advantage, "held"
        else:
            objective, case = ratio * advantage, "helped"
        cases[case] += 1
        policy -= objective / 200
        near = min(max(float(values[i]), float(old_values[i]) - 0.5), float(old_values[i]) + 0.5)
        value += max((float(returns[i]) - near) ** 2, (float(returns[i]) - float(values[i])) ** 2) / 200
        entropy -= sum(p * math.log(p) for p in chances) / 200
        kl += (ratio - 1 - math.log(ratio)) / 200
    assert min(cases.values()) > 20
    assert found.policy.item() == pytest.approx(policy, abs=1e-5)
    assert found.value.item() == pytest.approx(value, rel=1e-5)
    assert found.entropy.item() == pytest.approx(entropy, rel=1e-5)
    assert found.approx_kl.item() == pytest.approx(kl, rel=1e-4)
    assert found.clip_fraction.item() == pytest.approx((cases["helped"] + cases["held"]) / 200)
    assert found.total.item() == pytest.approx(policy + 0.7 * value - 0.03 * entropy, rel=1e-5)


def test_beyond_the_range_there_is_no_gradient() -> None:
    """Ratio 2. A good action is not pushed further, a bad one is pushed back: d/dz of -ratio A is -ratio A (onehot - p)."""
    for advantage, expected in ((1.0, [0.0, 0.0]), (-1.0, [1.0, -1.0])):
        logits = torch.zeros(1, 2, requires_grad=True)
        one = torch.ones(1)
        loss = ppo_loss(
            categorical(logits, torch.tensor([0])),
            0 * one,
            torch.tensor([math.log(0.25)]),
            0 * one,
            advantage * one,
            clip_range=0.2,
            entropy_coefficient=0.0,
            value_coefficient=0.0,
        )
        loss.total.backward()  # type: ignore[no-untyped-call]
        assert logits.grad is not None
        assert logits.grad[0].tolist() == pytest.approx(expected)


def test_shapes_that_do_not_fit_are_refused() -> None:
    x = torch.zeros(2)
    with pytest.raises(ValueError, match="shapes"):
        ppo_loss(
            categorical(torch.zeros(2, 3), x.long()),
            x,
            x,
            x,
            torch.zeros(2, 1),
            clip_range=0.2,
            entropy_coefficient=0.0,
            value_coefficient=0.0,
        )


@pytest.mark.parametrize(("gae_lambda", "normalize"), [(1.0, False), (0.9, False), (0.9, True)])
def test_the_first_gradient_is_that_of_a2c(gae_lambda: float, normalize: bool) -> None:
    """One epoch of one minibatch, the whole rollout: every ratio is 1."""
    same = {"gamma": 0.9, "gae_lambda": gae_lambda, "normalize_advantage": normalize, "max_grad_norm": 0.1, "clip_rewards": True}
    ppo = agent_of(PPO, PPOSettings(**same, epochs=1, minibatch_size=10**6))  # type: ignore[arg-type]
    a2c = agent_of(A2C, A2CSettings(**same))  # type: ignore[arg-type]
    rollouts = [noisy_rollout(agent, 7, 6) for agent in (ppo, a2c)]
    assert torch.equal(rollouts[0].actions, rollouts[1].actions)
    first, second = (agent.update(rollout, 1e-2, 0.0) for agent, rollout in zip((ppo, a2c), rollouts, strict=True))
    assert first.named["minibatches"] == 1
    assert first.named["approx_kl"] == pytest.approx(0.0, abs=1e-6)
    for name in ("value_loss", "entropy", "grad_norm", "explained_variance"):
        assert first.named[name] == pytest.approx(second.named[name], rel=1e-4, abs=1e-5), name
    assert a2c.flat.gradients.abs().max() > 1e-3
    torch.testing.assert_close(ppo.flat.gradients, a2c.flat.gradients, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ppo.flat.parameters, a2c.flat.parameters, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("size", "minibatches"), [(1000, 1), (30, 1), (12, 2), (7, 4), (1, 28)])
def test_every_valid_step_is_used_once_per_epoch(size: int, minibatches: int) -> None:
    """28 valid steps of 30 in nearly equal parts; the reset steps are in none."""
    agent = agent_of(PPO, PPOSettings(epochs=2, minibatch_size=size, normalize_advantage=False), optimizer="adam")
    rollout = noisy_rollout(agent, 10, 3)
    rollout.valid.fill_(True)
    rollout.valid[4, 1] = rollout.valid[7, 2] = False
    seen: list[torch.Tensor] = []
    forward = agent.network.forward

    def watch(observation: torch.Tensor) -> Output:
        seen.append(observation)
        return forward(observation)

    agent.network.forward = watch  # type: ignore[method-assign]
    statistics = agent.update(rollout, 1e-3, 0.0)
    assert statistics.named["minibatches"] == agent.optimizer.steps == len(seen) == 2 * minibatches
    sizes = [len(part) for part in seen]
    assert max(sizes) - min(sizes) <= 1
    expected = rollout.observations[:-1][rollout.valid]
    for epoch in (seen[:minibatches], seen[minibatches:]):
        used = torch.cat(epoch)
        assert sorted(map(tuple, used.tolist())) == sorted(map(tuple, expected.tolist()))
    if minibatches > 1:
        assert not torch.equal(torch.cat(seen[:minibatches]), torch.cat(seen[minibatches:]))


def test_nothing_valid_changes_nothing() -> None:
    agent = agent_of(PPO, PPOSettings())
    rollout = noisy_rollout(agent, 3, 2)
    rollout.valid.fill_(False)
    before = agent.flat.parameters.clone()
    assert agent.update(rollout, 1e-2, 0.0).finite
    assert torch.equal(agent.flat.parameters, before)
    assert agent.optimizer.steps == 0


def test_an_update_ends_when_the_policy_has_gone_far() -> None:
    steps = []
    for target_kl in (None, 1e-3):
        agent = agent_of(PPO, PPOSettings(epochs=20, minibatch_size=1000, target_kl=target_kl, clip_range=10.0), optimizer="adam")
        statistics = agent.update(noisy_rollout(agent, 10, 8), 1e-2, 0.0)
        steps.append(agent.optimizer.steps)
        assert statistics.named["minibatches"] == agent.optimizer.steps
    assert steps[0] == 20
    assert 0 < steps[1] < 20


def test_the_clip_range_follows_the_progress() -> None:
    fractions = []
    for progress in (0.0, 0.99):
        agent = agent_of(PPO, PPOSettings(epochs=5, minibatch_size=1000, clip_range=0.5, anneal_clip_range=True), optimizer="adam")
        fractions.append(agent.update(noisy_rollout(agent, 10, 8), 3e-3, progress).named["clip_fraction"])
    assert fractions[0] < 0.05
    assert fractions[1] > 0.5


def test_acting_stores_what_the_policy_then_was() -> None:
    agent = agent_of(PPO, PPOSettings(), spec(num_actions=4))
    rollout = Rollout(spec(num_actions=4), 6, 5, extra=agent.per_step())
    fill_with_noise(rollout, 1)
    act_everywhere(agent, rollout)
    with torch.no_grad():
        logits, values = agent.network(rollout.observations[:-1].flatten(0, 1))
    chosen = torch.softmax(logits, -1).numpy()[np.arange(30), rollout.actions.flatten().numpy()]
    np.testing.assert_allclose(rollout.extra["log_probabilities"].flatten().exp().numpy(), chosen, rtol=1e-5)
    torch.testing.assert_close(rollout.extra["values"].flatten(), values)


def test_one_bad_minibatch_of_many_ends_the_update() -> None:
    agent = agent_of(PPO, PPOSettings(epochs=3, minibatch_size=1, normalize_advantage=False))
    rollout = noisy_rollout(agent, 8, 4)
    rollout.valid.fill_(True)
    rollout.rewards[0, 2] = float("nan")  # spoils one step of 32: what came before it is not its heir
    statistics = agent.update(rollout, 1e-3, 0.0)
    assert not statistics.finite
    assert agent.optimizer.steps == statistics.named["minibatches"] - 1 < 32
    assert agent.flat.parameters.isfinite().all()
