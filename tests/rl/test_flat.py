from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from zpala.rl.action_spaces import Discrete
from zpala.rl.environments import EnvironmentSpec
from zpala.rl.flat import ALIGNMENT, FlatParameters
from zpala.rl.networks import ActorCritic, build_network
from zpala.rl.optimizers import RMSprop


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def test_layout_is_canonical() -> None:
    flat = FlatParameters(small())
    assert [(entry.name, entry.shape, entry.offset, entry.size) for entry in flat.entries] == [
        ("0.weight", (5, 3), 0, 15),
        ("0.bias", (5,), 16, 5),
        ("2.weight", (2, 5), 32, 10),
        ("2.bias", (2,), 48, 2),
    ]
    assert flat.numel == 64
    assert all(parameter.data_ptr() % (4 * ALIGNMENT) == flat.parameters.data_ptr() % (4 * ALIGNMENT) for parameter in small_views(flat))


def small_views(flat: FlatParameters) -> list[torch.Tensor]:
    return list(flat.named_parameters().values())


def test_flattening_keeps_the_values_and_writing_the_vector_changes_the_network() -> None:
    module, twin, x = small(), small(), torch.randn(4, 3)
    flat = FlatParameters(module)
    assert torch.equal(module(x), twin(x))
    flat.parameters.zero_()
    assert torch.equal(module(x), torch.zeros(4, 2))


def test_gradients_are_summed_into_the_vector() -> None:
    module, twin, x = small(), small(), torch.randn(4, 3)
    flat = FlatParameters(module)
    flat.gradients.fill_(7.0)
    flat.zero_gradients()
    module(x).sum().backward()
    twin(x).sum().backward()
    for found, expected in zip(flat.views(flat.gradients).values(), twin.parameters(), strict=True):
        assert expected.grad is not None
        torch.testing.assert_close(found, expected.grad)


@pytest.mark.parametrize("channels_last", [False, True])
def test_views_survive_training_and_loading(channels_last: bool) -> None:
    images = EnvironmentSpec("test", (4, 84, 84), np.dtype("uint8"), Discrete(6), 1, False, "test")
    network = build_network(images, "nature_cnn", (), "relu", channels_last, 1)
    assert isinstance(network, ActorCritic)
    flat = FlatParameters(network)
    optimizer = RMSprop(flat.numel)
    saved = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for _ in range(2):
        flat.zero_gradients()
        logits, value = network(torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8))
        (logits.sum() + value.sum()).backward()
        assert flat.gradients.abs().sum() > 0
        optimizer.step(flat.parameters, flat.gradients, 0.01)
        flat.check()
    network.load_state_dict(saved)
    flat.check()
    padding = torch.ones(flat.numel, dtype=torch.bool)
    for view in flat.views(padding).values():
        view.fill_(False)
    assert not flat.parameters[padding].any()
    assert torch.equal(flat.named_parameters()["trunk.hidden.weight"], saved["trunk.hidden.weight"])


def test_check_names_what_left_the_vector() -> None:
    module = small()
    flat = FlatParameters(module)
    flat.check()
    module.zero_grad(set_to_none=True)
    with pytest.raises(RuntimeError, match=r"gradient of 0\.weight"):
        flat.check()
    module = small()
    flat = FlatParameters(module)
    module[2].bias.data = torch.zeros(2)
    with pytest.raises(RuntimeError, match=r"parameter 2\.bias"):
        flat.check()


def test_load_copies_or_changes_nothing() -> None:
    flat, source = FlatParameters(small()), FlatParameters(small())
    source.parameters.mul_(2.0)
    tensors = source.named_parameters()
    flat.load(tensors)
    assert torch.equal(flat.parameters, source.parameters)
    before = flat.parameters.clone()
    for wrong in ({**tensors, "0.bias": torch.zeros(4)}, {**tensors, "other": torch.zeros(1)}, {"0.weight": tensors["0.weight"]}):
        with pytest.raises(ValueError, match="parameter"):
            flat.load(wrong)
    assert torch.equal(flat.parameters, before)


def test_what_cannot_be_flattened_is_refused() -> None:
    with pytest.raises(TypeError, match="float64"):
        FlatParameters(nn.Linear(2, 2).double())
    tied = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    tied["b"].weight = tied["a"].weight
    with pytest.raises(ValueError, match="every name its own"):
        FlatParameters(tied)
    with pytest.raises(ValueError, match="vector of"):
        FlatParameters(small()).views(torch.zeros(3))


def test_a_change_between_forward_and_backward_is_noticed() -> None:
    """A delta that is added while an acting graph is kept would make its gradients wrong without a word."""
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    flat = FlatParameters(module)
    loss = module(torch.ones(2, 3)).square().sum()
    with torch.no_grad():
        flat.parameters.add_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_all_that_a_network_computes_with_lies_on_the_device() -> None:
    """The device "meta" computes nothing: whatever was left behind shows."""
    vector = EnvironmentSpec("test", (3,), np.dtype("float32"), Discrete(2), 1, False, "test")
    network = build_network(vector, "mlp", (4,), "tanh", False, 1, normalize_observations=True)
    FlatParameters(network, "meta")
    assert {tensor.device.type for tensor in (*network.parameters(), *network.buffers())} == {"meta"}
    assert list(network.buffers())
