"""Actors: the hand-over of rows, games that ended, and environments that fail or hang."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tests.rl.test_observations import Cockpit, apart, by_hand
from zpala.node.actor import Actor, ActorGroup, Shard, shards
from zpala.node.errors import ActorError
from zpala.node.sockets import Context
from zpala.node.worker import Supervisor, WorkerFailed
from zpala.rl.action_spaces import Discrete
from zpala.rl.environments import Environments, EnvironmentSpec, Episode, StepRow, VectorEnvironments, environment_spec
from zpala.rl.rollout import Rollout

SPEC = EnvironmentSpec("counting", (1,), np.dtype(np.float32), Discrete(2), 1, False, "counting")


class Counting(Environments):
    """Observation = steps made so far; reward = action; a game ends every third step. May fail or hang at a step."""

    def __init__(self, num_envs: int, *, fail_at: int = -1, hang: threading.Event | None = None) -> None:
        self.spec, self.num_envs = SPEC, num_envs
        self._steps, self._fail_at, self._hang = 0, fail_at, hang
        self.closed = False
        self.stepped_in: set[str] = set()

    def reset(self, observation_out: np.ndarray) -> None:
        observation_out[...] = 0

    def step(self, actions: np.ndarray, row: StepRow) -> list[Episode]:
        self.stepped_in.add(threading.current_thread().name)
        self._steps += 1
        if self._hang is not None:
            self._hang.wait(30)
        if self._steps == self._fail_at:
            raise RuntimeError("the simulator broke")
        row.next_observation[...] = self._steps
        row.reward[...] = actions
        row.terminated[...] = row.truncated[...] = False
        row.valid[...] = True
        return [Episode(i, float(actions[i]), self._steps) for i in range(self.num_envs)] if self._steps % 3 == 0 else []

    def close(self) -> None:
        self.closed = True


def _same(environments: Environments) -> Environments:
    return environments


@pytest.fixture
def hang() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def stop(*actors: Actor) -> None:
    for actor in actors:
        actor.request_stop()
    for actor in actors:
        actor.join(10)


@pytest.mark.parametrize(("num_envs", "groups", "actors"), [(1, 1, 1), (7, 2, 2), (16, 2, 3), (5, 5, 1)])
def test_shards_cover_every_environment_once(num_envs: int, groups: int, actors: int) -> None:
    cut = shards(num_envs, groups, actors)
    columns = [c for group in cut for shard in group for c in range(shard.start, shard.stop)]
    assert columns == list(range(num_envs))
    sizes = [shard.stop - shard.start for group in cut for shard in group]
    assert max(sizes) - min(sizes) <= 1
    assert [len(group) for group in cut] == [actors] * groups


def test_more_actors_than_environments_are_refused() -> None:
    with pytest.raises(ValueError, match="each needs at least one"):
        shards(3, 2, 2)


def test_two_groups_fill_their_own_columns_of_one_slab(context: Context, supervisor: Supervisor) -> None:
    rollout = Rollout(SPEC, 4, 5)
    made = [Counting(2), Counting(3)]
    actors = [
        Actor(context, supervisor, f"actor {i}", functools.partial(_same, env), rollout, shard)
        for i, (env, shard) in enumerate(zip(made, [Shard(0, 2), Shard(2, 5)], strict=True))
    ]
    groups = [ActorGroup([actor], 10.0) for actor in actors]
    for actor in actors:
        actor.start()
    games: list[tuple[float, int]] = []
    try:
        for t in range(4):
            for group in groups:
                if t > 0:
                    games += group.wait(t)
                rollout.action(t, group.start, group.stop)[...] = t + 10 * group.start
                group.send_actions(t)
        for group in groups:
            games += group.wait(4)
    finally:
        stop(*actors)
    arrays = rollout.arrays()
    assert arrays["observations"][:, :, 0].tolist() == [[t] * 5 for t in range(5)]
    assert arrays["rewards"].tolist() == [[t, t, t + 20, t + 20, t + 20] for t in range(4)]
    assert games == [(2.0, 3)] * 2 + [(22.0, 3)] * 3
    assert [env.stepped_in for env in made] == [{"actor 0"}, {"actor 1"}]
    assert all(env.closed for env in made)


class Piloted(Cockpit):
    """A cockpit with two levers; the reward is what they were set to, an eighth of it for the second."""

    action_space = spaces.Box(-1.0, 1.0, (2,), np.float64)  # type: ignore[assignment]

    def step(self, action: Any) -> Any:
        observation, _, terminated, truncated, info = super().step(np.int64(0))
        return observation, action[0] + action[1] / 8, terminated, truncated, info


def test_actions_and_observations_of_other_spaces_go_through_the_same_slab(context: Context, supervisor: Supervisor) -> None:
    def make(shard: Shard) -> VectorEnvironments:
        envs = [functools.partial(Piloted, number) for number in range(shard.start, shard.stop)]
        return VectorEnvironments(SyncVectorEnv(envs, autoreset_mode=AutoresetMode.SAME_STEP), spec, None)

    spec = environment_spec(f"{__name__}:Piloted")
    rollout = Rollout(spec, 2, 5)
    cut = [Shard(0, 2), Shard(2, 5)]
    actors = [Actor(context, supervisor, f"actor {i}", functools.partial(make, shard), rollout, shard) for i, shard in enumerate(cut)]
    group = ActorGroup(actors, 10.0)
    for actor in actors:
        actor.start()
    try:
        for t in range(2):
            rollout.set_actions(t, 0, 5, torch.tensor([[n / 4, 5.0 * (t - 0.5)] for n in range(5)]))
            group.send_actions(t)
            group.wait(t + 1)
    finally:
        stop(*actors)
    for t, row in enumerate(rollout.arrays()["observations"]):
        assert [apart(packed) for packed in row] == [by_hand(n, 0, t) for n in range(5)]
    assert rollout.rewards.tolist() == [[n / 4 + sign / 8 for n in range(5)] for sign in (-1, 1)]


def test_an_environment_that_raises_reaches_the_learner(context: Context, supervisor: Supervisor) -> None:
    rollout = Rollout(SPEC, 4, 1)
    environments = Counting(1, fail_at=2)
    actor = Actor(context, supervisor, "actor 0", lambda: environments, rollout, Shard(0, 1))
    actor.start()
    try:
        actor.send_actions(0)
        assert actor.wait(1, 10.0) == []
        actor.send_actions(1)
        with pytest.raises(WorkerFailed, match="the simulator broke") as caught:
            actor.wait(2, 10.0)
        assert isinstance(caught.value.__cause__, RuntimeError)
    finally:
        stop(actor)
    assert environments.closed


def test_an_environment_that_hangs_is_told_by_name(context: Context, supervisor: Supervisor, hang: threading.Event) -> None:
    actor = Actor(context, supervisor, "actor 3", lambda: Counting(1, hang=hang), Rollout(SPEC, 4, 1), Shard(0, 1))
    actor.start()
    try:
        actor.send_actions(0)
        with pytest.raises(ActorError, match=r"actor 3: .* within 0.3 s"):
            actor.wait(1, 0.3)
    finally:
        hang.set()
        stop(actor)


PAUSED = """
import sys
from tests.node.test_actor import SPEC, Counting
from zpala.node.actor import Actor, Shard
from zpala.node.sockets import node_context
from zpala.node.worker import Supervisor
from zpala.rl.rollout import Rollout


class Waiting(Counting):
    def step(self, actions, row):
        sys.stdin.readline()
        return super().step(actions, row)


context = node_context(encrypted=False)
actor = Actor(context, Supervisor(context), "actor 0", lambda: Waiting(1), Rollout(SPEC, 4, 1), Shard(0, 1))
actor.start()
actor.send_actions(0)
print("done", actor.wait(1, 2.0, lambda: print("waits", flush=True)), flush=True)
actor.request_stop()
actor.join(10.0)
"""


def test_an_actor_is_not_blamed_for_a_pause_of_the_whole_process() -> None:
    root = Path(__file__).resolve().parents[2]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen([sys.executable, "-c", PAUSED], cwd=root, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "waits\n"
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            time.sleep(2.5)  # the fault: longer than the actor's limit
            process.send_signal(signal.SIGCONT)
            for _ in range(4):  # it has looked at the clock again, more than once
                assert process.stdout.readline() == "waits\n"
            process.stdin.write("go on\n")
            said = process.stdout.readline()
            while said == "waits\n":
                said = process.stdout.readline()
            assert said == "done []\n"
        finally:
            process.kill()


def test_an_environment_that_cannot_be_made_fails_the_start(context: Context, supervisor: Supervisor) -> None:
    def make() -> Environments:
        raise ValueError("no such game")

    actor = Actor(context, supervisor, "actor 0", make, Rollout(SPEC, 4, 1), Shard(0, 1))
    try:
        with pytest.raises(ValueError, match="no such game"):
            actor.start()
    finally:
        stop(actor)
