"""The names that ``zpala env list`` offers are names that can be made."""

from __future__ import annotations

import json

import pytest
from ale_py import roms

from zpala.config import ConfigError
from zpala.rl.environment_names import AtariGame, resolve
from zpala.rl.environments import environment_spec
from zpala.tools.environment_list import listing


def test_every_name_of_a_game_means_the_game() -> None:
    found = listing()
    assert [game.id for game in found.atari] == sorted(roms.get_all_rom_ids())
    for game in found.atari:
        assert {resolve(name) for name in game.names} <= {AtariGame(game.id)}
    named = {game.id: game.names[0] for game in found.atari if game.names}
    assert named["pong"] == "ALE/Pong-v5"
    assert len(named) > 100


@pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")
def test_gymnasium_ids_are_usable_unless_it_is_said_why_not() -> None:
    entries = {entry.id: entry for entry in listing().gymnasium}
    assert {"CartPole-v1", "Acrobot-v1", "MountainCar-v0"} <= {name for name, entry in entries.items() if not entry.problem}
    for name, entry in entries.items():
        if not entry.problem:
            assert entry.action == environment_spec(name).actions.describe()
    assert entries["CartPole-v1"].observation == "float32[4]"
    assert (entries["Pendulum-v1"].action, entries["Pendulum-v1"].problem) == ("box 1: -2 to 2", "")
    assert "the observation space is Discrete(16)" in entries["FrozenLake-v1"].problem


def test_a_word_is_looked_for_in_all_names_in_any_case() -> None:
    found = listing("PONG")
    assert [game.id for game in found.atari] == ["pong"]
    assert not found.gymnasium
    document = json.loads(found.json())
    assert "PongNoFrameskip-v4" in document["atari"][0]["names"]
    assert "module:factory" in document["custom"]
    assert [entry.id for entry in listing("cart").gymnasium] == ["CartPole-v0", "CartPole-v1"]
    assert "  pong                 ALE/Pong-v5" in found.text().splitlines()


def test_a_word_that_nothing_has_is_told_what_comes_close() -> None:
    with pytest.raises(ConfigError, match="breakout"):
        listing("brekout")
