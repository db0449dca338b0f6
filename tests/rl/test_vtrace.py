from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rl.rollouts import act_everywhere, agent_of, fill_with_noise, noisy_rollout, spec
from zpala.rl.a2c import A2C, A2CSettings
from zpala.rl.returns import discounts, lambda_returns
from zpala.rl.rollout import Rollout
from zpala.rl.vtrace import VTrace, VTraceSettings, vtrace_targets

F32 = torch.float32


def test_hand_worked_targets() -> None:
    """gamma 1/2, values 8, rewards 4, 2, ratios 1/2 and 4, both clipped to 1; the last observation is worth 8.

    The deltas are 1/2 (4 + 4 - 8) = 0 and 1 (2 + 4 - 8) = -2. v_1 = 6; v_0 = 8 + 0 + 1/2 1/2 (6 - 8) = 7.5. The advantages:
    1/2 (4 + 3 - 8) = -1/2 and 1 (2 + 4 - 8) = -2.
    """
    never = torch.zeros(2, 1, dtype=torch.bool)
    found = vtrace_targets(
        torch.tensor([[0.5], [4.0]]).log(),
        torch.tensor([[4.0], [2.0]]),
        discounts(never, never, 0.5),
        torch.full((2, 1), 8.0),
        None,
        torch.tensor([8.0]),
        rho_clip=1.0,
        c_clip=1.0,
        gae_lambda=1.0,
    )
    assert found.returns.flatten().tolist() == [7.5, 6.0]
    assert found.advantages.flatten().tolist() == [-0.5, -2.0]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 100), st.integers(0, 2**32 - 1))
def test_equals_the_sum_of_the_paper(steps: int, envs: int, percent: int, seed: int) -> None:
    """Equation 1, term by term: v_s = V(x_s) + sum over t of gamma^(t - s) (product of c_i, s <= i < t) delta_t, until the game ends."""
    gamma = percent / 100
    rng = np.random.default_rng(seed)
    rewards, finals, values, log_ratios = rng.normal(size=(4, steps, envs))
    terminated, truncated = rng.random((2, steps, envs)) < 0.3
    bootstrap = rng.normal(size=envs)
    rho_clip, c_clip, gae_lambda = rng.uniform(0.5, 2.0), rng.uniform(0.5, 2.0), rng.choice([1.0, 0.7])
    ratios = np.exp(log_ratios)
    rho, c = np.minimum(rho_clip, ratios), gae_lambda * np.minimum(c_clip, ratios)

    def behind(t: int, n: int, later: float) -> float:
        return 0.0 if terminated[t, n] else float(finals[t, n]) if truncated[t, n] else later

    expected, advantages = np.empty((steps, envs)), np.empty((steps, envs))
    for n in range(envs):
        for s in range(steps):
            total, product = values[s, n], 1.0
            for t in range(s, steps):
                later = bootstrap[n] if t + 1 == steps else values[t + 1, n]
                total += gamma ** (t - s) * product * rho[t, n] * (rewards[t, n] + gamma * behind(t, n, later) - values[t, n])
                product *= c[t, n]
                if terminated[t, n] or truncated[t, n]:
                    break
            expected[s, n] = total
        for s in range(steps):
            value, target = (bootstrap[n],) * 2 if s + 1 == steps else (values[s + 1, n], expected[s + 1, n])
            later = (1 - gae_lambda) * value + gae_lambda * target
            advantages[s, n] = rho[s, n] * (rewards[s, n] + gamma * behind(s, n, later) - values[s, n])
    discount = discounts(torch.from_numpy(terminated), torch.from_numpy(truncated), gamma)
    x, r, v, f, b = (torch.tensor(array, dtype=F32) for array in (log_ratios, rewards, values, finals, bootstrap))
    found = vtrace_targets(x, r, discount, v, f, b, rho_clip=rho_clip, c_clip=c_clip, gae_lambda=gae_lambda)
    np.testing.assert_allclose(found.returns.numpy(), expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(found.advantages.numpy(), advantages, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("gae_lambda", [1.0, 0.8])
def test_ratios_of_1_give_the_lambda_returns(gae_lambda: float) -> None:
    generator = torch.Generator().manual_seed(4)
    rewards, values, finals = torch.randn(3, 6, 5, generator=generator).unbind(0)
    terminated, truncated = (torch.rand(2, 6, 5, generator=generator) < 0.2).unbind(0)
    discount, bootstrap = discounts(terminated, truncated, 0.97), torch.randn(5, generator=generator)
    expected = lambda_returns(rewards, discount, values, finals, bootstrap, gae_lambda)
    found = vtrace_targets(torch.zeros(6, 5), rewards, discount, values, finals, bootstrap, rho_clip=1.0, c_clip=1.0, gae_lambda=gae_lambda)
    torch.testing.assert_close(found.returns, expected)
    torch.testing.assert_close(found.advantages, expected - values)


def test_shapes_that_do_not_fit_are_refused() -> None:
    never, ones = torch.zeros(2, 3, dtype=torch.bool), torch.ones(2, 3)
    with pytest.raises(ValueError, match="shapes"):
        vtrace_targets(
            torch.ones(3, 2), ones, discounts(never, never, 0.9), ones, None, torch.ones(3), rho_clip=1.0, c_clip=1.0, gae_lambda=1.0
        )


@pytest.mark.parametrize(("gae_lambda", "normalize"), [(1.0, False), (0.9, True)])
def test_without_lag_it_is_a2c(gae_lambda: float, normalize: bool) -> None:
    """Five updates, each acted with the parameters that the last one left."""
    same = {"gamma": 0.9, "gae_lambda": gae_lambda, "normalize_advantage": normalize}
    vtrace = agent_of(VTrace, VTraceSettings(**same))  # type: ignore[arg-type]
    a2c = agent_of(A2C, A2CSettings(**same))  # type: ignore[arg-type]
    for update in range(5):
        rollouts = [noisy_rollout(agent, 7, 6, seed=update) for agent in (vtrace, a2c)]
        assert torch.equal(rollouts[0].actions, rollouts[1].actions)
        first, second = (agent.update(rollout, 1e-3, 0.0) for agent, rollout in zip((vtrace, a2c), rollouts, strict=True))
        assert first.named["rho"] == pytest.approx(1.0, abs=1e-5)
        for name, number in second.named.items():
            assert first.named[name] == pytest.approx(number, rel=1e-3, abs=1e-4), name
        torch.testing.assert_close(vtrace.flat.gradients, a2c.flat.gradients, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(vtrace.flat.parameters, a2c.flat.parameters, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_it_acts_with_the_parameters_of_so_many_updates_ago(lag: int) -> None:
    """And stores the log-probabilities of those, so that the ratios are of two policies."""
    agent = agent_of(VTrace, VTraceSettings(lag=lag), spec(num_actions=4), optimizer="adam")
    history = []
    for update in range(6):
        history.append(agent.flat.parameters.clone())
        rollout = noisy_rollout(agent, 5, 4, spec(num_actions=4), seed=update)
        acted = history[max(0, update - lag)]
        with torch.no_grad():
            now = agent.flat.parameters.clone()
            agent.flat.parameters.copy_(acted)
            logits = agent.network.policies(rollout.observations[:-1].flatten(0, 1))
            agent.flat.parameters.copy_(now)
        chosen = torch.log_softmax(logits, -1).gather(-1, rollout.actions.flatten()[:, None])[:, 0]
        torch.testing.assert_close(rollout.extra["log_probabilities"].flatten(), chosen, rtol=1e-4, atol=1e-5)
        statistics = agent.update(rollout, 3e-2, 0.0)
        assert statistics.finite
        if lag == 0 or update == 0:
            assert statistics.named["rho"] == pytest.approx(1.0, abs=1e-5)
        else:
            assert statistics.named["rho"] < 0.999
            assert statistics.named["clip_fraction"] > 0.0
    if lag == 3:
        given_up = agent_of(VTrace, VTraceSettings(lag=lag), spec(num_actions=4))
        for update in range(3):
            noisy_rollout(given_up, 5, 4, spec(num_actions=4), seed=update)
        given_up.flat.parameters.copy_(agent.flat.parameters)
        given_up.adopted()
        noisy_rollout(given_up, 5, 4, spec(num_actions=4))
        assert [torch.equal(vector, agent.flat.parameters) for vector in given_up._older] == [True]
    state = {name: tensor.clone() for name, tensor in agent.local_state().items()}
    assert len(state) == 1 + (lag + 1 if lag else 0)
    other = agent_of(VTrace, VTraceSettings(lag=lag), spec(num_actions=4), optimizer="adam")
    other.flat.parameters.copy_(agent.flat.parameters)
    other.load_local_state(state)
    actions = []
    for resumed in (agent, other):
        rollout = Rollout(spec(num_actions=4), 5, 4, extra=resumed.per_step())
        fill_with_noise(rollout, 9)
        act_everywhere(resumed, rollout)
        actions.append((rollout.actions, rollout.extra["log_probabilities"]))
    assert torch.equal(actions[0][0], actions[1][0])
    assert torch.equal(actions[0][1], actions[1][1])


def test_with_lag_the_gradient_is_that_of_the_corrected_loss() -> None:
    """The second update of two, by autograd on the same network: the policy's part has the advantages with their ratios."""
    constants = VTraceSettings(
        gamma=0.9, entropy_coefficient=0.02, value_coefficient=0.4, max_grad_norm=1e9, rho_clip=1.1, c_clip=0.9, lag=1
    )
    agent = agent_of(VTrace, constants, spec(num_actions=4), optimizer="adam")
    agent.update(noisy_rollout(agent, 6, 5, spec(num_actions=4)), 5e-2, 0.0)
    rollout = noisy_rollout(agent, 6, 5, spec(num_actions=4), seed=1)
    logits, values = agent.network(rollout.observations[:-1].flatten(0, 1))
    log_policy = torch.log_softmax(logits, -1)
    chosen = log_policy.gather(-1, rollout.actions.flatten()[:, None])[:, 0]
    with torch.no_grad():
        finals = agent.network.values(rollout.final_observations.flatten(0, 1)).view(6, 5)
        bootstrap = agent.network.values(rollout.observations[-1])
    targets = vtrace_targets(
        chosen.detach().view(6, 5) - rollout.extra["log_probabilities"],
        rollout.rewards,
        discounts(rollout.terminated, rollout.truncated, 0.9),
        values.detach().view(6, 5),
        finals,
        bootstrap,
        rho_clip=1.1,
        c_clip=0.9,
        gae_lambda=1.0,
    )
    valid = rollout.valid.flatten()
    policy = -(chosen * targets.advantages.flatten())[valid].mean()
    value = (targets.returns.flatten() - values)[valid].square().mean()
    entropy = -(log_policy.exp() * log_policy).sum(-1)[valid].mean()
    agent.flat.zero_gradients()
    (policy + 0.4 * value - 0.02 * entropy).backward()
    expected = agent.flat.gradients.clone()
    statistics = agent.update(rollout, 0.0, 0.0)
    assert statistics.named["rho"] < 0.99
    assert statistics.named["policy_loss"] == pytest.approx(policy.item(), abs=1e-5)
    torch.testing.assert_close(agent.flat.gradients, expected, rtol=1e-4, atol=1e-6)
