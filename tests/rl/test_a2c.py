from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.rl.rollouts import categorical
from zpala.rl.a2c import A2C, A2CLoss, A2CSettings, a2c_loss
from zpala.rl.action_spaces import Discrete
from zpala.rl.environments import EnvironmentSpec, make_environments
from zpala.rl.flat import FlatParameters
from zpala.rl.networks import build_network
from zpala.rl.optimizers import OptimizerSettings, build_optimizer
from zpala.rl.rollout import Rollout


def spec(shape: tuple[int, ...] = (3,), dtype: str = "float32", num_actions: int = 2) -> EnvironmentSpec:
    return EnvironmentSpec("test", shape, np.dtype(dtype), Discrete(num_actions), 1, False, "test")


IMAGES = spec((4, 84, 84), "uint8", 6)


def algorithm(given: EnvironmentSpec, settings: A2CSettings, hidden: tuple[int, ...] = (16,), activation: str = "tanh") -> A2C:
    network = build_network(given, "auto", hidden, "relu" if activation == "relu" else "tanh", False, 1)
    flat = FlatParameters(network)
    return A2C(network, flat, build_optimizer(OptimizerSettings(), flat.numel), settings, seed=5)


def random_rollout(given: EnvironmentSpec, steps: int = 3, envs: int = 4, seed: int = 0) -> Rollout:
    """A rollout filled with noise: some games terminate, some are truncated, some rows are reset steps."""
    rollout, generator = Rollout(given, steps, envs), torch.Generator().manual_seed(seed)
    for tensor in (rollout.observations, rollout.final_observations):
        if tensor.dtype is torch.uint8:
            tensor.random_(0, 256, generator=generator)
        else:
            tensor.normal_(generator=generator)
    rollout.rewards.normal_(generator=generator)
    assert isinstance(given.actions, Discrete)
    rollout.actions.random_(0, given.actions.n, generator=generator)
    for tensor, probability in ((rollout.terminated, 0.2), (rollout.truncated, 0.2), (rollout.valid, 0.8)):
        tensor.copy_(torch.rand(tensor.shape, generator=generator) < probability)
    return rollout


def act_everywhere(agent: A2C, rollout: Rollout, groups: int = 1) -> None:
    size = rollout.num_envs // groups
    agent.begin(rollout, 0.0)
    for t in range(rollout.num_steps):
        for start in range(0, rollout.num_envs, size):
            rollout.set_actions(t, start, start + size, agent.act(rollout, t, start, start + size))


def test_hand_worked_loss_and_gradient() -> None:
    """Two actions. First step: equal chances, V 1, R 3. Second step: chances 3/4 and 1/4, V 2, R 1. Third: masked."""
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0], [9.0, -9.0]], requires_grad=True)
    values = torch.tensor([1.0, 2.0, 50.0], requires_grad=True)
    loss = a2c_loss(
        categorical(logits, torch.tensor([0, 1, -7])),
        values,
        torch.tensor([3.0, 1.0, float("inf")]).nan_to_num(posinf=1e9),
        torch.tensor([True, True, False]),
        entropy_coefficient=0.1,
        value_coefficient=0.5,
    )
    entropy = (math.log(2) + (0.75 * math.log(4 / 3) + 0.25 * math.log(4))) / 2
    assert loss.policy.item() == pytest.approx((math.log(2) * 2 - math.log(4)) / 2, abs=1e-6)
    assert loss.value.item() == pytest.approx((4.0 + 1.0) / 2)
    assert loss.entropy.item() == pytest.approx(entropy)
    assert loss.total.item() == pytest.approx(0.0 + 0.5 * 2.5 - 0.1 * entropy, abs=1e-6)

    loss.total.backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    assert logits.grad is not None
    # d/dV of 0.5 (R - V)^2 / 2: the advantage passes no gradient to the value.
    assert values.grad.tolist() == pytest.approx([-1.0, 0.5, 0.0])
    # First step: (p - onehot) x advantage / 2 = ([-.5, .5] x 2) / 2; its entropy is at the maximum.
    assert logits.grad[0].tolist() == pytest.approx([-0.5, 0.5])
    # Second: ([.75, -.75] x -1) / 2, and entropy's dH/dz_i = -p_i (log p_i + H) times -0.1 / 2.
    h = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    slope = [-p * (math.log(p) + h) * -0.05 for p in (0.75, 0.25)]
    assert logits.grad[1].tolist() == pytest.approx([-0.375 + slope[0], 0.375 + slope[1]])
    assert logits.grad[2].tolist() == [0.0, 0.0]


def test_normalized_advantages_have_mean_0_and_deviation_1_over_the_valid_steps() -> None:
    """Advantages 5, 1, 3 of equal chances (and one masked): mean 3, variance 8/3; the value's error is left as it is."""
    logits = torch.zeros(4, 2, requires_grad=True)
    loss = a2c_loss(
        categorical(logits, torch.tensor([0, 1, 0, 1])),
        torch.zeros(4),
        torch.tensor([5.0, 1.0, 3.0, 1e6]),
        torch.tensor([True, True, True, False]),
        entropy_coefficient=0.0,
        value_coefficient=0.5,
        normalize_advantage=True,
    )
    loss.total.backward()  # type: ignore[no-untyped-call]
    assert loss.value.item() == pytest.approx((25 + 1 + 9) / 3)
    assert logits.grad is not None
    slope = math.sqrt(3 / 2) / 2 / 3  # advantage 2 / sqrt(8 / 3) = sqrt(3 / 2), chance 1/2, mean of three steps
    expected = [[-slope, slope], [-slope, slope], [0.0, 0.0], [0.0, 0.0]]
    torch.testing.assert_close(logits.grad, torch.tensor(expected))


def test_equal_advantages_normalize_to_nothing() -> None:
    agent = algorithm(spec(), A2CSettings(normalize_advantage=True, entropy_coefficient=0.0))
    Constant(agent, 0.5)
    rollout = random_rollout(spec(), 2, 4)
    rollout.rewards.fill_(1.5)
    rollout.terminated.fill_(True)
    act_everywhere(agent, rollout)
    statistics = agent.update(rollout, 1e-3, 0.0)
    assert statistics.finite
    assert statistics.named["policy_loss"] == pytest.approx(0.0, abs=1e-6)
    assert statistics.named["value_loss"] == pytest.approx(1.0)


def test_nothing_valid_is_no_loss() -> None:
    logits = torch.zeros(2, 2, requires_grad=True)
    loss = a2c_loss(
        categorical(logits, torch.zeros(2, dtype=torch.long)),
        torch.zeros(2),
        torch.ones(2),
        torch.zeros(2, dtype=torch.bool),
        entropy_coefficient=0.1,
        value_coefficient=0.5,
    )
    assert loss.total.item() == 0.0
    assert isinstance(loss, A2CLoss)


def test_shapes_that_do_not_fit_are_refused() -> None:
    flags, said = torch.ones(2, dtype=torch.bool), categorical(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="shapes"):
        a2c_loss(
            said,
            torch.zeros(2, 1),
            torch.zeros(2),
            flags,
            entropy_coefficient=0.0,
            value_coefficient=0.5,
        )


@pytest.mark.parametrize(("given", "steps"), [(spec(), 5), (IMAGES, 2)])
def test_reusing_activations_gives_the_same_gradients(given: EnvironmentSpec, steps: int) -> None:
    flats = []
    for reuse in (False, True):
        agent = algorithm(given, A2CSettings(max_grad_norm=1e9, reuse_activations=reuse))
        rollout = random_rollout(given, steps, 4)
        act_everywhere(agent, rollout, groups=2)
        statistics = agent.update(rollout, 1e-3, 0.0)
        flats.append((agent.flat, rollout.actions.clone(), statistics))
    (first, first_actions, expected), (second, second_actions, found) = flats
    assert torch.equal(first_actions, second_actions)
    assert first.gradients.abs().max() > 1e-4
    torch.testing.assert_close(second.gradients, first.gradients, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(second.parameters, first.parameters, rtol=1e-3, atol=1e-4)
    assert found.named == pytest.approx(expected.named, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("reuse", [False, True])
def test_the_flat_views_survive_updates(reuse: bool) -> None:
    agent = algorithm(IMAGES, A2CSettings(reuse_activations=reuse))
    rollout = random_rollout(IMAGES, 2, 2)
    before = agent.flat.parameters.clone()
    for _ in range(3):
        act_everywhere(agent, rollout)
        assert agent.update(rollout, 1e-3, 0.0).finite
        agent.flat.check()
    assert not torch.equal(agent.flat.parameters, before)
    assert agent.optimizer.steps == 3


class Constant:
    """Makes every value of a network ``value`` and every logit 0, whatever is observed."""

    def __init__(self, agent: A2C, value: float) -> None:
        tensors: dict[str, Tensor] = {name: torch.zeros_like(tensor) for name, tensor in agent.flat.named_parameters().items()}
        tensors["value.bias"].fill_(value)
        agent.flat.load(tensors)


def test_a_constant_value_makes_the_value_loss_known() -> None:
    """V = 4, gamma 1/2, rewards 1 for ever: R = 2.25, 2.5, 3, and 2 where a game terminates two steps before ... worked out below."""
    agent = algorithm(spec(), A2CSettings(gamma=0.5))
    Constant(agent, 4.0)
    rollout = random_rollout(spec(), 3, 3)
    rollout.rewards.fill_(1.0)
    rollout.terminated.fill_(False)
    rollout.truncated.fill_(False)
    rollout.valid.fill_(True)
    rollout.terminated[1, 1] = True  # R = 1.5, 1, 3
    rollout.truncated[1, 2] = True  # R = 1 + 3 / 2, 1 + 4 / 2, 3
    act_everywhere(agent, rollout)
    statistics = agent.update(rollout, 1e-3, 0.0)
    returns = np.array([[2.25, 1.5, 2.5], [2.5, 1.0, 3.0], [3.0, 3.0, 3.0]])
    assert statistics.named["value_loss"] == pytest.approx(np.mean((returns - 4.0) ** 2))
    assert statistics.named["policy_loss"] == pytest.approx(np.mean(returns - 4.0) * math.log(2))
    assert statistics.named["entropy"] == pytest.approx(math.log(2))
    assert statistics.named["explained_variance"] == pytest.approx(0.0, abs=1e-6)


def test_truncation_bootstraps_from_the_final_observation_and_not_from_the_next() -> None:
    """V(x) = 1 + x_0 + x_1 + x_2 for observations >= 0: a network of one relu."""
    agent = algorithm(spec(), A2CSettings(gamma=0.5, max_grad_norm=1e9), hidden=(1,), activation="relu")
    Constant(agent, 1.0)
    parameters = agent.flat.named_parameters()
    parameters["critic.hidden.0.weight"].fill_(1.0)
    parameters["value.weight"].fill_(1.0)
    rollout = Rollout(spec(), 1, 2)
    rollout.observations[0] = 0.0
    rollout.observations[1] = 1000.0  # the first observation of the next game
    rollout.final_observations[0] = torch.tensor([[1.0, 2.0, 3.0], [1000.0, 1000.0, 1000.0]])
    rollout.rewards.fill_(1.0)
    rollout.valid.fill_(True)
    rollout.terminated[0] = torch.tensor([False, True])
    rollout.truncated[0] = torch.tensor([True, False])
    act_everywhere(agent, rollout)
    # V(0) = 1 in both; R = 1 + 7 / 2 and 1.
    assert agent.update(rollout, 0.0, 0.0).named["value_loss"] == pytest.approx((3.5**2 + 0.0) / 2)


def test_masked_steps_teach_nothing() -> None:
    gradients = []
    for garbage in (0.0, 1e6):
        agent, rollout = algorithm(spec(), A2CSettings(max_grad_norm=1e9)), random_rollout(spec(), 4, 3)
        rollout.terminated.fill_(False)
        rollout.truncated.fill_(False)
        rollout.valid.fill_(True)
        rollout.terminated[1] = True
        rollout.valid[2] = False  # the reset step behind the end
        act_everywhere(agent, rollout)
        rollout.rewards[2] = garbage
        agent.update(rollout, 1e-3, 0.0)
        gradients.append(agent.flat.gradients.clone())
    assert torch.equal(gradients[0], gradients[1])


@pytest.mark.parametrize(("clip", "expected"), [(True, 1.0), (False, 49.0)])
def test_rewards_are_clipped_here_and_nowhere_else(clip: bool, expected: float) -> None:
    agent = algorithm(spec(), A2CSettings(clip_rewards=clip))
    Constant(agent, 0.0)
    rollout = random_rollout(spec(), 1, 2)
    rollout.rewards.copy_(torch.tensor([[7.0, -7.0]]))
    rollout.terminated.fill_(True)
    rollout.valid.fill_(True)
    act_everywhere(agent, rollout)
    assert agent.update(rollout, 1e-3, 0.0).named["value_loss"] == pytest.approx(expected)
    assert rollout.rewards.tolist() == [[7.0, -7.0]]


def test_actions_are_samples_of_the_softmax() -> None:
    agent = algorithm(spec(num_actions=3), A2CSettings())
    Constant(agent, 0.0)
    agent.flat.named_parameters()["policy.bias"].copy_(torch.tensor([0.1, 0.3, 0.6]).log())
    rollout = random_rollout(spec(num_actions=3), 10, 4000)
    act_everywhere(agent, rollout)
    shares = torch.bincount(rollout.actions.flatten(), minlength=3) / 40_000
    # Standard deviations are at most sqrt(.24 / 40000) = 0.00245.
    assert shares.tolist() == pytest.approx([0.1, 0.3, 0.6], abs=0.01)
    first, second = rollout.actions[0], rollout.actions[1]
    assert (first == second).float().mean().item() == pytest.approx(0.46, abs=0.04)


def test_actions_do_not_depend_on_the_groups() -> None:
    actions = []
    for groups in (1, 2, 4):
        agent, rollout = algorithm(spec(), A2CSettings()), random_rollout(spec(), 5, 8)
        for _ in range(2):
            act_everywhere(agent, rollout, groups)
            agent.update(rollout, 0.0, 0.0)
        actions.append(rollout.actions.clone())
    assert torch.equal(actions[0], actions[1])
    assert torch.equal(actions[0], actions[2])


def test_evaluation_takes_the_best_action_or_a_sample() -> None:
    agent = algorithm(spec(num_actions=3), A2CSettings())
    Constant(agent, 0.0)
    agent.flat.named_parameters()["policy.bias"].copy_(torch.tensor([0.1, 0.6, 0.3]).log())
    observations = torch.zeros(20_000, 3)
    begins = torch.ones(len(observations), dtype=torch.bool)
    assert set(agent.choose(observations, begins, None).tolist()) == {1}
    shares = (
        torch.bincount(
            agent.choose(observations, torch.ones(len(observations), dtype=torch.bool), torch.Generator().manual_seed(4)), minlength=3
        )
        / 20_000
    )
    assert shares.tolist() == pytest.approx([0.1, 0.6, 0.3], abs=0.015)


def test_the_local_state_is_the_random_stream() -> None:
    agent, rollout = algorithm(spec(), A2CSettings()), random_rollout(spec(), 3, 50)
    act_everywhere(agent, rollout)
    state = {name: tensor.clone() for name, tensor in agent.local_state().items()}
    act_everywhere(agent, rollout)
    expected = rollout.actions.clone()
    other = algorithm(spec(), A2CSettings())
    act_everywhere(other, rollout)
    other.load_local_state(state)
    act_everywhere(other, rollout)
    assert torch.equal(rollout.actions, expected)
    act_everywhere(other, rollout)
    assert not torch.equal(rollout.actions, expected)


@pytest.mark.parametrize("reuse", [False, True])
def test_a_loss_that_is_not_finite_is_told_and_not_applied(reuse: bool) -> None:
    agent, rollout = algorithm(spec(), A2CSettings(reuse_activations=reuse)), random_rollout(spec())
    rollout.rewards[0, 0] = float("nan")
    rollout.valid[0, 0] = True
    before = agent.flat.parameters.clone()
    act_everywhere(agent, rollout)
    assert not agent.update(rollout, 1e-3, 0.0).finite
    assert torch.equal(agent.flat.parameters, before)
    assert agent.optimizer.steps == 0


@pytest.mark.parametrize("reuse", [False, True])
def test_a_guessing_game_is_solved_in_seconds(reuse: bool) -> None:
    """Random play gets 8/3 of 8 points."""
    environments = make_environments("tests.rl.scripted:GuessEnv", 8, seeds=list(range(8)))
    agent = algorithm(environments.spec, A2CSettings(gamma=0.5, reuse_activations=reuse), hidden=(32,))
    rollout = Rollout(environments.spec, 8, 8)
    environments.reset(rollout.observation(0, 0, 8))
    returns = []
    for _ in range(200):
        agent.begin(rollout, 0.0)
        for t in range(8):
            rollout.set_actions(t, 0, 8, agent.act(rollout, t, 0, 8))
            returns += [episode.return_ for episode in environments.step(rollout.action(t, 0, 8), rollout.row(t, 0, 8))]
        assert agent.update(rollout, 3e-3, 0.0).finite
        rollout.carry()
    assert np.mean(returns[:64]) < 4.5
    assert np.mean(returns[-64:]) > 7.5


def test_updates_equal_a_slow_reference() -> None:
    """Three updates of noise: plain autograd on copies of the tensors, one loop per environment, torch's own RMSprop and clipping."""
    agent = algorithm(spec(), A2CSettings(gamma=0.9, entropy_coefficient=0.02, value_coefficient=0.4, max_grad_norm=0.3))
    slow = build_network(spec(), "auto", (16,), "tanh", False, 1)
    optimizer = torch.optim.RMSprop(slow.parameters(), lr=1e-2, alpha=0.99, eps=1e-5)
    for seed in range(3):
        rollout = random_rollout(spec(), 5, 4, seed)
        act_everywhere(agent, rollout)
        losses = []
        for n in range(4):
            with torch.no_grad():
                following = slow(rollout.observations[5, n : n + 1])[1][0]
            returns: list[Tensor] = []
            for t in reversed(range(5)):
                if rollout.terminated[t, n]:
                    following = torch.tensor(0.0)
                elif rollout.truncated[t, n]:
                    with torch.no_grad():
                        following = slow(rollout.final_observations[t, n : n + 1])[1][0]
                following = rollout.rewards[t, n] + 0.9 * following
                returns.insert(0, following)
            for t in range(5):
                if rollout.valid[t, n]:
                    logits, value = slow(rollout.observations[t, n : n + 1])
                    chances = torch.softmax(logits[0], dim=0)
                    error = returns[t] - value[0]
                    chosen = chances[rollout.actions[t, n]].log()
                    losses.append(-chosen * error.detach() + 0.4 * error**2 + 0.02 * (chances * chances.log()).sum())
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(slow.parameters(), 0.3)
        optimizer.step()
        assert agent.update(rollout, 1e-2, 0.0).finite
        for name, parameter in slow.named_parameters():
            torch.testing.assert_close(agent.flat.named_parameters()[name], parameter.detach(), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("reuse", [False, True])
def test_generalised_advantages_reach_the_loss(reuse: bool) -> None:
    """V = 4, gamma 1/2, lambda 1/2, rewards 1, no ends: every delta is 1 + 2 - 4 = -1, so A = -1, -5/4, -21/16 from the last step on."""
    agent = algorithm(spec(), A2CSettings(gamma=0.5, gae_lambda=0.5, reuse_activations=reuse))
    Constant(agent, 4.0)
    rollout = random_rollout(spec(), 3, 2)
    rollout.rewards.fill_(1.0)
    rollout.terminated.fill_(False)
    rollout.truncated.fill_(False)
    rollout.valid.fill_(True)
    act_everywhere(agent, rollout)
    advantages = np.array([-21 / 16, -5 / 4, -1.0])
    statistics = agent.update(rollout, 1e-3, 0.0)
    assert statistics.named["value_loss"] == pytest.approx(np.mean(advantages**2))
    assert statistics.named["policy_loss"] == pytest.approx(np.mean(advantages) * math.log(2))
