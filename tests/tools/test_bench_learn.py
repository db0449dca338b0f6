"""The parts of ``zpala bench``: their arithmetic by hand, and that what is really measured fits together. No figure is judged."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import pytest
import torch

from zpala.config import Config, load_config
from zpala.node.specification import specification
from zpala.tools.bench_floor import Floor, learner_parts, learning_of, node_floor, stage_bottleneck, term_bottleneck, update_floor
from zpala.tools.bench_learn import bench_env, bench_learn, env_measurement
from zpala.tools.bench_measurement import Part
from zpala.tools.bench_parts import Measured, measure_here
from zpala.tools.bench_passes import Setting, reuses_activations, settings_for
from zpala.tools.bench_stepping import Stepper, slice_of
from zpala.tools.bench_timing import Timing, best, rounds, timed
from zpala.tools.child import ChildFailed


def run(**overrides: object) -> Config:
    tiny = {"environment.num_envs": 4, "network.hidden_sizes": [8], "node.device": "cpu"}
    return load_config(None, {**tiny, **{key.replace("__", "."): value for key, value in overrides.items()}}, {})


def timing(part: str, seconds: float, setting: str = "1 thread") -> Timing:
    return Timing(part, setting, setting, seconds, "observation", 5)


class Ticks:
    """A clock that goes on by 1 s at every look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_rounds_go_in_turn_and_the_first_one_is_the_warm_up() -> None:
    calls: list[str] = []

    def measure(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    # The clock is looked at once at the beginning and once before every round after the least: 4 rounds in 1 s + 1 s.
    found = rounds({"a": lambda: measure("a"), "b": lambda: measure("b")}, 2.0, least=3, clock=Ticks())
    assert "".join(calls) == "abababab" + "ab" * (len(found["a"]) - 3)
    assert found["a"][:3] == [3, 5, 7]
    assert found["b"][:3] == [4, 6, 8]
    assert len(found["a"]) == 4


def test_there_are_enough_rounds_however_short_the_time() -> None:
    assert len(rounds({"a": lambda: 1.0}, 0.0, least=5)["a"]) == 5


def test_a_call_is_timed_until_the_device_is_done_and_shared_out() -> None:
    log: list[str] = []
    measure = timed(lambda: log.append("call"), 4, settle=lambda: log.append("settle"), clock=Ticks())
    assert measure() == 0.25
    assert log == ["settle", "call", "settle"]


def test_the_best_setting_is_the_fastest() -> None:
    measured = [timing("forward", 3.0, "1 thread"), timing("forward", 2.0, "2 threads"), timing("backward", 1.0)]
    assert best(measured, "forward").setting == "2 threads"
    with pytest.raises(KeyError):
        best(measured, "target")


class Rolling(Stepper):
    """Ten env_steps in a rollout."""

    def __init__(self) -> None:
        self.rolled = self.drawn = 0

    def draw(self) -> None:
        self.drawn += 1

    def roll(self) -> None:
        self.rolled += 1

    def env_steps(self) -> float:
        return 10

    def close(self) -> None:
        pass


def test_a_slice_has_whole_rollouts_and_does_not_time_the_drawing() -> None:
    # Every rollout takes 1 s of this clock, whatever happens between: 3 rollouts for 2.5 s, 3 s / 30 env_steps.
    stepper = Rolling()
    assert slice_of(stepper, 2.5, clock=Ticks())() == pytest.approx(0.1)
    assert (stepper.rolled, stepper.drawn) == (3, 3)


@pytest.mark.parametrize(
    ("overrides", "batch", "terms"),
    [
        # 20 steps in a rollout.
        ({"algorithm.name": "a2c"}, 20, {"forward": 1, "backward": 1, "optimiser": 1 / 20}),
        ({"algorithm.name": "vtrace"}, 20, {"forward": 1, "backward": 1, "optimiser": 1 / 20}),
        ({"algorithm.name": "nstep_q"}, 20, {"forward": 1, "backward": 1, "optimiser": 1 / 20}),
        # 3 epochs of 2 minibatches of 10.
        (
            {"algorithm.name": "ppo", "ppo.epochs": 3, "ppo.minibatch_size": 9},
            10,
            {"forward": 3, "backward": 3, "optimiser": 6 / 20},
        ),
        # A memory: whole games, 2 minibatches of 2 of them.
        (
            {"algorithm.name": "ppo", "ppo.epochs": 3, "ppo.minibatch_size": 9, "network.core": "lstm"},
            10,
            {"forward": 3, "backward": 3, "optimiser": 6 / 20},
        ),
        # 12 of the replay every 3 env_steps.
        (
            {"algorithm.name": "dqn", "dqn.batch_size": 12, "dqn.train_frequency": 3.0},
            12,
            {"forward": 4, "target": 8, "backward": 4, "optimiser": 1 / 3},
        ),
        (
            {"algorithm.name": "dqn", "dqn.batch_size": 12, "dqn.train_frequency": 3.0, "dqn.double": False},
            12,
            {"forward": 4, "target": 4, "backward": 4, "optimiser": 1 / 3},
        ),
    ],
)
def test_what_an_env_step_needs(overrides: dict[str, object], batch: int, terms: dict[str, float]) -> None:
    learning = learning_of(run(**overrides))
    assert learning.batch == batch
    assert update_floor(learning).terms == pytest.approx(terms)
    acts = {"env_step": 1, **terms, "forward": terms["forward"] + 1}
    del acts["optimiser"]
    assert node_floor(learning).terms == pytest.approx(acts)


def test_a_floor_is_a_sum_of_parts() -> None:
    floor = Floor({"env_step": 1, "forward": 2, "optimiser": 0.0125})
    parts = [Part("env_step", 5.0, "env_step"), Part("forward", 3.0, "observation"), Part("optimiser", 80.0, "step"), Part("else", 9.0, "")]
    assert floor.seconds(parts) == pytest.approx(12.0)
    assert floor.formula == "1 / (env_step + 2 forward + 0.0125 optimiser)"


def test_the_way_back_is_what_the_best_of_both_ways_takes_beyond_the_best_way_there() -> None:
    measured = [
        timing("forward", 3.0, "a"),
        timing("forward", 2.0, "b"),
        timing("forward+backward", 7.0, "a"),
        timing("forward+backward", 8.0, "b"),
    ]
    forward, backward = learner_parts(measured)
    assert (forward.seconds, backward.name, backward.seconds) == (2, "backward", 5)
    assert forward.how == "b"
    assert backward.how.startswith("a:")


def test_the_bottleneck_of_a_node_is_named_with_its_share() -> None:
    text = stage_bottleneck({"env_step": 1.0, "learn": 3.0}, {"env_step": 0.5, "learn": 2.0})
    assert text.startswith("learn, 75 % of an update, 3.00 ms (2.00 ms by its parts alone)")


def test_the_bottleneck_of_an_update_is_a_part_or_none_of_them() -> None:
    floor = Floor({"forward": 1, "backward": 1})
    parts = [Part("forward", 2.0, "observation"), Part("backward", 5.0, "observation")]
    assert term_bottleneck(floor, parts, 10.0).startswith("backward, 50 % of an update; none of the parts: 30 %")
    assert term_bottleneck(floor, parts, 20.0).startswith("what is none of the parts, 65 %")


def test_images_are_tried_in_both_layouts_and_vectors_in_none() -> None:
    cpu = torch.device("cpu")
    assert {setting.channels_last for setting in settings_for(specification(run(environment__id="pong").environment), cpu)} == {True, False}
    assert {setting.channels_last for setting in settings_for(specification(run().environment), cpu)} == {None}
    assert [str(Setting(1, None)), str(Setting(2, True))] == ["1 thread", "2 threads, channels-last"]


def test_the_best_threads_of_the_environments_count() -> None:
    found = [timing("environments", 4.0), timing("environments", 2.5, "2 threads"), timing("simulator", 2.0)]
    measurement = env_measurement(run(), Measured(found, {}, "", "", False), 1.0)
    assert (measurement.measured, measurement.floor) == (0.4, 0.5)
    assert measurement.floor_ratio == pytest.approx(0.8)
    assert "around the simulator" in measurement.bottleneck


def document(command: Any, config: Config, what: str) -> dict[str, Any]:
    """What ``command`` says of a real, short measurement in this process."""
    threads = torch.get_num_threads()
    output = io.StringIO()
    try:
        assert command(config, seconds=0.2, as_json=True, output=output, measure=measure_here) == 0
    finally:
        torch.set_num_threads(threads)
    found: dict[str, Any] = json.loads(output.getvalue().splitlines()[-1])
    assert found["floor_ratio"] == pytest.approx(found["steps_per_second"] / found["floor_steps_per_second"])
    assert all(part["seconds"] >= 0 for part in found["parts"])
    assert found["environment"] == config.environment.id
    return found


@pytest.mark.parametrize("environment", ["CartPole-v1", "Acrobot-v1", "tests/tools/broken_environments.py:Walk"])
def test_environments_are_really_measured(environment: str) -> None:
    config = run(environment__id=environment)
    found = document(bench_env, config, "env")
    seconds = {part["name"]: part["seconds"] for part in found["parts"]}
    assert found["steps_per_second"] == pytest.approx(1 / seconds["environments"])
    assert found["floor_steps_per_second"] == pytest.approx(1 / seconds["simulator"])
    assert ("one by one" in seconds) == (environment == "CartPole-v1")  # the only native one


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"network.core": "lstm", "network.core_size": 4},
        {"algorithm.name": "ppo", "ppo.epochs": 2, "ppo.minibatch_size": 8},
        {"algorithm.name": "ppo", "ppo.minibatch_size": 8, "network.core": "lstm", "network.core_size": 4},
        {"algorithm.name": "dqn", "dqn.batch_size": 4, "optimizer.name": "adam"},
        {"algorithm.name": "vtrace"},
        {"algorithm.name": "nstep_q", "network.dueling": True},
        {"algorithm.name": "examples/custom_algorithm.py:Reinforce"},
        {"environment.id": "Pendulum-v1", "algorithm.name": "ppo"},
    ],
    ids=lambda overrides: ",".join(map(str, overrides.values())) or "a2c",
)
def test_learning_is_really_measured(overrides: dict[str, object]) -> None:
    config = run(**overrides)
    found = document(bench_learn, config, "learn")
    seconds = {part["name"]: part["seconds"] for part in found["parts"]}
    assert found["steps_per_second"] == pytest.approx(1 / seconds["update"])
    assert found["floor_steps_per_second"] == pytest.approx(1 / sum(count * seconds[name] for name, count in found["terms"].items()))
    assert found["terms"] == pytest.approx(dict(update_floor(learning_of(config)).terms))
    assert {"acting", "forward", "backward", "optimiser", "snapshot"} <= seconds.keys()
    assert ("target" in seconds) == (config.algorithm.name == "dqn")
    both = [timing["seconds"] for timing in found["timings"] if timing["part"] == "forward+backward"]
    assert seconds["backward"] == pytest.approx(max(0.0, min(both) - seconds["forward"]))
    assert all(math.isfinite(timing["seconds"]) and timing["rounds"] >= 3 for timing in found["timings"])


def test_an_update_that_recalls_has_no_forward_pass_in_its_floor() -> None:
    found = [timing("forward", 2.0), timing("forward+backward", 5.0), timing("optimiser", 10.0), timing("update", 4.0)]
    output = io.StringIO()
    config = run(environment__id="pong", network__name="nips_cnn")

    def measure(config: Config, what: str, seconds: float) -> Measured:
        return Measured(found, {}, "cpu", "nips_cnn", True)

    assert bench_learn(config, seconds=1.0, as_json=True, output=output, measure=measure) == 0
    said = json.loads(output.getvalue())
    assert said["terms"] == pytest.approx({"backward": 1, "optimiser": 1 / 20})
    assert said["floor_steps_per_second"] == pytest.approx(1 / 3.5)


def test_only_who_learns_with_the_acting_parameters_recalls() -> None:
    from zpala.node.build import build_parts

    cpu = torch.device("cpu")
    for overrides, recalls in (({}, True), ({"algorithm.reuse_activations": False}, False), ({"algorithm.name": "ppo"}, False)):
        config = run(**{"environment.id": "pong", "network.name": "nips_cnn", **overrides})
        assert reuses_activations(build_parts(config, specification(config.environment), 0, cpu).algorithm) is recalls
    mlp = run()
    assert not reuses_activations(build_parts(mlp, specification(mlp.environment), 0, cpu).algorithm)


def test_a_measurement_that_fails_ends_the_command_with_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(config: Config, what: str, seconds: float) -> Measured:
        raise ChildFailed("it ended with exit status 9.", 9)

    assert bench_learn(run(), seconds=1.0, measure=fails) == 9
    assert capsys.readouterr().err == "zpala: it ended with exit status 9.\n"


@pytest.mark.cluster
def test_the_process_of_the_parts_explains_what_it_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_env(run(environment__id="CartPool-v1"), seconds=0.2) == 2
    assert "Did you mean CartPole-v1" in capsys.readouterr().err


@pytest.mark.cluster
def test_the_text_of_a_real_measurement_fits_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_env(run(), seconds=0.2) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 24
    for word in ("environments", "simulator", "measured", "floor", "bottleneck", "machine"):
        assert f"{word} " in text
