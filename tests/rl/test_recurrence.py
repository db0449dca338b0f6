"""A network with a memory: against torch's LSTM, against playing every game by itself, in both ways in which games begin."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.rl.rollouts import spec
from zpala.rl.a2c import A2C, A2CSettings
from zpala.rl.environments import Environments, EnvironmentSpec, make_environments
from zpala.rl.execution import Fixed
from zpala.rl.flat import FlatParameters
from zpala.rl.lstm import LSTM
from zpala.rl.networks import ActorCritic, Output, build_network
from zpala.rl.optimizers import OptimizerSettings, build_optimizer
from zpala.rl.policy_gradient import STATES, VALUES, PolicyGradient
from zpala.rl.ppo import PPO, Minibatch, PPOSettings
from zpala.rl.rollout import Rollout
from zpala.rl.vtrace import VTrace, VTraceSettings

KINDS: list[tuple[type[PolicyGradient], object]] = [
    (A2C, A2CSettings(gamma=0.9, gae_lambda=0.9)),
    (PPO, PPOSettings(gamma=0.9, epochs=1, minibatch_size=1000, normalize_advantage=False)),
    (VTrace, VTraceSettings(gamma=0.9, gae_lambda=0.9)),
    (VTrace, VTraceSettings(gamma=0.9, lag=2)),
]


def recurrent(kind: type[PolicyGradient], settings: object, given: EnvironmentSpec, separate: bool = False) -> PolicyGradient:
    network = build_network(given, "mlp", (16,), "tanh", False, 1, core="lstm", core_size=8, separate_critic=separate)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)  # so that the memory matters
    flat = FlatParameters(network)
    return kind(network, flat, build_optimizer(OptimizerSettings(), flat.numel), settings, seed=5)


def scripted(mode: str) -> Environments:
    """Games of 3 steps that terminate, in four environments."""
    return make_environments("tests.rl.scripted:make_vector", 4, seeds=[0] * 4, args={"mode": mode})


def play(agent: PolicyGradient, environments: Environments, rollout: Rollout, groups: int = 1) -> None:
    """One rollout; some games are cut off, which the simulator does not do."""
    size = rollout.num_envs // groups
    agent.begin(rollout, 0.0)
    for t in range(rollout.num_steps):
        for start in range(0, rollout.num_envs, size):
            rollout.set_actions(t, start, start + size, agent.act(rollout, t, start, start + size))
        environments.step(rollout.action(t, 0, rollout.num_envs), rollout.row(t, 0, rollout.num_envs))


def test_it_is_torchs_lstm() -> None:
    ours = LSTM(5, 7)
    ours.initialise(torch.Generator().manual_seed(1))
    theirs = nn.LSTM(5, 7)
    with torch.no_grad():
        for name, parameter in ours.cell.named_parameters():
            theirs.get_parameter(f"{name}_l0").copy_(parameter.add_(0.01))
    x, state = torch.randn(9, 3, 5), torch.randn(3, 14)
    expected, (hidden, cell) = theirs(x, (state[None, :, :7].contiguous(), state[None, :, 7:].contiguous()))
    torch.testing.assert_close(ours(x, torch.zeros(9, 3, dtype=torch.bool), state), expected)
    for t in range(9):
        state = ours.step(x[t], torch.zeros(3, dtype=torch.bool), state)
        torch.testing.assert_close(state[:, :7], expected[t])
    torch.testing.assert_close(state, torch.cat([hidden[0], cell[0]], dim=-1))


@pytest.mark.parametrize("beginnings", [0.0, 0.02, 0.2, 1.0])
def test_a_sequence_equals_its_steps(beginnings: float) -> None:
    """Outputs and all gradients, however often games begin; and one way of laying out sequences is not always the one taken."""
    generator = torch.Generator().manual_seed(1)
    core = LSTM(5, 7)
    core.initialise(generator)
    x, state = torch.randn(40, 3, 5, generator=generator), torch.randn(3, 14, generator=generator)
    fresh = torch.rand(40, 3, generator=generator) < beginnings
    weight = torch.randn(40, 3, 7, generator=generator)

    def slow(x: Tensor, state: Tensor) -> Tensor:
        outputs = []
        for t in range(40):
            state = core.step(x[t], fresh[t], state)
            outputs.append(state[:, :7])
        return torch.stack(outputs)

    found = []
    for way in (slow, lambda x, state: core(x, fresh, state)):
        leaves = [x.clone().requires_grad_(), state.clone().requires_grad_()]
        outputs = way(*leaves)
        found.append([outputs, *torch.autograd.grad((outputs * weight).sum(), [*leaves, *core.parameters()], materialize_grads=True)])
    for expected, actual in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_one_long_game_beside_many_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where filling up would multiply the work, it goes step by step, with the same outputs."""
    core = LSTM(5, 7)
    core.initialise(torch.Generator().manual_seed(1))
    x, state = torch.randn(40, 2, 5), torch.randn(2, 14)
    fresh = torch.zeros(40, 2, dtype=torch.bool)
    fresh[:, 1] = True
    outputs = core(x, fresh, state)
    torch.testing.assert_close(core._step_by_step(x, fresh, state), outputs, rtol=0.0, atol=0.0)
    monkeypatch.setattr("zpala.rl.lstm.FILLING", 1000)
    monkeypatch.setattr(core, "_step_by_step", None)
    torch.testing.assert_close(core(x, fresh, state), outputs)


def test_a_new_game_forgets() -> None:
    """With a game beginning at step 4 in one column, what follows is what a memory of zeros would give."""
    core = LSTM(5, 7)
    core.initialise(torch.Generator().manual_seed(1))
    x, state = torch.randn(9, 2, 5), torch.randn(2, 14)
    fresh = torch.zeros(9, 2, dtype=torch.bool)
    through = core(x, fresh, state)
    fresh[4, 0] = True
    outputs = core(x, fresh, state)
    torch.testing.assert_close(outputs[:4], through[:4])
    torch.testing.assert_close(outputs[:, 1], through[:, 1])
    alone = core(x[4:, :1], fresh[4:, :1] & False, torch.zeros(1, 14))
    torch.testing.assert_close(outputs[4:, :1], alone)
    assert not torch.allclose(outputs[4:, 0], through[4:, 0])


@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_rollout_equals_playing_every_game_step_by_step(mode: str, separate: bool, groups: int) -> None:
    """Three rollouts of 5 steps with games of 3: what acting saw, and what the update sees, is what a fresh memory per game gives."""
    environments = scripted(mode)
    agent = recurrent(PPO, KINDS[1][1], environments.spec, separate)
    network = agent.network
    rollout = Rollout(environments.spec, 5, 4, extra=agent.per_step())
    environments.reset(rollout.observation(0, 0, 4))
    states = torch.zeros(4, network.state_size)
    begins = torch.ones(4, dtype=torch.bool)
    resets, games = 0, 0
    for _ in range(3):
        play(agent, environments, rollout, groups)
        batch = agent._batch(agent._columns(rollout), agent._fixed(rollout))
        outputs, values = agent._forward(batch)
        for t in range(5):
            for n in range(4):
                if begins[n]:
                    states[n] = 0.0
                step = network.step(rollout.observations[t, n][None], torch.zeros(1, dtype=torch.bool), states[n : n + 1])
                states[n] = step.state[0].detach()
                torch.testing.assert_close(rollout.extra[VALUES][t, n], step.values[0].detach())
                torch.testing.assert_close(rollout.extra[STATES][t, n], states[n])
                torch.testing.assert_close(values[4 * t + n], step.values[0])
                torch.testing.assert_close(outputs[4 * t + n], step.policy[0])
            ended = rollout.terminated[t] | rollout.truncated[t]
            games += int(ended.sum())
            resets += int((~rollout.valid[t]).sum())
            begins = ended | ~rollout.valid[t]
        rollout.carry()
    assert games >= 12
    assert (resets > 0) is (mode == "NextStep")
    environments.close()


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_values_behind_a_rollout_remember_its_games(kind: type[PolicyGradient], settings: object) -> None:
    """The final observation of a game that was cut off, and the observation behind the rollout, are seen in the game's own memory."""
    agent = recurrent(kind, settings, spec())
    network = agent.network
    generator = torch.Generator().manual_seed(0)
    rollout = Rollout(spec(), 6, 3, extra=agent.per_step())
    rollout.observations.normal_(generator=generator)
    rollout.final_observations.normal_(generator=generator)
    rollout.rewards.normal_(generator=generator)
    rollout.valid.fill_(True)
    rollout.terminated.fill_(False)
    rollout.truncated.fill_(False)
    rollout.truncated[3, 1] = rollout.truncated[5, 2] = rollout.terminated[1, 0] = True
    agent.begin(rollout, 0.0)
    for t in range(6):
        if t == 0:  # a new slab: its last row says that all games have ended
            rollout.terminated[-1] = True
        rollout.set_actions(t, 0, 3, agent.act(rollout, t, 0, 3))
        rollout.terminated[-1] = False
    final, behind = agent._values_behind(rollout)

    def value(observations: list[Tensor]) -> float:
        sequence = torch.stack(observations)[:, None]
        fresh = torch.zeros(len(observations), 1, dtype=torch.bool)
        return float(network.unroll(sequence, fresh, torch.zeros(1, network.state_size)).values[-1].detach())

    o, f = rollout.observations, rollout.final_observations
    assert final is not None
    assert final[3, 1].item() == pytest.approx(value([*o[:4, 1], f[3, 1]]), abs=1e-6)
    assert final[5, 2].item() == pytest.approx(value([*o[:6, 2], f[5, 2]]), abs=1e-6)
    assert (final != 0).sum() == 2
    assert behind[0].item() == pytest.approx(value([*o[2:7, 0]]), abs=1e-6)
    assert behind[1].item() == pytest.approx(value([*o[4:7, 1]]), abs=1e-6)


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_the_gradient_reaches_through_the_rollout(kind: type[PolicyGradient], settings: object) -> None:
    """The weights that carry the memory from step to step get a gradient, of every algorithm."""
    environments = scripted("SameStep")
    agent = recurrent(kind, settings, environments.spec)
    rollout = Rollout(environments.spec, 5, 4, extra=agent.per_step())
    environments.reset(rollout.observation(0, 0, 4))
    for _ in range(4):
        play(agent, environments, rollout)
        assert agent.update(rollout, 1e-3, 0.0).finite
        agent.flat.check()
        rollout.carry()
    assert agent.flat.views(agent.flat.gradients)["core.cell.weight_hh"].abs().max() > 0
    environments.close()


def test_ppo_learns_from_every_valid_step_once_per_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    environments = scripted("NextStep")
    agent = recurrent(PPO, PPOSettings(epochs=3, minibatch_size=4), environments.spec)
    rollout = Rollout(environments.spec, 5, 4, extra=agent.per_step())
    environments.reset(rollout.observation(0, 0, 4))
    play(agent, environments, rollout)
    assert isinstance(agent, PPO)
    valid = rollout.valid.flatten().nonzero().squeeze(-1)
    batch = agent._batch(agent._columns(rollout), agent._fixed(rollout))
    values = agent._forward(batch).values
    chosen: list[int] = []
    descent = agent._descent

    def seen(output: Output, minibatch: Minibatch, cells: Fixed) -> Tensor:
        torch.testing.assert_close(output.values, values[minibatch.chosen])  # the learning rate is 0: in every epoch
        chosen.extend(minibatch.chosen.tolist())
        return descent(output, minibatch, cells)

    monkeypatch.setattr(agent, "_descent", seen)
    assert agent.update(rollout, 0.0, 0.0).finite
    assert sorted(chosen) == sorted(valid.tolist() * 3)
    assert not rollout.valid.all()
    environments.close()


def test_in_evaluation_a_game_remembers_itself_alone() -> None:
    agent = recurrent(A2C, A2CSettings(), spec())
    observations = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(3))
    begins = torch.zeros(6, 2, dtype=torch.bool)
    begins[0] = begins[3, 1] = True
    remembered = []
    for t in range(6):
        agent.choose(observations[t], begins[t], None)
        assert agent._remembered is not None
        remembered.append(agent._remembered.clone())
    expected: Mapping[int, list[Tensor]] = {0: list(observations[:, 0]), 1: list(observations[3:, 1])}
    for n, seen in expected.items():
        state = torch.zeros(1, agent.network.state_size)
        for observation in seen:
            state = agent.network.step(observation[None], torch.zeros(1, dtype=torch.bool), state).state
        torch.testing.assert_close(remembered[-1][n], state[0])


def test_a_memory_learns_what_a_perceptron_cannot() -> None:
    """The mark is shown once, and asked for two steps later."""

    def score(core: str) -> float:
        environments = make_environments("tests.rl.scripted:RecallEnv", 16, seeds=list(range(16)))
        network = build_network(
            environments.spec, "mlp", (16,), "tanh", False, 1, core="lstm" if core == "lstm" else "none", core_size=16
        )  # fmt: skip
        flat = FlatParameters(network)
        optimizer = build_optimizer(OptimizerSettings(name="adam"), flat.numel)
        agent = A2C(network, flat, optimizer, A2CSettings(gamma=0.9), seed=1)
        rollout = Rollout(environments.spec, 6, 16, extra=agent.per_step())
        environments.reset(rollout.observation(0, 0, 16))
        returns: list[float] = []
        for _ in range(400):
            agent.begin(rollout, 0.0)
            for t in range(6):
                rollout.set_actions(t, 0, 16, agent.act(rollout, t, 0, 16))
                returns += [game.return_ for game in environments.step(rollout.action(t, 0, 16), rollout.row(t, 0, 16))]
            agent.update(rollout, 1e-2, 0.0)
            rollout.carry()
        environments.close()
        return float(np.mean(returns[-300:]))

    assert score("lstm") > 0.95
    assert score("none") < 0.65


def test_what_a_memory_cannot_do_is_refused() -> None:
    network = build_network(spec(), "mlp", (16,), "tanh", False, 1, core="lstm", core_size=8)
    assert isinstance(network, ActorCritic)
    assert network.describe() == "mlp 3-16 tanh, lstm 8, policy 2, value 1"
