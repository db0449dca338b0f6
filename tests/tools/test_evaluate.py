"""``zpala eval``: every game counted once, the mean model, distances, and checkpoints that do not fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from zpala.config import Config, ConfigError, load_config
from zpala.rl import build_network, environment_spec
from zpala.run_directory import RunDirectoryError, create_node_directory
from zpala.tools import evaluate
from zpala.tools.evaluate import MEAN, evaluate_runs, mean_parameters, play, relative_distance

LENGTHS = "tests.tools.test_evaluate:Lengths"


class Lengths(gymnasium.Env[NDArray[np.float32], np.int64]):
    """Games end after 1 or 10 steps by turns, beginning as the seed says; the reward is 1 per step. The action is counted by nobody."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, endless: bool = False) -> None:
        self._endless = endless
        self._game = 0
        self._step = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        self._game = self._game + 1 if seed is None else seed % 2
        self._step = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self._step += 1
        ended = not self._endless and self._step == (1 if self._game % 2 else 10)
        return np.zeros(2, np.float32), 1.0, ended, False, {}


def configure(environment: str = "CartPole-v1", **args: object) -> Config:
    overrides: dict[str, object] = {"environment.id": environment, "network.hidden_sizes": [8], "environment.args": args}
    return load_config(None, overrides, {})


def parameters_of(config: Config, seed: int) -> dict[str, NDArray[np.float32]]:
    spec = environment_spec(config.environment.id, config.environment.args, config.environment.atari_settings())
    network = build_network(spec, "auto", config.network.hidden_sizes, "tanh", False, seed)
    return {name: parameter.detach().numpy().copy() for name, parameter in network.named_parameters()}


def save(run: Path, node: str, config: Config, parameters: Mapping[str, NDArray[np.float32]]) -> None:
    directory = create_node_directory(run, node, config_toml=config.to_toml(), hosts_text="", command=[])
    directory.save_final(parameters, {}, {"env_steps": 1})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two nodes that learnt nothing."""
    config = configure()
    for index in range(2):
        save(tmp_path / "run", f"n{index}", config, parameters_of(config, index))
    return tmp_path / "run"


def test_every_node_and_the_mean_play(run: Path) -> None:
    evaluation = evaluate_runs([run], episodes=5)
    assert [score.node for score in evaluation.scores] == ["n0", "n1", MEAN]
    assert all(score.episodes == 5 for score in evaluation.scores)
    assert all(1 <= score.minimum <= score.median <= score.maximum <= 500 for score in evaluation.scores)
    assert all(score.mean == pytest.approx(score.length) for score in evaluation.scores)  # CartPole rewards 1 per step
    models = [parameters_of(configure(), seed) for seed in (0, 1)]
    flat = [np.concatenate([array.ravel() for array in model.values()]).astype(np.float64) for model in models]
    middle = (flat[0] + flat[1]) / 2
    assert evaluation.scores[0].distance == pytest.approx(np.linalg.norm(flat[0] - middle) / np.linalg.norm(middle), rel=1e-4)
    assert evaluation.max_distance == pytest.approx(max(np.linalg.norm(f - middle) for f in flat) / np.linalg.norm(middle), rel=1e-4)
    assert evaluation.scores[2].distance == 0


def test_a_network_with_or_without_a_critic_of_its_own_plays(tmp_path: Path) -> None:
    parameters: dict[str, NDArray[np.float32]] = {}
    for separate in (False, True):
        overrides: dict[str, object] = {"network.separate_critic": separate, "network.name": "mlp"}
        config = load_config(None, overrides, {})
        spec = environment_spec(config.environment.id)
        network = build_network(spec, "mlp", config.network.hidden_sizes, "tanh", False, 1, separate_critic=separate)
        parameters = {name: parameter.detach().numpy().copy() for name, parameter in network.named_parameters()}
        assert any(name.startswith("critic.") for name in parameters) is separate
        save(tmp_path / f"run{separate}", "n0", config, parameters)
        (score,) = evaluate_runs([tmp_path / f"run{separate}"], episodes=2, node="n0").scores
        assert score.episodes == 2
    save(tmp_path / "other", "n0", load_config(None, {"network.separate_critic": False}, {}), parameters)
    with pytest.raises(RunDirectoryError, match="does not fit"):
        evaluate_runs([tmp_path / "other"], episodes=1)


def test_the_same_seed_gives_the_same_games_and_another_one_others(run: Path) -> None:
    first, again, other = (evaluate_runs([run], episodes=6, node="n0", seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_one_node_alone(run: Path) -> None:
    evaluation = evaluate_runs([run], episodes=2, node="n1")
    assert [score.node for score in evaluation.scores] == ["n1"]
    with pytest.raises(RunDirectoryError, match="n0, n1"):
        evaluate_runs([run], episodes=2, node="n7")


def test_nodes_with_run_directories_of_their_own(tmp_path: Path) -> None:
    config = configure()
    for index in range(2):
        save(tmp_path / f"run{index}", f"n{index}", config, parameters_of(config, 3))
    evaluation = evaluate_runs([tmp_path / "run0", tmp_path / "run1"], episodes=1)
    assert [score.node for score in evaluation.scores] == ["n0", "n1", MEAN]
    assert evaluation.max_distance < 1e-6


def test_short_games_are_not_counted_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "ENVIRONMENTS_MAX", 3)
    config = configure(LENGTHS)
    games = play(config, parameters_of(config, 0), episodes=12)
    per_environment = [[game.length for game in games if game.environment == index] for index in range(3)]
    assert [len(lengths) for lengths in per_environment] == [4, 4, 4]
    assert all(sorted(lengths) == [1, 1, 10, 10] for lengths in per_environment)


def test_the_games_are_as_many_as_asked_for() -> None:
    config = configure(LENGTHS)
    assert [len(play(config, parameters_of(config, 0), episodes=count)) for count in (1, 16, 17)] == [1, 16, 17]


def test_a_game_without_an_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "STEPS_MAX", 50)
    config = configure(LENGTHS, endless=True)
    with pytest.raises(ConfigError, match="did not end within 50"):
        play(config, parameters_of(config, 0), episodes=1)


def test_greedy_actions_follow_the_logits() -> None:
    config = configure()
    parameters = parameters_of(config, 0)
    parameters["policy.weight"][...] = 0
    parameters["policy.bias"][...] = (0.0, 1.0)
    games = play(config, parameters, episodes=8)
    assert all(8 <= game.length <= 11 for game in games), "always right: the pole falls at once"
    sampled = play(config, parameters, episodes=8, stochastic=True)
    assert max(game.length for game in sampled) > 11


def test_the_documents(run: Path) -> None:
    evaluation = evaluate_runs([run], episodes=1)
    document = json.loads(evaluation.json())
    assert (document["environment"], document["greedy"], len(document["scores"])) == ("CartPole-v1", True, 3)
    assert document["max_distance"] == evaluation.max_distance
    table = evaluation.table()
    for word in ("CartPole-v1, greedy actions", "n0", "n1", MEAN, "largest distance"):
        assert word in table


def test_nodes_of_different_networks_have_no_mean(run: Path) -> None:
    config = load_config(None, {"network.hidden_sizes": [9]}, {})
    save(run, "n2", config, parameters_of(config, 0))
    with pytest.raises(RunDirectoryError, match=r"n2.*differs"):
        evaluate_runs([run], episodes=1)


def test_a_checkpoint_that_does_not_fit_its_configuration(tmp_path: Path) -> None:
    config = configure()
    save(tmp_path / "run", "n0", load_config(None, {"network.hidden_sizes": [9]}, {}), parameters_of(config, 0))
    with pytest.raises(RunDirectoryError, match="does not fit"):
        evaluate_runs([tmp_path / "run"], episodes=1)


def test_the_mean_and_the_distance_by_hand(tmp_path: Path) -> None:
    from zpala.run_directory import Checkpoint

    arrays = [np.array([1.0, 2.0], np.float32), np.array([3.0, 6.0], np.float32)]
    checkpoints = [Checkpoint(f"n{index}", tmp_path, {"w": array}, {}, {}) for index, array in enumerate(arrays)]
    mean = mean_parameters(checkpoints)
    np.testing.assert_array_equal(mean["w"], [2.0, 4.0])
    assert relative_distance({"w": arrays[0]}, mean) == pytest.approx(np.sqrt(5) / np.sqrt(20))
    assert relative_distance(mean, mean) == 0
