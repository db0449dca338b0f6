"""What ``zpala bench cluster`` measures by turns, and what is compared with what. Pure: starts and measures nothing.

A round measures every cluster of a plan once; rounds go through them forwards and backwards in turn, so that a machine that grows slower or
faster meanwhile favours nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from zpala.config import Config, ConfigError
from zpala.tools.bench_cluster_run import Cluster, ClusterSpeed
from zpala.tools.bench_pairs import Pair

ALONE = "one node alone"
NODES_MAX = 64
Rival = Literal["sync", "shm"]
Speeds = Mapping[str, ClusterSpeed]  # of one round, by the clusters' names


@dataclass(frozen=True, slots=True)
class Comparison:
    """The ratio of one figure of two clusters, ``name`` in words: 1 is equal, more is better for ``a``."""

    name: str
    a: str
    b: str
    figure: Callable[[ClusterSpeed], float]

    def pair(self, order: str, speeds: Speeds) -> Pair:
        """Of one round."""
        return Pair(order, self.figure(speeds[self.a]), self.figure(speeds[self.b]))


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and what it is measured for.

    Attributes:
        clusters: by name, in the order of a round; the first is one node alone.
        main: the cluster that is compared with its floor.
        lone_nodes: the floor is so many times the speed of a node alone; a slow node counts for less than one.
        comparisons: of clusters with each other.
        same_work: clusters of which it is said how long their learners take for the same env_steps; none, or at least two.
    """

    clusters: Mapping[str, Cluster]
    main: str
    lone_nodes: float
    comparisons: Sequence[Comparison]
    same_work: Sequence[str] = ()


def total(speed: ClusterSpeed) -> float:
    """env_steps per second of all learners."""
    return speed.sps


def others(speed: ClusterSpeed) -> float:
    """env_steps per second of all learners but the last one, which is the slow one where one is slow."""
    return sum(learner.sps for learner in speed.learners[:-1])


def parse_nodes(text: str) -> list[int]:
    """``4`` or ``1,2,4,8`` of --nodes, in rising order. Raises ConfigError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= NODES_MAX for part in parts):
        raise ConfigError(f"--nodes {text!r}: write a number from 1 to {NODES_MAX}, or several of them as 1,2,4,8.")
    return sorted({int(part) for part in parts})


def plan(config: Config, nodes: Sequence[int], *, slow: float, against: Rival | None, threads: int) -> Plan:
    """What is measured for these options.

    Args:
        nodes: several: how the speed grows with their number, and nothing else.
        slow: the last node is so many times slower; 1: none is.
        against: besides, the rival, with the same settings; "shm" twice, without a gate and with ``gossip.max_staleness`` as its bound.
        threads: of each learner.
    """
    alone = {ALONE: Cluster(config, 1, threads=threads)}
    if len(nodes) > 1:
        return _growth(alone, config, nodes, threads)
    (count,) = nodes
    zpala = Cluster(config, count, threads=threads)
    contenders = {f"{count} nodes": zpala}
    if against == "sync":
        contenders[f"{count} in step"] = replace(zpala, kind="sync")
    if against == "shm":
        contenders[f"{count} by shm"] = replace(zpala, kind="shm")
        contenders[f"{count} by shm, K {config.gossip.max_staleness}"] = replace(
            zpala, kind="shm", shm_staleness=config.gossip.max_staleness
        )
    main = f"{count} nodes"
    if slow > 1:
        return _straggler(alone, contenders, main, count, slow)
    if against is not None:
        ratios = [Comparison(f"speed, {main} : {rival}", main, rival, total) for rival in contenders if rival != main]
        return Plan(alone | contenders, main, count, ratios, list(contenders))
    apart = config.model_copy(update={"gossip": config.gossip.model_copy(update={"enabled": False})})
    without = {f"{count} without gossip": replace(zpala, config=apart)}
    ratios = [Comparison("speed with gossip : without", main, f"{count} without gossip", total)]
    return Plan(alone | without | contenders, main, count, ratios)


def _straggler(alone: Mapping[str, Cluster], contenders: Mapping[str, Cluster], main: str, count: int, slow: float) -> Plan:
    clusters, ratios = dict(alone), []
    for name, cluster in contenders.items():
        slowed = f"{name}, one slow"
        clusters |= {name: cluster, slowed: replace(cluster, slowness=slow)}
        ratios.append(Comparison(f"speed that the others keep, {name}", slowed, name, others))
    return Plan(clusters, f"{main}, one slow", count - 1 + 1 / slow, ratios)


def _growth(alone: Mapping[str, Cluster], config: Config, nodes: Sequence[int], threads: int) -> Plan:
    clusters = {f"{count} nodes": Cluster(config, count, threads=threads) for count in nodes if count > 1}
    ratios = [Comparison(f"speed per node, {name} : one", name, ALONE, _per_learner) for name in clusters]
    return Plan(dict(alone) | clusters, f"{nodes[-1]} nodes", nodes[-1], ratios)


def _per_learner(speed: ClusterSpeed) -> float:
    return speed.sps / len(speed.learners)
