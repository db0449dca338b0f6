from __future__ import annotations

import copy
import itertools
import re
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.rl.q_agents import FOUR, q_agent
from tests.rl.rollouts import act_everywhere, fill_with_noise, noisy_rollout
from zpala.rl.action_spaces import Discrete
from zpala.rl.dqn import DQN, DQNSettings
from zpala.rl.environments import EnvironmentSpec
from zpala.rl.replay import bytes_needed
from zpala.rl.rollout import Rollout


def going_on(agent: DQN, before: Rollout | None, seed: int, steps: int = 6, envs: int = 4) -> Rollout:
    """A rollout of noise that begins where ``before`` ended. A truncated game ends with an observation of its own; the next one is not."""
    rollout = Rollout(FOUR, steps, envs, extra=agent.per_step())
    fill_with_noise(rollout, seed)
    if before is not None:
        rollout.observations[0] = before.observations[-1]
    act_everywhere(agent, rollout)
    return rollout


def played(agent: DQN, rollouts: int = 3) -> list[Rollout]:
    found: list[Rollout] = []
    for seed in range(rollouts):
        found.append(going_on(agent, found[-1] if found else None, seed))
        assert agent.update(found[-1], 3e-2, 0.0).finite
    return found


def filled(agent: DQN, rollouts: int = 3) -> Rollout:
    return played(agent, rollouts)[-1]


class Followed(NamedTuple):
    """What a transition of up to n steps is, read from the rollouts."""

    reward: float  # discounted sum
    behind: Tensor  # the observation after it
    discount: float  # of what that is worth
    steps: int
    end: str


def follow(rollouts: list[Rollout], index: int, constants: DQNSettings) -> Followed:
    """The slow reference: from the cell ``index`` of the rollouts, one after the other, step by step."""
    num_steps, envs = rollouts[0].num_steps, rollouts[0].num_envs
    total, (first, n) = 0.0, divmod(index, envs)
    for row in itertools.count(first):
        rollout, t, steps = rollouts[row // num_steps], row % num_steps, row - first + 1
        reward, discount = float(rollout.rewards[t, n]), constants.gamma**steps
        total += constants.gamma ** (steps - 1) * (min(max(reward, -1.0), 1.0) if constants.clip_rewards else reward)
        if rollout.terminated[t, n]:
            return Followed(total, torch.zeros(3), 0.0, steps, "terminated")
        if rollout.truncated[t, n]:
            return Followed(total, rollout.final_observations[t, n], discount, steps, "truncated")
        newest = row + 1 == num_steps * len(rollouts)
        if steps == constants.n_steps or newest or not rollouts[(row + 1) // num_steps].valid[(row + 1) % num_steps, n]:
            return Followed(total, rollout.observations[t + 1, n], discount, steps, "goes on")
    raise AssertionError("nothing comes behind an endless count")


@pytest.mark.parametrize(
    ("double", "prioritized", "loss", "clip", "n_steps"),
    [
        (False, False, "huber", False, 1),
        (True, False, "huber", True, 1),
        (True, True, "squared", False, 1),
        (True, False, "huber", False, 2),
        (False, False, "squared", True, 3),
        (True, True, "huber", True, 8),
    ],
)
def test_the_gradient_is_that_of_a_slow_reference(double: bool, prioritized: bool, loss: str, clip: bool, n_steps: int) -> None:
    """One optimiser step of many: the same batch, drawn with a copy of the random stream, transition by transition."""
    constants = DQNSettings(
        gamma=0.9,
        double=double,
        prioritized=prioritized,
        loss=loss,  # type: ignore[arg-type]
        clip_rewards=clip,
        max_grad_norm=1e9,
        learning_starts=0,
        train_frequency=6.0,
        batch_size=40,
        target_update_steps=1000,
        capacity=1000,
        n_steps=n_steps,
    )
    agent = q_agent(DQN, constants, optimizer="adam")
    target = copy.deepcopy(agent.network)
    rollouts = played(agent)
    assert agent.optimizer.steps > 5
    network = copy.deepcopy(agent.network)
    assert agent.replay is not None
    stream = torch.Generator()
    stream.set_state(agent.local_state()["draws"])
    batch = agent.replay.sample(40, stream, beta=0.4 + 0.6 * 0.25)
    terms, chosen, errors = [], [], []
    transitions = [follow(rollouts, index, constants) for index in batch.indices.tolist()]
    for i, transition in enumerate(transitions):
        with torch.no_grad():
            worth, own = target(transition.behind[None])[0], network(transition.behind[None])[0]
        best = float(worth[own.argmax()] if double else worth.max())
        total = transition.reward + transition.discount * best
        value = network(batch.observations[i][None])[0, batch.actions[i]]
        error = total - value
        each = 0.5 * error**2 if loss == "squared" or error.abs() <= 1.0 else error.abs() - 0.5
        terms.append(each * batch.weights[i])
        chosen.append(value.item())
        errors.append(error.item())
    assert 3 < sum(abs(error) > 1.0 for error in errors) < 37
    assert {transition.end for transition in transitions} == {"terminated", "truncated", "goes on"}
    assert len({transition.steps for transition in transitions}) >= min(n_steps, 4)
    assert (len(set(batch.weights.tolist())) > 5) == prioritized
    mean = torch.stack(terms).mean()
    mean.backward()  # type: ignore[no-untyped-call]
    expected = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])  # type: ignore[union-attr]
    finite, (td_loss, grad_norm, mean_q) = agent._learn(agent.replay, 0.0, 0.25)
    found = torch.cat([view.flatten() for view in agent.flat.views(agent.flat.gradients).values()])
    assert finite
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert td_loss == pytest.approx(mean.item(), rel=1e-4)
    assert mean_q == pytest.approx(np.mean(chosen), rel=1e-4, abs=1e-6)
    assert grad_norm == pytest.approx(expected.norm().item(), rel=1e-4)
    if prioritized:  # weights are now 1 / priority, and priorities those of the errors
        again = agent.replay.sample(400, stream, beta=1.0)
        both = sorted(set(batch.indices.tolist()) & set(again.indices.tolist()))
        assert len(both) > 5
        weights = [float(again.weights[again.indices.tolist().index(i)]) for i in both]
        sizes = [(abs(errors[batch.indices.tolist().index(i)]) + 1e-6) ** 0.6 for i in both]
        products = [a * b for a, b in zip(weights, sizes, strict=True)]
        assert products == pytest.approx([products[0]] * len(both), rel=1e-3)


def test_steps_begin_late_and_come_as_often_as_asked() -> None:
    """24 cells a rollout, some of them resets: one step for every 10 valid ones, from the rollout that brings their number to 50."""
    agent = q_agent(DQN, DQNSettings(learning_starts=50, train_frequency=10.0, capacity=1000))
    rollout, stored, counted, taken = None, 0, 0, []
    for seed in range(8):
        rollout = going_on(agent, rollout, seed)
        before = agent.flat.parameters.clone()
        statistics = agent.update(rollout, 1e-2, 0.0)
        valid = int(rollout.valid.sum())
        assert 10 < valid < 24
        stored += valid
        counted += valid if stored >= 50 else 0
        taken.append(agent.optimizer.steps)
        assert agent.optimizer.steps == counted // 10
        assert torch.equal(before, agent.flat.parameters) == (counted == 0)
        assert (statistics.named["td_loss"] > 0.0) == (counted > 0)
        assert statistics.named["replay_fill"] == pytest.approx(stored / 1000)
    assert taken[1] == 0
    assert taken[-1] > 8


def test_a_rollout_may_ask_for_no_step_or_for_many() -> None:
    for frequency, steps in ((1e6, 0), (0.5, 48)):
        agent = q_agent(DQN, DQNSettings(learning_starts=0, train_frequency=frequency, capacity=100))
        rollout = Rollout(FOUR, 6, 4)
        fill_with_noise(rollout, 0)
        rollout.valid.fill_(True)
        act_everywhere(agent, rollout)
        assert agent.update(rollout, 1e-3, 0.0).finite
        assert agent.optimizer.steps == steps


def test_epsilon_is_one_number_that_falls() -> None:
    agent = q_agent(DQN, DQNSettings(exploration_fraction=0.5, final_epsilon=0.2, capacity=1000))
    rollout, epsilons = None, []
    for seed, progress in enumerate((0.0, 0.25, 0.5, 1.0)):
        rollout = going_on(agent, rollout, seed)
        agent.begin(rollout, progress)
        epsilons.append(agent.update(rollout, 0.0, progress).named["epsilon"])
    assert epsilons == pytest.approx([1.0, 0.6, 0.2, 0.2])


def test_a_bad_batch_ends_the_update() -> None:
    agent = q_agent(DQN, DQNSettings(learning_starts=0, train_frequency=1.0, capacity=1000, batch_size=1, prioritized=True, loss="squared"))
    rollout = filled(agent, 2)
    steps, parameters = agent.optimizer.steps, agent.flat.parameters.clone()
    rollout = going_on(agent, rollout, 9)
    rollout.valid.fill_(True)
    rollout.rewards[3:, :2] = 1e30  # its square is not finite
    statistics = agent.update(rollout, 1e-3, 0.0)
    assert not statistics.finite
    assert 0 < agent.optimizer.steps - steps < 24  # what came before it was made, and nothing after it
    assert agent.flat.parameters.isfinite().all()
    assert not torch.equal(parameters, agent.flat.parameters)


@pytest.mark.parametrize("what", ["rewards", "observations"])
def test_what_is_not_finite_never_comes_into_the_replay(what: str) -> None:
    """Drawn thousands of steps later nobody could tell whence it came."""
    agent = q_agent(DQN, DQNSettings(capacity=100, learning_starts=10_000))
    before = filled(agent)
    assert agent.replay is not None
    stored = len(agent.replay)
    rollout = going_on(agent, before, 7)
    rollout.valid.fill_(True)
    getattr(rollout, what)[2, 1] = float("inf")
    assert not agent.update(rollout, 1e-2, 0.0).finite
    assert len(agent.replay) == stored
    rollout.valid[2, 1] = what != "rewards"  # the reward of a step that only resets is nobody's
    assert agent.update(rollout, 1e-2, 0.0).finite is (what == "rewards")


def test_another_state_is_adopted_the_replay_stays() -> None:
    agent = q_agent(DQN, DQNSettings(learning_starts=0, capacity=1000, target_update_steps=1000))
    filled(agent)
    assert agent.replay is not None
    size = len(agent.replay)
    agent.flat.parameters.add_(0.5)
    assert not torch.equal(agent.target.vector, agent.flat.parameters)
    agent.adopted()
    assert torch.equal(agent.target.vector, agent.flat.parameters)
    assert len(agent.replay) == size > 0


def test_random_streams_and_target_go_on_from_the_local_state() -> None:
    first, second = (q_agent(DQN, DQNSettings(learning_starts=0, capacity=1000, target_update_steps=3), seed=seed) for seed in (5, 6))
    last = filled(first)
    second.flat.parameters.copy_(first.flat.parameters)
    for name, vector in second.optimizer.state.items():
        vector.copy_(first.optimizer.state[name])
    second.load_local_state({name: tensor.clone() for name, tensor in first.local_state().items()})
    second.replay = copy.deepcopy(first.replay)
    second._owed = first._owed
    rollouts = [going_on(agent, last, 7) for agent in (first, second)]
    assert torch.equal(rollouts[0].actions, rollouts[1].actions)
    found = [agent.update(rollout, 1e-2, 0.5) for agent, rollout in zip((first, second), rollouts, strict=True)]
    assert found[0] == found[1]
    assert torch.equal(first.flat.parameters, second.flat.parameters)
    assert torch.equal(first.target.vector, second.target.vector)


@pytest.mark.parametrize("prioritized", [False, True])
def test_a_replay_that_does_not_fit_is_refused_with_a_number_that_does(prioritized: bool) -> None:
    pong = EnvironmentSpec("ALE/Pong-v5", (4, 84, 84), np.dtype(np.uint8), Discrete(6), 4, True, "pong")
    settings = DQNSettings(capacity=1_000_000, prioritized=prioritized)
    DQN.check_memory(settings, pong, 8, 10_000_000_000)
    with pytest.raises(ValueError, match=re.escape("dqn.capacity = 1,000,000 env_steps of ALE/Pong-v5 need 7.")) as refused:
        DQN.check_memory(settings, pong, 8, 2_000_000_000)
    fits = int(re.findall(r"About ([\d,]+) would fit", str(refused.value))[0].replace(",", ""))
    alpha = 0.6 if prioritized else 0.0
    assert 1_600_000_000 < bytes_needed(pong, fits, 8, priority_alpha=alpha) <= 2_000_000_000
    DQN.check_memory(DQNSettings(capacity=fits, prioritized=prioritized), pong, 8, 2_000_000_000)


def test_nothing_is_kept_for_evaluation() -> None:
    """An agent that only chooses has no replay, however large that would be."""
    agent = q_agent(DQN, DQNSettings(capacity=10**12))
    assert agent.choose(torch.zeros(2, 3), torch.ones(2, dtype=torch.bool), None).shape == (2,)
    assert agent.replay is None
    assert noisy_rollout(agent, 3, 2, FOUR).actions.min() >= 0
