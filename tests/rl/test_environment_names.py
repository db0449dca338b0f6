from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from tests.rl.scripted import make_levers
from tests.rl.test_environments import play, random_policy
from zpala.rl.action_spaces import Discrete
from zpala.rl.environment_names import AtariGame, Factory, GymnasiumId, UnknownEnvironment, UnsupportedEnvironment, resolve
from zpala.rl.environments import StepRow, environment_spec, make_environments

MODULE = "tests.rl.scripted"
SCRIPTED = Path(__file__).with_name("scripted.py")


@pytest.mark.parametrize("name", ["pong", "ALE/Pong-v5", "PongNoFrameskip-v4", "Pong-v4"])
def test_atari_names(name: str) -> None:
    assert resolve(name) == AtariGame("pong")


def test_gymnasium_ids() -> None:
    assert resolve("CartPole-v1") == GymnasiumId("CartPole-v1")
    assert resolve("gymnasium.envs:CartPole-v1") == GymnasiumId("CartPole-v1")


def test_a_factory_of_a_module_or_of_a_file() -> None:
    module, file = resolve("tests.rl.scripted:make"), resolve(f"{SCRIPTED}:make")
    assert isinstance(module, Factory)
    assert isinstance(file, Factory)
    assert module.name == "tests.rl.scripted:make"
    assert file.name == "scripted.py:make"
    assert environment_spec(f"{SCRIPTED}:make").actions == Discrete(2)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("CartPol-v1", "CartPole-v1"),
        ("cartpole-v1", "CartPole-v1"),
        ("ALE/Pongg-v5", "ALE/Pong-v5"),
        ("brakout", "breakout"),
        ("zzzzzzzzzzzzz", "module:factory"),
        ("tests.rl.scripted:mak", "make"),
        ("no_such_module:make", "PYTHONPATH"),
        ("no/such/file.py:make", "no file"),
    ],
)
def test_an_unknown_name_is_told_what_comes_close(name: str, hint: str) -> None:
    with pytest.raises(UnknownEnvironment, match=re.escape(hint)) as caught:
        resolve(name)
    assert name in str(caught.value)


def test_an_error_inside_the_module_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_environment.py").write_text("import a_package_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_missing"):
        resolve("broken_environment:make")


def make_coins() -> gymnasium.Env[Any, Any]:
    """What the refusal of Blackjack's observations offers."""
    return gymnasium.wrappers.FlattenObservation(gymnasium.make("Blackjack-v1"))


def make_two_levers() -> gymnasium.Env[Any, Any]:
    """What the refusal of a pair of actions offers."""
    levers: gymnasium.Env[Any, Any] = make_levers()
    return gymnasium.wrappers.TransformAction(levers, tuple, gymnasium.spaces.MultiDiscrete([2, 3]))


@pytest.mark.parametrize(
    ("refused", "offer", "instead"),
    [("Blackjack-v1", "FlattenObservation", "make_coins"), (f"{MODULE}:make_levers", "TransformAction", "make_two_levers")],
)
def test_the_way_out_that_a_refusal_offers_is_one(refused: str, offer: str, instead: str) -> None:
    with pytest.raises(UnsupportedEnvironment, match=offer):
        environment_spec(refused)
    environments = make_environments(f"tests.rl.test_environment_names:{instead}", 2, seeds=[1, 2])
    _, ended = play(environments, 201, random_policy(environments.spec.actions))
    environments.close()
    assert any(ended)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tests.rl.scripted:make_number", r"shape \(\)"),
        ("tests.rl.scripted:make_levers", "action space is Tuple"),
        ("tests.rl.scripted:make_mixed", r"its part 'inner.word' is Text.*FlattenObservation"),
        ("tests.rl.scripted:make_words", "observation space is Text"),
        ("FrozenLake-v1", "observation space is Discrete"),
        ("tests.rl.scripted:make_nothing", "must return a gymnasium.Env"),
        ("tests.rl.scripted:make_too_many", "of 1 environments"),
    ],
)
def test_what_cannot_be_learnt_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(UnsupportedEnvironment, match=reason) as caught:
        environment_spec(name)
    assert name in str(caught.value)


def test_disabled_autoreset_of_a_factory_is_refused() -> None:
    with pytest.raises(UnsupportedEnvironment, match="autoreset_mode"):
        environment_spec("tests.rl.scripted:make_vector", {"mode": "Disabled"})


def test_atari_takes_no_args() -> None:
    with pytest.raises(UnsupportedEnvironment, match="difficulty"):
        environment_spec("pong", {"difficulty": 3})


def test_args_reach_the_factory_and_the_agreement() -> None:
    spec = environment_spec("tests.rl.scripted:make", {"number": 4})
    assert spec.agreement()["environment"] == "tests.rl.scripted:make number=4"
    environments = make_environments("tests.rl.scripted:make", 2, seeds=[0, 0], args={"number": 4})
    observation = np.zeros((2, 3), dtype=np.float32)
    environments.reset(observation)
    assert observation.tolist() == [[4, 0, 0], [4, 0, 0]]


def test_a_vector_factory_is_asked_once_for_all() -> None:
    environments = make_environments("tests.rl.scripted:make_vector", 3, seeds=[0, 1, 2])
    assert environments.num_envs == 3


def test_actions_that_start_elsewhere_are_shifted() -> None:
    environments = make_environments("tests.rl.scripted:make_shifted", 1, seeds=[0])
    assert environments.spec.actions == Discrete(2)
    row = StepRow(
        np.zeros((1, 3), np.float32),
        np.zeros(1, np.float32),
        np.zeros(1, np.bool_),
        np.zeros(1, np.bool_),
        np.zeros(1, np.bool_),
        np.zeros((1, 3), np.float32),
    )
    environments.reset(row.next_observation)
    environments.step(np.array([1]), row)
    assert row.reward.tolist() == [6.0]


def test_one_seed_for_each_environment() -> None:
    with pytest.raises(ValueError, match="as many seeds"):
        make_environments("CartPole-v1", 2, seeds=[1])
