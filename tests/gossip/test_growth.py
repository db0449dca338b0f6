"""A cluster that grows while it runs: hosts.txt gets longer, in one copy after the other, and nobody restarts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from tests.gossip.test_protocol import fatals, hello, make, of_type
from zpala.gossip.actions import Dial, Hangup, Log, SendUp
from zpala.gossip.exchange_state import Step
from zpala.gossip.hosts import HostList, parse_hosts
from zpala.gossip.membership import Phase
from zpala.gossip.messages import Condition, Hello, Part, Reject, Welcome
from zpala.gossip.settings import GossipSettings
from zpala.gossip.topology import Topology
from zpala.sim.cluster import VirtualCluster, full, ring
from zpala.sim.node import SimulatedNode

PERIOD_S = 0.1


def hosts_of(size: int, names: str = "n") -> HostList:
    return parse_hosts("\n".join(f"{names}{i} 10.0.0.{i + 1}:5000" for i in range(size)), "memory")


class GrowingCluster(VirtualCluster):
    """Every node has a copy of hosts.txt of its own; at the start they are the same."""

    def __init__(self, size: int, seed: int = 0, graph: Callable[[int], Topology] = full, **options: Any) -> None:
        super().__init__(size, seed, topology=graph(size), **options)
        self.graph = graph

    def append(self, count: int = 1) -> range:
        """Lines for further nodes, which are not started; nobody has read them. Whoever starts from now on does."""
        lines = range(self.size, self.size + count)
        self.size += count
        self.hosts, self.topology = hosts_of(self.size), self.graph(self.size)
        self.periods += self.periods[:1] * count
        agreement = {"seed": "1", "hosts": self.hosts.agreed(self.size), "topology graph": self.topology.digest()}
        self.agreements[:] = [agreement] * self.size
        for line in lines:
            self._absent(line)
        return lines

    def _absent(self, line: int) -> None:
        node = SimulatedNode(self, line, 1 + line, self._start_vector(self.spread))
        node.alive = False
        self.nodes.append(node)

    def read(self, lines: Iterable[int]) -> None:
        """These nodes read their copies, which have been changed."""
        for line in lines:
            node = self.nodes[line]
            node.do(node.protocol.on_hosts(self.hosts, self.topology, self.now))


def running(size: int, seed: int = 0, period_s: float = PERIOD_S, **options: Any) -> GrowingCluster:
    cluster = GrowingCluster(size, seed, periods=period_s, **options)
    assert cluster.run(30.0, cluster.all_started)
    cluster.run(2.0)
    return cluster


def averaged(cluster: GrowingCluster, seconds: float) -> set[frozenset[int]]:
    """Who averages with whom within the next seconds."""
    marks = {node.line: len(node.endings) for node in cluster.nodes}
    cluster.run(seconds)
    return {
        frozenset({node.line, ending.exchange.peer.line})
        for node in cluster.nodes
        for ending in node.endings[marks[node.line] :]
        if ending.step is Step.COMPLETED
    }


def everybody(size: int) -> set[frozenset[int]]:
    return {frozenset({i, j}) for i in range(size) for j in range(i)}


def texts(cluster: GrowingCluster, line: int) -> list[str]:
    return [log.text for log in cluster.nodes[line].logs]


def shown_unknown(node: SimulatedNode) -> bool:
    """What the node's learner has been told last."""
    assert node.learner.view is not None
    return node.learner.view.unknown


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("order", ["first", "last"])
def test_new_lines_come_in_while_the_copies_change_one_after_the_other(seed: int, order: str) -> None:
    cluster = running(3, seed)
    nonce = cluster.nodes[0].protocol.nonce
    sessions = [(m.line, m.session_in, m.session_out) for m in cluster.nodes[0].protocol._membership]
    new = cluster.append(2)
    if order == "first":  # the new nodes are there before anybody knows of them
        for line in new:
            cluster.restart(line)
        cluster.run(5.0)
        assert [cluster.nodes[line].protocol.phase for line in new] == [Phase.WAITING] * 2
    cluster.read([0])
    assert everybody(3) <= averaged(cluster, 4.0), "a longer and a shorter list go on together"
    cluster.read([1])
    assert everybody(3) <= averaged(cluster, 4.0)
    if order == "last":
        for line in new:
            cluster.restart(line)
    cluster.run(4.0)
    assert all(cluster.nodes[line].protocol.nonce == nonce for line in new), "they join the run by those who know them"
    assert frozenset({2, 3}) not in averaged(cluster, 4.0)
    assert sum("has 5 nodes in its hosts.txt, this node 3" in text for text in texts(cluster, 2)) == 1
    cluster.read([2])
    cluster.run(1.0)
    assert averaged(cluster, 6.0) == everybody(5)
    for line in new:
        assert {text.split(" ")[0] for text in texts(cluster, line) if "does not know this node yet" in text} <= {"n0", "n1", "n2"}
        assert sum("n2" in text and "does not know this node yet" in text for text in texts(cluster, line)) == 1
        assert line in {who for _, who in cluster.adoptions}
    assert cluster.counter("renewed") == cluster.counter("dead") == cluster.counter("defects") == 0
    kept = [(m.line, m.session_in, m.session_out) for m in cluster.nodes[0].protocol._membership if m.line < 3]
    assert kept == sessions, "nobody has lost a session"
    assert all(node.fatal is None for node in cluster.nodes)
    assert cluster.problems() == []


def test_totals_and_gates_go_on() -> None:
    cluster = running(2, settings=GossipSettings(max_staleness=8), budget=80 * 1500)
    (line,) = cluster.append()
    cluster.read([0, 1])
    before = [node.learner.updates for node in cluster.nodes[:2]]
    cluster.restart(line)
    assert cluster.run(60.0, lambda: all(node.drained == "drained" for node in cluster.nodes)), "the run ends for all three"
    assert min(before) > 0
    assert cluster.nodes[line].learner.updates > 100
    done = sum(node.learner.updates for node in cluster.nodes) * cluster.steps_per_update
    assert 80 * 1500 <= done < 80 * 1600
    assert cluster.problems() == []


@pytest.mark.parametrize("seed", range(2))
def test_a_crash_in_between_and_a_restart_with_either_copy(seed: int) -> None:
    """One node dies with the old copy and comes back with the new one, another the other way round."""
    cluster = running(4, seed)
    old = cluster.hosts, cluster.topology, list(cluster.agreements)
    (line,) = cluster.append()
    cluster.read([0, 3])
    cluster.restart(line)
    cluster.run(3.0)
    cluster.kill(1)
    cluster.kill(3)
    cluster.run(2.0)
    cluster.restart(1)
    new = cluster.hosts, cluster.topology, list(cluster.agreements)
    cluster.hosts, cluster.topology, cluster.agreements[:4] = old
    cluster.restart(3)
    cluster.hosts, cluster.topology, cluster.agreements[:] = new
    cluster.run(5.0)
    assert everybody(5) - {frozenset({2, line}), frozenset({3, line})} == averaged(cluster, 8.0)
    cluster.read([2, 3])
    cluster.run(1.0)
    assert averaged(cluster, 8.0) == everybody(5)
    assert len({node.protocol.nonce for node in cluster.nodes}) == 1
    assert all(node.fatal is None for node in cluster.nodes)
    assert cluster.problems() == []


def test_a_ring_is_closed_anew() -> None:
    cluster = running(4, graph=ring)
    (line,) = cluster.append()
    cluster.restart(line)
    cluster.read([0])
    assert {frozenset({0, 1}), frozenset({1, 2}), frozenset({2, 3})} == averaged(cluster, 4.0) - {frozenset({0, 4}), frozenset({0, 3})}
    cluster.read([1, 2, 3])
    cluster.run(1.0)
    assert averaged(cluster, 6.0) == {frozenset({i, (i + 1) % 5}) for i in range(5)}
    assert cluster.problems() == []


@pytest.mark.parametrize("seed", range(2))
def test_a_short_list_becomes_a_long_one(seed: int) -> None:
    """Five nodes with sessions each with each; then there are eleven, and nobody may have more than four."""
    cluster = running(5, seed, 0.4, settings=GossipSettings(max_sessions=4, redraw_s=2.0))
    new = cluster.append(6)
    cluster.read([0, 1, 2])
    for line in new:
        cluster.restart(line)
    cluster.run(5.0)
    cluster.read([3, 4])
    assert cluster.run(60.0, lambda: all(node.learner.state == "learning" for node in cluster.nodes))
    assert len({node.protocol.nonce for node in cluster.nodes}) == 1
    met = averaged(cluster, 60.0)
    assert cluster.network.sent["Part"] > 0
    assert max(len(node.protocol._membership) for node in cluster.nodes) <= 4
    assert max(len(node.dealers) for node in cluster.nodes) <= 4
    assert len(everybody(11) - met) <= 3, "nearly everybody has averaged with everybody"
    view = cluster.nodes[0].learner.view
    assert view is not None
    assert view.live == 10
    assert cluster.counter("defects") == 0
    assert cluster.problems() == []


def test_a_long_ring_gives_up_who_is_no_neighbour() -> None:
    cluster = running(5, graph=ring, settings=GossipSettings(max_sessions=4))
    assert all(len(node.dealers) == 4 for node in cluster.nodes)
    new = cluster.append(2)
    cluster.read(range(5))
    for line in new:
        cluster.restart(line)
    cluster.run(20.0)
    assert all(set(node.dealers) == {(node.line - 1) % 7, (node.line + 1) % 7} for node in cluster.nodes)
    assert averaged(cluster, 6.0) == {frozenset({i, (i + 1) % 7}) for i in range(7)}
    assert cluster.problems() == []


def test_a_newcomer_whom_nobody_knows_waits_for_longer_than_any_limit_and_starts_no_run() -> None:
    cluster = running(2, settings=GossipSettings(start_timeout_s=5.0, wait_for=1))
    (line,) = cluster.append()
    node = cluster.restart(line)
    cluster.run(90.0)
    assert node.protocol.phase is Phase.WAITING
    assert node.fatal is None
    assert shown_unknown(node)
    assert sum("does not know this node yet" in text and "waiting for that" in text for text in texts(cluster, line)) == 2
    cluster.read([0, 1])
    assert cluster.run(3.0, lambda: node.learner.state == "learning")
    cluster.run(10.0)
    assert not shown_unknown(node)
    assert node.protocol.nonce == cluster.nodes[0].protocol.nonce


# ---- one node -----------------------------------------------------------------------------------------------------------------------


def agreement(hosts: HostList, graph: str, lines: int | None = None) -> dict[str, str]:
    return {"seed": "1", "hosts": hosts.agreed(lines or len(hosts)), "topology graph": graph}


def protocol_of(size: int, **options: Any) -> Any:
    hosts = hosts_of(size)
    return make(size, hosts=hosts, agreement=agreement(hosts, full(size).digest()), **options)


RUNNING = Condition(phase="running", updates=5)


def test_a_list_that_only_looks_like_the_beginning_of_the_longer_one_is_refused_with_both_values() -> None:
    protocol = protocol_of(4)
    other = agreement(hosts_of(3, "x"), full(3).digest())
    actions = protocol.on_up(b"x", hello(agreement=other), 0.2)
    (reject,) = of_type(actions, Reject)
    assert (reject.code, reject.field) == ("agreement", "hosts")
    assert (reject.mine, reject.yours) == (hosts_of(4).agreed(3), other["hosts"])
    assert '"hosts"' in fatals(actions)[0].text


def test_a_newcomer_that_is_not_known_and_disagrees_stops() -> None:
    protocol = protocol_of(4, line=3)
    reject = Reject(code="unknown_line", field="hosts", mine=hosts_of(3, "x").agreed(3), yours="", fatal=False)
    (fatal,) = fatals(protocol.on_down(0, reject, None, 0.3))
    assert fatal.exit_code == 2
    assert hosts_of(3, "x").agreed(3) in fatal.text
    assert hosts_of(4).agreed(3) in fatal.text


def test_a_line_beyond_the_senders_own_list_is_refused_for_good() -> None:
    (reject,) = of_type(protocol_of(3).on_up(b"x", hello(line=7, agreement=agreement(hosts_of(5), "")), 0.2), Reject)
    assert (reject.code, reject.fatal) == ("unknown_line", True)


def test_two_lists_that_grew_differently_part_company() -> None:
    """Each has appended another node: the next HELLO shows it, and says both."""
    protocol = protocol_of(2)
    protocol.on_up(b"x", hello(agreement=agreement(hosts_of(2), full(2).digest())), 0.2)
    protocol._run.enter(Phase.RUNNING, 0.3)
    protocol.on_hosts(hosts_of(3), full(3), 0.4)
    strange = parse_hosts("n0 10.0.0.1:5000\nn1 10.0.0.2:5000\nq 10.0.0.3:5000", "x")
    actions = protocol.on_up(b"x", hello(agreement=agreement(strange, full(3).digest()), condition=RUNNING), 0.5)
    (reject,) = of_type(actions, Reject)
    assert (reject.field, reject.mine, reject.yours) == ("hosts", hosts_of(3).agreed(3), strange.agreed(3))
    assert protocol.describe()["peers"][0]["established"] is False
    assert any(isinstance(action, Log) and "do not agree" in action.text for action in actions)


def test_two_graphs_are_compared_once_the_lists_are_equally_long() -> None:
    protocol = protocol_of(2)
    other = agreement(hosts_of(3), ring(3).digest() + "0")
    assert of_type(protocol.on_up(b"x", hello(agreement=other), 0.2), Welcome)
    protocol._run.enter(Phase.RUNNING, 0.3)
    asked = of_type(protocol.on_hosts(hosts_of(3), full(3), 0.4), Hello)
    assert all(message.agreement == agreement(hosts_of(3), full(3).digest()) for message in asked)
    (reject,) = of_type(protocol.on_up(b"x", hello(agreement=other), 0.5), Reject)
    assert reject.field == "topology graph"


def test_a_node_that_has_moved_is_dialled_at_its_new_address_unless_there_is_a_session() -> None:
    protocol = protocol_of(3)
    protocol.on_up(b"x", hello(agreement=agreement(hosts_of(3), full(3).digest())), 0.2)
    protocol.on_down(1, Welcome(session=5, node="n1", line=1, incarnation=7, version=1, nonce=b"", condition=RUNNING), None, 0.3)
    moved = parse_hosts("n0 10.0.0.1:5000\nn1 10.9.9.1:5000\nn2 10.9.9.2:5000", "x")
    actions = protocol.on_hosts(moved, full(3), 2.0)
    assert [action.line for action in actions if isinstance(action, Hangup)] == [2]
    assert [action.line for action in actions if isinstance(action, Dial)] == [2]
    assert protocol.describe()["peers"][0]["established"]


def test_new_lines_are_dialled_and_old_peers_are_told() -> None:
    protocol = protocol_of(2)
    protocol.on_up(b"x", hello(agreement=agreement(hosts_of(2), full(2).digest())), 0.2)
    protocol.on_down(1, Welcome(session=5, node="n1", line=1, incarnation=7, version=1, nonce=b"", condition=RUNNING), None, 0.2)
    actions = protocol.on_hosts(hosts_of(4), full(4), 0.21)
    assert [action.line for action in actions if isinstance(action, Dial)] == [2, 3]
    told = [action for action in actions if isinstance(action, SendUp) and isinstance(action.message, Hello)]
    assert [action.line for action in told] == [1, 2, 3]
    assert {action.message.agreement["hosts"] for action in told} == {hosts_of(4).agreed(4)}  # type: ignore[union-attr]


def test_what_does_not_follow_is_never_taken() -> None:
    protocol = protocol_of(3)
    for wrong, graph in ((hosts_of(2), full(2)), (hosts_of(4, "x"), full(4)), (hosts_of(4), full(5))):
        with pytest.raises(ValueError, match=r"do not follow|the topology is for"):
            protocol.on_hosts(wrong, graph, 0.1)
    assert len(protocol.describe()["peers"]) == 2


def test_a_key_that_is_appended_speaks_for_its_line() -> None:
    keys = ["a" * 64, "b" * 64, "c" * 64]
    two, three = (parse_hosts("\n".join(f"n{i} 10.0.0.{i + 1}:5000 {keys[i]}" for i in range(n)), "x") for n in (2, 3))
    protocol = make(2, hosts=two, agreement=agreement(two, full(2).digest()))
    newcomer = hello(line=2, agreement=agreement(three, full(3).digest()))
    (reject,) = of_type(protocol.on_up(b"x", newcomer, 0.1, keys[2]), Reject)
    assert reject.code == "key"
    protocol.on_hosts(three, full(3), 0.2)
    assert of_type(protocol.on_up(b"x", newcomer, 0.3, keys[2]), Welcome)
    (reject,) = of_type(protocol.on_up(b"y", newcomer, 0.4, keys[1]), Reject)
    assert reject.code == "key"


def test_who_is_denied_starts_no_run_of_its_own() -> None:
    protocol = protocol_of(2, settings=GossipSettings(start_timeout_s=1.0))
    for tick in range(1, 60):
        protocol.on_denied(tick * 0.5)
        protocol.on_timer(tick * 0.5)
    assert protocol.phase is Phase.WAITING
    for tick in range(60, 230):
        protocol.on_timer(tick * 0.5)
    assert protocol.phase is not Phase.WAITING, "nobody has denied it for a while"


def test_parting_is_told_to_peers_that_are_no_neighbours_any_more() -> None:
    cluster = running(5, graph=ring, settings=GossipSettings(max_sessions=4))
    cluster.append(2)
    cluster.read(range(5))
    cluster.run(1.0)
    assert cluster.network.sent[Part.__name__] >= 10, "each node has two that are none"
    assert np.isfinite(cluster.total()).all()
