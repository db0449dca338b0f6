"""``zpala bench exchange``: how long two nodes take to average their models, beside the least that two processes could need for it.

Two nodes with real proxies and all guards, but without learning (``bench_gossip``), exchange one after the other; in turn with them two
processes over plain TCP (``bench_tcp``) and, if asked for, gloo's all_reduce (``bench_gloo``). What counts are ratios of neighbouring
blocks.

Copies of the vector that one exchange makes, per node, found by reading the code. Sent: the learner copies its model to a buffer of the
proxy's (``GossipPort._publish``), which becomes the shadow (``Shadow.publish``) and is what is frozen; the kernel copies it out of there.
Received: the kernel copies it to libzmq's message, where it is checked and from which the delta is written to a buffer
(``Snapshots.judge``); the learner adds that. So one of our own and one of the kernel's in each direction.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from zpala.config import ConfigError
from zpala.exit_codes import ExitCode
from zpala.node.keys import new_key
from zpala.run_directory import process_facts
from zpala.tools.bench_circumstances import circumstances
from zpala.tools.bench_measurement import Measurement, Part, last_line
from zpala.tools.bench_pairs import Pair, orders, summarise
from zpala.tools.bench_peers import Block, Peers
from zpala.tools.bench_stamps import FREEZE, SIDE, stages
from zpala.tools.bench_vectors import ALIGNMENT
from zpala.tools.child import ChildFailed

OTHERS = ("gloo",)  # what --against knows
BLOCKS = 10  # per kind; what is asked for is divided among them
WARM_UP = 10
SIZE_MIN, SIZE_MAX = ALIGNMENT, 1 << 28
COPIES = {"sending": 1, "sending_kernel": 1, "receiving": 1, "receiving_kernel": 1}
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo"}


@dataclass(slots=True)
class Kind:
    """Everything that was measured of one kind: its blocks, in order."""

    blocks: list[Block] = field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        return [seconds for block in self.blocks for seconds in block.seconds]

    @property
    def medians(self) -> list[float]:
        return [statistics.median(block.seconds) for block in self.blocks]

    @property
    def cpu_s(self) -> float:
        """Per exchange and process, median of the blocks."""
        return statistics.median(block.cpu_per_repetition_s for block in self.blocks)


def bench_exchange(
    *, size: int, exchanges: int, curve: bool = False, against: str | None = None, as_json: bool = False, output: IO[str] | None = None
) -> int:
    """Measures and says it; returns the exit status. Raises ConfigError: wrong numbers, or gloo is not there; nothing was started."""
    size = checked_size(size)
    check_against(against)
    load = os.getloadavg()[0]
    try:
        with tempfile.TemporaryDirectory(prefix="zpala-bench-") as folder:
            found = measure(Path(folder), size, exchanges, curve=curve, gloo=against == "gloo")
    except ChildFailed as error:
        sys.stderr.write(f"zpala: {error}\n")
        return error.exit_code
    measurement = summary(found, size, curve)
    where = circumstances(process_facts(), load)
    (output or sys.stdout).write((last_line(measurement.document(where)) if as_json else measurement.text(where)) + "\n")
    return ExitCode.FINISHED


def checked_size(size: int) -> int:
    """``size`` floats, rounded down to whole 64 bytes. Raises ConfigError."""
    if not SIZE_MIN <= size <= SIZE_MAX:
        raise ConfigError(f"--size: {size}; between {SIZE_MIN} and {SIZE_MAX} floats. Give another number.")
    return size - size % ALIGNMENT


def check_against(against: str | None) -> None:
    """Raises ConfigError for what an exchange is not compared with here."""
    if against is None:
        return
    if against not in OTHERS:
        raise ConfigError(f"--against: {against!r}; an exchange is compared with {', '.join(OTHERS)}.")
    import torch.distributed

    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        raise ConfigError("--against gloo: this build of torch has no gloo. Install the usual wheel: pip install torch.")


def measure(folder: Path, size: int, exchanges: int, *, curve: bool, gloo: bool) -> dict[str, Kind]:
    """Blocks of all kinds in turn, forwards and backwards: "zpala", "tcp", and of gloo "gloo" and "gloo both ways". Raises ChildFailed."""
    keys = [new_key(folder, f"n{line}") for line in range(2)] if curve else []
    settings: dict[str, Any] = {"size": size}
    found: dict[str, Kind] = {"zpala": Kind(), "tcp": Kind()}
    with ExitStack() as stack:
        node = {**settings, **({"key_files": [str(key.path) for key in keys], "keys": [key.public for key in keys]} if keys else {})}
        zpala = stack.enter_context(Peers("a node without learning", "zpala.tools.bench_gossip", node))
        tcp = stack.enter_context(Peers("a process of plain TCP", "zpala.tools.bench_tcp", settings))
        steps: dict[str, tuple[Peers, dict[str, Any]]] = {"zpala": (zpala, {}), "tcp": (tcp, {})}
        if gloo:
            group = {**settings, "store": str(folder / "gloo")}
            peers = stack.enter_context(Peers("a process of gloo", "zpala.tools.bench_gloo", group, LOOPBACK))
            steps |= {"gloo": (peers, {}), "gloo both ways": (peers, {"both_ways": True})}
            found |= {"gloo": Kind(), "gloo both ways": Kind()}
        count = max(2, min(WARM_UP, exchanges))
        for side, order in steps.values():
            side.block(count, **order)
        blocks = min(BLOCKS, exchanges)
        for number, direction in enumerate(orders(blocks)):
            count = exchanges // blocks + (number < exchanges % blocks)
            for kind in list(steps) if direction == "AB" else reversed(list(steps)):
                side, order = steps[kind]
                found[kind].blocks.append(side.block(count, **order))
    return found


def pairs(found: Mapping[str, Kind], other: str) -> list[Pair]:
    """Medians of neighbouring blocks, zpala's against ``other``'s, in seconds."""
    both = zip(orders(len(found["zpala"].blocks)), found["zpala"].medians, found[other].medians, strict=True)
    return [Pair(order, mine, theirs) for order, mine, theirs in both]


def summary(found: Mapping[str, Kind], size: int, curve: bool) -> Measurement:
    """All that is said."""
    zpala, tcp = found["zpala"], found["tcp"]
    seconds, floor = zpala.seconds, statistics.median(tcp.seconds)
    table = stage_table(zpala)
    parts = [Part(name, value, "exchange") for name, value in longer_sides(table).items()]
    against = {kind: summarise(pairs(found, kind)) for kind in found if kind != "zpala"}
    slowest = max(table, key=lambda name: table[name])
    facts: dict[str, Any] = {
        "quantiles": "  ".join(f"p{percent} {1000 * quantile(seconds, percent):.2f} ms" for percent in (50, 90, 99)),
        "period": f"{1000 * statistics.median(periods(zpala)):.2f} ms from one to the next, publishing included",
        "CPU": "  ".join(f"{kind} {1000 * value.cpu_s:.2f} ms" for kind, value in found.items()) + "  per exchange and process",
        "copies": "of our own per node: 1 on the way out, 1 on the way in; the kernel's: 1 and 1",
        **{f"to {kind}": f"{value}  (median {1000 * value.b_median:.2f} ms)" for kind, value in against.items()},
        "settings": {"size": size, "curve": curve, "exchanges": len(seconds)},
        "quantiles_s": {f"p{percent}": quantile(seconds, percent) for percent in (50, 90, 99)},
        "cpu_s": {kind: value.cpu_s for kind, value in found.items()},
        "medians_s": {kind: statistics.median(value.seconds) for kind, value in found.items()},
        "copies_made": COPIES,
        "stages_s": table,
        "ratios": {
            kind: {"median": value.ratio_median, "low": value.ratio_low, "high": value.ratio_high} for kind, value in against.items()
        },
    }
    return Measurement(
        what=f"{len(seconds)} exchanges of {4e-6 * size:.1f} MB between two nodes on this machine{', with keys' if curve else ''}, "
        "from the freeze of the one that offers to both learners' additions",
        kind="time",
        unit="exchange",
        measured=statistics.median(seconds),
        floor=floor,
        parts=parts,
        formula="both vectors over one TCP connection at once, a reader thread each, both compute the mean; no protocol, no checks",
        bottleneck=f"{slowest.replace(SIDE, ', ')}: {1000 * table[slowest]:.2f} ms",
        facts=facts,
    )


def stage_table(zpala: Kind) -> dict[str, float]:
    """Stage -> median seconds, over all exchanges."""
    found: dict[str, list[float]] = {}
    for block in zpala.blocks:
        for name, values in stages(block.rows[0], block.rows[1]).items():
            found.setdefault(name, []).extend(values)
    return {name: statistics.median(values) for name, values in found.items()}


def longer_sides(table: Mapping[str, float]) -> dict[str, float]:
    """The table with one line for what both sides do at the same time: that of the side which takes longer."""
    found: dict[str, float] = {}
    for name, seconds in table.items():
        what, separator, _ = name.partition(SIDE)
        key = what if separator and what != FREEZE else name.replace(SIDE, ", ")
        found[key] = max(found.get(key, 0.0), seconds)
    return found


def periods(kind: Kind) -> list[float]:
    """From the end of one exchange to the end of the next, within blocks; of the exchange itself where a block has but one."""
    found = []
    for block in kind.blocks:
        ends = [max(pair) for pair in zip(*block.ends, strict=True)]
        found += [after - before for before, after in pairwise(ends)]
    return found or kind.seconds


def quantile(values: Sequence[float], percent: int) -> float:
    """The smallest of ``values`` that at least ``percent`` per cent of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
