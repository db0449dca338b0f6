"""Lost lives and time limits: which steps end a game for the learner, which for the count of returns, and which for the simulator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ale_py
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tests.rl.scripted import Game, ScriptedEnv
from tests.rl.test_environments import play, random_policy
from zpala.rl.environments import AtariSettings, Environments, Episode, UnsupportedEnvironment, environment_spec, make_environments
from zpala.rl.returns import discounts, n_step_returns
from zpala.rl.rollout import Rollout

LIMITED = "tests.rl.test_endings:make_limited"


def make_long() -> ScriptedEnv:
    return ScriptedEnv(0, [Game(1000, True, False)])


def make_short() -> ScriptedEnv:
    return ScriptedEnv(0, [Game(2, True, False)])


def make_vector(num_envs: int) -> SyncVectorEnv:
    return SyncVectorEnv([make_long for _ in range(num_envs)])


def make_limited(num_envs: int, max_episode_steps: int = 9) -> SyncVectorEnv:
    def make() -> gymnasium.Env[Any, Any]:
        return gymnasium.wrappers.TimeLimit(make_long(), max_episode_steps)

    return SyncVectorEnv([make for _ in range(num_envs)], autoreset_mode=AutoresetMode.NEXT_STEP)


def atari(game: str, steps: int, num_envs: int = 1, limit: int | None = None, **settings: Any) -> tuple[Rollout, list[list[Episode]]]:
    environments = make_environments(
        game, num_envs, seeds=list(range(1, num_envs + 1)), atari=AtariSettings(**settings), max_episode_steps=limit
    )
    try:
        return play(environments, steps, random_policy(environments.spec.actions, seed=3))
    finally:
        environments.close()


def emulate(game: str, actions: list[int]) -> tuple[list[float], list[bool], list[bool]]:
    """Rewards, ends of games, and ends as OpenAI baselines' EpisodicLifeEnv tells them, of a plain emulator."""
    path = ale_py.roms.get_rom_path(game)
    assert path is not None
    emulator = ale_py.ALEInterface()
    emulator.setFloat("repeat_action_probability", 0.0)
    emulator.loadROM(path)
    legal = emulator.getMinimalActionSet()

    def begin() -> None:
        emulator.reset_game()
        if ale_py.Action.FIRE in legal:
            emulator.act(ale_py.Action.FIRE)

    rewards: list[float] = []
    over: list[bool] = []
    done: list[bool] = []
    begin()
    was = emulator.lives()
    for action in actions:
        rewards.append(0.0)
        for _ in range(4):
            if not emulator.game_over():
                rewards[-1] += emulator.act(legal[action])
        lives = emulator.lives()
        over.append(emulator.game_over())
        done.append(over[-1] or 0 < lives < was)
        if over[-1]:
            begin()
            lives = emulator.lives()
        was = lives
    return rewards, over, done


@pytest.mark.parametrize("game", ["breakout", "qbert"])
def test_lost_lives_are_those_of_a_plain_emulator_and_games_stay_whole(game: str) -> None:
    rollout, ended = atari(game, 800, life_loss=True, noop_max=0)
    rewards, over, done = emulate(game, rollout.actions[:, 0].tolist())
    assert rollout.rewards[:, 0].tolist() == rewards
    assert rollout.terminated[:, 0].tolist() == done
    assert sum(done) > sum(over) + 3, "no life was lost"
    assert sum(over) > 0
    assert not rollout.truncated.any()
    ends = [t for t, is_over in enumerate(over) if is_over]
    starts = [0, *(t + 1 for t in ends)]
    assert [t for t, games in enumerate(ended) for _ in games] == ends
    expected = [Episode(0, sum(rewards[start : end + 1]), end + 1 - start) for start, end in zip(starts, ends, strict=False)]
    assert [episode for games in ended for episode in games] == expected


def test_a_lost_life_changes_nothing_but_what_is_terminated() -> None:
    (with_lives, games), (without, same_games) = atari("breakout", 300, 3, life_loss=True), atari("breakout", 300, 3)
    assert torch.equal(with_lives.observations, without.observations)
    assert torch.equal(with_lives.rewards, without.rewards)
    assert games == same_games
    lost = with_lives.terminated & ~without.terminated
    assert lost.sum() >= 6
    assert (without.terminated <= with_lives.terminated).all()
    for t, n in lost.nonzero().tolist():  # the game goes on: what came last is what comes next
        assert torch.equal(with_lives.final_observations[t, n], with_lives.observations[t + 1, n])


def test_nothing_behind_a_lost_life_is_bootstrapped() -> None:
    rollout, _ = atari("breakout", 60, life_loss=True, noop_max=0)
    discount = discounts(rollout.terminated, rollout.truncated, 0.9)
    returns = n_step_returns(rollout.rewards, discount, torch.full((60, 1), 1e6), torch.full((1,), 1e6))[:, 0]
    lost = int(rollout.terminated[:, 0].nonzero()[-1])
    expected = 0.0
    for t in reversed(range(lost + 1)):
        expected = rollout.rewards[t, 0].item() + (0.0 if rollout.terminated[t, 0] else 0.9 * expected)
        assert returns[t].item() == pytest.approx(expected, abs=1e-5)
    assert returns[lost + 1].item() > 1000


def test_a_game_without_lives_has_no_such_signal() -> None:
    rollout, _ = atari("pong", 200, life_loss=True)
    assert (rollout.rewards < 0).any()
    assert not rollout.terminated.any()


@pytest.mark.parametrize("life_loss", [False, True])
def test_atari_games_are_cut_off_after_exactly_so_many_env_steps(life_loss: bool) -> None:
    """Whatever number of no-ops they began with. (A game of Breakout by chance ends after about 170 steps.)"""
    limit = 40
    rollout, ended = atari("breakout", 121, 4, limit, life_loss=life_loss)
    free, _ = atari("breakout", 121, 4, life_loss=life_loss)
    expected = torch.zeros_like(rollout.truncated)
    expected[[39, 79, 119]] = True
    assert torch.equal(rollout.truncated, expected)
    assert [[(e.environment, e.length) for e in games] for games in ended if games] == [[(n, limit) for n in range(4)]] * 3
    assert [games[0].return_ for games in ended if games] == [rollout.rewards[t : t + limit, 0].sum().item() for t in (0, 40, 80)]
    # The first game is that without a limit, its last observation included; then a new one begins.
    assert torch.equal(rollout.observations[:limit], free.observations[:limit])
    assert torch.equal(rollout.final_observations[limit - 1], free.observations[limit])
    assert not torch.equal(rollout.observations[limit], free.observations[limit])
    assert bool(rollout.terminated.any()) is life_loss
    if life_loss:  # a new game has all its lives: none is lost at its first step
        assert not rollout.terminated[[40, 80, 120]].any()


def test_only_the_games_at_their_limit_are_begun_anew() -> None:
    """Some games end by themselves before, so the limits of the others come at different times."""
    limit = 190
    rollout, ended = atari("breakout", 700, 3, limit)
    games = [(t, episode) for t, step in enumerate(ended) for episode in step]
    cut = [(t, e) for t, e in games if e.length == limit]
    assert cut
    assert len(games) > len(cut), "no game ended by itself"
    begun = [0] * 3
    for t, episode in games:
        n = episode.environment
        assert episode.length == t + 1 - begun[n] <= limit
        assert episode.return_ == rollout.rewards[begun[n] : t + 1, n].sum().item()
        assert bool(rollout.truncated[t, n]) is (episode.length == limit)
        begun[n] = t + 1
    assert rollout.truncated.sum().item() == len(cut)
    # Of two consecutive observations three frames are the same, unless a new game has begun in between.
    moved = (rollout.observations[1:, :, :3] == rollout.observations[:-1, :, 1:]).flatten(2).all(2)
    assert torch.equal(~moved, rollout.terminated | rollout.truncated)


def lengths(environments: Environments, steps: int) -> list[int]:
    try:
        _, ended = play(environments, steps, lambda observation: np.zeros(len(observation), dtype=np.int64))
    finally:
        environments.close()
    return [episode.length for games in ended for episode in games]


@pytest.mark.parametrize(
    ("env_id", "expected"),
    [
        ("CartPole-v1", [5, 5]),  # Gymnasium's native vector environment
        ("MountainCar-v0", [5, 5]),  # plain ones, one after the other
        ("tests.rl.test_endings:make_long", [5, 5]),
        ("tests.rl.test_endings:make_short", [2] * 10),  # its own end comes first
        (LIMITED, [5, 5]),
    ],
)
def test_any_environment_can_have_a_time_limit(env_id: str, expected: list[int]) -> None:
    environments = make_environments(env_id, 2, seeds=[1, 2], max_episode_steps=5)
    assert lengths(environments, 11)[: len(expected)] == expected


def test_a_longer_limit_takes_the_place_of_the_registered_one() -> None:
    assert lengths(make_environments("MountainCar-v0", 1, seeds=[1]), 450) == [200, 200]
    assert lengths(make_environments("MountainCar-v0", 1, seeds=[1], max_episode_steps=220), 450) == [220, 220]


@pytest.fixture
def native_without_limit() -> Iterator[str]:
    name = "NativeWithoutLimit-v0"
    gymnasium.register(name, entry_point="tests.rl.test_endings:make_long", vector_entry_point="tests.rl.test_endings:make_vector")
    yield name
    del gymnasium.registry[name]


def test_a_native_vector_environment_that_knows_no_limit_gives_way_to_plain_ones(native_without_limit: str) -> None:
    assert lengths(make_environments(native_without_limit, 1, seeds=[1]), 20) == []
    assert lengths(make_environments(native_without_limit, 1, seeds=[1], max_episode_steps=6), 20) == [6, 6, 6]


def test_the_limit_and_the_signal_are_part_of_what_nodes_agree_on() -> None:
    specs = [environment_spec("breakout"), environment_spec("breakout", atari=AtariSettings(life_loss=True))]
    specs += [environment_spec("breakout", max_episode_steps=7), environment_spec("CartPole-v1", max_episode_steps=7)]
    specs += [environment_spec("CartPole-v1"), environment_spec("CartPole-v1", {"max_episode_steps": 8})]
    assert len({spec.agreement()["environment"] for spec in specs}) == len(specs)
    assert environment_spec("CartPole-v1", {"max_episode_steps": 7}).agreement() == specs[3].agreement()


@pytest.mark.parametrize(
    ("env_id", "args", "life_loss", "limit", "reason"),
    [
        ("CartPole-v1", {}, True, None, "life_loss is for Atari"),
        ("tests.rl.test_endings:make_vector", {}, False, 5, "parameter max_episode_steps"),
        ("CartPole-v1", {"max_episode_steps": 3}, False, 5, "given twice"),
        (LIMITED, {"max_episode_steps": 3}, False, 5, "given twice"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(
    env_id: str, args: dict[str, Any], life_loss: bool, limit: int | None, reason: str
) -> None:
    with pytest.raises(UnsupportedEnvironment, match=reason):
        make_environments(env_id, 1, seeds=[1], args=args, atari=AtariSettings(life_loss=life_loss), max_episode_steps=limit)
