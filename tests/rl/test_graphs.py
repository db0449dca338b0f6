"""Replaying what was recorded gives what computing gives: on the CPU to the last bit, by a tape; on CUDA within rounding."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.rl.rollouts import spec
from tests.rl.tape import TapeRecorder
from zpala.rl.a2c import A2C, A2CSettings
from zpala.rl.action_spaces import Box
from zpala.rl.algorithm import Algorithm
from zpala.rl.dqn import DQN, DQNSettings
from zpala.rl.environments import EnvironmentSpec
from zpala.rl.execution import Eager, Executor, Fixed
from zpala.rl.flat import FlatParameters
from zpala.rl.graphs import MOST_SHAPES, WARM_UP, CudaRecorder, Graphs
from zpala.rl.lstm import LSTM
from zpala.rl.networks import build_network
from zpala.rl.nstep_q import NStepQ, NStepQSettings
from zpala.rl.optimizers import OptimizerSettings, build_optimizer
from zpala.rl.ppo import PPO, PPOSettings
from zpala.rl.rollout import Rollout
from zpala.rl.vtrace import VTrace, VTraceSettings

CPU = torch.device("cpu")
STEPS, ENVS, GROUPS, UPDATES = 4, 6, ((0, 3), (3, 6)), 8
BOX = EnvironmentSpec("test", (3,), spec().observation_dtype, Box((-1.0, -2.0), (1.0, 2.0), (2,)), 1, False, "test")
IMAGES = spec((4, 36, 36), "uint8", 3)
CASES: dict[str, tuple[type[Algorithm], Any, EnvironmentSpec, dict[str, Any], set[str]]] = {
    "a2c": (A2C, A2CSettings(gae_lambda=0.9), spec(), {}, {"PolicyGradient._act", "A2C._learn"}),
    "a2c images": (A2C, A2CSettings(clip_rewards=True), IMAGES, {"channels_last": True}, {"PolicyGradient._act", "A2C._learn"}),
    "a2c bf16": (A2C, A2CSettings(), IMAGES, {"precision": "bf16"}, {"PolicyGradient._act", "A2C._learn"}),
    "a2c normalized": (A2C, A2CSettings(), spec(), {"normalize_observations": True}, {"PolicyGradient._act", "A2C._learn"}),
    "a2c squashed": (A2C, A2CSettings(), BOX, {"squash_actions": True}, {"PolicyGradient._act", "A2C._learn"}),
    "a2c lstm": (A2C, A2CSettings(), spec(), {"core": "lstm", "core_size": 8}, {"PolicyGradient._act", "A2C._learn"}),
    "vtrace": (VTrace, VTraceSettings(lag=2), spec(), {}, {"PolicyGradient._act", "VTrace._learn"}),
    "ppo": (
        PPO,
        PPOSettings(epochs=3, minibatch_size=8, anneal_clip_range=True, gae_lambda=0.95),
        spec(),
        {},
        {"PolicyGradient._act", "PPO._look_back", "PPO._learn"},
    ),
    "ppo squashed": (
        PPO,
        PPOSettings(epochs=3, minibatch_size=8, target_kl=0.002),
        BOX,
        {"squash_actions": True},
        {"PolicyGradient._act", "PPO._look_back", "PPO._learn"},
    ),
    "ppo lstm": (
        PPO,
        PPOSettings(epochs=2, minibatch_size=8),
        spec(),
        {"core": "lstm", "core_size": 8},
        {"PolicyGradient._act", "PPO._look_back"},
    ),
    "nstep_q": (NStepQ, NStepQSettings(target_update_steps=3), spec(), {}, {"QLearning._act", "NStepQ._learn"}),
    "dqn": (
        DQN,
        DQNSettings(capacity=600, learning_starts=30, batch_size=8, prioritized=True, target_update_steps=5),
        spec(),
        {"dueling": True},
        {"QLearning._act", "DQN._descent"},
    ),
}


def agent_of(case: str, device: torch.device) -> Algorithm:
    kind, settings, given, network, _ = CASES[case]
    options = {"channels_last": False, **network}
    made = build_network(given, "auto", (16,), "tanh", seed=1, heads=kind.HEADS, **options)
    flat = FlatParameters(made, device)
    optimizer = build_optimizer(OptimizerSettings("adam" if kind is PPO else "rmsprop"), flat.numel, device)
    return kind(made, flat, optimizer, settings, seed=5)


class Slab:
    """One rollout after the other, as a node has them: the same memory, noise in it, every observation carried on."""

    def __init__(self, agent: Algorithm, given: EnvironmentSpec, device: torch.device) -> None:
        self.rollout = Rollout(given, STEPS, ENVS, extra=agent.per_step(), pinned=device.type == "cuda", device=device)
        self._generator = torch.Generator().manual_seed(3)
        self._noise(self.rollout.observations[0])

    def fill(self, number: int) -> None:
        """Games are truncated in every second rollout, and reset steps are there in one of three."""
        rollout = self.rollout
        for tensor in (rollout.observations[1:], rollout.final_observations, rollout.rewards):
            self._noise(tensor)
        for tensor, probability in (
            (rollout.terminated, 0.1),
            (rollout.truncated, 0.2 * (number % 2)),
            (rollout.valid, 0.8 if number % 3 == 2 else 1.0),
        ):
            tensor.copy_(torch.rand(tensor.shape, generator=self._generator) < probability)

    def _noise(self, tensor: Tensor) -> None:
        if tensor.dtype is torch.uint8:
            tensor.random_(0, 256, generator=self._generator)
        else:
            tensor.normal_(generator=self._generator)


def learn(agent: Algorithm, given: EnvironmentSpec, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """Some updates; of every one actions, gradients, parameters, target (if any) and statistics."""
    slab = Slab(agent, given, device)
    rollout = slab.rollout
    for number in range(UPDATES):
        progress = number / UPDATES
        slab.fill(number)
        agent.begin(rollout, progress)
        for t in range(STEPS):
            for start, stop in GROUPS:
                rollout.set_actions(t, start, stop, agent.act(rollout, t, start, stop))
        statistics = agent.update(rollout, 1e-2 * (1.0 - progress), progress)
        assert statistics.finite
        agent.flat.check()
        rollout.carry()
        local = [tensor.clone() for name, tensor in agent.local_state().items() if name == "target"]
        extra = [tensor.clone() for tensor in rollout.extra.values()]
        named = torch.tensor(list(statistics.named.values()))
        yield rollout.actions.clone(), agent.flat.gradients.clone(), agent.flat.parameters.clone(), named, *local, *extra


@pytest.mark.parametrize("case", CASES)
def test_replaying_equals_computing(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, expected = CASES[case][2], CASES[case][4]
    if "lstm" in case:
        monkeypatch.setattr(LSTM, "forward", LSTM._step_by_step)  # as on CUDA
    plain, replaying = agent_of(case, CPU), agent_of(case, CPU)
    recorder = TapeRecorder()
    replaying.executor = graphs = Graphs(recorder)
    for one, other in zip(learn(plain, given, CPU), learn(replaying, given, CPU), strict=True):
        for found, wanted in zip(other, one, strict=True):
            assert torch.equal(found, wanted)
    assert set(graphs.recorded) == expected
    assert not graphs.refused
    assert recorder.replays > 20


@pytest.mark.cuda
@pytest.mark.parametrize("case", CASES)
def test_replaying_equals_computing_on_cuda(case: str) -> None:
    device = torch.device("cuda")
    given, expected = CASES[case][2], CASES[case][4]
    plain, replaying = agent_of(case, device), agent_of(case, device)
    replaying.executor = graphs = Graphs(CudaRecorder(device))
    for one, other in zip(learn(plain, given, device), learn(replaying, given, device), strict=True):
        for found, wanted in zip(other, one, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert set(graphs.recorded) == expected
    assert not graphs.refused


@pytest.mark.cuda
def test_graphs_that_are_no_longer_needed_do_not_spoil_a_recording() -> None:
    """Freed in the middle of a recording they would. Garbage is looked for all the time here, and there is some: a cycle with a graph."""
    recorder, x = CudaRecorder(torch.device("cuda")), torch.ones(8, device="cuda")
    old: list[Any] = [recorder.record(lambda: x * 2.0)]
    old.append(old)
    del old
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        replay = recorder.record(lambda: [x + float(i) for i in range(50)])
    finally:
        gc.set_threshold(*threshold)
    assert gc.isenabled()
    assert [float(y.sum()) for y in replay()] == [8.0 * (1 + i) for i in range(50)]


class Pair(NamedTuple):
    x: Tensor
    y: Tensor | None


class Counting:
    """Functions that leave a trace: every call adds ``x`` to ``total``."""

    def __init__(self) -> None:
        self.total = torch.zeros(())
        self.asked = 0  # how often Python came by

    def add(self, inputs: Pair, fixed: Fixed) -> Tensor:
        self.asked += 1
        self.total += inputs.x.sum()
        return self.total * 1.0 if inputs.y is None else self.total + inputs.y.sum()

    def look(self, inputs: Pair, fixed: Fixed) -> Tensor:
        self.total += inputs.x.sum()
        return inputs.x[inputs.x > 0]

    def read(self, inputs: Pair, fixed: Fixed) -> Tensor:
        return inputs.x + fixed["offset"]

    def fail(self, inputs: Pair, fixed: Fixed) -> Tensor:
        raise ValueError("a mistake of the function itself")


@pytest.fixture
def graphs() -> Graphs:
    return Graphs(TapeRecorder())


def test_every_run_counts_once_whether_it_warms_up_is_recorded_or_replayed(graphs: Graphs) -> None:
    counting = Counting()
    for number in range(1, WARM_UP + 5):
        assert graphs.run(counting.add, Pair(torch.ones(2), None), {}).item() == 2.0 * number
        assert counting.total.item() == 2.0 * number
    assert counting.asked == WARM_UP + 1
    assert graphs.recorded == {"Counting.add": 1}


def test_another_shape_and_an_empty_place_are_other_recordings(graphs: Graphs) -> None:
    counting = Counting()
    total = 0.0
    for number in range(WARM_UP + 3):
        for inputs in (Pair(torch.ones(2), None), Pair(torch.ones(3), None), Pair(torch.ones(3), torch.full((1,), float(number)))):
            total += float(inputs.x.sum())
            wanted = total if inputs.y is None else total + number
            assert graphs.run(counting.add, inputs, {}).item() == wanted
    assert graphs.recorded == {"Counting.add": 3}


def test_inputs_are_left_alone_and_may_be_anything_that_fits(graphs: Graphs) -> None:
    counting = Counting()
    x = torch.arange(12.0).view(3, 4)
    for _ in range(WARM_UP + 2):
        before = counting.total.item()
        graphs.run(counting.add, Pair(x[:, 1], None), {})  # not contiguous
        assert counting.total.item() == before + 1.0 + 5.0 + 9.0
    assert torch.equal(x, torch.arange(12.0).view(3, 4))


def test_a_fixed_tensor_that_moved_is_not_read_at_its_old_place(graphs: Graphs) -> None:
    counting = Counting()
    first, second = torch.zeros(2), torch.full((2,), 5.0)
    for _ in range(WARM_UP + 2):
        graphs.run(counting.read, Pair(torch.ones(2), None), {"offset": first})
    first += 1.0  # what lies there is read anew
    assert graphs.run(counting.read, Pair(torch.ones(2), None), {"offset": first}).tolist() == [2.0, 2.0]
    for _ in range(WARM_UP + 2):
        assert graphs.run(counting.read, Pair(torch.ones(2), None), {"offset": second}).tolist() == [6.0, 6.0]


def test_what_cannot_be_recorded_runs_eagerly_and_says_so_once(graphs: Graphs, caplog: pytest.LogCaptureFixture) -> None:
    counting = Counting()
    with caplog.at_level(logging.WARNING, logger="zpala"):
        for number in range(1, WARM_UP + 5):
            assert graphs.run(counting.look, Pair(torch.tensor([-1.0, 3.0]), None), {}).tolist() == [3.0]
            assert counting.total.item() == 2.0 * number
            graphs.run(counting.look, Pair(torch.ones(number + 2), None), {})
            counting.total -= number + 2
    assert graphs.refused == {"Counting.look"}
    assert graphs.recorded == {}
    assert [record.getMessage() for record in caplog.records] == [
        "Counting.look runs without a CUDA graph: aten.index.Tensor cannot be recorded"
    ]


def test_a_mistake_of_the_function_is_no_fallback(graphs: Graphs) -> None:
    with pytest.raises(ValueError, match="of the function itself"):
        graphs.run(Counting().fail, Pair(torch.ones(1), None), {})


def test_too_many_shapes_run_eagerly_and_the_known_ones_are_replayed(graphs: Graphs, caplog: pytest.LogCaptureFixture) -> None:
    counting = Counting()
    total = 0
    with caplog.at_level(logging.WARNING, logger="zpala"):
        for _ in range(WARM_UP + 2):
            for size in range(1, MOST_SHAPES + 10):
                total += size
                assert graphs.run(counting.add, Pair(torch.ones(size), None), {}).item() == total
    assert graphs.recorded == {"Counting.add": MOST_SHAPES}
    assert len(caplog.records) == 1


@pytest.mark.parametrize("executor", [Eager(CPU), Graphs(TapeRecorder())], ids=["eager", "graphs"])
def test_what_is_held_has_the_values_of_the_last_one(executor: Executor) -> None:
    for number in range(3):
        assert executor.hold("returns", torch.full((4,), float(number))).tolist() == [number] * 4
    assert executor.hold("returns", torch.ones(2)).tolist() == [1.0, 1.0]


def test_what_is_held_stays_in_its_place(graphs: Graphs) -> None:
    places = {graphs.hold("returns", torch.full((4,), float(number))).data_ptr() for number in range(3)}
    assert len(places) == 1
    assert graphs.hold("values", torch.zeros(4)).data_ptr() not in places


def test_a_rollout_that_is_not_finite_steps_nothing() -> None:
    """The optimiser's step is not part of the recording: the host looks at the numbers first."""
    agent = agent_of("a2c", CPU)
    agent.executor = Graphs(TapeRecorder())
    for _ in learn(agent, spec(), CPU):
        pass
    slab = Slab(agent, spec(), CPU)
    slab.fill(0)
    agent.begin(slab.rollout, 0.0)
    for t in range(STEPS):
        for start, stop in GROUPS:
            slab.rollout.set_actions(t, start, stop, agent.act(slab.rollout, t, start, stop))
    slab.rollout.rewards[1, 2] = float("inf")
    before, state = agent.flat.parameters.clone(), [tensor.clone() for tensor in agent.optimizer.state.values()]
    assert not agent.update(slab.rollout, 1e-2, 0.0).finite
    assert torch.equal(agent.flat.parameters, before)
    assert all(torch.equal(now, then) for now, then in zip(agent.optimizer.state.values(), state, strict=True))


def test_the_tape_is_as_strict_as_a_device() -> None:
    """What is recorded on it depends on no value and on no chance."""
    recorder = TapeRecorder()
    x = torch.ones(3)
    for work in (lambda: x.sum().item(), lambda: x.nonzero(), lambda: x[x > 0], lambda: x.uniform_(), lambda: torch.randperm(3)):
        with pytest.raises(RuntimeError, match="cannot be recorded"):
            recorder.record(work)
    assert x.tolist() == [1.0, 1.0, 1.0]
