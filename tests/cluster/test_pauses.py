"""One of two learning nodes hangs, is paused as a whole, or holds its interpreter: the other learns on; afterwards they average again."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.processes import Process, Processes, column

pytestmark = pytest.mark.cluster

HANGING = Path(__file__).parent / "hanging_learner.py"
LONG = ("--total-env-steps", "100_000_000", "--set", "gossip.max_staleness=64")
ALERT = ("gossip.heartbeat_s=0.25", "gossip.suspect_s=0.75", "gossip.dead_s=1.5", "gossip.stall_s=2.0")  # sooner than by default
MORE = 5  # exchanges after the pause
ROWS = 6  # of a node that goes on alone

Row = dict[str, float]


class Two:
    """n0, and n1 which pauses; they average when this is made and after every pause."""

    def __init__(self, processes: Processes) -> None:
        hosts = processes.hosts(2)
        self._kind = processes.folder / "kind.txt"
        options = [*LONG, *(word for setting in ALERT for word in ("--set", setting))]
        self.stays = processes.node(hosts, *options, "--name", "n0")
        hanging = (sys.executable, str(HANGING), str(self._kind))
        self.pauses = processes.node(hosts, *options, "--name", "n1", command=hanging)
        self.directories = [processes.folder / f"run/nodes/n{line}" for line in range(2)]
        for node in (self.stays, self.pauses):
            node.wait_for("averaged with 1/1 peers")

    def pause(self, kind: str) -> None:
        self._kind.write_text(kind)
        said = len(self.pauses.lines)
        self.pauses.send(signal.SIGUSR1)
        self.pauses.wait_for(f"fault: hangs, {kind}", after=said)

    def go_on(self, kind: str) -> None:
        said = len(self.pauses.lines)
        self.pauses.send(signal.SIGCONT if kind == "stop" else signal.SIGUSR1)
        self.pauses.wait_for("fault: goes on", after=said)

    def rows(self, line: int = 0) -> list[Row]:
        """Of a node so far."""
        keys = ("gossip/live", "gossip/exchanges", "gossip/gate_forced", "gossip/defects", "env_steps")
        columns = {key.removeprefix("gossip/"): column(self.directories[line], key) for key in keys}
        count = min(map(len, columns.values()))  # rows are added meanwhile
        return [{key: values[i] for key, values in columns.items()} for i in range(count)]

    def wait_for_rows(self, since: int, condition: Callable[[list[Row]], object], line: int = 0) -> list[Row]:
        """The rows from number ``since`` on, once they have ``condition``; read at every line that the node says."""
        node = (self.stays, self.pauses)[line]
        while not condition(rows := self.rows(line)[since:]):
            node.wait_for("env_steps", after=len(node.lines))
        return rows

    def average(self) -> None:
        """Both exchange ``MORE`` times from now on."""
        for line in range(2):
            goal = self.rows(line)[-1]["exchanges"] + MORE
            self.wait_for_rows(-1, lambda rows, goal=goal: rows[0]["exchanges"] >= goal, line)  # type: ignore[misc]

    def defects(self) -> float:
        return sum(self.rows(line)[-1]["defects"] for line in range(2))

    def dead_said(self) -> list[int]:
        """So often each of the two has called the other dead."""
        for node in (self.stays, self.pauses):
            node.read_on()
        return [sum(" is dead: nothing heard" in line for line in node.lines) for node in (self.stays, self.pauses)]


@pytest.fixture(scope="module")
def two(shared: Processes) -> Two:
    return Two(shared)


def alone(rows: list[Row]) -> list[Row]:
    """The last rows, in which nothing was exchanged."""
    return [row for row in rows if row["exchanges"] == rows[-1]["exchanges"]]


def silent_said(node: Process, since: int) -> bool:
    return any(" is silent" in line for line in node.lines[since:])


def test_a_learner_that_hangs_is_not_waited_for_and_its_proxy_goes_on(two: Two) -> None:
    """Its proxy says that it lives and averages until as many deltas wait for its learner as may; then the other is free of it."""
    dead, before = two.dead_said(), two.rows()
    two.pause("free")
    during = two.wait_for_rows(len(before), lambda rows: len(rows) >= ROWS and len(alone(rows)) >= ROWS)
    two.go_on("free")
    two.average()
    assert {row["live"] for row in during} == {1.0}
    assert two.dead_said() == dead
    assert during[-1]["exchanges"] > before[-1]["exchanges"], "its proxy exchanges nothing"
    left = alone(during)
    assert left[-1]["env_steps"] > left[0]["env_steps"]
    assert during[-1]["gate_forced"] == before[-1]["gate_forced"], "it was waited for to the limit"


@pytest.mark.parametrize("kind", ["stop", "held", "loop"])
def test_a_node_that_is_paused_is_dead_to_the_other_and_blames_nobody(two: Two, kind: str) -> None:
    (dead, blamed), defects, before = two.dead_said(), two.defects(), two.rows()
    heard, said = len(two.stays.lines), len(two.pauses.lines)
    two.pause(kind)
    two.stays.wait_for("n1 is dead", after=heard)
    during = two.wait_for_rows(len(before), lambda rows: sum(row["live"] == 0 for row in rows) >= ROWS)
    two.go_on(kind)
    two.stays.wait_for("n1 is there", after=heard)
    two.average()
    left = [row for row in during if row["live"] == 0]
    assert left[-1]["env_steps"] > left[0]["env_steps"]
    assert left[-1]["exchanges"] == left[0]["exchanges"]
    assert during[-1]["gate_forced"] == before[-1]["gate_forced"], "it was waited for to the limit"
    assert two.dead_said() == [dead + 1, blamed]
    assert not silent_said(two.pauses, said), "its own pause is nobody's fault"
    assert "has restarted" not in two.stays.text
    assert two.defects() - defects <= 1
