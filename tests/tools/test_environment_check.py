"""What ``zpala env check`` finds: every mistake by its name, and nothing where there is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest

from tests.tools.broken_environments import Walk
from zpala.config import ConfigError, EnvironmentConfig
from zpala.tools import environment_check
from zpala.tools.environment_check import Examination, examine

BROKEN = "tests.tools.broken_environments"


@pytest.fixture(autouse=True)
def _short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment_check, "SPEED_S", 0.02)


@pytest.fixture
def _not_installed() -> Iterator[None]:
    gymnasium.register("NotInstalled-v0", entry_point=f"{BROKEN}:not_installed")
    yield
    del gymnasium.registry["NotInstalled-v0"]


def check(env_id: str, steps: int = 800, num_envs: int = 4, **settings: Any) -> Examination:
    return examine(EnvironmentConfig(id=env_id, num_envs=num_envs, **settings), steps)


def test_nothing_is_wrong_with_the_one_that_is_right() -> None:
    found = check(f"{BROKEN}:Walk")
    assert (found.errors, found.warnings, found.usable) == ([], [], True)
    assert found.compared == "800 steps in vectors of 4 are exactly those of plain ones with the same seeds and actions, ends included"
    assert (found.kind, found.stored_as, found.action, found.autoreset) == ("factory", "float32[2]", "Discrete(2)", "SAME_STEP")
    assert found.time_limit == "of its own; games were truncated after 40 env_steps"


@pytest.mark.parametrize(
    ("name", "stored_as", "action"),
    [
        (
            "Dashboard",
            "uint8[96] of camera uint8[1,8,8], dials.place float32[1], dials.side float32[3]",
            "MultiDiscrete([3 2], start=[-1 0])",
        ),
        ("Steered", "float32[2]", "Box([-1. 0.], [1. 0.5], (2,), float64)"),
    ],
)
def test_nor_with_those_of_other_spaces(name: str, stored_as: str, action: str) -> None:
    found = check(f"{BROKEN}:{name}")
    assert (found.errors, found.stored_as, found.action) == ([], stored_as, action)
    assert found.compared == "800 steps in vectors of 4 are exactly those of plain ones with the same seeds and actions, ends included"
    assert found.games is not None
    assert min(found.games.terminated, found.games.truncated) > 0


@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
def test_a_vector_factory_of_dict_observations(mode: str) -> None:
    found = check(f"{BROKEN}:dashboards", args={"mode": mode})
    assert (found.errors, found.warnings, found.kind) == ([], [], "vector factory")
    assert found.games is not None
    assert found.games.truncated > 0


def test_torques_of_a_pendulum() -> None:
    found = check("Pendulum-v1")
    assert (found.errors, found.action, found.time_limit) == ([], "Box(-2.0, 2.0, (1,), float32)", "200 env_steps")
    assert found.compared is not None
    assert found.compared.startswith("800 steps in vectors of 4 are exactly those of plain ones")


def test_what_is_counted_is_what_was_played() -> None:
    """The same seeds and actions again, in a loop of its own."""
    found = check(f"{BROKEN}:Walk", steps=600, num_envs=3)
    rng = np.random.default_rng(0)
    rewards, games = [], []
    for i, actions in enumerate([rng.integers(0, 2, 200) for _ in range(3)]):
        env, total, length = Walk(), 0.0, 0
        env.reset(seed=1000 + i)
        for action in actions:
            _, reward, terminated, truncated, _ = env.step(action)
            rewards.append(reward)
            total, length = total + reward, length + 1
            if terminated or truncated:
                games.append((total, length, truncated))
                total, length = 0.0, 0
                env.reset()
    returns, lengths = [game[0] for game in games], [game[1] for game in games]
    assert found.games is not None
    assert (found.steps, found.reward_min, found.reward_max) == (600, min(rewards), max(rewards))
    assert (found.games.terminated, found.games.truncated) == (sum(not game[2] for game in games), sum(game[2] for game in games))
    assert min(found.games.terminated, found.games.truncated) > 0
    assert (found.games.length_min, found.games.length_max) == (min(lengths), max(lengths))
    assert (found.games.return_min, found.games.return_max) == (min(returns), max(returns))
    assert found.games.return_mean == pytest.approx(sum(returns) / len(returns))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Doubles", ["observation: the first reset returned float64, its space says float32", "times"]),
        ("Lists", ["observation: the first reset returned a list of 2, not a NumPy array"]),
        ("Objects", ["observation: the first reset returned object, its space says float32"]),
        ("Longer", ["observation: the first reset returned the shape (3,), its space says (2,)"]),
        ("Outside", ["observation: step", "at [0], outside its space, -2.0 to 0.5"]),
        ("Blind", ["observation: step 19 returned", "at [0]"]),
        ("NanReward", ["reward: step 8 returned nan"]),
        ("ArrayReward", ["reward: step 0 returned an array of shape (1,), not a number"]),
        ("NumberForBool", ["terminated: step 0 returned a int, not a bool"]),
        ("FourValues", ["step 0 returned a tuple of 4, not the five values"]),
        ("OldReset", ["the first reset returned an array of shape (2,), not the two values"]),
        ("Raises", ["step 7 raised ZeroDivisionError: a leg broke", "broken_environments.py:"]),
        ("NoConstruction", ["FileNotFoundError: track.png", "broken_environments.py:"]),
        ("ReusesItsBuffer", ["vectors: the final observation", "changed after it was returned"]),
        ("SharesItsPlace", ["vectors: ", "share something"]),
        ("BlindDashboard", ["observation: the first reset returned a dict, not a dict with 'camera'"]),
        ("OtherDashboard", ["observation['dials']['place']: the first reset returned float64, its space says float32"]),
        ("FarSide", ["observation['dials']['side']: the first reset returned", "not in Discrete(3, start=-1)", "cannot be stored"]),
        ("SmallCamera", ["observation['camera']: the first reset returned the shape (1, 4, 4), its space says (1, 8, 8)"]),
        ("ReusesItsDashboard", ["vectors: the final observation", "changed after it was returned"]),
        ("far_sides", ["observation 'dials.side' has the value"]),
        ("rewards_its_resets", ["should only begin the next game (NEXT_STEP)"]),
        ("forgets_the_final", ["its info has no final_obs"]),
        ("nan_rewards", ["reward: step 0 returned [nan"]),
        ("doubles_in_a_vector", ["observation: the first reset returned float32, its space says float64"]),
        ("disabled", ["autoreset_mode is AutoresetMode.DISABLED"]),
    ],
)
def test_a_mistake_is_named(name: str, words: list[str]) -> None:
    found = check(f"{BROKEN}:{name}")
    assert not found.usable
    text = "\n".join(found.errors)
    for word in words:
        assert word in text
    json.loads(found.json(), parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    assert "usable       no" in found.text()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("OwnDice", "not deterministic: with the same seed and actions the observation at step 0"),
        ("Endless", "no game ended within 200 steps"),
        ("Loud", "observations reach 5,"),
        ("ChannelsLast", "numpy.moveaxis"),
        ("LoudDashboard", "'camera': images of shape (8, 8, 3) look as if"),
        ("LoudDashboard", "'place': observations reach 5,"),
    ],
)
def test_what_is_no_mistake_and_worth_knowing_is_a_warning(name: str, words: str) -> None:
    found = check(f"{BROKEN}:{name}")
    assert found.usable
    assert words in "\n".join(found.warnings)
    assert "\nwarning" in found.text()


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("tests.rl.scripted:make_levers", ["action space is Tuple", "TransformAction"]),
        ("FrozenLake-v1", ["observation space is Discrete(16)", "FlattenObservation"]),
        ("NotInstalled-v0", ["needs a package that is not installed", "pip install box"]),
    ],
)
@pytest.mark.usefixtures("_not_installed")
def test_what_zpala_cannot_learn_is_refused_with_reason_and_way_out(env_id: str, words: list[str]) -> None:
    found = check(env_id)
    assert not found.usable
    (error,) = found.errors
    for word in words:
        assert word in error


def test_a_name_that_nothing_has() -> None:
    with pytest.raises(ConfigError, match="CartPole-v1"):
        check("CartPol-v1")


def test_a_native_vector_environment_beside_plain_ones() -> None:
    found = check("CartPole-v1", max_episode_steps=20)
    assert (found.errors, found.autoreset, found.time_limit) == ([], "NEXT_STEP", "20 env_steps")
    assert found.compared is not None
    assert found.compared.startswith("800 steps in vectors one by one are within rounding those of plain ones")
    assert found.games is not None
    assert found.games.length_max == 20
    assert min(found.games.terminated, found.games.truncated) > 0


def test_a_vector_factory_has_no_plain_environment_beside_it() -> None:
    found = check(f"{BROKEN}:vector")
    assert (found.errors, found.warnings, found.kind, found.autoreset) == ([], [], "vector factory", "NEXT_STEP")
    assert found.games is not None
    assert found.games.truncated > 0
    assert found.games.length_max == 40


@pytest.mark.parametrize(("life_loss", "limit"), [(False, None), (True, 30)])
def test_atari_beside_a_plain_emulator(life_loss: bool, limit: int | None) -> None:
    found = check("breakout", num_envs=2, life_loss=life_loss, max_episode_steps=limit)
    assert (found.errors, found.kind, found.stored_as) == ([], "Atari", "uint8[4,84,84]")
    assert found.compared == "rewards and ends of 400 steps are those of a plain emulator (without no-ops and sticky actions)"
    assert found.games is not None
    assert (found.games.truncated, found.games.terminated) == ((13, 0) if limit else (0, found.games.terminated))
    assert found.games.terminated > 0 or limit is not None


def test_the_document_says_what_the_lines_say() -> None:
    found = check("MountainCar-v0")
    document = json.loads(found.json())
    assert document["usable"] is True
    assert document["games"]["truncated"] == 4
    assert document["games"]["length_min"] == 200
    assert document["steps_per_s_single"] > 0
    assert document["steps_per_s_vector"] > 0
    lines = found.text().splitlines()
    assert f"observation  {document['observation']}, stored as float32[2]" in lines
    assert "games        0 terminated, 4 truncated; 200 to 200 env_steps; return -200 to -200, mean -200" in lines
    assert "time limit   200 env_steps" in lines
