from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tests.rl.q_agents import FOUR, q_agent, small_network
from tests.rl.rollouts import act_everywhere, fill_with_noise, noisy_rollout, spec
from zpala.rl.nstep_q import NStepQ, NStepQSettings
from zpala.rl.q_learning import q_loss
from zpala.rl.rollout import Rollout


def test_hand_worked_losses() -> None:
    """Errors 1/2, -3 and one of weight 0 that is not a number."""
    values, targets = torch.tensor([1.0, 1.0, 1.0], requires_grad=True), torch.tensor([1.5, -2.0, float("nan")])
    weights = torch.tensor([0.5, 0.25, 0.0])
    assert q_loss(values, targets, weights, "squared").item() == 0.5 * 0.125 + 0.25 * 4.5
    huber = q_loss(values, targets, weights, "huber")
    assert huber.item() == 0.5 * 0.125 + 0.25 * 2.5
    huber.backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    assert values.grad.tolist() == [-0.25, 0.25, 0.0]
    with pytest.raises(ValueError, match="shapes"):
        q_loss(values, targets, weights[:2], "huber")


@pytest.mark.parametrize("truncations", [True, False])
@pytest.mark.parametrize(("double", "loss", "clip"), [(False, "huber", False), (True, "huber", True), (True, "squared", False)])
def test_the_gradient_is_that_of_a_slow_reference(double: bool, loss: str, clip: bool, truncations: bool) -> None:
    """The third update, when network and target differ: every step alone, its return summed forwards until the game or the rollout ends."""
    constants = NStepQSettings(gamma=0.9, double=double, loss=loss, clip_rewards=clip, max_grad_norm=1e9, target_update_steps=2)  # type: ignore[arg-type]
    agent = q_agent(NStepQ, constants, optimizer="adam")
    targets = [copy.deepcopy(agent.network)]
    for update in range(3):
        assert agent.update(noisy_rollout(agent, 5, 4, FOUR, seed=update), 5e-2, 0.0).finite
        targets.append(copy.deepcopy(agent.network))
    rollout = noisy_rollout(agent, 6, 5, FOUR, seed=9)
    if not truncations:
        rollout.truncated.fill_(False)
    target = targets[2]  # it has followed after the second of three steps
    network = copy.deepcopy(agent.network)

    def best(observation: torch.Tensor) -> float:
        with torch.no_grad():
            worth, own = target(observation[None])[0], network(observation[None])[0]
        return float(worth[own.argmax()] if double else worth.max())

    terms, chosen, disagreed = [], [], 0
    for n in range(5):
        for t in range(6):
            if not rollout.valid[t, n]:
                continue
            total, factor = 0.0, 1.0
            for k in range(t, 6):
                reward = float(rollout.rewards[k, n])
                total, factor = total + factor * (min(max(reward, -1.0), 1.0) if clip else reward), factor * 0.9
                if rollout.terminated[k, n]:
                    break
                if rollout.truncated[k, n]:
                    total += factor * best(rollout.final_observations[k, n])
                    break
                if k == 5:
                    total += factor * best(rollout.observations[6, n])
            value = network(rollout.observations[t, n][None])[0, rollout.actions[t, n]]
            error = total - value
            terms.append(0.5 * error**2 if loss == "squared" or error.abs() <= 1.0 else error.abs() - 0.5)
            chosen.append(value.item())
            disagreed += int(error.abs().item() > 1.0)
    assert 3 < disagreed < len(terms) - 3  # both sides of Huber's loss
    mean = torch.stack(terms).mean()
    mean.backward()  # type: ignore[no-untyped-call]
    expected = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])  # type: ignore[union-attr]
    statistics = agent.update(rollout, 0.0, 0.0)
    found = torch.cat([view.flatten() for view in agent.flat.views(agent.flat.gradients).values()])
    assert expected.abs().max() > 1e-2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert statistics.named["td_loss"] == pytest.approx(mean.item(), rel=1e-5)
    assert statistics.named["mean_q"] == pytest.approx(np.mean(chosen), rel=1e-4, abs=1e-6)
    assert statistics.named["grad_norm"] == pytest.approx(expected.norm().item(), rel=1e-4)


def test_reset_steps_teach_nothing_whatever_they_hold() -> None:
    gradients = []
    for garbage in (0.0, 1e6):
        agent = q_agent(NStepQ, NStepQSettings())
        rollout = noisy_rollout(agent, 6, 4, FOUR)
        rollout.terminated[1, 2], rollout.valid[2, 2] = True, False
        rollout.terminated[2, 2] = rollout.truncated[2, 2] = False
        rollout.rewards[2, 2] = garbage
        rollout.actions[2, 2] = -(2**40)
        assert agent.update(rollout, 1e-2, 0.0).finite
        gradients.append(agent.flat.gradients.clone())
    assert torch.equal(gradients[0], gradients[1])
    assert gradients[0].abs().max() > 0.0


def test_statistics_of_observations_see_what_is_valid() -> None:
    agent = q_agent(NStepQ, NStepQSettings(), small_network(normalize=True))
    rollout = noisy_rollout(agent, 6, 4, FOUR)
    rollout.observations.add_(7.0)
    rollout.observations[:-1][~rollout.valid] = 1e6
    assert agent.update(rollout, 1e-2, 0.0).finite
    normalizer = agent.network.inputs.normalizer
    assert normalizer is not None
    mean, _ = normalizer.statistics()
    torch.testing.assert_close(mean, rollout.observations[:-1][rollout.valid].mean(0), rtol=1e-4, atol=1e-4)


def test_the_gradient_is_scaled_down() -> None:
    agent = q_agent(NStepQ, NStepQSettings(max_grad_norm=0.01))
    assert agent.update(noisy_rollout(agent, 6, 4, FOUR), 0.0, 0.0).named["grad_norm"] > 0.1
    assert agent.flat.gradients.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_the_target_follows_after_so_many_updates_and_when_another_state_was_adopted() -> None:
    agent = q_agent(NStepQ, NStepQSettings(target_update_steps=3))
    before = agent.flat.parameters.clone()
    for update in range(1, 7):
        assert agent.update(noisy_rollout(agent, 4, 4, FOUR, seed=update), 1e-2, 0.0).finite
        if update % 3 == 0:
            before = agent.flat.parameters.clone()
        assert torch.equal(agent.target.vector, before)
    agent.flat.parameters.add_(0.5)  # an average with a neighbour: the target stays
    assert torch.equal(agent.target.vector, before)
    agent.adopted()
    assert torch.equal(agent.target.vector, agent.flat.parameters)


def test_epsilon_is_shown_and_falls() -> None:
    agent = q_agent(NStepQ, NStepQSettings(exploration_fraction=0.5))
    epsilons = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        rollout = Rollout(FOUR, 4, 10, extra=agent.per_step())
        fill_with_noise(rollout, 1)
        act_everywhere(agent, rollout, progress)
        epsilons.append(agent.update(rollout, 0.0, progress).named["epsilon"])
    assert epsilons == pytest.approx([1.0, 0.5965, 0.193, 0.193])  # 4 x 0.1, 3 x 0.01, 3 x 0.5 in the end


def test_greedy_and_sampled_choices() -> None:
    agent = q_agent(NStepQ, NStepQSettings())
    observations = torch.randn(4000, 3, generator=torch.Generator().manual_seed(1))
    best = agent.network(observations).argmax(-1)
    assert torch.equal(agent.choose(observations, torch.zeros(4000, dtype=torch.bool), None), best)
    share = (
        (agent.choose(observations, torch.zeros(4000, dtype=torch.bool), torch.Generator().manual_seed(1)) != best).float().mean().item()
    )
    assert share == pytest.approx(0.05 * 3 / 4, abs=0.012)


def test_it_goes_on_from_its_local_state() -> None:
    """Another instance with the parameters, the optimiser's state and the local state of the first does the same from then on."""
    first, second = (q_agent(NStepQ, NStepQSettings(target_update_steps=2, exploration_fraction=1.0), seed=seed) for seed in (5, 5))
    for update in range(3):
        first.update(noisy_rollout(first, 5, 4, FOUR, seed=update), 1e-2, 0.5)
    second.flat.parameters.copy_(first.flat.parameters)
    for name, vector in second.optimizer.state.items():
        vector.copy_(first.optimizer.state[name])
    second.optimizer.steps = first.optimizer.steps
    second.load_local_state({name: tensor.clone() for name, tensor in first.local_state().items()})
    for update in range(3, 6):
        rollouts = [noisy_rollout(agent, 5, 4, FOUR, seed=update) for agent in (first, second)]
        assert torch.equal(rollouts[0].actions, rollouts[1].actions)
        found = [agent.update(rollout, 1e-2, 0.5) for agent, rollout in zip((first, second), rollouts, strict=True)]
        assert found[0] == found[1]
    assert torch.equal(first.flat.parameters, second.flat.parameters)
    assert torch.equal(first.target.vector, second.target.vector)


class _Chain:
    """States 0 to 3; action 1 goes right and earns 1 in the end, action 0 stays and earns 0.1; gamma 0.9."""

    GAMMA = 0.9

    @staticmethod
    def step(state: int, action: int) -> tuple[int, float, bool]:
        return (state, 0.1, False) if action == 0 else (state + 1, float(state == 3), state == 3)

    @classmethod
    def values(cls) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """By value iteration."""
        q = np.zeros((4, 2))
        for _ in range(500):
            for state in range(4):
                for action in range(2):
                    following, reward, ended = cls.step(state, action)
                    q[state, action] = reward + (0.0 if ended else cls.GAMMA * q[following].max())
        return q


@pytest.mark.parametrize("double", [False, True])
def test_one_step_learning_finds_the_values_of_a_known_game(double: bool) -> None:
    constants = NStepQSettings(gamma=_Chain.GAMMA, double=double, loss="squared", max_grad_norm=1e9, target_update_steps=5)
    given = spec((4,), num_actions=2)
    agent = q_agent(NStepQ, constants, small_network(given), optimizer="adam")
    rollout = Rollout(given, 1, 16, extra=agent.per_step())
    rollout.truncated.fill_(False)
    rollout.valid.fill_(True)
    states = [number % 4 for number in range(16)]
    eye = torch.eye(4)
    for update in range(700):
        rollout.observations[0] = eye[states]
        agent.begin(rollout, 0.0)  # epsilon 1
        rollout.set_actions(0, 0, 16, agent.act(rollout, 0, 0, 16))
        for number, state in enumerate(states):
            following, rollout.rewards[0, number], ended = _Chain.step(state, int(rollout.actions[0, number]))
            rollout.terminated[0, number] = ended
            states[number] = (update + number) % 4 if ended else following
        rollout.observations[1] = eye[states]
        assert agent.update(rollout, 1e-2 if update < 400 else 1e-3, 0.0).finite
    with torch.no_grad():
        np.testing.assert_allclose(agent.network(eye).numpy(), _Chain.values(), atol=0.02)
