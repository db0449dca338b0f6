"""Two hosts and the cable between them, which is reset, unplugged or mute one way: a long test of minutes, played by hand.

    python -m tests.soak.links --down 20 90 --silent 20 90

Needs root and iproute2: the hosts are network namespaces, and nothing outside them is touched. A real ``zpala node`` runs on each, behind a
link of ``--mbit`` Mbit/s, with a model so big that an exchange takes a good part of a second. What must hold is checked after every fault
and printed with what was measured as one JSON document; exit status 1 if anything did not:

* nobody is called dead over a link that is only busy, or that has been reset;
* both average within ``HEALED_S`` of the moment when the link is whole again;
* env_steps grow all the while: no standstill is longer than the gate's limit and a second;
* nobody ends, and nobody starts anew.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.processes import ZPALA, Process, Processes, vector
from tests.faults import namespaces
from tests.faults.namespaces import Cable
from tests.soak.new_rows import NewRows
from zpala.gossip.settings import GossipSettings

PORT = 5670
POLL_S = 0.02
ROW_S = 0.1
BUSY_S = 20.0
ONE_WAY_S = 20.0
RESETS = 5
HEALED_S = 5.0
STILL_S = GossipSettings().gate_limit_s + 1.0
EXCHANGE_S = 0.2  # a link that exchanges keep busy: one takes at least that long
STARTED_S = 60.0


@dataclass
class Node:
    """One process, as seen by its rows and its lines."""

    process: Process
    directory: Path
    rows: NewRows = field(init=False)
    lines_read: int = 0
    row: dict[str, Any] = field(default_factory=dict)
    env_steps: int = 0
    moved_at: float = 0.0  # when its env_steps last grew; 0: not yet
    longest_still_s: float = 0.0  # of this part of the play
    deads: int = 0  # so many times it has called the other dead
    restarts: int = 0

    def __post_init__(self) -> None:
        self.rows = NewRows(self.directory)

    @property
    def exchanges(self) -> int:
        return int(self.row.get("gossip/exchanges", 0))

    @property
    def live(self) -> int:
        return int(self.row.get("gossip/live", 0))

    def look(self, now: float) -> None:
        self.process.read_on()
        for line in self.process.lines[self.lines_read :]:
            self.deads += " is dead: nothing heard" in line
            self.restarts += "has restarted" in line
        self.lines_read = len(self.process.lines)
        for row in self.rows.read():
            self.row = row
            if self.row["env_steps"] > self.env_steps:
                self.env_steps = self.row["env_steps"]
                self.longest_still_s = max(self.longest_still_s, self.still_s(now))
                self.moved_at = now

    def still_s(self, now: float) -> float:
        """For so long it has not made a step that is known of."""
        return now - self.moved_at if self.moved_at else 0.0


class Play:
    """``folder``: where hosts.txt and the run directory go."""

    def __init__(self, folder: Path, cable: Cable, hidden: int) -> None:
        self.processes = Processes(folder)
        self.cable = cable
        self.violations: list[str] = []
        hosts = folder / "hosts.txt"
        hosts.write_text("".join(f"{name} {host.address}:{PORT}\n" for name, host in zip("ab", cable.hosts, strict=True)))
        settings = (f"network.hidden_sizes=[{hidden}, {hidden}]", f"run.log_interval_s={ROW_S}", 'optimizer.anneal="none"')
        options = ("--preset", "cartpole", "--insecure", "--run-dir", "run", "--total-env-steps", "1000000000")
        words = [word for setting in settings for word in ("--set", setting)]
        self.nodes = [
            Node(self.processes("node", "--peers", hosts, *options, *words, command=(*host.command, *ZPALA)), folder / "run/nodes" / name)
            for name, host in zip("ab", cable.hosts, strict=True)
        ]

    # ---- what is seen -----------------------------------------------------------------------------------------------------------------

    def look(self) -> None:
        now = time.monotonic()
        for node in self.nodes:
            node.look(now)
            assert node.process.running(), f"a node has ended: {node.process.text[-2000:]}"

    def wait(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Looks until ``condition()``; False when that takes longer."""
        until = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > until:
                return False
            self.look()
            time.sleep(POLL_S)
        return True

    def hold(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() >= until, seconds + 1.0)

    # ---- the faults -------------------------------------------------------------------------------------------------------------------

    def busy(self) -> dict[str, Any]:
        """The link and nothing else: exchanges keep it busy."""
        with self._part("busy", deads=0) as result:
            before = [node.exchanges for node in self.nodes]
            self.hold(BUSY_S)
            result["exchanges"] = [node.exchanges - count for node, count in zip(self.nodes, before, strict=True)]
            result["exchange_s"] = [round(node.row["gossip/exchange_ms_p50"] / 1000, 3) for node in self.nodes]
            if min(result["exchange_s"]) < EXCHANGE_S:
                self.violations.append(f"busy: an exchange takes {result['exchange_s']} s: the link is not busy")
        return result

    def reset(self) -> dict[str, Any]:
        """A RST to every connection, while they carry exchanges."""
        with self._part("reset", deads=0) as result:
            result["connections"], healed = [], []
            for _ in range(RESETS):
                count = self.cable.reset(self.cable.hosts[0], PORT)
                if count == 0:
                    self.violations.append("reset: there was no connection")
                result["connections"].append(count)
                healed.append(self._healed("reset", more=2))  # one may have been applied before, and seen after
            result["healed_s"] = healed
        return result

    def one_way(self) -> dict[str, Any]:
        return self._outage("one_way", self.cable.one_way(self.cable.hosts[0]), ONE_WAY_S)

    def down(self, seconds: float) -> dict[str, Any]:
        return self._outage(f"down {seconds:g} s", self.cable.unplugged(), seconds)

    def silent(self, seconds: float) -> dict[str, Any]:
        """As down, but neither host has an error to go by."""
        return self._outage(f"silent {seconds:g} s", self.cable.silent(), seconds)

    def _outage(self, what: str, fault: AbstractContextManager[None], seconds: float) -> dict[str, Any]:
        """Longer than it takes to notice: each is called dead once, by the other, and nothing is exchanged."""
        with self._part(what, deads=2) as result:
            with fault:
                self.hold(seconds)
                alone = [(node.live, node.exchanges) for node in self.nodes]
                if any(live for live, _ in alone):
                    self.violations.append(f"{what}: one that cannot be reached is taken for live")
            result["healed_s"] = self._healed(what, more=1)
            result["doubts"] = [node.row["gossip/doubts"] for node in self.nodes]
            result["defects"] = [node.row["gossip/defects"] for node in self.nodes]
        return result

    def _healed(self, what: str, more: int) -> float:
        """Seconds from now until both have applied ``more`` exchanges more."""
        began = time.monotonic()
        goals = [node.exchanges + more for node in self.nodes]
        if not self.wait(lambda: all(node.exchanges >= goal for node, goal in zip(self.nodes, goals, strict=True)), 4 * HEALED_S):
            self.violations.append(f"{what}: no exchange within {4 * HEALED_S:g} s")
        took = time.monotonic() - began
        if took > HEALED_S:
            self.violations.append(f"{what}: the first exchange came after {took:.1f} s")
        return round(took, 2)

    @contextmanager
    def _part(self, what: str, deads: int) -> Iterator[dict[str, Any]]:
        """Judges what both went through: ``deads`` are to be told of."""
        now = time.monotonic()
        before = [(node.deads, node.restarts, node.env_steps) for node in self.nodes]
        for node in self.nodes:
            node.longest_still_s = node.still_s(now)
        result: dict[str, Any] = {}
        yield result
        self.hold(1.0)
        now = time.monotonic()
        result["longest_still_s"] = [round(max(node.longest_still_s, node.still_s(now)), 2) for node in self.nodes]
        result["env_steps"] = [node.env_steps - steps for node, (_, _, steps) in zip(self.nodes, before, strict=True)]
        result["deads"] = [node.deads - count for node, (count, _, _) in zip(self.nodes, before, strict=True)]
        result["restarts"] = [node.restarts - count for node, (_, count, _) in zip(self.nodes, before, strict=True)]
        result["distance"] = [node.row["gossip/consensus_distance"] for node in self.nodes]
        if max(result["longest_still_s"]) > STILL_S:
            self.violations.append(f"{what}: a node stood still for {max(result['longest_still_s'])} s")
        if result["deads"] != [deads // 2, deads // 2]:
            self.violations.append(f"{what}: called dead {result['deads']} times, not {[deads // 2, deads // 2]}")
        if any(result["restarts"]):
            self.violations.append(f"{what}: somebody is taken for a new process")

    # ---- the play ---------------------------------------------------------------------------------------------------------------------

    def play(self, down: list[float], silent: list[float]) -> dict[str, Any]:
        assert self.wait(lambda: all(node.exchanges >= 2 for node in self.nodes), STARTED_S), "the nodes do not average"
        result: dict[str, Any] = {"busy": self.busy(), "reset": self.reset(), "one_way": self.one_way()}
        result |= {f"down_{seconds:g}_s": self.down(seconds) for seconds in down}
        result |= {f"silent_{seconds:g}_s": self.silent(seconds) for seconds in silent}
        result["busy_again"] = self.busy()
        for node in self.nodes:
            node.process.send(signal.SIGTERM)
        statuses = [node.process.end(20.0) for node in self.nodes]
        if statuses != [143, 143]:
            self.violations.append(f"the nodes ended with {statuses}")
        result["parameters_mb"] = [round(vector(node.directory).size * 4 / 1e6, 2) for node in self.nodes]
        return result | {"violations": self.violations}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbit", type=int, default=100, help="of the link, each way")
    parser.add_argument(
        "--hidden", type=int, default=920, help="width of both hidden layers of both networks: 920 make 1.7 million parameters"
    )
    parser.add_argument(
        "--down", type=float, nargs="*", default=[20.0, 90.0], help="seconds with the cable unplugged, one outage after the other"
    )
    parser.add_argument("--silent", type=float, nargs="*", default=[20.0, 90.0], help="the same, but no error tells either host")
    options = parser.parse_args()
    obstacle = namespaces.obstacle("tc", "ss")
    if obstacle is not None:
        sys.exit(f"tests.soak.links: {obstacle}")
    with tempfile.TemporaryDirectory(prefix="zpala-soak-") as folder, namespaces.two_hosts() as cable, ExitStack() as stack:
        for host in cable.hosts:
            stack.enter_context(cable.limited(host, 1_000_000 * options.mbit, burst_bytes=65_536))
        play = Play(Path(folder), cable, options.hidden)
        try:
            result = play.play(options.down, options.silent)
        finally:
            play.processes.close()
    print(json.dumps(result, indent=2))
    sys.exit(bool(result["violations"]))


if __name__ == "__main__":
    main()
