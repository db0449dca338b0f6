"""``zpala bench``: the plan, the arithmetic and the errors of measurements; no figure of this machine is judged."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from zpala import cli
from zpala.config import Config, ConfigError, load_config
from zpala.exit_codes import ExitCode
from zpala.tools import bench, bench_against
from zpala.tools.bench_against import sb3_settings
from zpala.tools.bench_measurement import last_line
from zpala.tools.bench_node import NodeSpeed, alone, measured, summarise
from zpala.tools.bench_pairs import Pair, interval, orders
from zpala.tools.bench_pairs import summarise as summarise_pairs
from zpala.tools.bench_parts import Measured
from zpala.tools.bench_sb3 import Sb3Settings, Sb3Speed, Stopwatch
from zpala.tools.bench_timing import Timing
from zpala.tools.child import Child, ChildFailed

PONG = {"preset": "gala", "environment.id": "PongNoFrameskip-v4"}


def settings(**overrides: object) -> Config:
    return load_config(None, {**PONG, **{key.replace("__", "."): value for key, value in overrides.items()}}, {})


def row(time_s: float, updates: int, learn_ms: float = 2.0) -> dict[str, Any]:
    stages = {"time/env_step_ms": 1.0, "time/inference_ms": 0.5, "time/learn_ms": learn_ms, "time/gossip_ms": 0.25}
    return {"time_s": time_s, "env_steps": 80 * updates, "updates": updates, "system/cpu_share": 1.5, "system/rss_mb": 500.0, **stages}


def node_speed(sps: float) -> NodeSpeed:
    made = summarise(
        [row(5, 100), row(15, 1100)], device="cpu", threads=2, parameters=10, facts={"commit": "abc", "versions": {"torch": "2"}}
    )
    return replace(made, sps=sps)


def sb3_speed(sps: float, threads: int = 1) -> Sb3Speed:
    return Sb3Speed(sps, 1000, 1.0, "cpu", threads, "CnnPolicy", "subproc", "fork", 10, {"stable-baselines3": "2.9"})


def other(config: Config, threads: int = 1, seconds: float = 1.0) -> Sb3Settings:
    return sb3_settings(config, seconds=seconds, warmup_s=0, threads=threads, vector="subproc")


PARTS = Measured(
    timings=[
        Timing("simulator", "2 threads", "2 threads", 100e-6, "env_step", 9),
        Timing("simulator", "1 thread", "1 thread", 120e-6, "env_step", 9),
        Timing("acting", "1 thread, batch 16", "1 thread", 90e-6, "observation", 9),
        Timing("forward", "1 thread, batch 80", "1 thread", 80e-6, "observation", 9),
        Timing("forward", "2 threads, batch 80", "2 threads", 50e-6, "observation", 9),
        Timing("forward+backward", "1 thread, batch 80", "1 thread", 300e-6, "observation", 9),
        Timing("forward+backward", "2 threads, batch 80", "2 threads", 200e-6, "observation", 9),
        Timing("optimiser", "2 threads", "2 threads", 4e-3, "step", 9),
        Timing("snapshot", "2 threads", "2 threads", 4e-4, "snapshot", 9),
    ],
    facts={"commit": "abc"},
    device="cpu",
    network="nature_cnn",
    reuses_activations=True,
)


def test_pairs_are_interleaved() -> None:
    assert "".join(orders(5)) == "ABBAABBAAB"


def test_the_summary_of_pairs() -> None:
    pairs = [Pair("AB", 600, 300), Pair("BA", 500, 400), Pair("AB", 900, 500)]
    summary = summarise_pairs(pairs)
    assert (summary.ratio_median, summary.ratio_min, summary.ratio_max) == (1.8, 1.25, 2.0)
    assert (summary.a_median, summary.b_median) == (600, 400)


def test_the_interval_of_a_ratio() -> None:
    # By hand: logarithms of 1, 2, 4 have mean ln 2 and deviation ln 2; t for 2 degrees of freedom is 4.303, so +- 4.303 ln 2 / sqrt 3.
    low, high = interval([1.0, 4.0, 2.0])
    factor = 2.0 ** (4.303 / 3.0**0.5)
    assert (low, high) == pytest.approx((2.0 / factor, 2.0 * factor))
    assert interval([1.5]) == (0.0, math.inf)
    # Of many draws with a known mean the interval has it in about 95 of 100 cases.
    random = Random(5)
    within = 0
    for _ in range(2000):
        drawn_low, drawn_high = interval([math.exp(random.gauss(0.1, 0.05)) for _ in range(6)])
        within += drawn_low <= math.exp(0.1) <= drawn_high
    assert 0.93 <= within / 2000 <= 0.97


def test_a_node_is_measured_between_rows_after_the_warm_up() -> None:
    rows = [row(second, 10 * second) for second in range(1, 20)]
    interval = measured(rows, 10.0, 4.5)
    assert interval is not None
    assert (interval[0]["time_s"], interval[-1]["time_s"]) == (5, 15)
    assert measured(rows[:14], 10.0, 4.5) is None
    assert measured([], 10.0, 0.0) is None


def test_a_node_that_does_not_learn_is_not_measured() -> None:
    assert measured([row(second, 7) for second in range(20)], 5.0, 1.0) is None


def test_the_figures_of_a_node() -> None:
    # 100 updates with 2 ms of learning, then 300 with 4 ms, 400 updates in 4 s.
    found = summarise([row(5, 50), row(6, 150, 2.0), row(9, 450, 4.0)], device="cpu", threads=2, parameters=7, facts={})
    assert (found.sps, found.env_steps, found.seconds, found.updates) == (8000, 32_000, 4, 400)
    assert found.stages_ms == pytest.approx({"env_step": 1.0, "inference": 0.5, "learn": 3.5, "gossip": 0.25, "other": 4.75})
    assert found.cpu_share == pytest.approx(1.5)


def test_the_measured_node_is_alone_and_has_no_end() -> None:
    config = alone(settings(run__target_return=5.0, gossip__wait_for=4, gossip__topology="ring", node__name="n3", environment__num_envs=64))
    assert (config.run.target_return, config.run.directory, config.gossip.wait_for, config.gossip.topology) == (None, None, "all", "full")
    assert (config.node.name, config.environment.num_envs, config.optimizer) == (None, 64, settings().optimizer)


def test_stable_baselines_is_timed_over_whole_updates_after_the_warm_up() -> None:
    # One look at the clock at the start, then one per update of 5 steps with 16 environments; an update takes 2 s.
    times = iter([0.0, *(2.0 * update for update in range(1, 100))])
    stopwatch = Stopwatch(16, 5, seconds=7.0, warmup_s=3.0, clock=lambda: next(times))
    calls = 0
    going = True
    while going:
        going = stopwatch({}, {})
        calls += 1
    assert calls == 6 * 5  # the warm-up ends at 4 s with update 2; 7 s later is update 6, at 12 s
    assert (stopwatch.seconds, stopwatch.env_steps) == (8, 4 * 5 * 16)


def test_the_other_side_gets_the_same_settings() -> None:
    config = settings(environment__num_envs=64, environment__id="ALE/SpaceInvaders-v5", run__seed=5, algorithm__normalize_advantage=True)
    assert other(settings(environment__id="pong")).normalize_advantage is False
    found = other(config, threads=2)
    assert (found.game, found.num_envs, found.seed, found.threads) == ("ALE/SpaceInvaders-v5", 64, 5, 2)
    assert (found.num_steps, found.lr, found.epsilon) == (5, config.optimizer.lr, 1e-5)
    assert (found.frame_skip, found.noop_max, found.sticky_action_probability, found.clip_rewards) == (4, 30, 0, True)
    assert (found.normalize_advantage, found.optimizer) == (True, "rmsprop")
    assert other(settings(preset="pala")).optimizer == "adam"


def test_vectors_are_learnt_by_the_same_towers() -> None:
    config = load_config(None, {"preset": "cartpole", "network.hidden_sizes": [32, 16], "environment.max_episode_steps": 50}, {})
    found = other(config)
    assert (found.game, found.environment, found.max_episode_steps) == (None, "CartPole-v1", 50)
    assert (found.hidden_sizes, found.activation) == ([32, 16], "tanh")


def test_ppo_has_the_same_epochs_and_minibatches_on_both_sides() -> None:
    config = load_config(None, {"preset": "ppo-atari", "environment.id": "pong", "environment.num_envs": 16, "ppo.epochs": 3}, {})
    found = other(config)
    assert (found.algorithm, found.num_envs, found.num_steps, found.normalize_advantage) == ("ppo", 16, 128, True)
    assert found.ppo == {"n_epochs": 3, "batch_size": 256, "clip_range": 0.1, "clip_range_vf": None, "target_kl": None}


@pytest.mark.parametrize("name", ["pong", "PongNoFrameskip-v4", "ALE/Pong-v5"])
def test_every_name_of_a_game_is_the_same_game(name: str) -> None:
    assert other(settings(environment__id=name)).game == "ALE/Pong-v5"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"preset": "cartpole", "network.separate_critic": False}, "network.separate_critic = true"),
        ({"preset": "cartpole", "network.normalize_observations": True}, "normalize_observations"),
        ({"environment.id": "PongNoFrameskip-v44"}, "Did you mean"),
        ({"environment.id": "pong", "preset": "paac"}, "nips_cnn.*nature_cnn with a shared critic"),
        ({"environment.id": "pong", "network.separate_critic": True}, "network.separate_critic = false"),
        ({"environment.id": "pong", "environment.life_loss": True}, "life_loss"),
        ({"environment.id": "pong", "algorithm.name": "vtrace"}, "compares a2c and ppo"),
        ({"environment.id": "pong", "network.core": "lstm"}, "has no memory"),
    ],
)
def test_what_cannot_be_compared(overrides: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        bench.bench_node(None, overrides, {}, against="sb3")


def test_observations_of_several_parts_cannot_be_compared(tmp_path: Path) -> None:
    factory = tmp_path / "parts.py"
    factory.write_text(
        "import gymnasium as gym\n"
        "class Parts(gym.ObservationWrapper):\n"
        "    def __init__(self, env):\n"
        "        super().__init__(env)\n"
        "        self.observation_space = gym.spaces.Dict({'a': env.observation_space, 'b': env.observation_space})\n"
        "    def observation(self, observation):\n"
        "        return {'a': observation, 'b': observation}\n"
        "def make():\n"
        "    return Parts(gym.make('CartPole-v1'))\n"
    )
    with pytest.raises(ConfigError, match="vectors of numbers"):
        bench.bench_node(None, {"environment.id": f"{factory}:make"}, {}, against="sb3")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pairs": 2}, "--pairs: only for a comparison"),
        ({"sb3_vector": "dummy", "sb3_threads": 1}, "--sb3-threads, --sb3-vector"),
        ({"against": "dreamer"}, "--against dreamer"),
        ({"against": "sb3", "parts_s": 3.0}, "no floor"),
        ({"against": "sb3", "sb3_vector": "async"}, "subproc or dummy"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        bench.bench_node(None, PONG, {}, **options)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_against, "OPTIONAL_MODULES", ("module_that_is_not_there",))
    with pytest.raises(ConfigError, match=r"module_that_is_not_there.*\[bench\]"):
        bench.bench_node(None, PONG, {}, against="sb3")


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Instead of measuring: zpala makes 900 or 1000 env_steps/s, the other 500 with 1 thread, else 250. What was asked, in order."""
    asked: list[str] = []

    def node(config: Config, *, seconds: float, warmup_s: float) -> NodeSpeed:
        asked.append(f"A {config.environment.num_envs} {config.preset} {seconds:g} {warmup_s:g}")
        return node_speed(900 if len(asked) % 2 else 1000)

    def sb3(wanted: Sb3Settings) -> Sb3Speed:
        asked.append(f"B {wanted.num_envs} {wanted.threads} {wanted.seconds:g} {wanted.warmup_s:g}")
        return sb3_speed(500 if wanted.threads == 1 else 250, wanted.threads)

    monkeypatch.setattr(bench_against, "OPTIONAL_MODULES", ())
    monkeypatch.setattr(bench_against, "measure_node", node)
    monkeypatch.setattr(bench_against, "measure_sb3", sb3)
    return asked


def compare(output: io.StringIO, **options: Any) -> int:
    overrides = {"environment.id": "PongNoFrameskip-v4", "environment.num_envs": 8}
    return bench.bench_node(None, overrides, {}, against="sb3", seconds=9, warmup_s=2, output=output, **options)


def test_a_comparison(measurements: list[str]) -> None:
    output = io.StringIO()
    assert compare(output, pairs=3, sb3_threads=1, sb3_vector="dummy", as_json=True) == 0
    assert [asked[0] for asked in measurements] == list("ABBAAB")
    assert set(measurements) == {"A 8 gala 9 2", "B 8 1 9 2"}
    document = json.loads(output.getvalue().splitlines()[-1])
    assert [pair["order"] for pair in document["pairs"]] == ["AB", "BA", "AB"]
    ratios = [pair["zpala"] / pair["sb3"] for pair in document["pairs"]]
    assert document["ratio"] == document["summary"]["ratio_median"] == statistics.median(ratios)
    assert (document["ratio_low"], document["ratio_high"]) == pytest.approx(interval(ratios))
    assert (document["steps_per_second"], document["sb3_steps_per_second"]) == (
        statistics.median(pair["zpala"] for pair in document["pairs"]),
        500,
    )
    assert document["circumstances"]["versions"] == {"torch": "2", "stable-baselines3": "2.9"}
    assert (document["zpala"]["parameters"], document["sb3"]["start_method"], document["num_envs"]) == (10, "fork", 8)


def test_a_single_pair_has_no_interval_and_its_json_is_strict(measurements: list[str]) -> None:
    output = io.StringIO()
    assert compare(output, pairs=1, sb3_threads=1, sb3_vector="subproc", as_json=True) == 0

    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    document = json.loads(output.getvalue().splitlines()[-1], parse_constant=refuse)
    assert (document["ratio_low"], document["ratio_high"]) == (0, None)


def test_a_comparison_for_people(measurements: list[str]) -> None:
    output = io.StringIO()
    assert compare(output, pairs=2, sb3_threads=2, sb3_vector="subproc") == 0
    text = output.getvalue()
    for part in (
        "   1  AB         900.0     250.0   3.600",
        "ratio       median 3.800, 95 % interval ",
        "range 3.600 to 4.000",
        f"at least {interval([3.6, 4.0])[0]:.3f} times as fast",
        "A2C with CnnPolicy and SubprocVecEnv",
        "commit      abc",
        "stable-baselines3 2.9",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("environment", "algorithm", "preset"),
    [("pong", "a2c", "gala"), ("pong", "ppo", "ppo-atari"), ("CartPole-v1", "a2c", "cartpole"), ("CartPole-v1", "ppo", "ppo-cartpole")],
)
def test_the_preset_of_a_comparison_suits_it(measurements: list[str], environment: str, algorithm: str, preset: str) -> None:
    overrides = {"environment.id": environment, "algorithm.name": algorithm, "environment.num_envs": 64}
    options: dict[str, Any] = {"pairs": 1, "sb3_threads": 1, "sb3_vector": "dummy", "output": io.StringIO()}
    assert bench.bench_node(None, overrides, {}, against="sb3", **options) == 0
    assert measurements[0] == f"A 64 {preset} 4 1"


def test_what_suits_the_other_is_found() -> None:
    # By hand: in processes of their own 100 with one thread, in a loop 300, there 600 with all cores.
    tried: list[Sb3Settings] = []

    def measure(wanted: Sb3Settings) -> Sb3Speed:
        tried.append(wanted)
        return sb3_speed({"subproc": 100.0, "dummy": 300.0}[wanted.vector] * (1 if wanted.threads == 1 else 2), wanted.threads)

    cores = len(os.sched_getaffinity(0))
    wanted = other(settings(), threads=9, seconds=30)
    found = [(one.vector, one.threads, one.sps) for one in bench_against.calibrate(wanted, None, None, measure)]
    assert found == [("subproc", 1, 100), ("dummy", 1, 300), *([("dummy", cores, 600)] if cores > 1 else [])]
    assert {one.seconds for one in tried} == {10}
    tried.clear()
    bench_against.calibrate(wanted, 7, None, measure)
    assert [(one.vector, one.threads) for one in tried] == [("subproc", 7), ("dummy", 7)]
    tried.clear()
    bench_against.calibrate(wanted, None, "subproc", measure)
    assert [(one.vector, one.threads) for one in tried] == [("subproc", 1), *([("subproc", cores)] if cores > 1 else [])]
    assert bench_against.calibrate(wanted, 3, "dummy", measure) == []


def test_a_node_that_fails_ends_the_command_with_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(config: Config, *, seconds: float, warmup_s: float) -> NodeSpeed:
        raise ChildFailed("zpala node ended with exit status 7.", 7)

    assert bench.bench_alone(settings(), 1.0, 0.0, 1.0, measure=fails) == ExitCode.ACTORS
    assert capsys.readouterr().err == "zpala: zpala node ended with exit status 7.\n"


def alone_beside_its_floor(as_json: bool) -> str:
    output = io.StringIO()

    def measure(config: Config, *, seconds: float, warmup_s: float) -> NodeSpeed:
        return node_speed(1000.0)

    def parts(config: Config, what: str, seconds: float) -> Measured:
        assert (what, seconds) == ("node", 6.0)
        return PARTS

    assert bench.bench_alone(settings(), 10.0, 5.0, 6.0, as_json=as_json, output=output, measure=measure, measure_its_parts=parts) == 0
    return output.getvalue()


def test_the_floor_of_a_node() -> None:
    # By hand: the best simulator takes 100 us, forward 50, both ways 200, so backward 150: 100 + 2 x 50 + 150 = 350 us; with one forward
    # pass 300 us.
    document = json.loads(alone_beside_its_floor(as_json=True).splitlines()[-1])
    assert document["steps_per_second"] == 1000
    assert document["floor_steps_per_second"] == pytest.approx(1e6 / 350)
    assert document["floor_ratio"] == pytest.approx(0.35)
    assert (document["floor_reused_steps_per_second"], document["floor_reused_ratio"]) == pytest.approx((1e6 / 300, 0.3))
    assert document["formula"] == "1 / (env_step + 2 forward + backward)"
    seconds = {part["name"]: part["seconds"] for part in document["parts"]}
    assert document["floor_steps_per_second"] == pytest.approx(1 / sum(count * seconds[name] for name, count in document["terms"].items()))
    # An update of 80 env_steps: 8 ms of the simulator, 4 of acting, and of learning 80 x 150 us + 4 ms.
    assert document["stage_floors_ms"] == pytest.approx({"env_step": 8.0, "inference": 4.0, "learn": 16.0})
    assert (document["stages_ms"]["learn"], document["circumstances"]["commit"]) == (2, "abc")


def test_the_figures_of_a_node_for_people_fit_one_screen() -> None:
    text = alone_beside_its_floor(as_json=False)
    assert "measured    1,000.0 env_steps/s, floor 2,857.1, ratio 0.35" in text
    assert "bottleneck  other, 62 % of an update, 6.25 ms" in text
    assert "learn 2.00 ms (20 %)" in text
    assert len(text.splitlines()) <= 24


def test_json_has_no_infinite_numbers() -> None:
    assert json.loads(last_line({"a": [1.5, math.inf], "b": {"c": math.nan}, "d": "x"})) == {"a": [1.5, None], "b": {"c": None}, "d": "x"}


Command = Callable[..., int]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["zpala", "bench", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    return call


def test_options_reach_the_measurement(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Config, tuple[float, ...], object]] = []

    def record(config: Config, *times: float, as_json: bool, output: object) -> int:
        calls.append((config, times, as_json))
        return 0

    monkeypatch.setattr(bench, "bench_alone", record)
    assert command("node", "--env", "pong", "--num-envs", "64", "--seconds", "12", "--warmup", "3", "--parts-seconds", "7", "--json") == 0
    assert command("node") == 0
    (config, times, as_json), (_, default, _) = calls
    assert (config.environment.id, config.environment.num_envs, as_json) == ("pong", 64, True)
    assert (times, default) == ((12, 3, 7), (20, 4, 10))


def test_options_reach_the_comparison(command: Command, measurements: list[str]) -> None:
    options = ["--env", "pong", "--num-envs", "4", "--pairs", "2", "--seconds", "6", "--warmup", "1"]
    assert command("node", "--against", "sb3", *options, "--sb3-threads", "1", "--sb3-vector", "subproc") == 0
    assert measurements == ["A 4 gala 6 1", "B 4 1 6 1", "B 4 1 6 1", "A 4 gala 6 1"]


@pytest.mark.parametrize(
    "wrong", [["node", "--seconds", "0"], ["node", "--pairs", "0"], ["node", "--pairs", "2"], ["env", "--seconds", "0"], ["sb3"], ["gpu"]]
)
def test_wrong_arguments_are_usage_errors(command: Command, wrong: list[str]) -> None:
    assert command(*wrong) == ExitCode.USAGE


@pytest.mark.cluster
def test_a_child_is_heard_and_its_failure_explained() -> None:
    code = "print('{\"event\": \"x\", \"n\": 1}'); print('{broken'); print('why'); raise SystemExit(7)"
    heard: list[dict[str, Any]] = []
    with Child("it", [sys.executable, "-c", code], {}) as child, pytest.raises(ChildFailed, match=r"(?s)it ended.*status 7.*why") as failed:
        heard.extend(child.events(30.0))
    assert heard == [{"event": "x", "n": 1}]
    assert failed.value.exit_code == 7


@pytest.mark.cluster
def test_a_child_that_says_nothing_is_given_up_and_stopped() -> None:
    code = "import signal; print('{}', flush=True); signal.pause()"
    with Child("it", [sys.executable, "-c", code], {}) as child:
        assert next(child.events(30.0)) == {}
        with pytest.raises(ChildFailed, match=r"it said nothing for 0\.5 s"):
            list(child.events(0.5))
    assert child.stop() == -signal.SIGTERM


@pytest.mark.cluster
def test_a_child_that_does_not_obey_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpala.tools.child.STOP_LIMIT_S", 0.5)
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('{}', flush=True)\nwhile True: signal.pause()"
    with Child("it", [sys.executable, "-c", code], {}) as child:
        assert next(child.events(30.0)) == {}
        assert child.stop() == -signal.SIGKILL


@pytest.mark.cluster
def test_a_real_node_is_measured() -> None:
    config = load_config(None, {"environment.num_envs": 4, "network.hidden_sizes": [8], "node.device": "cpu"}, {})
    output = io.StringIO()
    assert bench.bench_alone(config, 2.0, 0.5, 0.5, as_json=True, output=output) == 0
    document = json.loads(output.getvalue().splitlines()[-1])
    assert document["steps_per_second"] == pytest.approx(document["env_steps"] / document["seconds"])
    assert 0 < document["env_steps"] <= document["updates"] * 4 * config.algorithm.num_steps
    assert (document["device"], document["threads"]) == ("cpu", 1)
    assert document["parameters"] > 0
    assert sum(document["stages_ms"].values()) == pytest.approx(1000 * document["seconds"] / document["updates"], rel=0.2)
    seconds = {part["name"]: part["seconds"] for part in document["parts"]}
    assert document["floor_steps_per_second"] == pytest.approx(1 / (seconds["env_step"] + 2 * seconds["forward"] + seconds["backward"]))
    assert document["floor_ratio"] == pytest.approx(document["steps_per_second"] / document["floor_steps_per_second"])


@pytest.mark.cluster
@pytest.mark.timeout(180)
@pytest.mark.parametrize("vector", ["dummy", "subproc"])
def test_the_other_side_is_measured_on_vectors_with_as_many_parameters(vector: str) -> None:
    pytest.importorskip("stable_baselines3")
    config = load_config(None, {"preset": "cartpole", "environment.num_envs": 2, "network.hidden_sizes": [8], "node.device": "cpu"}, {})
    speed = bench_against.measure_sb3(sb3_settings(config, seconds=0.2, warmup_s=0.1, threads=1, vector=vector))
    assert speed.sps == pytest.approx(speed.env_steps / speed.seconds)
    assert speed.env_steps % (2 * 16) == 0
    assert (speed.policy, speed.vector) == ("MlpPolicy", vector)
    # Two towers 4-8, a policy of 2 and a value of 1.
    assert speed.parameters == 2 * (4 * 8 + 8) + (8 * 2 + 2) + (8 + 1)
