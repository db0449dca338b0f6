from __future__ import annotations

import copy

import pytest
import torch

from tests.rl.q_agents import small_network
from zpala.rl.flat import FlatParameters
from zpala.rl.target import TargetNetwork


def test_it_is_the_network_of_the_step_at_which_it_last_followed() -> None:
    network = small_network()
    flat = FlatParameters(network)
    target = TargetNetwork(network, flat, 3)
    observations = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    then = copy.deepcopy(network)
    for step in range(1, 11):
        flat.parameters.add_(0.1 * step)  # an optimiser step, or an average with a neighbour
        target.stepped()
        if step % 3 == 0:
            then = copy.deepcopy(network)
        found = target(observations)
        assert torch.equal(found, then(observations))
        assert not found.requires_grad
        assert torch.equal(found, network(observations)) == (step % 3 == 0)
        flat.check()
    target.follow()
    assert torch.equal(target(observations), network(observations))


def test_less_than_a_copy_is_a_moving_average() -> None:
    network = small_network()
    flat = FlatParameters(network)
    target = TargetNetwork(network, flat, 2, 0.25)
    expected = flat.parameters.double()
    for step in range(1, 8):
        flat.parameters.mul_(1.5)
        target.stepped()
        if step % 2 == 0:
            expected = 0.75 * expected + 0.25 * flat.parameters.double()
        torch.testing.assert_close(target.vector.double(), expected, rtol=1e-6, atol=1e-7)


def test_it_goes_on_from_its_state() -> None:
    network = small_network()
    flat = FlatParameters(network)
    first, second = TargetNetwork(network, flat, 3), TargetNetwork(network, flat, 3)
    flat.parameters.add_(1.0)
    first.stepped()
    first.stepped()
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    assert torch.equal(first.vector, second.vector)
    assert not torch.equal(first.vector, flat.parameters)
    for target in (first, second):  # the third step
        target.stepped()
        assert torch.equal(target.vector, flat.parameters)


@pytest.mark.parametrize(("steps", "weight"), [(0, 1.0), (1, 0.0), (1, 1.5)])
def test_a_target_that_never_follows_is_refused(steps: int, weight: float) -> None:
    network = small_network()
    with pytest.raises(ValueError, match="follows"):
        TargetNetwork(network, FlatParameters(network), steps, weight)
