from __future__ import annotations

import numpy as np
import pytest
import torch

from zpala.rl.environments import EnvironmentSpec
from zpala.rl.networks import MLP, ActorCritic, NatureCNN, build_network


def spec(shape: tuple[int, ...], dtype: str, num_actions: int = 6) -> EnvironmentSpec:
    return EnvironmentSpec("test", shape, np.dtype(dtype), num_actions, 1, False, "test")


IMAGES = spec((4, 84, 84), "uint8")
VECTORS = spec((4,), "float32", 2)


def build(given: EnvironmentSpec, seed: int = 1, channels_last: bool = False, contrast: bool = False) -> ActorCritic:
    return build_network(given, "auto", (64, 64), "tanh", channels_last, seed, contrast=contrast)


@pytest.mark.parametrize("given", [IMAGES, VECTORS])
def test_shapes(given: EnvironmentSpec) -> None:
    network = build(given)
    observation = torch.zeros((5, *given.observation_shape), dtype=torch.uint8 if given is IMAGES else torch.float32)
    logits, values = network(observation)
    assert logits.shape == (5, given.num_actions)
    assert values.shape == (5,)
    assert torch.equal(network.logits(observation), logits)
    assert torch.equal(network.values(observation), values)


@pytest.mark.parametrize("given", [IMAGES, VECTORS])
def test_one_seed_one_network_and_the_global_generator_is_left_alone(given: EnvironmentSpec) -> None:
    state = torch.get_rng_state()
    first, same, other = build(given, 1), build(given, 1), build(given, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_initial_weights_are_orthogonal() -> None:
    network = build(IMAGES)
    assert isinstance(network, NatureCNN)
    for weight, gain in ((network.convolution2.weight, 2.0), (network.hidden.weight, 2.0), (network.policy.weight, 1e-4)):
        rows = weight.detach().flatten(1)
        torch.testing.assert_close(rows @ rows.T, gain * torch.eye(len(rows)), atol=1e-4, rtol=0)
    assert not network.hidden.bias.any()


def test_contrast_keeps_weights_nearly_orthogonal_and_the_heads_as_they_were() -> None:
    plain, network = build(IMAGES), build(IMAGES, contrast=True)
    assert isinstance(network, NatureCNN)
    for weight, gain in ((network.convolution1.weight / 10, 2.0), (network.convolution2.weight, 2.0), (network.hidden.weight, 2.0)):
        rows = weight.detach().flatten(1)
        torch.testing.assert_close(rows @ rows.T, gain * torch.eye(len(rows)), atol=0.12, rtol=0)
    for head in ("policy.weight", "value.weight"):
        assert torch.equal(network.state_dict()[head], plain.state_dict()[head])


@pytest.mark.parametrize("grey", [0, 87, 255])
def test_with_contrast_an_even_background_excites_no_unit(grey: int) -> None:
    plain, network = build(IMAGES), build(IMAGES, contrast=True)
    even = torch.full((1, 4, 84, 84), grey, dtype=torch.uint8)
    assert network.body(even).abs().max().item() < 1e-4
    assert plain.body(even).abs().max().item() >= 1e-3 * grey
    # An edge does.
    edge = even.clone()
    edge[..., 30:50, 30:50] = 128
    assert network.body(edge).max().item() > 1e-2


def test_channels_last_changes_the_layout_and_not_the_result() -> None:
    contiguous, last = build(IMAGES), build(IMAGES, channels_last=True)
    observation = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(contiguous(observation), last(observation), rtol=1e-4, atol=1e-5)
    assert contiguous.describe() == last.describe()
    assert [name for name, _ in contiguous.named_parameters()] == [name for name, _ in last.named_parameters()]


def test_bytes_are_scaled_to_one() -> None:
    network = MLP((2,), 2, (8,), "relu")
    network.initialise(0)
    torch.testing.assert_close(network(torch.full((1, 2), 255, dtype=torch.uint8)), network(torch.ones(1, 2)))


def test_auto_takes_the_network_that_fits() -> None:
    assert isinstance(build(IMAGES), NatureCNN)
    assert isinstance(build(VECTORS), MLP)
    assert isinstance(build(spec((128,), "uint8")), MLP)


def test_nature_size() -> None:
    # 8224 + 32832 + 36928 + 1606144 (Mnih et al. 2015) + heads of 6 x 513 and 513
    assert sum(parameter.numel() for parameter in build(IMAGES).parameters()) == 1_687_719


def test_descriptions_tell_networks_apart() -> None:
    lines = {
        build_network(VECTORS, "mlp", hidden, activation, False, 0).describe()
        for hidden in ((64,), (64, 64))
        for activation in ("tanh", "relu")
    }
    assert len(lines) == 4


def test_networks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8 images"):
        build_network(VECTORS, "nature_cnn", (), "relu", False, 0)
    with pytest.raises(ValueError, match="36 x 36"):
        build_network(spec((4, 20, 20), "uint8"), "nature_cnn", (), "relu", False, 0)
    with pytest.raises(ValueError, match="hidden_sizes"):
        build_network(VECTORS, "mlp", (), "tanh", False, 0)
    with pytest.raises(TypeError, match="uint8"):
        build(IMAGES)(torch.zeros(1, 4, 84, 84))
