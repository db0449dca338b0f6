"""Observations of several parts: the row of bytes, taken apart by hand, is the dict that the simulator returned."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from zpala.rl.environments import VectorEnvironments, make_environments
from zpala.rl.observations import Packing, unpack
from zpala.rl.rollout import Rollout

SPACE = spaces.Dict(
    {
        "camera": spaces.Box(0, 255, (2, 3, 3), np.uint8),
        "height": spaces.Box(-10.0, 10.0, (), np.float32),
        "inside": spaces.Dict({"gear": spaces.Discrete(3, start=-1), "speed": spaces.Box(-1e3, 1e3, (2,), np.float64)}),
        "lamps": spaces.MultiBinary(3),
        "wheels": spaces.MultiDiscrete([2, 3], start=[0, 5]),
    }
)
# Where the parts lie, worked out by hand: sizes in bytes 18, 4, 12, 8, 12, 20.
LAYOUT = {
    "camera": (0, 18, np.uint8, (2, 3, 3)),
    "height": (32, 4, np.float32, (1,)),
    "inside.gear": (48, 12, np.float32, (3,)),
    "inside.speed": (64, 8, np.float32, (2,)),
    "lamps": (80, 12, np.float32, (3,)),
    "wheels": (96, 20, np.float32, (5,)),
}
ROW_BYTES = 128
LENGTHS = [3, 1, 2]  # of the games, over and over; every second one is truncated


def look(number: int, game: int, step: int) -> dict[str, Any]:
    """Observation ``step`` of a game: every part has something of all three."""
    seen = 49 * number + 7 * game + step
    return {
        "camera": np.arange(seen, seen + 18, dtype=np.uint8).reshape(2, 3, 3),
        "height": np.array(number - step / 8, dtype=np.float32),
        "inside": {"gear": np.int64(seen % 3 - 1), "speed": np.array([game + 0.5, -seen])},
        "lamps": np.array([seen & 1, seen >> 1 & 1, seen >> 2 & 1], dtype=np.int8),
        "wheels": np.array([seen % 2, 5 + seen % 3]),
    }


def by_hand(number: int, game: int, step: int) -> dict[str, list[Any]]:
    """What the row must hold for it."""
    seen = 49 * number + 7 * game + step
    wheels = [float(seen % 2 == 0), float(seen % 2 == 1), *(float(seen % 3 == k) for k in range(3))]
    return {
        "camera": (np.arange(18).reshape(2, 3, 3) + seen).tolist(),
        "height": [number - step / 8],
        "inside.gear": [float(seen % 3 == k) for k in range(3)],
        "inside.speed": [game + 0.5, float(-seen)],
        "lamps": [float(seen >> k & 1) for k in range(3)],
        "wheels": wheels,
    }


def apart(row: NDArray[np.uint8]) -> dict[str, list[Any]]:
    """One row, by the layout above and nothing of zpala's. What lies between the parts is 0."""
    data, found, begins = row.tobytes(), {}, [offset for offset, *_ in LAYOUT.values()]
    assert len(data) == ROW_BYTES
    for (name, (offset, size, dtype, shape)), following in zip(LAYOUT.items(), [*begins[1:], ROW_BYTES], strict=True):
        found[name] = np.frombuffer(data[offset : offset + size], dtype=dtype).reshape(shape).tolist()
        assert data[offset + size : following] == bytes(following - offset - size)
    return found


class Cockpit(gymnasium.Env[dict[str, Any], np.int64]):
    observation_space: spaces.Space[Any] = SPACE
    action_space = spaces.Discrete(2)

    def __init__(self, number: int = 0) -> None:
        self.number, self.game, self.at = number, -1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self.game, self.at = self.game + 1, 0
        return look(self.number, self.game, self.at), {}

    def step(self, action: np.int64) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.at += 1
        ended = self.at == LENGTHS[self.game % 3]
        return look(self.number, self.game, self.at), 1.0, ended and self.game % 2 == 0, ended and self.game % 2 == 1, {}


def make_cockpits(num_envs: int, mode: str) -> SyncVectorEnv:
    numbers = iter(range(num_envs))
    return SyncVectorEnv([lambda: Cockpit(next(numbers)) for _ in range(num_envs)], autoreset_mode=AutoresetMode(mode))


def test_every_part_has_its_place() -> None:
    packing = Packing(SPACE)
    assert packing.row_bytes == ROW_BYTES
    found = {part.name: (part.offset, part.nbytes, part.dtype, part.shape) for part in packing.parts}
    assert found == {name: (offset, size, np.dtype(dtype), shape) for name, (offset, size, dtype, shape) in LAYOUT.items()}


@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
def test_rows_are_the_dicts_that_were_returned(mode: str) -> None:
    """Step by step as the script says, the last observations of games included."""
    environments = make_environments("tests.rl.test_observations:make_cockpits", 3, seeds=[0, 0, 0], args={"mode": mode})
    spec = environments.spec
    assert (spec.observation_shape, spec.observation_dtype, spec.dimensions) == ((ROW_BYTES,), np.dtype(np.uint8), 3)
    assert spec.agreement()["observation"] == (
        "uint8[128] of camera uint8[2,3,3], height float32[1], inside.gear float32[3], inside.speed float32[2], "
        "lamps float32[3], wheels float32[5]"
    )
    rollout = Rollout(spec, 14, 3)
    environments.reset(rollout.observation(0, 0, 3))
    observations, final = rollout.arrays()["observations"], rollout.arrays()["final_observations"]
    game = step = ends = 0
    assert [apart(row) for row in observations[0]] == [by_hand(n, 0, 0) for n in range(3)]
    for t in range(14):
        rollout.set_actions(t, 0, 3, torch.zeros(3, dtype=torch.int64))
        episodes = environments.step(rollout.action(t, 0, 3), rollout.row(t, 0, 3))
        begins = mode == "NextStep" and step == LENGTHS[game % 3]
        game, step = (game + 1, 0) if begins else (game, step + 1)
        assert rollout.valid[t].tolist() == [not begins] * 3
        ended = not begins and step == LENGTHS[game % 3]
        assert len(episodes) == (3 if ended else 0)
        if ended:
            ends += 1
            assert [apart(row) for row in final[t]] == [by_hand(n, game, step) for n in range(3)]
            assert (rollout.terminated[t] if game % 2 == 0 else rollout.truncated[t]).all()
            if mode == "SameStep":
                game, step = game + 1, 0
        else:
            assert (final[t] == 173).all()  # as in fresh memory
        assert [apart(row) for row in observations[t + 1]] == [by_hand(n, game, step) for n in range(3)]
    assert ends >= 4
    environments.close()


def test_parts_are_views_for_numpy_and_torch_wherever_the_rows_lie() -> None:
    spec_of = VectorEnvironments(make_cockpits(1, "SameStep"), make_environments(f"{__name__}:Cockpit", 1, seeds=[0]).spec, None)
    slab = Rollout(spec_of.spec, 2, 5)
    rows = slab.observation(1, 1, 4)
    parts = unpack(spec_of.spec.parts, rows)
    assert all(np.shares_memory(part, rows) for part in parts.values())
    parts["inside.speed"][...] = [[1.5, 2.5], [3.5, 4.5], [5.5, 6.5]]
    column = slab.observations[:, 1:4, 64:72].view(torch.float32)
    assert column[1].tolist() == [[1.5, 2.5], [3.5, 4.5], [5.5, 6.5]]
    assert unpack(spec_of.spec.parts, slab.arrays()["observations"])["camera"].shape == (3, 5, 2, 3, 3)


def test_a_value_that_its_space_does_not_have_is_refused() -> None:
    packing, rows = Packing(SPACE), np.zeros((1, ROW_BYTES), np.uint8)
    for gear in (-2, 2):
        observation = look(0, 0, 0)
        observation["inside"]["gear"] = gear
        with pytest.raises(ValueError, match=r"'inside.gear' has the value \[\[-?2\]\]"):
            packing.pack(observation, rows)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (spaces.Dict({"a": spaces.Dict({"b": spaces.Discrete(2)}), "a.b": spaces.Discrete(2)}), "two of its parts are called 'a.b'"),
        (spaces.Dict({"a": spaces.Tuple((spaces.Discrete(2),))}), "its part 'a' is Tuple"),
        (spaces.Dict({"a": spaces.Box(0.0, 1.0, (0,))}), "its part 'a' is Box"),
        (spaces.Dict({"a": spaces.Dict({})}), "without parts"),
    ],
)
def test_what_cannot_be_packed_is_named(space: spaces.Dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Packing(space)
