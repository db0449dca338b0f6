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
from random import Random
from typing import Any

import pytest

from zpala import cli
from zpala.config import Config, ConfigError, load_config
from zpala.exit_codes import ExitCode
from zpala.tools import bench
from zpala.tools.bench_node import NodeSpeed, alone, measured, summarise
from zpala.tools.bench_pairs import Pair, interval, orders
from zpala.tools.bench_pairs import summarise as summarise_pairs
from zpala.tools.bench_sb3 import Sb3Settings, Sb3Speed, Stopwatch
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
    return Sb3Speed(sps, 1000, 1.0, "cpu", threads, "fork", 10, {"stable-baselines3": "2.9"})


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
    assert bench.sb3_settings(settings(environment__id="pong"), seconds=30, warmup_s=5, threads=2).normalize_advantage is False
    other = bench.sb3_settings(config, seconds=30, warmup_s=5, threads=2)
    assert (other.game, other.num_envs, other.seed, other.threads) == ("ALE/SpaceInvaders-v5", 64, 5, 2)
    assert (other.num_steps, other.lr, other.epsilon) == (5, config.optimizer.lr, 1e-5)
    assert (other.frame_skip, other.noop_max, other.sticky_action_probability, other.clip_rewards) == (4, 30, 0, True)
    assert other.normalize_advantage is True


def test_ppo_has_the_same_epochs_and_minibatches_on_both_sides() -> None:
    config = load_config(None, {"preset": "ppo-atari", "environment.id": "pong", "environment.num_envs": 16, "ppo.epochs": 3}, {})
    other = bench.sb3_settings(config, seconds=30, warmup_s=5, threads=1)
    assert (other.algorithm, other.num_envs, other.num_steps, other.normalize_advantage) == ("ppo", 16, 128, True)
    assert other.ppo == {"n_epochs": 3, "batch_size": 256, "clip_range": 0.1, "clip_range_vf": None, "target_kl": None}


@pytest.mark.parametrize("name", ["pong", "PongNoFrameskip-v4", "ALE/Pong-v5"])
def test_every_name_of_a_game_is_the_same_game(name: str) -> None:
    assert bench.sb3_settings(settings(environment__id=name), seconds=1, warmup_s=0, threads=1).game == "ALE/Pong-v5"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"environment.id": "CartPole-v1"}, "no Atari game"),
        ({"environment.id": "PongNoFrameskip-v44"}, "Did you mean"),
        ({"environment.id": "pong", "optimizer.name": "adam"}, "compared with rmsprop"),
        ({"environment.id": "pong", "preset": "paac"}, "nips_cnn.*nature_cnn with a shared critic"),
        ({"environment.id": "pong", "network.separate_critic": True}, "network.separate_critic = false"),
        ({"environment.id": "pong", "environment.life_loss": True}, "life_loss"),
        ({"environment.id": "pong", "algorithm.name": "vtrace"}, "compares a2c and ppo"),
        ({"environment.id": "pong", "algorithm.name": "ppo", "optimizer.name": "rmsprop"}, "ppo is compared with adam"),
        ({"environment.id": "pong", "network.core": "lstm"}, "has no memory"),
    ],
)
def test_what_cannot_be_compared(overrides: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        bench.bench_sb3(None, overrides, {}, pairs=1, seconds=1, warmup_s=0)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "OPTIONAL_MODULES", ("module_that_is_not_there",))
    with pytest.raises(ConfigError, match=r"module_that_is_not_there.*\[bench\]"):
        bench.bench_sb3(None, PONG, {}, pairs=1, seconds=1, warmup_s=0)


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

    monkeypatch.setattr(bench, "OPTIONAL_MODULES", ())
    monkeypatch.setattr(bench, "measure_node", node)
    monkeypatch.setattr(bench, "measure_sb3", sb3)
    return asked


def test_a_comparison(measurements: list[str]) -> None:
    output = io.StringIO()
    overrides = {"environment.id": "PongNoFrameskip-v4", "environment.num_envs": 8}
    status = bench.bench_sb3(None, overrides, {}, pairs=3, seconds=9, warmup_s=2, sb3_threads=1, as_json=True, output=output)
    assert status == 0
    assert [asked[0] for asked in measurements] == list("ABBAAB")
    assert set(measurements) == {"A 8 gala 9 2", "B 8 1 9 2"}
    document = json.loads(output.getvalue())
    assert [pair["order"] for pair in document["pairs"]] == ["AB", "BA", "AB"]
    assert document["summary"]["ratio_median"] == statistics.median(pair["zpala"] / pair["sb3"] for pair in document["pairs"])
    assert document["circumstances"]["versions"] == {"torch": "2", "stable-baselines3": "2.9"}
    assert (document["zpala"]["parameters"], document["sb3"]["start_method"], document["num_envs"]) == (10, "fork", 8)


def test_a_comparison_for_people(measurements: list[str]) -> None:
    output = io.StringIO()
    assert bench.bench_sb3(None, PONG, {}, pairs=1, seconds=9, warmup_s=2, sb3_threads=2, output=output) == 0
    text = output.getvalue()
    for part in (
        "   1  AB         900.0     250.0   3.600",
        "ratio       median 3.600, range 3.600 to 3.600",
        "commit      abc",
        "stable-baselines3 2.9",
    ):
        assert part in text


def test_the_number_of_threads_that_suits_the_other_is_found() -> None:
    tried: list[Sb3Settings] = []

    def measure(wanted: Sb3Settings) -> Sb3Speed:
        tried.append(wanted)
        return sb3_speed(100.0 / wanted.threads, wanted.threads)

    wanted = bench.sb3_settings(settings(), seconds=30, warmup_s=5, threads=9)
    found = bench.calibrate(wanted, measure)
    cores = len(os.sched_getaffinity(0))
    assert found == {threads: 100.0 / threads for threads in {1, cores}}
    assert {one.seconds for one in tried} == {10}


def test_a_node_that_fails_ends_the_command_with_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(config: Config, *, seconds: float, warmup_s: float) -> NodeSpeed:
        raise ChildFailed("zpala node ended with exit status 7.", 7)

    assert bench.bench_node(settings(), seconds=1, warmup_s=0, measure=fails) == ExitCode.ACTORS
    assert capsys.readouterr().err == "zpala: zpala node ended with exit status 7.\n"


@pytest.mark.parametrize("as_json", [False, True])
def test_the_figures_of_a_node_are_said(as_json: bool) -> None:
    output = io.StringIO()

    def measure(config: Config, *, seconds: float, warmup_s: float) -> NodeSpeed:
        return node_speed(8000.0)

    assert bench.bench_node(settings(), seconds=10, warmup_s=5, as_json=as_json, output=output, measure=measure) == 0
    if as_json:
        document = json.loads(output.getvalue())
        assert (document["sps"], document["stages_ms"]["learn"], document["circumstances"]["commit"]) == (8000, 2, "abc")
    else:
        assert "SPS         8,000.0   (80,000 env_steps, 1,000 updates in 10.0 s)" in output.getvalue()
        assert "learn         2.000 ms   20.0 %" in output.getvalue()


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
    calls: list[tuple[Config, dict[str, Any]]] = []

    def record(config: Config, **arguments: object) -> int:
        calls.append((config, arguments))
        return 0

    monkeypatch.setattr(bench, "bench_node", record)
    assert command("node", "--env", "pong", "--num-envs", "64", "--seconds", "12", "--warmup", "3", "--json") == 0
    ((config, arguments),) = calls
    assert (config.environment.id, config.environment.num_envs) == ("pong", 64)
    assert arguments == {"seconds": 12, "warmup_s": 3, "as_json": True}


def test_options_reach_the_comparison(command: Command, measurements: list[str]) -> None:
    assert command("sb3", "--env", "pong", "--num-envs", "4", "--pairs", "2", "--seconds", "6", "--warmup", "1", "--sb3-threads", "1") == 0
    assert measurements == ["A 4 gala 6 1", "B 4 1 6 1", "B 4 1 6 1", "A 4 gala 6 1"]


@pytest.mark.parametrize("wrong", [["node", "--seconds", "0"], ["sb3", "--pairs", "0"], ["sb3", "--env", "CartPole-v1"], ["gpu"]])
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
    assert bench.bench_node(config, seconds=2.0, warmup_s=0.5, as_json=True, output=output) == 0
    document = json.loads(output.getvalue())
    assert document["sps"] == pytest.approx(document["env_steps"] / document["seconds"])
    assert 0 < document["env_steps"] <= document["updates"] * 4 * config.algorithm.num_steps
    assert (document["device"], document["threads"]) == ("cpu", 1)
    assert document["parameters"] > 0
    assert sum(document["stages_ms"].values()) == pytest.approx(1000 * document["seconds"] / document["updates"], rel=0.2)
