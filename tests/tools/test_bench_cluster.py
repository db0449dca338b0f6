"""``zpala bench cluster``: what is measured and compared, the arithmetic, the errors; one tiny real cluster of each kind. Never a speed."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from zpala import cli
from zpala.config import ConfigError, load_config
from zpala.exit_codes import ExitCode
from zpala.gossip.topology import TopologyError
from zpala.tools import bench_cluster as command
from zpala.tools.bench_cluster_plan import ALONE, Plan, others, parse_nodes, plan
from zpala.tools.bench_cluster_run import (
    Cluster,
    ClusterSpeed,
    Kind,
    LearnerSpeed,
    endless,
    learner_speed,
    measure_cluster,
    names,
    times_for_the_same,
)
from zpala.tools.bench_pairs import Pair
from zpala.tools.child import ChildFailed
from zpala.tools.sleeping_environment import NAME

LEARNER = LearnerSpeed(100.0, 5.0, 10.0, 0.0, 0.25, 300.0, 0.01, [(0.5, 50), (1.5, 150), (3.0, 300)])


def speed(sps: Sequence[float], **figures: Any) -> ClusterSpeed:
    return ClusterSpeed([replace(LEARNER, sps=each, **figures) for each in sps], {"commit": "abc"})


def planned(nodes: str, **arguments: Any) -> Plan:
    given: dict[str, Any] = {"slow": 1.0, "against": None, "threads": 1, **arguments}
    return plan(command.configuration(None, {}, {}), parse_nodes(nodes), **given)


def test_numbers_of_nodes() -> None:
    assert parse_nodes("4") == [4]
    assert parse_nodes("8, 1,2,2") == [1, 2, 8]


@pytest.mark.parametrize("text", ["", "0", "1,,2", "two", "1,65", "-1"])
def test_wrong_numbers_of_nodes(text: str) -> None:
    with pytest.raises(ConfigError, match="write a number from 1 to 64"):
        parse_nodes(text)


def test_the_price_of_gossip() -> None:
    made = planned("3")
    assert [(cluster.nodes, cluster.config.gossip.enabled) for cluster in made.clusters.values()] == [(1, True), (3, False), (3, True)]
    speeds = {ALONE: speed([90]), "3 without gossip": speed([100, 90, 110]), "3 nodes": speed([80, 85, 75])}
    (comparison,) = made.comparisons
    assert comparison.pair("BA", speeds) == Pair("BA", 240, 300)
    assert (made.main, made.lone_nodes) == ("3 nodes", 3)


def test_a_slow_node_is_left_out_of_what_the_others_keep() -> None:
    made = planned("4", slow=10.0, against="sync")
    kinds = [(cluster.kind, cluster.slowness) for cluster in made.clusters.values()]
    assert kinds == [("zpala", 1), ("zpala", 1), ("zpala", 10), ("sync", 1), ("sync", 10)]
    assert made.lone_nodes == pytest.approx(3.1)
    speeds = {name: speed([100, 100, 100, 100]) for name in made.clusters} | {"4 in step, one slow": speed([10, 20, 30, 9])}
    assert [comparison.pair("AB", speeds).ratio for comparison in made.comparisons] == pytest.approx([1.0, 0.2])
    assert others(speed([1, 2, 4])) == 3


def test_shared_memory_is_a_rival_with_and_without_a_gate() -> None:
    made = planned("2", against="shm")
    assert [(cluster.kind, cluster.shm_staleness) for cluster in made.clusters.values()] == [
        ("zpala", 0),
        ("zpala", 0),
        ("shm", 0),
        ("shm", 16),
    ]
    assert list(made.same_work) == [name for name in made.clusters if name != ALONE]


def test_growth_is_compared_per_node() -> None:
    made = planned("1,2,8")
    assert [cluster.nodes for cluster in made.clusters.values()] == [1, 2, 8]
    speeds = {ALONE: speed([100]), "2 nodes": speed([100, 90]), "8 nodes": speed([50] * 8)}
    assert [comparison.pair("AB", speeds).ratio for comparison in made.comparisons] == [0.95, 0.5]
    assert (made.main, made.lone_nodes) == ("8 nodes", 8)


def test_environments_sleep_unless_something_else_was_asked_for() -> None:
    usual = command.configuration(None, {"environment.args.step_s": 0.01}, {})
    assert (usual.environment.id, usual.environment.num_envs, usual.environment.args) == (NAME, 8, {"step_s": 0.01})
    assert command.configuration(None, {"environment.num_envs": 4}, {}).environment.num_envs == 4
    assert command.configuration(None, {"environment.id": "CartPole-v1"}, {}).environment.id == "CartPole-v1"
    assert command.configuration(None, {"preset": "gala"}, {}).environment.id == "PongNoFrameskip-v4"
    assert command.configuration(None, {}, {}, every_update=True).gossip.max_share == 1.0


@pytest.mark.parametrize(
    ("overrides", "arguments", "words"),
    [
        ({"environment.id": "CartPole-v1"}, {"slow": 2.0}, "can be slow on one node"),
        ({}, {"slow": 2.0, "nodes": "1"}, "one number of at least 2"),
        ({}, {"against": "shm", "nodes": "1,2"}, "one number of at least 2"),
        ({"algorithm.name": "ppo"}, {"against": "sync"}, "Set algorithm.name = a2c"),
        ({"environment.id": "CartPole-v2"}, {}, "Did you mean"),
        ({"environment.args.distribution": "cauchy"}, {}, "use one of fixed, pareto, lognormal"),
    ],
)
def test_what_cannot_be_measured(overrides: dict[str, object], arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        command.bench_cluster(None, overrides, {}, **{"nodes": "2", "seconds": 1, "warmup_s": 0, **arguments})


def test_every_number_of_nodes_must_suit_the_topology() -> None:
    with pytest.raises(TopologyError):
        command.bench_cluster(None, {"gossip.topology": "hypercube"}, {}, nodes="2,3", seconds=1, warmup_s=0)


def test_the_figures_of_a_learner() -> None:
    rows = [
        {"time_s": 1.0, "env_steps": 100, "updates": 10, "gossip/exchanges": 4, "gossip/gate_wait_s": 0.5},
        {"time_s": 2.0, "env_steps": 150, "updates": 15, "gossip/exchanges": 6, "gossip/gate_wait_s": 0.5},
        {"time_s": 5.0, "env_steps": 500, "updates": 50, "gossip/exchanges": 24, "gossip/gate_wait_s": 2.5},
    ]
    rows = [{**row, "system/cpu_share": 0.1 * number, "system/rss_mb": 300.0 + number} for number, row in enumerate(rows)]
    found = learner_speed(rows, [{"time_s": 0.5, "env_steps": 50}, *rows])
    assert (found.sps, found.updates_per_s, found.exchanges_per_s, found.gate_share) == (100, 10, 5, 0.5)
    assert found.cpu_share == pytest.approx((1 * 0.1 + 3 * 0.2) / 4)
    assert (found.rss_mb, found.distance) == (302.0, 0.0)
    assert found.trace == [(0.5, 50), (1.0, 100), (2.0, 150), (5.0, 500)]


def test_the_figures_of_a_cluster() -> None:
    found = ClusterSpeed([LEARNER, replace(LEARNER, sps=50.0, updates_per_s=15.0, cpu_share=0.5)])
    assert (found.sps, found.cpu, found.exchanges_per_update) == (150, 0.75, 1.0)
    assert found.mean("cpu_share") == 0.375


def test_the_time_for_the_same_env_steps() -> None:
    # After 1 s the learners have made 100, 80 and 300 env_steps, in the end 300, 500 and 900: from 300 to ... the least of all.
    traces = ([(0.5, 50), (1.0, 100), (5.0, 500)], [(1.0, 80), (3.0, 480), (4.0, 500)], [(1.0, 300), (2.0, 900)])
    one, other = (
        ClusterSpeed([replace(LEARNER, trace=traces[0]), replace(LEARNER, trace=traces[1])]),
        ClusterSpeed([replace(LEARNER, trace=traces[2])]),
    )
    env_steps, took = times_for_the_same([one, other], warmup_s=1.0)
    assert env_steps == 200
    # 300 to 500: 3 s to 5 s; 2.1 s to 4 s; 1 s to 1 1/3 s.
    assert took[0] == pytest.approx([2.0, 1.9])
    assert took[1] == pytest.approx([1 / 3])
    slow = ClusterSpeed([replace(LEARNER, trace=[(1.0, 10), (5.0, 300)])])
    with pytest.raises(ChildFailed, match="300 env_steps are everybody's"):
        times_for_the_same([one, other, slow], warmup_s=1.0)


@pytest.mark.parametrize(
    ("found", "ratio", "gossip_cpu", "words"),
    [
        (speed([1, 1]), 0.98, 0.5, "none"),
        (speed([1, 1], gate_share=0.2), 0.8, 0.5, "gate: learners wait 20.0 %"),
        (speed([1, 1], cpu_share=0.9), 0.8, 0.5, "cores: 1.80 of 2"),
        (speed([1, 1], cpu_share=0.5), 0.8, 0.3, "exchanges: 20 per second keep 0.30 cores busy"),
        (speed([1, 1], cpu_share=0.1), 0.8, None, "the machine: 0.20 of 2 cores are busy with the nodes, and 20 %"),
    ],
)
def test_the_bottleneck_is_named(found: ClusterSpeed, ratio: float, gossip_cpu: float | None, words: str) -> None:
    assert command.bottleneck(found, ratio, gossip_cpu, cores=2).startswith(words)


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def measure(asked: list[str]) -> command.Measure:
    """A cluster makes 100 env_steps/s per node, real ones with gossip 90; a slow learner the share that it should."""

    def fake(cluster: Cluster, *, seconds: float, warmup_s: float) -> ClusterSpeed:
        asked.append(f"{cluster.nodes} {cluster.kind} {'on' if cluster.config.gossip.enabled else 'off'} {cluster.slowness:g}")
        gossips = cluster.kind == "zpala" and cluster.nodes > 1 and cluster.config.gossip.enabled
        each = [90.0 if gossips else 100.0] * cluster.nodes
        each[-1] /= cluster.slowness
        return speed(each)

    return fake


def test_rounds_go_forwards_and_backwards(asked: list[str], measure: command.Measure) -> None:
    output = io.StringIO()
    arguments: dict[str, Any] = {"nodes": "4", "pairs": 2, "seconds": 5, "warmup_s": 1, "as_json": True, "output": output}
    assert command.bench_cluster(None, {}, {}, measure=measure, **arguments) == 0
    forwards = ["1 zpala on 1", "4 zpala off 1", "4 zpala on 1"]
    assert asked == forwards + forwards[::-1]
    document = json.loads(output.getvalue().splitlines()[-1])
    assert (document["steps_per_second"], document["floor_steps_per_second"], document["floor_ratio"]) == (360, 400, 0.9)
    assert document["comparisons"]["speed with gossip : without"]["ratio_median"] == 0.9
    assert [len(learners["4 nodes"]["learners"]) for learners in document["rounds"]] == [4, 4]
    assert document["circumstances"]["commit"] == "abc"


def test_the_document_of_a_single_round_knows_no_infinity(measure: command.Measure) -> None:
    output = io.StringIO()
    command.bench_cluster(None, {}, {}, nodes="2", seconds=5, warmup_s=1, as_json=True, output=output, measure=measure)
    assert "Infinity" not in output.getvalue()


def test_for_people(measure: command.Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["zpala", "bench", "cluster"])
    output = io.StringIO()
    arguments: dict[str, Any] = {"nodes": "4", "slow": 10.0, "against": "shm", "seconds": 5, "warmup_s": 1}
    assert command.bench_cluster(None, {}, {}, output=output, measure=measure, **arguments) == 0
    lines = output.getvalue().splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 140
    assert "measured    279.0 env_steps/s, floor 310.0, ratio 0.90" in lines
    assert "floor       3.1 x one node alone" in lines
    assert "speed that the others keep, 4 nodes  median 1.000, range 1.000 to 1.000" in lines


def test_a_learner_that_fails_ends_the_command_with_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(cluster: Cluster, *, seconds: float, warmup_s: float) -> ClusterSpeed:
        raise ChildFailed("zpala node n1 ended with exit status 7.", 7)

    assert command.bench_cluster(None, {}, {}, nodes="2", seconds=1, warmup_s=0, measure=fails) == ExitCode.ACTORS
    assert capsys.readouterr().err == "zpala: zpala node n1 ended with exit status 7.\n"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {"nodes": "4", "slow": 1.0, "every_update": False, "against": None, "pairs": 1}),
        (
            ["-n", "1,2", "--slow", "10", "--exchange-every-update", "--against", "shm", "--pairs", "3"],
            {"nodes": "1,2", "slow": 10.0, "every_update": True, "against": "shm", "pairs": 3},
        ),
    ],
)
def test_options_reach_the_command(options: list[str], expected: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, dict[str, object]]] = []

    def record(run_file: object, overrides: object, environ: object, **arguments: object) -> int:
        calls.append((overrides, arguments))
        return 0

    monkeypatch.setattr(command, "bench_cluster", record)
    monkeypatch.setattr(sys, "argv", ["zpala", "bench", "cluster", *options, "--max-staleness", "2", "--env-arg", "step_s=0.01", "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    ((overrides, arguments),) = calls
    assert overrides == {"gossip.max_staleness": 2, "environment.args.step_s": 0.01}
    assert arguments == {**expected, "seconds": 8.0, "warmup_s": 2.0, "as_json": True}


TINY = {
    "environment.id": NAME,
    "environment.args.step_s": 0.002,
    "environment.num_envs": 2,
    "network.hidden_sizes": [8],
    "node.device": "cpu",
}


def test_learners_that_are_measured_have_no_end() -> None:
    config = load_config(None, {**TINY, "run.target_return": 5.0, "node.name": "n7", "gossip.wait_for": 1}, {})
    found = endless(Cluster(config, 2, threads=3))
    assert (found.run.target_return, found.node.name, found.gossip.wait_for, found.node.threads) == (None, None, "all", 3)
    assert load_config(None, {}, {}).algorithm.name == found.algorithm.name
    assert endless(Cluster(config, 2, kind="sync")).algorithm.name != found.algorithm.name


@pytest.mark.cluster
@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["zpala", "sync", "shm"])
def test_a_real_cluster_is_measured(kind: Kind) -> None:
    cluster = Cluster(load_config(None, TINY, {}), 2, kind=kind, shm_staleness=4)
    found = measure_cluster(cluster, seconds=1.0, warmup_s=0.2)
    assert len(found.learners) == len(names(2)) == 2
    for learner in found.learners:
        assert learner.sps == pytest.approx(learner.updates_per_s * 2 * 5)  # environments x steps
        assert learner.exchanges_per_s > 0
        assert [env_steps % 10 for _, env_steps in learner.trace] == [0] * len(learner.trace)
    if kind == "sync":
        assert found.exchanges_per_update == 1.0
    assert bool(found.facts) is (kind == "zpala")


@pytest.mark.cluster
@pytest.mark.timeout(180)
def test_a_cluster_whose_learner_fails_is_given_up() -> None:
    broken = {**TINY, "environment.args.distribution": "cauchy"}
    with pytest.raises(ChildFailed, match="cauchy") as failed:
        measure_cluster(Cluster(load_config(None, broken, {}), 2), seconds=1.0, warmup_s=0.0)
    assert failed.value.exit_code == ExitCode.USAGE
