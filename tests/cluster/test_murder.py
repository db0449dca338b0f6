"""One of three nodes is killed exactly at a step of an exchange: the others go on, and all that they miss is one accounted delta.

The nodes of the first tests do not learn, so the sum of the vectors is an exact oracle: what the survivors hold in the end is what all
three started from, less the vector that the victim had frozen, plus the one delta of the last exchange if a survivor had applied it.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.cluster.processes import ZPALA, Process, Processes, column
from tests.faults.faulty_node import Point
from tests.faults.gossip_cluster import (
    FAULTY,
    Row,
    end_in_order,
    gossip,
    mixed,
    total_at_end,
    total_at_start,
    wait_for_row,
)
from tests.faults.toxic_proxy import Fault, ToxicProxy
from zpala.exit_codes import ExitCode
from zpala.gossip.protocol import BUFFERS_MIN, LENT
from zpala.tools.launch import free_ports

pytestmark = pytest.mark.cluster

VICTIM, SURVIVORS = 1, (0, 2)
SMALL_SIZE = 4_096  # 16 kB: the initiator's OK travels with its DATA
LARGE_SIZE = 131_072  # 512 kB: both send DATA at once, and an OK each
RESTING = BUFFERS_MIN - LENT - 1  # buffers of a node that does nothing: the learner has some, the shadow one
MORE = 5  # exchanges between the survivors after the murder
ROUNDING = 1e-4  # of a sum of three vectors of ones after some hundred additions in float32


def start(processes: Processes, size: int, *faulty: object, port: int | None = None, listen: int | None = None) -> list[Process]:
    """Three nodes, the victim with a faulty proxy; the others dial it at ``port``, it listens at ``listen``."""
    hosts = processes.hosts(3)
    if port is not None:
        lines = hosts.read_text().splitlines()
        lines[VICTIM] = f"n{VICTIM} 127.0.0.1:{port}"
        hosts.write_text("\n".join(lines) + "\n")
    plans = {VICTIM: faulty}
    return [gossip(processes, hosts, i, size, faulty=plans.get(i, ()), listen=listen if i == VICTIM else None) for i in range(3)]


def dies_at(victim: Process, point: Point) -> tuple[int, str]:
    """Waits for the murder; the line of the survivor that was engaged, and the victim's role."""
    said = victim.wait_for(rf"fault: {point} of exchange \d+ with line (\d), (\w+)")
    assert victim.end() == -signal.SIGKILL
    return int(said.group(1)), said.group(2)


def goes_on(node: Process, other: int) -> None:
    """It adds deltas of ``other`` that are later than this call."""
    now = wait_for_row(node, lambda row: True, "a row")
    wait_for_row(node, lambda row: mixed(row, other) >= mixed(now, other) + MORE, f"exchanges with {other}")


def go_on_without(nodes: list[Process]) -> None:
    """Each survivor adds deltas of the other that came after the murder, notices that the victim is dead, and is free of it."""
    for line, other in (SURVIVORS, SURVIVORS[::-1]):
        goes_on(nodes[line], other)
        wait_for_row(nodes[line], lambda row: row["live"] == 1 and not row["doubts_open"], "the victim is dead and forgotten")


def check_sums(processes: Processes, nodes: list[Process], record: Path, size: int, applied: int) -> list[Row]:
    """Ends the survivors; their last rows. What they hold is accounted for to the last delta.

    ``applied``: whether a survivor applied the exchange in which the victim died.
    """
    rows = end_in_order(nodes[line] for line in SURVIVORS)
    for row in rows:
        assert row["buffers_free"] + row["deltas_queued"] == RESTING, "a buffer is lost"
        assert row["doubts_open"] == 0
    note = np.load(record)
    left = total_at_end(processes.folder, SURVIVORS)
    expected = total_at_start(range(3), size) - note["own"].astype(np.float64)
    if applied:
        assert np.linalg.norm(note["delta"]) > 1.0, "nothing could be told from such a delta"
        expected -= note["delta"].astype(np.float64)  # the survivor's delta is the opposite of the victim's
    np.testing.assert_allclose(left, expected, atol=ROUNDING)
    return rows


@pytest.mark.parametrize("point", [Point.BEFORE_ACCEPT, Point.BEFORE_OK, Point.AFTER_OK])
def test_a_node_that_is_killed_at_a_step(processes: Processes, point: Point) -> None:
    record = processes.folder / "victim.npz"
    nodes = start(processes, SMALL_SIZE, point, "kill", "--record", record)
    engaged, role = dies_at(nodes[VICTIM], point)
    assert engaged in SURVIVORS
    go_on_without(nodes)
    applied = int(point is Point.AFTER_OK)
    rows = dict(zip(SURVIVORS, check_sums(processes, nodes, record, SMALL_SIZE, applied), strict=True))
    # A victim that answered an offer before it died has the survivor's OK, which came with its DATA: that survivor is in doubt.
    doubtful = int(point is Point.BEFORE_OK and role == "responder")
    assert rows[engaged]["doubts"] >= doubtful
    assert {line: row["defects"] for line, row in rows.items()} == {line: doubtful * (line == engaged) for line in SURVIVORS}
    if point is not Point.BEFORE_ACCEPT:  # it was the first exchange that the victim got so far in
        assert {line: mixed(row, VICTIM) for line, row in rows.items()} == {line: applied * (line == engaged) for line in SURVIVORS}


def test_a_node_that_is_killed_when_half_of_its_data_has_been_delivered(processes: Processes) -> None:
    record = processes.folder / "victim.npz"
    (listen,) = free_ports(1)
    with ToxicProxy(("127.0.0.1", listen)) as link:
        nbytes = 4 * LARGE_SIZE
        link.down.arm(Fault.STALL, frame=nbytes, offset=nbytes // 2)
        nodes = start(processes, LARGE_SIZE, "before_data", "go-on", "--record", record, port=link.port, listen=listen)
        victim = nodes[VICTIM]
        engaged = int(victim.wait_for(r"fault: before_data of exchange \d+ with line (\d)").group(1))
        link.wait(lambda: link.down.happened)
        victim.send(signal.SIGKILL)
        assert victim.end() == -signal.SIGKILL
        assert [happened.fault for happened in link.down.happened] == [Fault.STALL]
        assert len([line for line in victim.lines if line.startswith("fault: ")]) == 1, "it was its first DATA"
        link.cut(reset=True)  # with the other half, which the proxy holds back
        link.down.stall(False)
        go_on_without(nodes)
        rows = dict(zip(SURVIVORS, check_sums(processes, nodes, record, LARGE_SIZE, 0), strict=True))
    # On a slow machine its offer may have run out or given way to another before the ACCEPT came: that is an end, too.
    assert rows[engaged]["closed"][str(VICTIM)] >= 1
    for row in rows.values():
        assert mixed(row, VICTIM) == 0, "half of a vector was added"
        assert (row["defects"], row["rejected_checksum"]) == (0, 0)


def test_a_node_that_stops_before_its_accept_comes_back(processes: Processes) -> None:
    """Nobody waits for a process that is stopped; when it goes on, so do its exchanges, and nothing is lost."""
    nodes = start(processes, SMALL_SIZE, Point.BEFORE_ACCEPT, "stop")
    nodes[VICTIM].wait_for("fault: before_accept")
    for line, other in (SURVIVORS, SURVIVORS[::-1]):
        goes_on(nodes[line], other)
        wait_for_row(nodes[line], lambda row: row["live"] == 1, "the stopped node is given up")
    os.kill(nodes[VICTIM].pid, signal.SIGCONT)
    for line in SURVIVORS:
        wait_for_row(nodes[line], lambda row: row["live"] == 2 and mixed(row, VICTIM) >= MORE, "exchanges with the node that is back")
    for row in end_in_order(nodes):
        assert (row["defects"], row["doubts_open"]) == (0, 0)
    np.testing.assert_allclose(total_at_end(processes.folder, range(3)), total_at_start(range(3), SMALL_SIZE), atol=ROUNDING)


LONG = ("--total-env-steps", "5_000_000", "--set", "gossip.max_staleness=64")
ALERT = ("gossip.heartbeat_s=0.25", "gossip.suspect_s=1.0", "gossip.dead_s=2.0")  # a peer is missed sooner than by default


def test_learning_nodes_outlive_a_murder(processes: Processes) -> None:
    """``zpala node`` itself: one of three is killed after an OK of its own; the others average on, and no gate waits for it."""
    hosts = processes.hosts(3)
    options = [*LONG, *(word for setting in ALERT for word in ("--set", setting))]
    faulty = (*FAULTY, Point.AFTER_OK, "kill", "--after", "5", "zpala")
    nodes = [processes.node(hosts, *options, "--name", f"n{i}", command=faulty if i == VICTIM else ZPALA) for i in range(3)]
    dies_at(nodes[VICTIM], Point.AFTER_OK)
    directories = [processes.folder / f"run/nodes/n{line}" for line in SURVIVORS]
    for line in SURVIVORS:
        nodes[line].wait_for("n1 is dead")
        for _ in range(2):
            nodes[line].wait_for("averaged with 1/1 peers", after=len(nodes[line].lines))
    for line in SURVIVORS:
        nodes[line].send(signal.SIGTERM)
    assert [nodes[line].end() for line in SURVIVORS] == [ExitCode.TERMINATED] * 2
    for directory in directories:
        live, exchanges = column(directory, "gossip/live"), column(directory, "gossip/exchanges")
        with_one = [count for alive, count in zip(live, exchanges, strict=True) if alive == 1]
        assert with_one[-1] > with_one[0] + MORE, "the two that are left do not go on averaging"
        assert column(directory, "gossip/gate_forced")[-1] == 0
    assert sum(column(directory, "gossip/defects")[-1] for directory in directories) <= 1


def test_a_failure_in_the_middle_of_an_exchange_ends_its_node_loudly(processes: Processes) -> None:
    hosts = processes.hosts(2)
    survivor = gossip(processes, hosts, 0, SMALL_SIZE)
    failing = gossip(processes, hosts, 1, SMALL_SIZE, faulty=(Point.BEFORE_OK, "raise", "--after", 5))
    failing.wait_for("fault: before_ok")
    assert failing.end() == 1
    failing.wait_for("InjectedFault: before_ok of exchange")
    wait_for_row(survivor, lambda row: row["live"] == 0 and not row["doubts_open"], "who failed is dead and forgotten")
    (row,) = end_in_order([survivor])
    assert row["defects"] <= 1
    assert row["buffers_free"] + row["deltas_queued"] == RESTING
