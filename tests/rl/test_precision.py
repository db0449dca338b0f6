"""bfloat16 in the trunks changes what a network says by its rounding, and nothing else: float32 goes in, comes out and is learnt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.rl.rollouts import spec
from tests.rl.test_activations import A, Q, updated
from zpala.rl.environments import EnvironmentSpec
from zpala.rl.flat import FlatParameters
from zpala.rl.networks import ActorCritic, Network, build_network
from zpala.rl.precision import Precision, set_float32_arithmetic

IMAGES = spec((4, 44, 44), "uint8", 6)
VECTORS = spec((8,))
NETWORKS = [
    (IMAGES, {"name": "nature_cnn"}),
    (IMAGES, {"name": "nature_cnn", "channels_last": True}),
    (IMAGES, {"name": "impala_resnet"}),
    (IMAGES, {"name": "nips_cnn", "separate_critic": True}),
    (VECTORS, {"name": "mlp", "hidden_sizes": (64, 64)}),
    (VECTORS, {"name": "mlp", "normalize_observations": True}),
    (IMAGES, {"name": "nature_cnn", "heads": "action_values", "dueling": True}),
]
PRECISIONS: tuple[Precision, Precision] = ("float32", "bf16")
FRACTION = 2.0**-8  # of a number, that bfloat16 is off at most


def build(given: EnvironmentSpec, precision: Precision, options: dict[str, Any]) -> Network:
    rest = {"hidden_sizes": (32,), "channels_last": False, **options}
    return build_network(given, activation="tanh", seed=2, precision=precision, **rest)


def observations(given: EnvironmentSpec) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (32, *given.observation_shape)
    if given.observation_dtype == "uint8":
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize(("given", "options"), NETWORKS)
def test_outputs_and_gradients_are_those_of_float32_but_for_rounding(given: EnvironmentSpec, options: dict[str, Any]) -> None:
    said, gradients = [], []
    for precision in PRECISIONS:
        network = build(given, precision, options)
        flat = FlatParameters(network)
        outputs = network(observations(given))
        together = torch.cat([outputs.policy, outputs.values.unsqueeze(-1)], dim=-1) if isinstance(network, ActorCritic) else outputs
        assert together.dtype is torch.float32
        together.square().sum().backward()
        flat.check()
        said.append(together.detach())
        gradients.append(flat.gradients)
    exact, rounded = said
    assert not torch.equal(exact, rounded), "it computed in float32 all the same"
    assert torch.linalg.vector_norm(rounded - exact) < 4 * FRACTION * torch.linalg.vector_norm(exact)
    assert torch.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.995


def test_a_memory_computes_in_float32() -> None:
    given = {"name": "nature_cnn", "core": "lstm", "core_size": 8}
    exact, rounded = (build(IMAGES, precision, given) for precision in PRECISIONS)
    assert isinstance(exact, ActorCritic)
    assert isinstance(rounded, ActorCritic)
    state, fresh = torch.zeros(32, exact.state_size), torch.ones(32, dtype=torch.bool)
    one, other = (network.step(observations(IMAGES), fresh, state) for network in (exact, rounded))
    assert other.state.dtype is torch.float32
    assert not torch.equal(one.state, other.state)
    torch.testing.assert_close(one.state, other.state, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("learner", [A, Q])
def test_kept_activations_are_those_that_acting_rounded(learner: Any) -> None:
    slow, slow_said = updated(learner, reuse=False, updates=2, precision="bf16")
    fast, fast_said = updated(learner, reuse=True, updates=2, precision="bf16")
    for (actions, gradients, _), (fast_actions, fast_gradients, _) in zip(slow_said, fast_said, strict=True):
        assert torch.equal(fast_actions, actions)
        distance = torch.linalg.vector_norm(fast_gradients - gradients) / torch.linalg.vector_norm(gradients)
        assert distance < 4 * FRACTION
    assert fast.flat.parameters.dtype is slow.flat.parameters.dtype is torch.float32


@pytest.fixture
def backends() -> Iterator[list[Any]]:
    """The settings of the process, as they were afterwards."""
    found: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]  # type: ignore[attr-defined]
    before = [each.fp32_precision for each in found]
    yield found
    for each, value in zip(found, before, strict=True):
        each.fp32_precision = value


@pytest.mark.parametrize(("precision", "how"), [("float32", "ieee"), ("bf16", "ieee"), ("tf32", "tf32")])
def test_float32_is_float32_unless_tf32_is_asked_for(precision: Precision, how: str, backends: list[Any]) -> None:
    set_float32_arithmetic(precision)
    assert [each.fp32_precision for each in backends] == [how] * 3


def test_precision_is_no_part_of_what_nodes_must_have_equal() -> None:
    one, other = (build(IMAGES, precision, {"name": "auto"}) for precision in PRECISIONS)
    assert one.describe() == other.describe()
    assert [name for name, _ in one.named_parameters()] == [name for name, _ in other.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
