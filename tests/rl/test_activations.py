"""What acting computed is used again to learn: the same gradients as a second forward pass gives, or an error."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.rl.rollouts import spec
from zpala.rl.a2c import A2C, A2CSettings
from zpala.rl.action_spaces import Discrete
from zpala.rl.activations import Activations, Convolution, Linear, Scaling
from zpala.rl.algorithm import Algorithm
from zpala.rl.environments import EnvironmentSpec
from zpala.rl.flat import FlatParameters
from zpala.rl.networks import build_network
from zpala.rl.nstep_q import NStepQ, NStepQSettings
from zpala.rl.observations import ObservationPart
from zpala.rl.optimizers import OptimizerSettings, build_optimizer
from zpala.rl.rollout import Rollout
from zpala.rl.vtrace import VTrace, VTraceSettings

IMAGES = spec((4, 44, 44), "uint8", 6)
Learner = tuple[type[Algorithm], type[Any]]
A, V, Q = (A2C, A2CSettings), (VTrace, VTraceSettings), (NStepQ, NStepQSettings)


def updated(learner: Learner, *, reuse: bool, updates: int, given: EnvironmentSpec = IMAGES, **network: Any) -> tuple[Algorithm, list[Any]]:
    """An agent after some updates, acting for two groups of environments, and what it said of each. Noise, the same for all."""
    kind, settings = learner
    options = {"name": "nature_cnn", "channels_last": True, **network}
    made = build_network(given, hidden_sizes=(16,), activation="relu", seed=1, heads=kind.HEADS, **options)
    flat = FlatParameters(made)
    agent = kind(made, flat, build_optimizer(OptimizerSettings(), flat.numel), settings(reuse_activations=reuse), seed=5)
    said = []
    for seed in range(updates):
        rollout, generator = Rollout(given, 3, 4, extra=agent.per_step()), torch.Generator().manual_seed(seed)
        rollout.observations.random_(0, 256, generator=generator)
        rollout.final_observations.random_(0, 256, generator=generator)
        for observations in (rollout.observations, rollout.final_observations):
            for part in given.parts:
                if part.dtype.kind == "f":
                    observations[..., part.offset : part.offset + part.nbytes] = 1  # a small number, where noise may be none at all
        rollout.rewards.normal_(generator=generator)
        for tensor, probability in ((rollout.terminated, 0.2), (rollout.truncated, 0.2), (rollout.valid, 0.8)):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) < probability)
        agent.begin(rollout, 0.5)
        for t in range(3):
            for start, stop in ((0, 1), (1, 4)):
                rollout.set_actions(t, start, stop, agent.act(rollout, t, start, stop))
        statistics = agent.update(rollout, 1e-3, 0.5)
        assert statistics.finite
        agent.flat.check()
        said.append((rollout.actions.clone(), agent.flat.gradients.clone(), dict(statistics.named)))
    return agent, said


@pytest.mark.parametrize(
    ("learner", "network"),
    [
        (A, {}),
        (A, {"channels_last": False}),
        (A, {"name": "nips_cnn", "contrast": True}),
        (A, {"name": "impala_resnet"}),
        (A, {"name": "impala_resnet", "channels_last": False}),
        (A, {"separate_critic": True}),
        (A, {"core": "lstm", "core_size": 8}),
        (V, {}),
        (V, {"name": "nips_cnn", "core": "lstm", "core_size": 8, "separate_critic": True}),
        (Q, {}),
        (Q, {"name": "impala_resnet", "dueling": True}),
    ],
)
def test_gradients_are_those_of_a_second_forward_pass(learner: Learner, network: dict[str, Any]) -> None:
    slow, slow_said = updated(learner, reuse=False, updates=2, **network)
    fast, fast_said = updated(learner, reuse=True, updates=2, **network)
    for (actions, gradients, statistics), (fast_actions, fast_gradients, fast_statistics) in zip(slow_said, fast_said, strict=True):
        assert torch.equal(fast_actions, actions)
        assert gradients.abs().max() > 1e-4
        torch.testing.assert_close(fast_gradients, gradients, rtol=1e-3, atol=1e-5)
        assert fast_statistics == pytest.approx(statistics, rel=1e-3, abs=1e-5)
    torch.testing.assert_close(fast.flat.parameters, slow.flat.parameters, rtol=1e-3, atol=1e-4)


def test_the_images_of_a_dict_are_kept_too() -> None:
    camera = ObservationPart("camera", (3, 40, 40), np.dtype(np.uint8), 0)
    speed = ObservationPart("speed", (2,), np.dtype(np.float32), camera.nbytes)
    shape = (camera.nbytes + speed.nbytes,)
    given = EnvironmentSpec("test", shape, camera.dtype, Discrete(2), 1, False, "test", parts=(camera, speed))
    _, slow = updated(A, reuse=False, updates=1, given=given, name="auto")
    _, fast = updated(A, reuse=True, updates=1, given=given, name="auto")
    torch.testing.assert_close(fast[0][1], slow[0][1], rtol=1e-3, atol=1e-5)


class Layers(torch.nn.Module):
    """A convolution whose outputs are used as they are, one that is rectified and flat, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Convolution(2, 3, 3, 2, 1)
        self.second = Convolution(3, 4, 2, 1, rectified=True, flat=True)
        self.last = Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.second(torch.tanh(self.first(x))))
        return y


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_layers_equal_plain_ones_in_every_mode(layout: Literal["contiguous", "channels_last"]) -> None:
    torch.manual_seed(3)
    layers = Layers()
    memory = Activations(layers)
    x = torch.randn(6, 2, 10, 10).contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)

    def plain(x: Tensor) -> Tensor:
        conv = torch.nn.functional.conv2d
        y = torch.tanh(conv(x, layers.first.weight, layers.first.bias, 2, 1))
        y = conv(y, layers.second.weight, layers.second.bias).relu().flatten(1)
        return torch.nn.functional.linear(y, layers.last.weight, layers.last.bias).relu()

    expected = torch.autograd.grad(plain(x).square().sum(), list(layers.parameters()))
    torch.testing.assert_close(layers(x), plain(x))
    memory.begin(6)
    for first, stop in ((4, 6), (0, 4)):  # in any order
        with memory.keeping(first, stop):
            y = layers(x[first:stop])
        assert not y.requires_grad
        torch.testing.assert_close(y, plain(x)[first:stop].detach())
    with memory.recalling():
        recalled = layers(x)
    torch.testing.assert_close(recalled, plain(x))
    found = torch.autograd.grad(recalled.square().sum(), list(layers.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(layers(x[:2]), plain(x[:2]))  # and it is off again


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_are_scaled_once(channels_last: bool) -> None:
    layers = torch.nn.Sequential(Scaling(channels_last), Convolution(2, 3, 3, 2))
    memory, images = Activations(layers), torch.arange(6 * 2 * 5 * 4, dtype=torch.uint8).view(6, 2, 5, 4)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    expected = images.double() / 255.0
    memory.begin(6)
    for first, stop in ((2, 6), (0, 2)):
        with memory.keeping(first, stop):
            layers(images[first:stop])
    with memory.recalling():
        kept = layers[0](torch.zeros_like(images))
    for found in (kept, layers[0](images)):
        assert found.dtype is torch.float32
        assert found.is_contiguous(memory_format=layout)
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0.0)
    with pytest.raises(TypeError, match="take uint8"):
        layers[0](images.float())


def test_cells_without_activations_are_an_error() -> None:
    agent, _ = updated(A, reuse=True, updates=1)
    rollout = Rollout(IMAGES, 3, 4)
    rollout.observations.zero_()
    rollout.rewards.zero_()
    rollout.valid.fill_(True)
    rollout.terminated.fill_(False)
    rollout.truncated.fill_(False)
    rollout.actions.zero_()
    agent.begin(rollout, 0.0)
    agent.act(rollout, 0, 0, 4)
    with pytest.raises(RuntimeError, match="the rollout has 12 steps, but actions were chosen for 4"):
        agent.update(rollout, 1e-3, 0.0)


def test_what_one_rollout_kept_does_not_serve_the_next() -> None:
    memory = Activations(layers := Layers())
    x = torch.randn(2, 2, 10, 10)
    memory.begin(2)
    with memory.keeping(0, 2):
        layers(x)
    memory.begin(2)
    with pytest.raises(RuntimeError, match="chosen for 0"), memory.recalling():
        layers(x)


def test_a_lag_acts_with_other_parameters() -> None:
    with pytest.raises(ValueError, match="needs lag = 0"):
        updated((VTrace, lambda reuse_activations: VTraceSettings(lag=1, reuse_activations=reuse_activations)), reuse=True, updates=1)  # type: ignore[arg-type]


def test_a_network_for_vectors_has_nothing_worth_keeping() -> None:
    made = build_network(spec(), "mlp", (16,), "tanh", False, 1)
    assert not made.activations.possible
