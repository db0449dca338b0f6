from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zpala.config import NetworkConfig
from zpala.gossip.schema import Schema, TensorEntry
from zpala.rl.action_spaces import Discrete
from zpala.rl.environments import EnvironmentSpec, make_environments
from zpala.rl.flat import FlatParameters
from zpala.rl.networks import ActorCritic, Network, build_network
from zpala.rl.rollout import Rollout
from zpala.rl.trunks import MLP, ImpalaResNet, NatureCNN, NetworkName, NipsCNN


def spec(shape: tuple[int, ...], dtype: str, num_actions: int = 6) -> EnvironmentSpec:
    return EnvironmentSpec("test", shape, np.dtype(dtype), Discrete(num_actions), 1, False, "test")


IMAGES = spec((4, 84, 84), "uint8")
VECTORS = spec((4,), "float32", 2)


KINDS: list[tuple[EnvironmentSpec, NetworkName]] = [
    (VECTORS, "mlp"),
    (IMAGES, "mlp"),
    (IMAGES, "nature_cnn"),
    (IMAGES, "nips_cnn"),
    (IMAGES, "impala_resnet"),
]
IMAGE_NETWORKS: list[NetworkName] = ["nature_cnn", "nips_cnn", "impala_resnet"]


def actor_critic(network: Network) -> ActorCritic:
    assert isinstance(network, ActorCritic)
    return network


def build(given: EnvironmentSpec, seed: int = 1, channels_last: bool = False, contrast: bool = False) -> ActorCritic:
    return actor_critic(build_network(given, "auto", (64, 64), "tanh", channels_last, seed, contrast=contrast))


def named(name: NetworkName, given: EnvironmentSpec = IMAGES, *, channels_last: bool = False, separate: bool = False) -> ActorCritic:
    return actor_critic(build_network(given, name, (64, 64), "tanh", channels_last, 1, separate_critic=separate))


def pictures(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(("given", "name"), KINDS)
def test_shapes(given: EnvironmentSpec, name: NetworkName, separate: bool) -> None:
    network = named(name, given, separate=separate)
    observation = torch.zeros((5, *given.observation_shape), dtype=torch.uint8 if given is IMAGES else torch.float32)
    logits, values = network(observation)
    assert isinstance(given.actions, Discrete)
    assert logits.shape == (5, given.actions.n)
    assert values.shape == (5,)
    assert torch.equal(network.policies(observation), logits)
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
    assert isinstance(network.trunk, NatureCNN)
    for weight, gain in ((network.trunk.convolution2.weight, 2.0), (network.trunk.hidden.weight, 2.0), (network.policy.weight, 1e-4)):
        rows = weight.detach().flatten(1)
        torch.testing.assert_close(rows @ rows.T, gain * torch.eye(len(rows)), atol=1e-4, rtol=0)
    assert not network.trunk.hidden.bias.any()


def test_contrast_keeps_weights_nearly_orthogonal_and_the_heads_as_they_were() -> None:
    plain, network = build(IMAGES), build(IMAGES, contrast=True)
    assert isinstance(network.trunk, NatureCNN)
    for weight, gain in (
        (network.trunk.convolution1.weight / 10, 2.0),
        (network.trunk.convolution2.weight, 2.0),
        (network.trunk.hidden.weight, 2.0),
    ):
        rows = weight.detach().flatten(1)
        torch.testing.assert_close(rows @ rows.T, gain * torch.eye(len(rows)), atol=0.12, rtol=0)
    for head in ("policy.weight", "value.weight"):
        assert torch.equal(network.state_dict()[head], plain.state_dict()[head])


@pytest.mark.parametrize("name", ["nature_cnn", "nips_cnn"])
@pytest.mark.parametrize("grey", [0, 87, 255])
def test_with_contrast_an_even_background_excites_no_unit(grey: int, name: NetworkName) -> None:
    plain = named(name)
    network = actor_critic(build_network(IMAGES, name, (), "relu", False, 1, contrast=True))
    even = torch.full((1, 4, 84, 84), grey, dtype=torch.uint8)
    assert network.trunk(even).abs().max().item() < 1e-4
    assert plain.trunk(even).abs().max().item() >= 1e-3 * grey
    # An edge does.
    edge = even.clone()
    edge[..., 30:50, 30:50] = 128
    assert network.trunk(edge).max().item() > 1e-2


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_channels_last_changes_the_layout_and_not_the_result(name: NetworkName, separate: bool) -> None:
    contiguous, last = named(name, separate=separate), named(name, channels_last=True, separate=separate)
    observation = pictures(3)
    torch.testing.assert_close(contiguous(observation), last(observation), rtol=1e-4, atol=1e-5)
    assert contiguous.describe() == last.describe()
    assert [name for name, _ in contiguous.named_parameters()] == [name for name, _ in last.named_parameters()]


def test_bytes_are_scaled_to_one() -> None:
    network = build(spec((2,), "uint8"))
    torch.testing.assert_close(network(torch.full((1, 2), 255, dtype=torch.uint8)), network(torch.ones(1, 2)))


def test_auto_takes_the_network_that_fits() -> None:
    assert isinstance(build(IMAGES).trunk, NatureCNN)
    assert isinstance(build(VECTORS).trunk, MLP)
    assert isinstance(build(spec((128,), "uint8")).trunk, MLP)


# By hand: weights and biases of each layer, for pictures of 4 x 84 x 84, without the heads.
NATURE = (4 * 64 + 1) * 32 + (32 * 16 + 1) * 64 + (64 * 9 + 1) * 64 + (64 * 7 * 7 + 1) * 512  # 84 -> 20 -> 9 -> 7
NIPS = (4 * 64 + 1) * 16 + (16 * 16 + 1) * 32 + (32 * 9 * 9 + 1) * 256  # 84 -> 20 -> 9
IMPALA = (
    (4 * 9 + 1) * 16 + 4 * (16 * 9 + 1) * 16  # 84 -> 42
    + (16 * 9 + 1) * 32 + 4 * (32 * 9 + 1) * 32  # 42 -> 21
    + 5 * (32 * 9 + 1) * 32  # 21 -> 11
    + (32 * 11 * 11 + 1) * 256
)  # fmt: skip
TWO_TANH = (4 + 1) * 64 + (64 + 1) * 64


@pytest.mark.parametrize(
    ("given", "name", "separate", "expected"),
    [
        (IMAGES, "nature_cnn", False, NATURE + 7 * 513),
        (IMAGES, "nature_cnn", True, 2 * NATURE + 7 * 513),
        (IMAGES, "nips_cnn", False, NIPS + 7 * 257),
        (IMAGES, "nips_cnn", True, 2 * NIPS + 7 * 257),
        (IMAGES, "impala_resnet", False, IMPALA + 7 * 257),
        (IMAGES, "impala_resnet", True, 2 * IMPALA + 7 * 257),
        (VECTORS, "mlp", False, TWO_TANH + 3 * 65),
        (VECTORS, "mlp", True, 2 * TWO_TANH + 3 * 65),
    ],
)
def test_sizes_are_those_counted_by_hand(given: EnvironmentSpec, name: NetworkName, separate: bool, expected: int) -> None:
    assert sum(parameter.numel() for parameter in named(name, given, separate=separate).parameters()) == expected


def test_sizes_that_are_published() -> None:
    assert NATURE == 8_224 + 32_832 + 36_928 + 1_606_144  # Mnih et al. 2015
    assert (NIPS, IMPALA) == (676_144, 1_089_232)


def test_impala_has_fifteen_convolutions() -> None:
    layers = [layer for layer in named("impala_resnet").modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in layers] == [16] * 5 + [32] * 10


def convolve(x: Tensor, layer: nn.Conv2d, padding: int = 0) -> Tensor:
    """A convolution as one matrix product over all patches."""
    (size, _), (stride, _) = layer.kernel_size, layer.stride
    patches = nn.functional.unfold(x, size, padding=padding, stride=stride)
    side = (x.shape[-1] + 2 * padding - size) // stride + 1
    return (layer.weight.flatten(1) @ patches + layer.bias[:, None]).view(len(x), -1, side, side)  # type: ignore[index]


def pool(x: Tensor) -> Tensor:
    """The largest of every 3 x 3 pixels around every second one, the rim left out."""
    side = (x.shape[-1] + 1) // 2
    rows = [x[..., max(0, 2 * i - 1) : 2 * i + 2, :].amax(-2) for i in range(side)]
    whole = torch.stack(rows, -2)
    return torch.stack([whole[..., max(0, 2 * j - 1) : 2 * j + 2].amax(-1) for j in range(side)], -1)


def test_the_nips_network_computes_what_the_paper_draws() -> None:
    network = named("nips_cnn")
    assert isinstance(network.trunk, NipsCNN)
    x = pictures(2) / 255
    x = convolve(x, network.trunk.convolution1).clamp(min=0)
    x = convolve(x, network.trunk.convolution2).clamp(min=0)
    assert x.shape == (2, 32, 9, 9)
    features = (x.flatten(1) @ network.trunk.hidden.weight.T + network.trunk.hidden.bias).clamp(min=0)
    logits, values = network(pictures(2))
    torch.testing.assert_close(logits, features @ network.policy.weight.T + network.policy.bias, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(values, (features @ network.value.weight.T + network.value.bias)[:, 0], rtol=1e-4, atol=1e-5)


def test_the_impala_network_computes_what_the_paper_draws() -> None:
    network = named("impala_resnet")
    assert isinstance(network.trunk, ImpalaResNet)
    with torch.no_grad():  # biases are 0 in the beginning: a forgotten one would not show
        for number, parameter in enumerate(network.parameters()):
            if parameter.dim() == 1:
                parameter.copy_(torch.linspace(-0.1, 0.1, len(parameter)) * (1 + number % 3))
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    x = pictures(2) / 255
    for stage in range(3):
        first, *inner = convolutions[5 * stage : 5 * stage + 5]
        x = pool(convolve(x, first, padding=1))
        for block in (inner[:2], inner[2:]):
            added = x.clamp(min=0)
            added = convolve(added, block[0], padding=1).clamp(min=0)
            x = x + convolve(added, block[1], padding=1)
    assert x.shape == (2, 32, 11, 11)
    features = (x.clamp(min=0).flatten(1) @ network.trunk.hidden.weight.T + network.trunk.hidden.bias).clamp(min=0)
    torch.testing.assert_close(network.trunk(pictures(2)), features, rtol=1e-4, atol=1e-5)


def test_impala_weights_are_orthogonal_and_its_first_values_small() -> None:
    network = named("impala_resnet")
    assert isinstance(network.trunk, ImpalaResNet)
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    squares = [1.0, 2.0, 2 / 6, 2.0, 2 / 6] * 3
    for layer, square in zip(convolutions, squares, strict=True):
        rows = layer.weight.detach().flatten(1)
        torch.testing.assert_close(rows @ rows.T, square * torch.eye(len(rows)), atol=1e-4, rtol=0)
    environments = make_environments("pong", 2, seeds=[1, 2])
    rollout = Rollout(environments.spec, 1, 2)
    environments.reset(rollout.observation(0, 0, 2))
    environments.close()
    assert network.values(rollout.observations[0]).abs().max().item() < 3


@pytest.mark.parametrize(("given", "name"), KINDS)
def test_a_separate_critic_shares_nothing(given: EnvironmentSpec, name: NetworkName) -> None:
    """The value moves no parameter of the policy, and the other way round; with one trunk it does."""
    observation = pictures(2) if given is IMAGES else torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    for separate in (True, False):
        network = named(name, given, separate=separate)
        moved = []
        for output in (0, 1):
            network.zero_grad()
            network(observation)[output].square().sum().backward()
            moved.append({key for key, parameter in network.named_parameters() if parameter.grad is not None and parameter.grad.any()})
        assert moved[0]
        assert moved[1]
        assert bool(moved[0] & moved[1]) is not separate
        assert moved[0] | moved[1] == {key for key, _ in network.named_parameters()}


@pytest.mark.parametrize(("given", "name"), KINDS)
def test_both_trunks_begin_differently_and_the_policy_as_without(given: EnvironmentSpec, name: NetworkName) -> None:
    separate = named(name, given, separate=True)
    state = separate.state_dict()
    twin = "critic.hidden.0.weight" if name == "mlp" else "critic.hidden.weight"
    own = "trunk.hidden.0.weight" if name == "mlp" else "trunk.hidden.weight"
    assert state[twin].shape == state[own].shape
    assert not torch.equal(state[twin], state[own])
    assert torch.equal(state[own], named(name, given).state_dict()[own])


def fingerprint(network: ActorCritic) -> tuple[str, Schema]:
    flat = FlatParameters(network)
    schema = Schema(tuple(TensorEntry(e.name, e.shape, e.offset, e.size) for e in flat.entries), flat.numel)
    return str(schema.fingerprint), schema


def test_every_network_has_a_layout_and_a_description_of_its_own() -> None:
    networks = [named(name, given, separate=separate) for given, name in KINDS for separate in (False, True)]
    lines = {network.describe() for network in networks}
    assert len(lines) == len(networks)
    assert len({fingerprint(network)[0] for network in networks}) == len(networks)
    assert "impala_resnet 2 x 4-16-32-32-3872-256 relu, policy 6, value 1" in lines
    assert "nips_cnn 4-16-32-2592-256 relu, policy 6, value 1" in lines


@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_the_flat_vector_is_in_the_order_of_the_forward_pass(name: NetworkName) -> None:
    _, schema = fingerprint(named(name, separate=True))
    owners = [entry.name.rpartition(".")[0].partition(".")[0] for entry in schema.entries]
    critic = [index for index, owner in enumerate(owners) if owner == "critic"]
    assert owners[-4:] == ["policy", "policy", "value", "value"]
    assert critic == list(range(critic[0], len(owners) - 4))
    mine = [entry.name.removeprefix("trunk.") for entry in schema.entries[: critic[0]]]
    assert [entry.name for entry in schema.entries[critic[0] : -4]] == [f"critic.{key}" for key in mine]
    assert all(entry.offset % 16 == 0 for entry in schema.entries)
    assert schema.numel == sum(math.ceil(entry.size / 16) * 16 for entry in schema.entries)


@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_one_step_of_the_flat_gradient_moves_both_trunks(name: NetworkName) -> None:
    network = named(name, separate=True, channels_last=True)
    flat = FlatParameters(network)
    before = {key: value.clone() for key, value in flat.named_parameters().items()}
    logits, values = network(pictures(2))
    (logits.square().sum() + values.square().sum()).backward()
    flat.check()
    flat.parameters.sub_(flat.gradients, alpha=1e-2)
    still = [key for key, value in flat.named_parameters().items() if torch.equal(value, before[key])]
    assert not still


def test_the_run_file_knows_the_networks() -> None:
    assert get_args(NetworkConfig.model_fields["name"].annotation) == get_args(NetworkName)


def test_descriptions_tell_networks_apart() -> None:
    lines = {
        build_network(VECTORS, "mlp", hidden, activation, False, 0).describe()
        for hidden in ((64,), (64, 64))
        for activation in ("tanh", "relu")
    }
    assert len(lines) == 4


def test_auto_gives_only_the_mlp_a_critic_of_its_own() -> None:
    for given, name in KINDS:
        default = build_network(given, name, (64, 64), "tanh", False, 1)
        assert default.describe() == named(name, given, separate=name == "mlp").describe()


def test_networks_that_do_not_fit_are_refused() -> None:
    for name in IMAGE_NETWORKS:
        with pytest.raises(ValueError, match=rf"{name} needs uint8 images, .* there is the mlp"):
            named(name, VECTORS)
    with pytest.raises(ValueError, match=r"nips_cnn needs images .* 20 x 20"):
        named("nips_cnn", spec((4, 84, 19), "uint8"))
    assert named("nips_cnn", spec((4, 20, 20), "uint8")).trunk(torch.zeros(1, 4, 20, 20, dtype=torch.uint8)).shape == (1, 256)
    assert named("impala_resnet", spec((3, 5, 9), "uint8")).trunk(torch.zeros(1, 3, 5, 9, dtype=torch.uint8)).shape == (1, 256)
    with pytest.raises(ValueError, match="initial_weights = contrast is for nature_cnn and nips_cnn"):
        build_network(IMAGES, "impala_resnet", (), "relu", False, 0, contrast=True)
    with pytest.raises(ValueError, match="uint8 images"):
        build_network(VECTORS, "nature_cnn", (), "relu", False, 0)
    with pytest.raises(ValueError, match="36 x 36"):
        build_network(spec((4, 20, 20), "uint8"), "nature_cnn", (), "relu", False, 0)
    with pytest.raises(ValueError, match="hidden_sizes"):
        build_network(VECTORS, "mlp", (), "tanh", False, 0)
    with pytest.raises(TypeError, match="uint8"):
        build(IMAGES)(torch.zeros(1, 4, 84, 84))
