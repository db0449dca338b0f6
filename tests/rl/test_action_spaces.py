"""What the simulator receives, compared with what the rollout holds, for every kind of action."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tests.rl.scripted import Game, ScriptedEnv
from zpala.rl.action_spaces import Box, Discrete, MultiDiscrete, action_space, for_simulator
from zpala.rl.environments import EnvironmentSpec, VectorEnvironments
from zpala.rl.rollout import Rollout

INF = float("inf")


class Notes(ScriptedEnv):
    """Writes down the actions that it gets, and then all over them, as some simulators do."""

    def __init__(self, space: spaces.Space[Any], number: int) -> None:
        super().__init__(number, [Game(2, True, False), Game(1, False, True)])
        self.action_space = space  # type: ignore[assignment]
        self.received: list[Any] = []

    def step(self, action: Any) -> Any:
        self.received.append(action.copy())
        if isinstance(action, np.ndarray):
            action[...] = 0
        return super().step(np.int64(0))


# The simulator's space, what zpala makes of it, two actions in the rollout, and what the simulator gets for them.
CASES: list[tuple[spaces.Space[Any], Discrete | MultiDiscrete | Box, list[Any], list[Any]]] = [
    (spaces.Discrete(3), Discrete(3), [2, 0], [2, 0]),
    (spaces.Discrete(3, start=-1), Discrete(3), [2, 0], [1, -1]),
    (spaces.MultiDiscrete([2, 3, 4]), MultiDiscrete((2, 3, 4)), [[1, 2, 3], [0, 0, 0]], [[1, 2, 3], [0, 0, 0]]),
    (
        spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]), dtype="int32", start=np.array([[1, 0], [0, -2]])),
        MultiDiscrete((2, 3, 4, 5)),
        [[0, 2, 3, 4], [1, 0, 0, 0]],
        [[[1, 2], [3, 2]], [[2, 0], [0, -2]]],
    ),
    (spaces.MultiBinary((2, 2)), MultiDiscrete((2, 2, 2, 2)), [[1, 0, 0, 1], [0, 1, 1, 1]], [[[1, 0], [0, 1]], [[0, 1], [1, 1]]]),
    (
        spaces.Box(-1.0, 1.0, (2, 2), np.float32),
        Box((-1.0,) * 4, (1.0,) * 4, (4,)),
        [[0.5, -0.25, 1.5, -7.0], [1.0, -1.0, 0.0, 3.0]],
        [[[0.5, -0.25], [1.0, -1.0]], [[1.0, -1.0], [0.0, 1.0]]],
    ),
    (
        spaces.Box(np.array([-2.0, 0.0, -INF], dtype=np.float32), np.array([2.0, INF, INF], dtype=np.float32)),
        Box((-2.0, 0.0, -INF), (2.0, INF, INF), (3,)),
        [[-3.0, -3.0, -3.0], [3.0, 3.0, 3.0]],
        [[-2.0, 0.0, -3.0], [2.0, 3.0, 3.0]],
    ),
    (spaces.Box(-INF, INF, (1,), np.float32), Box((-INF,), (INF,), (1,)), [[-1e9], [1e9]], [[np.float32(-1e9)], [np.float32(1e9)]]),
    # 0.1 and 0.7 are no float32: rounded to one, the bounds would lie outside.
    (spaces.Box(0.1, 0.7, (1,), np.float64), Box((0.1,), (0.7,), (1,)), [[0.0], [0.75]], [[0.1], [0.7]]),
    (spaces.Box(0, 255, (2,), np.uint8), Box((0.0, 0.0), (255.0, 255.0), (2,)), [[1.6, -3.0], [999.0, 2.4]], [[2, 0], [255, 2]]),
    (spaces.Box(-1.0, 1.0, (), np.float32), Box((-1.0,), (1.0,), (1,)), [[0.5], [2.0]], [0.5, 1.0]),
]


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize(("space", "expected", "stored", "received"), CASES, ids=[str(case[0]).replace("\n", "") for case in CASES])
def test_the_simulator_gets_what_its_space_says(
    space: spaces.Space[Any], expected: Discrete | MultiDiscrete | Box, stored: list[Any], received: list[Any], mode: AutoresetMode
) -> None:
    assert action_space(space) == expected
    envs = [Notes(space, number) for number in range(2)]
    spec = EnvironmentSpec("notes", (3,), np.dtype(np.float32), expected, 1, False, "notes")
    environments = VectorEnvironments(SyncVectorEnv([lambda: envs[0], lambda: envs[1]], autoreset_mode=mode), spec, None)
    rollout = Rollout(spec, 3, 2)
    environments.reset(rollout.observation(0, 0, 2))
    chosen = torch.tensor(stored, dtype=expected.dtype)
    assert rollout.actions.shape == (3, 2, *expected.shape)
    for t in range(3):  # step 1 ends the first game, step 2 the second, or begins it
        rollout.set_actions(t, 0, 2, chosen if t % 2 == 0 else chosen.flip(0))
        environments.step(rollout.action(t, 0, 2), rollout.row(t, 0, 2))
    assert rollout.actions.tolist() == [chosen.tolist(), chosen.flip(0).tolist(), chosen.tolist()]
    for number, env in enumerate(envs):
        assert len(env.received) == (3 if mode is AutoresetMode.SAME_STEP else 2)
        for t, action in enumerate(env.received):
            assert action.tolist() == received[(number + t) % 2]
            assert action.dtype == space.dtype
            assert space.contains(np.asarray(action) if isinstance(space, spaces.Box) else action)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(3),
        spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2))),
        spaces.Dict({"left": spaces.Discrete(2)}),
        spaces.Box(-1.0, 1.0, (0,)),
        spaces.Box(-(2**60), 2**60, (1,), np.int64),
    ],
    ids=str,
)
def test_there_is_nothing_for_other_spaces(space: spaces.Space[Any]) -> None:
    assert action_space(space) is None


def test_random_actions_are_of_the_space_and_reach_its_ends() -> None:
    rng = np.random.default_rng(0)
    for space, ours, _, _ in CASES:
        actions = ours.sample(rng, 500, 4)
        assert actions.shape == (500, 4, *ours.shape)
        assert torch.from_numpy(actions).dtype is ours.dtype
        given = for_simulator(space)(actions.reshape(2000, *ours.shape))
        assert given.shape == (2000, *(space.shape or ()))
        assert all(space.contains(action) for action in given if isinstance(action, np.ndarray))
        if isinstance(ours, Box):
            for low, high, column in zip(ours.low, ours.high, actions.reshape(2000, -1).T, strict=True):
                assert np.float32(low) <= column.min() < (low + 0.02 * (high - low) if np.isfinite(high - low) else max(low, -1.5) + 0.1)
                assert column.max() <= np.float32(high)
        else:
            counts = np.array([ours.n]) if isinstance(ours, Discrete) else np.array(ours.sizes)
            assert (actions.reshape(2000, -1).min(axis=0) == 0).all()
            assert (actions.reshape(2000, -1).max(axis=0) == counts - 1).all()


def test_a_box_is_what_it_says() -> None:
    with pytest.raises(ValueError, match="2 lower and 1 upper"):
        Box((0.0, 0.0), (1.0,), (2,))
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        Box((0.0, 0.0), (1.0, 1.0), (3,))


def test_what_nodes_must_agree_on() -> None:
    described = [ours.describe() for _, ours, _, _ in CASES]
    assert described[1] == "discrete 3"
    assert described[3] == "multi_discrete 2,3,4,5"
    assert described[5:7] == ["box 4: -1 to 1", "box 3: (-2, 0, -inf) to (2, inf, inf)"]


def test_torques_of_a_pendulum() -> None:
    """The reward of Pendulum has 0.001 u^2 in it, with the torque u as it was applied: clipped to 2."""
    alone = gymnasium.make("Pendulum-v1")
    rewards = []
    for torque in (2.0, 1.0):
        alone.reset(seed=7)
        rewards.append(float(alone.step(np.array([torque], dtype=np.float32))[1]))
    env = SyncVectorEnv([lambda: gymnasium.make("Pendulum-v1")] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    spec = EnvironmentSpec("Pendulum-v1", (3,), np.dtype(np.float32), Box((-2.0,), (2.0,), (1,)), 1, False, "")
    environments, rollout = VectorEnvironments(env, spec, [7, 7]), Rollout(spec, 1, 2)
    environments.reset(rollout.observation(0, 0, 2))
    rollout.set_actions(0, 0, 2, torch.tensor([[50.0], [1.0]]))
    environments.step(rollout.action(0, 0, 2), rollout.row(0, 0, 2))
    assert rollout.rewards[0].tolist() == pytest.approx(rewards)
    environments.close()
