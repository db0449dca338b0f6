from __future__ import annotations

import numpy as np
import pytest
import torch

from zpala.rl.action_spaces import Box, Discrete, MultiDiscrete
from zpala.rl.environments import EnvironmentSpec
from zpala.rl.rollout import PerStep, Rollout


def rollout(dtype: str = "float32") -> Rollout:
    return Rollout(EnvironmentSpec("test", (2,), np.dtype(dtype), Discrete(3), 1, False, "test"), num_steps=4, num_envs=5)


def test_shapes_and_types() -> None:
    assert {name: (tuple(t.shape), t.dtype) for name, t in rollout().tensors().items()} == {
        "observations": ((5, 5, 2), torch.float32),
        "actions": ((4, 5), torch.int64),
        "rewards": ((4, 5), torch.float32),
        "terminated": ((4, 5), torch.bool),
        "truncated": ((4, 5), torch.bool),
        "valid": ((4, 5), torch.bool),
        "final_observations": ((4, 5, 2), torch.float32),
    }
    assert rollout("uint8").observations.dtype is torch.uint8


def test_actions_of_any_space() -> None:
    for space, dtype in ((MultiDiscrete((2, 3)), torch.int64), (Box((-1.0,) * 3, (1.0,) * 3, (3,)), torch.float32)):
        slab = Rollout(EnvironmentSpec("test", (2,), np.dtype("float32"), space, 1, False, "test"), 4, 5)
        assert (tuple(slab.actions.shape), slab.actions.dtype) == ((4, 5, *space.shape), dtype)
        assert (slab.actions < -1000).all()
        chosen = torch.arange(2 * space.shape[0]).reshape(2, -1).to(dtype)
        slab.set_actions(1, 2, 4, chosen)
        assert slab.action(1, 2, 4).tolist() == chosen.tolist()
        assert (slab.actions > -1000).any(-1).nonzero().tolist() == [[1, 2], [1, 3]]


def test_fresh_memory_is_absurd() -> None:
    fresh = rollout()
    assert (fresh.observations < -1000).all()
    assert (fresh.actions < 0).all()
    assert (fresh.rewards < -1000).all()
    assert not fresh.valid.any()


def test_a_row_is_a_window_on_the_slab() -> None:
    slab = rollout()
    row = slab.row(1, 2, 4)
    row.next_observation[...] = 1.0
    row.final_observation[...] = 2.0
    row.reward[...] = 3.0
    row.terminated[...] = False
    row.truncated[...] = False
    row.valid[...] = True
    assert (slab.observations == 1.0).nonzero().tolist() == [[2, n, i] for n in (2, 3) for i in (0, 1)]
    assert (slab.final_observations == 2.0).nonzero().tolist() == [[1, n, i] for n in (2, 3) for i in (0, 1)]
    for tensor in (slab.rewards == 3.0, ~slab.terminated, ~slab.truncated, slab.valid):
        assert tensor.nonzero().tolist() == [[1, 2], [1, 3]]
    assert slab.valid_steps() == 2


def test_actions_go_in_and_out() -> None:
    slab = rollout()
    slab.set_actions(3, 1, 4, torch.tensor([2, 0, 1]))
    assert slab.action(3, 1, 4).tolist() == [2, 0, 1]
    assert slab.action(3, 1, 4).dtype == np.int64
    assert slab.actions[3, 1:4].tolist() == [2, 0, 1]


def test_carry_moves_the_last_observation_to_the_front() -> None:
    slab = rollout()
    slab.observation(4, 0, 5)[...] = np.arange(10).reshape(5, 2)
    slab.carry()
    assert slab.observation(0, 0, 5).tolist() == np.arange(10).reshape(5, 2).tolist()
    assert np.shares_memory(slab.arrays()["observations"], slab.row(0, 0, 5).next_observation)


def test_the_algorithms_own_tensors_are_there_and_absurd() -> None:
    spec = EnvironmentSpec("test", (2,), np.dtype("float32"), Discrete(3), 1, False, "test")
    slab = Rollout(spec, 4, 5, extra={"values": PerStep(), "state": PerStep(torch.float32, (7,)), "count": PerStep(torch.int64)})
    assert {name: (tuple(t.shape), t.dtype) for name, t in slab.extra.items()} == {
        "values": ((4, 5), torch.float32),
        "state": ((4, 5, 7), torch.float32),
        "count": ((4, 5), torch.int64),
    }
    assert slab.extra["values"].isnan().all()
    assert (slab.extra["count"] < -1000).all()
    assert slab.copies().keys() == slab.tensors().keys() | slab.extra.keys()
    slab.extra["values"].fill_(3.0)
    assert np.isnan(slab.copies()["values"]).sum() == 0
    with pytest.raises(ValueError, match="the slab has rewards already"):
        Rollout(spec, 4, 5, extra={"rewards": PerStep()})
