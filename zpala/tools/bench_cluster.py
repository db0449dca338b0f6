"""``zpala bench cluster``: several nodes on this machine beside as many times one alone, and beside the same without gossip or rivals.

The floor is the speed of one node alone, times the nodes: what would be reached if averaging cost nothing and cores were never short.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch.distributed as dist

from zpala.config import Config, ConfigError, load_config
from zpala.exit_codes import ExitCode
from zpala.gossip.topology import load_topology
from zpala.node.build import check_parts
from zpala.node.errors import UsageError
from zpala.node.specification import specification
from zpala.node.threads import share_of_cores
from zpala.tools.bench_circumstances import circumstances, cores_here
from zpala.tools.bench_cluster_plan import ALONE, Plan, Rival, Speeds, parse_nodes, plan
from zpala.tools.bench_cluster_run import ClusterSpeed, measure_cluster, times_for_the_same
from zpala.tools.bench_measurement import Measurement, Part, last_line, readable
from zpala.tools.bench_pairs import Pair, Summary, orders, summarise
from zpala.tools.child import ChildFailed
from zpala.tools.sleeping_environment import NAME as SLEEPING

DEFAULTS = {"environment.id": SLEEPING, "environment.num_envs": 8}  # unless a run file, a preset or the person says otherwise
NEARLY = 0.97  # of the floor: nothing is worth a word
BUSY_CORES = 0.7  # of the machine's: they are what is short

Measure = Callable[..., ClusterSpeed]


def bench_cluster(
    run_file: Path | None,
    overrides: Mapping[str, object],
    environ: Mapping[str, str],
    *,
    nodes: str,
    slow: float = 1.0,
    every_update: bool = False,
    against: Rival | None = None,
    pairs: int = 1,
    seconds: float,
    warmup_s: float,
    as_json: bool = False,
    output: IO[str] | None = None,
    measure: Measure = measure_cluster,
) -> int:
    """Measures ``pairs`` rounds and says what came of them; returns the exit status.

    Args:
        nodes: --nodes as typed; ``slow``, ``against``: see ``bench_cluster_plan.plan``.
        every_update: exchanges are not held back by gossip's share of the time (``gossip.max_share``).
    Raises:
        ConfigError, TopologyError: wrong settings; nothing was started.
    """
    counts = parse_nodes(nodes)
    config = configuration(run_file, overrides, environ, every_update=every_update)
    refuse(config, counts, slow, against)
    made = plan(config, counts, slow=slow, against=against, threads=threads_of(config, counts[-1]))
    load = os.getloadavg()[0]
    rounds: list[Speeds] = []
    try:
        for order in orders(pairs):
            rounds.append(_round(made, order, measure, seconds, warmup_s))
        same = [same_work(made, speeds, warmup_s) for speeds in rounds] if made.same_work else []
    except ChildFailed as error:
        sys.stderr.write(f"zpala: {error}\n")
        return error.exit_code
    what = (
        f"{config.environment.id}, {config.environment.num_envs} environments, {config.algorithm.num_steps} steps, max_staleness "
        f"{config.gossip.max_staleness}: {seconds:g} s after {warmup_s:g} s of warm-up, {pairs} round(s)"
    )
    measurement = measurement_of(made, rounds, same, what)
    where = circumstances(rounds[-1][made.main].facts, load)
    (output or sys.stdout).write((last_line(measurement.document(where)) if as_json else measurement.text(where)) + "\n")
    return ExitCode.FINISHED


def configuration(
    run_file: Path | None, overrides: Mapping[str, object], environ: Mapping[str, str], *, every_update: bool = False
) -> Config:
    """The configuration of every node; environments that sleep where nothing else was asked for."""
    given: dict[str, object] = {**overrides, "gossip.max_share": 1.0} if every_update else dict(overrides)
    config = load_config(run_file, given, environ)
    if run_file is None and config.preset is None and config.environment.id == Config().environment.id and "environment.id" not in given:
        usual = {} if config.environment.num_envs != Config().environment.num_envs else DEFAULTS
        config = load_config(None, {**usual, "environment.id": SLEEPING, **given}, environ)
    return config


def refuse(config: Config, nodes: Sequence[int], slow: float, against: Rival | None) -> None:
    """Raises ConfigError, or TopologyError, for what cannot be measured."""
    for count in nodes:
        load_topology(config.gossip.topology, count)
    if slow > 1 and config.environment.id != SLEEPING:
        raise ConfigError(f"--slow {slow:g}: only {SLEEPING} can be slow on one node, not {config.environment.id!r}. Leave out --env.")
    if (slow > 1 or against) and (len(nodes) > 1 or nodes[0] < 2):
        raise ConfigError("--slow and --against compare clusters of one size: give --nodes one number of at least 2.")
    if against is not None and config.algorithm.name != "a2c":
        raise ConfigError(f"--against {against}: the rivals learn by a2c, not by {config.algorithm.name!r}. Set algorithm.name = a2c.")
    if against == "sync" and not (dist.is_available() and dist.is_gloo_available()):
        raise ConfigError("--against sync: this torch was built without gloo. Install another one, or leave the option out.")
    try:
        check_parts(config, specification(config.environment))
    except UsageError as error:
        raise ConfigError(error.text) from None


def threads_of(config: Config, nodes: int) -> int:
    """Of each learner wherever it runs: what a node has in the largest cluster (design D14), so that a lone one has no more."""
    if isinstance(config.node.threads, int):
        return config.node.threads
    return share_of_cores(nodes) if specification(config.environment).dimensions > 1 else 1


def _round(made: Plan, order: str, measure: Measure, seconds: float, warmup_s: float) -> Speeds:
    """Every cluster of the plan once, backwards when ``order`` is "BA"."""
    speeds = {}
    for name in made.clusters if order == "AB" else reversed(list(made.clusters)):
        speeds[name] = measure(made.clusters[name], seconds=seconds, warmup_s=warmup_s)
        sys.stderr.write(f"{name}: {speeds[name].sps:,.0f} env_steps/s\n")
        sys.stderr.flush()
    return speeds


def same_work(made: Plan, speeds: Speeds, warmup_s: float) -> tuple[int, Mapping[str, list[float]]]:
    """Of one round: how many env_steps every learner of ``same_work`` made, and how long each of them took."""
    env_steps, took = times_for_the_same([speeds[name] for name in made.same_work], warmup_s)
    return env_steps, dict(zip(made.same_work, took, strict=True))


def measurement_of(made: Plan, rounds: Sequence[Speeds], same: Sequence[tuple[int, Mapping[str, list[float]]]], what: str) -> Measurement:
    """Everything that the rounds have shown; speeds are medians over them."""
    alone, main = (statistics.median(speeds[name].sps for speeds in rounds) for name in (ALONE, made.main))
    floor = made.lone_nodes * alone
    summaries = {
        comparison.name: summarise([comparison.pair(order, speeds) for order, speeds in zip(orders(len(rounds)), rounds, strict=True)])
        for comparison in made.comparisons
    }
    facts: dict[str, Any] = {name: str(summary) for name, summary in summaries.items()}
    facts |= _same_work_facts(made, same)
    facts["comparisons"] = {name: _finite(summary) for name, summary in summaries.items()}
    facts["same_work"] = [{"env_steps": env_steps, "seconds": times} for env_steps, times in same]
    facts["rounds"] = [{name: speed.document() for name, speed in speeds.items()} for speeds in rounds]
    last = rounds[-1]
    return Measurement(
        what=what,
        kind="speed",
        unit="env_step",
        measured=main,
        floor=floor,
        parts=[_part(name, [speeds[name] for speeds in rounds]) for name in made.clusters],
        formula=f"{made.lone_nodes:g} x {ALONE}",
        bottleneck=bottleneck(last[made.main], main / floor, _cpu_of_gossip(made, last), cores_here()),
        facts=facts,
    )


def bottleneck(speed: ClusterSpeed, ratio: float, gossip_cpu: float | None, cores: int) -> str:
    """Why the cluster is slower than its floor, in one line.

    Args:
        ratio: to the floor.
        gossip_cpu: cores that gossip keeps busy beyond what the same nodes need without; None: not measured.
    """
    gate, lost = speed.mean("gate_share"), 1.0 - ratio
    exchanges = sum(learner.exchanges_per_s for learner in speed.learners)
    if ratio >= NEARLY:
        return "none: together the nodes are as fast as alone"
    if gate >= lost / 2:
        return f"gate: learners wait {100 * gate:.1f} % of their time for news; a larger --max-staleness lets them run on"
    if speed.cpu >= BUSY_CORES * cores:
        return f"cores: {speed.cpu:.2f} of {cores} are busy; spread the nodes over more machines"
    if gossip_cpu is not None and gossip_cpu >= lost * max(speed.cpu, 1.0) / 2:
        return f"exchanges: {exchanges:.0f} per second keep {gossip_cpu:.2f} cores busy; a smaller gossip.max_share holds them back"
    return (
        f"the machine: {speed.cpu:.2f} of {cores} cores are busy with the nodes, and {100 * lost:.0f} % are lost to waking up or other work"
    )


def _cpu_of_gossip(made: Plan, speeds: Speeds) -> float | None:
    without = [name for name, cluster in made.clusters.items() if not cluster.config.gossip.enabled]
    return speeds[made.main].cpu - speeds[without[0]].cpu if without else None


def _part(name: str, speeds: Sequence[ClusterSpeed]) -> Part:
    """One line for a cluster: the medians of its rounds."""

    def middle(figure: Callable[[ClusterSpeed], float]) -> float:
        return statistics.median(figure(speed) for speed in speeds)

    words = [
        f"{middle(lambda speed: speed.sps):7,.0f}/s",
        f"{middle(lambda speed: speed.exchanges_per_update):4.2f} exchanges/update",
        f"gate {100 * middle(lambda speed: speed.mean('gate_share')):4.1f} %",
        f"{middle(lambda speed: speed.cpu):4.2f} cores",
        f"{middle(lambda speed: speed.mean('rss_mb')):.0f} MB",
        f"distance {middle(lambda speed: speed.mean('distance')):.0e}",
    ]
    return Part(name, 1.0 / middle(lambda speed: speed.sps), "env_step", "  ".join(words))


def _same_work_facts(made: Plan, same: Sequence[tuple[int, Mapping[str, list[float]]]]) -> dict[str, str]:
    """How long learners took for the same env_steps, the rivals' times as multiples of the nodes'."""
    facts = {}
    for name in made.same_work if same else ():
        means = [statistics.fmean(times[name]) for _, times in same]
        text = f"{readable(statistics.median(means))} per learner, slowest {readable(statistics.median(max(t[name]) for _, t in same))}"
        if name != made.main:
            own = [statistics.fmean(times[made.main]) for _, times in same]
            text += f"; {made.main} : it {summarise([Pair('', a, b) for a, b in zip(own, means, strict=True)])}"
        facts[f"{same[0][0]:,} env_steps, {name}"] = text
    return facts


def _finite(summary: Summary) -> dict[str, float | None]:
    """For JSON, which knows no infinity: the interval of a single pair has none of its ends."""
    values: dict[str, float] = asdict(summary)
    single = math.isinf(summary.ratio_high)
    return {name: None if single and name in ("ratio_low", "ratio_high") else value for name, value in values.items()}
