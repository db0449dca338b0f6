from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ale_py
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.rl.scripted import Game, ScriptedEnv
from zpala.rl.action_spaces import ActionSpace, Discrete
from zpala.rl.environments import (
    AtariSettings,
    Environments,
    EnvironmentSpec,
    Episode,
    UnsupportedEnvironment,
    VectorEnvironments,
    environment_spec,
    make_environments,
)
from zpala.rl.returns import discounts, n_step_returns
from zpala.rl.rollout import Rollout

SCRIPTED = EnvironmentSpec("scripted", (3,), np.dtype(np.float32), Discrete(2), 1, False, "scripted")

Policy = Callable[[NDArray[Any]], NDArray[Any]]


def play(environments: Environments, steps: int, policy: Policy) -> tuple[Rollout, list[list[Episode]]]:
    """One long rollout from the first observation on, and the games that ended at each step."""
    n = environments.num_envs
    rollout = Rollout(environments.spec, steps, n)
    environments.reset(rollout.observation(0, 0, n))
    ended = []
    for t in range(steps):
        rollout.set_actions(t, 0, n, torch.from_numpy(policy(rollout.observation(t, 0, n))))
        ended.append(environments.step(rollout.action(t, 0, n), rollout.row(t, 0, n)))
    return rollout, ended


def random_policy(space: ActionSpace, seed: int = 0) -> Policy:
    rng = np.random.default_rng(seed)
    return lambda observation: space.sample(rng, len(observation))


def alternating(observation: NDArray[Any]) -> NDArray[np.int64]:
    return np.asarray(observation.sum(axis=1) % 2, dtype=np.int64)


def scripted(scripts: list[list[Game]], mode: AutoresetMode) -> VectorEnvironments:
    envs = [ScriptedEnv(number, games) for number, games in reversed(list(enumerate(scripts)))]
    return VectorEnvironments(SyncVectorEnv([envs.pop for _ in scripts], autoreset_mode=mode), SCRIPTED, None)


class Transition(NamedTuple):
    observation: tuple[float, ...]
    action: int
    reward: float
    terminated: bool
    truncated: bool
    following: tuple[float, ...]
    return_: float


def transitions(rollout: Rollout, environment: int) -> list[Transition]:
    """Every valid step of one environment whose return does not depend on where the rollout was cut."""
    final_values = torch.where(rollout.truncated, rollout.final_observations.sum(-1), 0.0)
    discount = discounts(rollout.terminated, rollout.truncated, 0.75)
    returns = n_step_returns(rollout.rewards, discount, final_values, torch.zeros(rollout.num_envs))
    ended = (rollout.terminated | rollout.truncated)[:, environment]
    last = int(ended.nonzero().max()) if ended.any() else -1
    found = []
    for t in range(last + 1):
        if not rollout.valid[t, environment]:
            continue
        following = rollout.final_observations[t, environment] if ended[t] else rollout.observations[t + 1, environment]
        cell = (t, environment)
        found.append(
            Transition(
                tuple(rollout.observations[cell].tolist()),
                int(rollout.actions[cell]),
                rollout.rewards[cell].item(),
                bool(rollout.terminated[cell]),
                bool(rollout.truncated[cell]),
                tuple(following.tolist()),
                returns[cell].item(),
            )
        )
    return found


ENDINGS = st.sampled_from([(True, False), (False, True), (True, True)])
GAMES = st.lists(st.builds(lambda length, ending: Game(length, *ending), st.integers(1, 4), ENDINGS), min_size=1, max_size=4)


@settings(deadline=None, max_examples=60)
@given(st.lists(GAMES, min_size=1, max_size=3))
def test_both_autoreset_modes_give_the_same_masked_transitions(scripts: list[list[Game]]) -> None:
    same, same_games = play(scripted(scripts, AutoresetMode.SAME_STEP), 24, alternating)
    following, next_games = play(scripted(scripts, AutoresetMode.NEXT_STEP), 24, alternating)
    assert same.valid.all()
    for environment in range(len(scripts)):
        expected, found = transitions(same, environment), transitions(following, environment)
        assert found
        assert found == expected[: len(found)]
        games = [[e for step in steps for e in step if e.environment == environment] for steps in (same_games, next_games)]
        assert games[1] == games[0][: len(games[1])]


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_a_scripted_game_is_told_as_written(mode: AutoresetMode) -> None:
    """Two steps that terminate, then one step that is truncated; action 0 throughout."""
    games = [Game(2, True, False), Game(1, False, True)]
    rollout, ended = play(scripted([games], mode), 5, lambda observation: np.zeros(1, dtype=np.int64))
    if mode is AutoresetMode.SAME_STEP:
        assert rollout.observations[:, 0].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 2, 0], [0, 2, 1], [0, 3, 0]]
        assert rollout.rewards[:, 0].tolist() == [0.0, 0.125, 1.0, 2.0, 2.125]
        assert rollout.terminated[:, 0].tolist() == [False, True, False, False, True]
        assert rollout.truncated[:, 0].tolist() == [False, False, True, False, False]
        assert rollout.final_observations[[1, 2, 4], 0].tolist() == [[0, 0, 2], [0, 1, 1], [0, 2, 2]]
        assert ended == [[], [Episode(0, 0.125, 2)], [Episode(0, 1.0, 1)], [], [Episode(0, 4.125, 2)]]
    else:
        assert rollout.observations[:, 0].tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 2, 0]]
        assert rollout.rewards[:, 0].tolist() == [0.0, 0.125, 0.0, 1.0, 0.0]
        assert rollout.valid[:, 0].tolist() == [True, True, False, True, False]
        assert rollout.terminated[:, 0].tolist() == [False, True, False, False, False]
        assert rollout.truncated[:, 0].tolist() == [False, False, False, True, False]
        assert rollout.final_observations[[1, 3], 0].tolist() == [[0, 0, 2], [0, 1, 1]]
        assert ended == [[], [Episode(0, 0.125, 2)], [], [Episode(0, 1.0, 1)], []]
        assert rollout.valid_steps() == 3


def test_disabled_autoreset_is_refused() -> None:
    with pytest.raises(UnsupportedEnvironment, match="SAME_STEP or NEXT_STEP"):
        scripted([[Game(1, True, False)]], AutoresetMode.DISABLED)


def test_native_cartpole_counts_what_it_plays() -> None:
    environments = make_environments("CartPole-v1", 8, seeds=list(range(8)))
    rollout, ended = play(environments, 200, random_policy(Discrete(2)))
    environments.close()
    games = [episode for step in ended for episode in step]
    assert len(games) > 30
    assert all(episode.return_ == episode.length for episode in games)
    assert rollout.rewards.sum().item() == rollout.valid_steps()
    resets = ~rollout.valid
    assert resets[1:].eq((rollout.terminated | rollout.truncated)[:-1]).all()
    assert rollout.observations[1:][resets].abs().max() <= 0.05


def test_native_cartpole_is_truncated_by_its_time_limit() -> None:
    environments = make_environments("CartPole-v1", 2, seeds=[1, 2], args={"max_episode_steps": 5})
    rollout, ended = play(environments, 6, random_policy(Discrete(2)))
    assert rollout.truncated[4].all()
    assert not rollout.terminated.any()
    assert [episode.length for episode in ended[4]] == [5, 5]
    assert torch.equal(rollout.final_observations[4], rollout.observations[5])


def test_seeds_decide_everything() -> None:
    for env_id in ("CartPole-v1", "Acrobot-v1", "pong"):
        observations = []
        for seeds in ([1, 2], [1, 2], [3, 4]):
            environments = make_environments(env_id, 2, seeds=seeds)
            observations.append(play(environments, 8, random_policy(environments.spec.actions))[0].observations)
            environments.close()
        assert torch.equal(observations[0], observations[1])
        assert not torch.equal(observations[0], observations[2])


def test_plain_environments_are_stepped_in_the_calling_thread() -> None:
    environments = make_environments("Acrobot-v1", 3, seeds=[1, 2, 3], args={"max_episode_steps": 4})
    rollout, ended = play(environments, 9, random_policy(Discrete(3)))
    assert rollout.valid.all()
    assert rollout.truncated.nonzero().tolist() == [[t, n] for t in (3, 7) for n in range(3)]
    assert [len(games) for games in ended] == [0, 0, 0, 3, 0, 0, 0, 3, 0]
    assert not torch.equal(rollout.final_observations[3], rollout.observations[4])


def test_closing_twice_is_harmless_and_stepping_then_is_an_error() -> None:
    environments = make_environments("CartPole-v1", 1, seeds=[1])
    environments.close()
    environments.close()
    with pytest.raises(RuntimeError, match="closed"):
        environments.reset(np.zeros((1, 4), dtype=np.float32))


def test_atari_names_are_one_game_and_settings_come_from_us_alone() -> None:
    specs = [environment_spec(name) for name in ("ALE/Pong-v5", "PongNoFrameskip-v4", "pong")]
    assert [spec.agreement() for spec in specs] == [specs[0].agreement()] * 3
    assert specs[0].observation_shape == (4, 84, 84)
    assert specs[0].observation_dtype == np.uint8
    assert specs[0].actions == Discrete(6)
    assert specs[0].frame_skip == 4
    assert "sticky_action_probability=0.0" in specs[0].agreement()["environment"]
    sticky = environment_spec("pong", atari=AtariSettings(sticky_action_probability=0.25, full_action_space=True))
    assert sticky.actions == Discrete(18)
    assert sticky.agreement() != specs[0].agreement()


def test_atari_returns_are_the_raw_score_of_whole_games() -> None:
    """Games of four lives with rewards far above 1: a clipped reward or a life taken for a game would show."""
    environments = make_environments("ms_pacman", 4, seeds=[1, 2, 3, 4], num_threads=1)
    rollout, ended = play(environments, 700, random_policy(Discrete(9)))
    environments.close()
    assert rollout.rewards.max() >= 10.0
    games = [(t, episode) for t, step in enumerate(ended) for episode in step]
    assert games
    begun = [0] * 4
    for t, episode in games:
        start, n = begun[episode.environment], episode.environment
        assert episode.return_ == rollout.rewards[start : t + 1, n].sum().item()
        assert episode.length == t + 1 - start
        assert rollout.terminated[start : t + 1, n].tolist() == [False] * (t - start) + [True]
        begun[n] = t + 1
    assert max(episode.length for _, episode in games) > 250


def test_a_whole_game_of_pong() -> None:
    environments = make_environments("pong", 2, seeds=[5, 6], num_threads=1)
    rollout, ended = play(environments, 1200, random_policy(Discrete(6)))
    environments.close()
    first = next(episode for step in ended for episode in step)
    rewards = rollout.rewards[: first.length, first.environment]
    assert first.return_ == rewards.sum().item()
    assert (rewards == -1.0).sum() == 21
    assert set(rewards.tolist()) <= {-1.0, 0.0, 1.0}


def test_atari_truncation_hands_out_the_final_observation() -> None:
    environments = make_environments("pong", 2, seeds=[1, 2], atari=AtariSettings(max_episode_frames=120, noop_max=0))
    rollout, ended = play(environments, 40, random_policy(Discrete(6)))
    environments.close()
    assert rollout.truncated.any()
    assert not rollout.terminated.any()
    t, n = rollout.truncated.nonzero()[0].tolist()
    assert not torch.equal(rollout.final_observations[t, n], rollout.observations[t + 1, n])
    # The three older frames of the final stack are the three newer ones of the observation before.
    assert torch.equal(rollout.final_observations[t, n, :3], rollout.observations[t, n, 1:])
    assert [episode.environment for episode in ended[t]] == rollout.truncated[t].nonzero().flatten().tolist()


def test_atari_steps_are_those_of_a_plain_emulator() -> None:
    """Score for score: four frames per action, the smallest set of actions in its order, no action repeated by chance."""
    environments = make_environments("pong", 1, seeds=[1], atari=AtariSettings(noop_max=0))
    rollout, _ = play(environments, 400, random_policy(Discrete(6), seed=3))
    environments.close()
    path = ale_py.roms.get_rom_path("pong")
    assert path is not None
    emulator = ale_py.ALEInterface()
    emulator.setFloat("repeat_action_probability", 0.0)
    emulator.loadROM(path)
    emulator.reset_game()
    emulator.act(ale_py.Action.FIRE)
    legal = emulator.getMinimalActionSet()
    rewards = [sum(emulator.act(legal[action]) for _ in range(4)) for action in rollout.actions[:, 0].tolist()]
    assert min(rewards) == -1
    assert rewards == rollout.rewards[:, 0].tolist()


def test_observations_are_stored_as_bytes_or_single_floats() -> None:
    assert environment_spec("pong").observation_dtype == np.uint8
    assert environment_spec("CartPole-v1").observation_dtype == np.float32
    assert environment_spec("tests.rl.scripted:DoublesEnv").observation_dtype == np.float32
