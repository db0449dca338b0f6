from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.rl.rollouts import spec
from zpala.gossip.mixing import delta_into
from zpala.rl.action_spaces import Discrete
from zpala.rl.environments import EnvironmentSpec
from zpala.rl.flat import FlatParameters
from zpala.rl.inputs import HORIZON, Normalizer, Unpacking
from zpala.rl.networks import ActorCritic, build_network
from zpala.rl.observations import ObservationPart
from zpala.rl.trunks import Combined


def data(count: int, seed: int) -> torch.Tensor:
    """Columns of very different means and sizes."""
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return x * torch.tensor([1.0, 50.0, 0.01]) + torch.tensor([0.0, 300.0, 0.05 * seed])


def test_before_the_first_observation_nothing_is_changed() -> None:
    x = torch.tensor([[-3.0, 0.5, 9.0]])
    assert torch.equal(Normalizer(3)(x), x)


def test_mean_and_deviation_are_those_of_all_valid_observations() -> None:
    normalizer, seen = Normalizer(3), []
    for batch in range(200):
        x = data(64, batch)
        valid = torch.rand(64, generator=torch.Generator().manual_seed(batch)) < 0.7
        x[~valid] = 1e9 if batch % 2 else float("nan")
        normalizer.observe(x, valid)
        seen.append(x[valid].double().numpy())
    whole = np.concatenate(seen)
    mean, scale = normalizer.statistics()
    assert np.abs((mean.numpy() - whole.mean(0)) / whole.std(0)).max() < 0.01
    assert (1 / scale).numpy() == pytest.approx(whole.std(0), rel=1e-2)
    normalised = normalizer(torch.from_numpy(whole).float())
    assert normalised.mean(0).abs().max() < 0.02
    assert (normalised.std(0) - 1).abs().max() < 0.02
    assert normalizer(torch.tensor([[1e6, 1e6, -1e6]])).tolist() == [[10.0, 10.0, -10.0]]


def test_what_never_varies_becomes_nothing() -> None:
    normalizer = Normalizer(3)
    for _ in range(50):
        normalizer.observe(torch.tensor([[0.0, 7.0, -1e4]]).expand(100, 3), torch.ones(100, dtype=torch.bool))
    assert normalizer(torch.tensor([[0.0, 7.0, -1e4]])).abs().max() < 1e-3
    assert normalizer(torch.tensor([[5.0, 8.0, 0.0]])).isfinite().all()


def test_small_numbers_that_vary_are_seen() -> None:
    x = torch.rand(5000, 1, generator=torch.Generator().manual_seed(1)) * 2e-3
    normalizer = Normalizer(1)
    normalizer.observe(x, torch.ones(5000, dtype=torch.bool))
    normalised = normalizer(x)
    assert normalised.mean().abs() < 1e-2
    expected = x.double().std() / (x.double().var() + 1e-8).sqrt()  # as stable-baselines3: what is below 1e-4 is not blown up
    assert normalised.std() == pytest.approx(float(expected), rel=1e-2)


def test_one_observation_at_a_time_counts_as_much_as_many() -> None:
    """After a million observations, too, where one adds less to a sum of float32 than that resolves."""
    normalizer = Normalizer(1)
    with torch.no_grad():
        normalizer.weight.fill_(1.0)
        normalizer.total.fill_(0.9)
        normalizer.squares.fill_(0.9**2 + 0.025**2)
    normalizer._folded = 1_000_000
    sums = np.array([1.0, 0.9, 0.9**2 + 0.025**2])
    x = 0.8 + 0.025 * np.random.default_rng(1).standard_normal(40_000).astype(np.float32)
    one = torch.ones(1, dtype=torch.bool)
    for value in x:
        sums = sums * np.exp(-1 / HORIZON) + (1 - np.exp(-1 / HORIZON)) * np.array([1.0, value, float(value) ** 2])
        normalizer.observe(torch.tensor([[float(value)]]), one)
    mean, scale = normalizer.statistics()
    assert mean.item() == pytest.approx(sums[1] / sums[0], abs=2e-5)
    assert 1 / scale.item() == pytest.approx(np.sqrt(sums[2] / sums[0] - (sums[1] / sums[0]) ** 2), rel=1e-2)


def test_old_observations_fade() -> None:
    normalizer = Normalizer(1)
    everything = torch.ones(200_000, dtype=torch.bool)
    for value in (0.0, 4.0):
        for _ in range(10):
            normalizer.observe(torch.full((200_000, 1), value), everything)
    old = np.exp(-2_000_000 / HORIZON) * (np.exp(2_000_000 / HORIZON) - 1)  # weights of the first and of the second half
    new = 1 - np.exp(-2_000_000 / HORIZON)
    expected = 4.0 * new / (new + old * np.exp(-2_000_000 / HORIZON))
    assert normalizer.statistics()[0].item() == pytest.approx(expected, rel=1e-3)


def test_averaging_two_nodes_merges_their_statistics() -> None:
    """One node has seen ten times as much as the other; after one exchange both know what one that saw everything would know."""
    nodes, both = [], Normalizer(3)
    for index, count in enumerate((5_000, 500)):
        x = data(count, 3 * index)
        network = build_network(spec((3,)), "mlp", (8,), "tanh", False, 1, normalize_observations=True)
        flat = FlatParameters(network)
        network.observe(x, torch.ones(count, dtype=torch.bool))
        both.observe(x, torch.ones(count, dtype=torch.bool))
        nodes.append((network, flat))
    before = [flat.parameters.numpy().copy() for _, flat in nodes]
    for (_, flat), mine, theirs in zip(nodes, before, reversed(before), strict=True):
        delta = np.empty_like(mine)
        delta_into(theirs, mine, 0.5, delta)
        flat.parameters.add_(torch.from_numpy(delta))
    expected_mean, expected_scale = both.statistics()
    for network, _ in nodes:
        assert network.inputs.normalizer is not None
        mean, scale = network.inputs.normalizer.statistics()
        torch.testing.assert_close(mean, expected_mean, rtol=1e-2, atol=1e-4)
        torch.testing.assert_close(scale, expected_scale, rtol=1e-2, atol=0)


def test_statistics_have_no_gradient_and_lie_in_the_flat_vector() -> None:
    network = build_network(spec((3,)), "mlp", (8,), "tanh", False, 1, normalize_observations=True)
    flat = FlatParameters(network)
    network.observe(data(100, 1), torch.ones(100, dtype=torch.bool))
    flat.check()
    assert flat.named_parameters()["inputs.normalizer.total"].abs().max() > 0
    policy, values = network(data(10, 1))
    (policy.sum() + values.sum()).backward()
    for name, gradient in flat.views(flat.gradients).items():
        assert bool(gradient.any()) is not name.startswith("inputs."), name
    assert "normalized mlp" in network.describe()


PARTS = (
    ObservationPart("place", (2,), np.dtype("float32"), 0),
    ObservationPart("picture", (3, 40, 40), np.dtype("uint8"), 16),
    ObservationPart("bytes", (5,), np.dtype("uint8"), 16 + 4800),
    ObservationPart("grid", (2, 2), np.dtype("float32"), 16 + 4800 + 16),
)
PACKED = EnvironmentSpec("test", (16 + 4800 + 32,), np.dtype("uint8"), Discrete(3), 1, False, "test", PARTS)


def rows(count: int) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    packed = np.zeros((count, *PACKED.observation_shape), dtype=np.uint8)
    parts: dict[str, np.ndarray] = {}
    for part in PARTS:
        shape = (count, *part.shape)
        parts[part.name] = rng.normal(size=shape).astype(np.float32) if part.dtype == "float32" else rng.integers(0, 256, shape, np.uint8)
        packed[:, part.offset : part.offset + part.nbytes] = parts[part.name].reshape(count, -1).view(np.uint8)
    return torch.from_numpy(packed), parts


def test_packed_rows_come_apart() -> None:
    packed, parts = rows(6)
    vector, picture = Unpacking(PARTS, ["picture"])(packed)
    expected = np.concatenate([parts["place"], parts["bytes"] / np.float32(255), parts["grid"].reshape(6, 4)], axis=1)
    np.testing.assert_allclose(vector.numpy(), expected, rtol=1e-6)
    assert np.array_equal(picture.numpy(), parts["picture"])
    # A part of a bigger memory, as the slab gives it.
    again = Unpacking(PARTS, ["picture"])(packed[1:4])
    assert torch.equal(again[0], vector[1:4])
    assert torch.equal(again[1], picture[1:4])


@pytest.mark.parametrize("name", ["auto", "mlp", "nature_cnn", "nips_cnn", "impala_resnet"])
@pytest.mark.parametrize("separate", [False, True])
def test_every_part_reaches_both_heads(name: str, separate: bool) -> None:
    network = build_network(
        PACKED, name, (8,), "tanh", False, 1, separate_critic=separate, normalize_observations=True  # type: ignore[arg-type]
    )  # fmt: skip
    assert isinstance(network, ActorCritic)
    assert isinstance(network.trunk, Combined)
    packed, _ = rows(4)
    before = network(packed)
    for part in PARTS:
        changed = packed.clone()
        other = np.full((4, *part.shape), 3, part.dtype).reshape(4, -1).view(np.uint8)
        changed[:, part.offset : part.offset + part.nbytes] = torch.from_numpy(other)
        after = network(changed)
        assert not torch.allclose(before.policy, after.policy, rtol=0, atol=1e-7), part.name
        assert not torch.allclose(before.values, after.values, rtol=0, atol=1e-6), part.name


def test_a_packed_row_without_an_image_needs_no_network_for_images() -> None:
    small = EnvironmentSpec("test", (16,), np.dtype("uint8"), Discrete(3), 1, False, "test", PARTS[:1])
    assert build_network(small, "auto", (8,), "tanh", False, 1).describe() == "mlp 2-8 tanh, policy 3, value 1"
    with pytest.raises(ValueError, match=r"nature_cnn needs uint8 images, but no part of what test gives is one of at least 36 x 36"):
        build_network(small, "nature_cnn", (8,), "tanh", False, 1)


def test_images_are_not_normalised() -> None:
    with pytest.raises(ValueError, match=r"normalize_observations is for vectors, and test gives images of bytes"):
        build_network(spec((4, 84, 84), "uint8"), "auto", (8,), "tanh", False, 1, normalize_observations=True)
