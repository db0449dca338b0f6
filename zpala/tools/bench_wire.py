"""``zpala bench wire``: one way of a snapshot from one process to another through zpala's own sockets and frames, and what it consists of.

Measured are the freeze's description (norm and checksum) on the sending side, ROUTER to DEALER without a copy of ours, and the same two
checks on the receiving side: what a snapshot passes in an exchange, without its handshake and without the delta. The floor is
one way of the same bytes over plain TCP (``bench_tcp``) and those checks, which nobody can leave out. Blocks of both are made in turn.

Runs its two processes as ``python -m zpala.tools.bench_wire`` (see ``bench_peers``).
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from zpala.exit_codes import ExitCode
from zpala.gossip import messages as m
from zpala.gossip.codec import encode
from zpala.gossip.mixing import checksum, square_norm
from zpala.node import sockets
from zpala.node.frames import FrameReader, Vector, send_down, send_up
from zpala.node.keys import SecretKey, new_key, read_key
from zpala.node.security import Admission
from zpala.node.threads import prepare_process
from zpala.run_directory import process_facts
from zpala.tools.bench_circumstances import circumstances
from zpala.tools.bench_exchange import checked_size, quantile
from zpala.tools.bench_measurement import Measurement, Part, last_line
from zpala.tools.bench_pairs import Pair, orders, summarise
from zpala.tools.bench_peers import Block, Peers
from zpala.tools.bench_vectors import digest, start_vector
from zpala.tools.child import ChildFailed, say
from zpala.tools.child import orders as told_orders
from zpala.tools.parent import die_with_parent

BLOCKS = 10
WARM_UP = 10
LIMIT_MS = 30_000
SESSION = 1
XID = m.ExchangeId(0, 1, 1)


@dataclass(frozen=True, slots=True)
class Settings:
    """``size``: floats; ``key_files``, ``keys``: as of ``bench_gossip``; ``side``: 0 has the ROUTER and sends, 1 the DEALER."""

    size: int
    side: int
    key_files: tuple[str, ...] = ("", "")
    keys: tuple[str, ...] = ("", "")

    @property
    def key(self) -> SecretKey | None:
        """This side's own. Raises SecurityRefused."""
        return read_key(Path(self.key_files[self.side])) if self.key_files[self.side] else None


# ---- what is measured -----------------------------------------------------------------------------------------------------------------


class Sender:
    """Side 0: answers every FETCH with its vector, described anew each time."""

    def __init__(self, settings: Settings, context: sockets.Context, listener: Any) -> None:
        key = settings.key
        self.vector = start_vector(0, settings.size)
        self._poller = sockets.poller()
        self._admission = Admission(context, self._poller, None if key is None else frozenset(settings.keys))
        self._router, _ = sockets.router_socket(context, listener, own_key=key, monitor=self._admission.monitor)
        self._poller.register(self._router, sockets.READABLE)
        self._reader = FrameReader(authenticated=key is not None)

    def step(self) -> tuple[float, float, dict[str, float]]:
        """One message: when its description was begun, when libzmq had it, and the moment between. Raises TimeoutError."""
        while True:
            ready = dict(self._poller.poll(LIMIT_MS))
            if not ready:
                raise TimeoutError("nobody has asked for anything")
            self._admission.serve(ready)
            up = self._reader.read_up(self._router)
            if up is not None and isinstance(up.message, m.Fetch):
                break
        began = time.monotonic()
        norm, digest_of_all = square_norm(self.vector), checksum(self.vector)
        described = time.monotonic()
        snapshot = m.SnapshotDescription(version=1, nbytes=self.vector.nbytes, checksum=digest_of_all, square_norm=norm)
        header = encode(m.Data(session=SESSION, xid=up.message.xid, snapshot=snapshot, ok=False))
        if not send_down(self._router, up.link, header, self.vector):
            raise ConnectionError("the receiving side has gone")
        return began, time.monotonic(), {"described": described}


class Receiver:
    """Side 1: asks, and checks what it gets where libzmq has put it."""

    def __init__(self, settings: Settings, context: sockets.Context, port: int) -> None:
        self.vector = np.zeros(settings.size, dtype=np.float32)
        key = settings.key
        peer = bytes.fromhex(settings.keys[0])
        address = sockets.endpoint("127.0.0.1", port)
        self._dealer = sockets.dealer_socket(context, address, self.vector.nbytes, own_key=key, peer_key=peer)
        self._reader = FrameReader()

    def step(self) -> tuple[float, float, dict[str, float]]:
        """One message: when it was asked for, when it was known to be good, and the moment when it had come. Raises TimeoutError."""
        began = time.monotonic()
        deadline = began + LIMIT_MS / 1000
        while not send_up(self._dealer, encode(m.Fetch(session=SESSION, xid=XID))):  # the connection is being made
            if time.monotonic() > deadline or not self._dealer.poll(LIMIT_MS, sockets.WRITABLE):
                raise TimeoutError("the sending side does not listen")
        if not self._dealer.poll(LIMIT_MS, sockets.READABLE):
            raise TimeoutError("nothing was sent")
        down = self._reader.read_down(self._dealer)
        arrived = time.monotonic()
        if down is None or not isinstance(down.message, m.Data) or down.payload is None or down.payload.nbytes != self.vector.nbytes:
            raise ValueError(f"a snapshot of {self.vector.nbytes} bytes was expected, not {down}")
        self.vector = np.frombuffer(down.payload, dtype=np.float32)
        if checksum(self.vector) != down.message.snapshot.checksum or not math.isfinite(square_norm(self.vector)):
            raise ValueError("the snapshot was damaged on its way")
        return began, time.monotonic(), {"arrived": arrived}


def main() -> None:
    """Does what its orders say."""
    die_with_parent(os.environ)
    prepare_process(1)
    settings = Settings(**json.loads(sys.argv[1]))
    context = sockets.node_context(encrypted=settings.key is not None)
    listener = sockets.listening_socket("127.0.0.1", 0)
    say({"event": "here", "port": listener.getsockname()[1]})
    told = told_orders()
    port = next(told)["peers"][0]["port"]
    side = Sender(settings, context, listener) if settings.side == 0 else Receiver(settings, context, port)
    if settings.side:
        listener.close()
    say({"event": "ready"})
    for order in told:
        if "result" in order:
            say({"event": "result", "checksum": checksum(side.vector), **digest(side.vector)})
            continue
        cpu_s = time.process_time()
        steps = [side.step() for _ in range(order["count"])]
        cpu_s = time.process_time() - cpu_s
        starts, ends, rows = zip(*steps, strict=True)
        say({"event": "block", "starts": starts, "ends": ends, "cpu_s": cpu_s, "rows": rows})


# ---- the command ------------------------------------------------------------------------------------------------------------------------


def bench_wire(*, size: int, messages: int, curve: bool = False, as_json: bool = False, output: IO[str] | None = None) -> int:
    """Measures and says it; returns the exit status. Raises ConfigError for a size that cannot be; nothing was started."""
    size = checked_size(size)
    load = os.getloadavg()[0]
    try:
        with tempfile.TemporaryDirectory(prefix="zpala-bench-") as folder:
            wire, tcp = measure(Path(folder), size, messages, curve=curve)
    except ChildFailed as error:
        sys.stderr.write(f"zpala: {error}\n")
        return error.exit_code
    measurement = summary(wire, tcp, size, curve)
    where = circumstances(process_facts(), load)
    (output or sys.stdout).write((last_line(measurement.document(where)) if as_json else measurement.text(where)) + "\n")
    return ExitCode.FINISHED


def measure(folder: Path, size: int, messages: int, *, curve: bool) -> tuple[list[Block], list[Block]]:
    """Blocks of zpala's wire and of plain TCP, in turn. Raises ChildFailed."""
    keys = [new_key(folder, f"n{line}") for line in range(2)] if curve else []
    settings: dict[str, Any] = {"size": size}
    keyed = {**settings, **({"key_files": [str(key.path) for key in keys], "keys": [key.public for key in keys]} if keys else {})}
    with ExitStack() as stack:
        wire = stack.enter_context(Peers("an end of the wire", "zpala.tools.bench_wire", keyed))
        tcp = stack.enter_context(Peers("a process of plain TCP", "zpala.tools.bench_tcp", settings))
        count = max(1, min(WARM_UP, messages))
        wire.block(count)
        tcp.block(count, one_way=True)
        ours, plain = [], []
        blocks = min(BLOCKS, messages)
        for number, order in enumerate(orders(blocks)):
            count = messages // blocks + (number < messages % blocks)
            if order == "AB":
                ours.append(wire.block(count))
                plain.append(tcp.block(count, one_way=True))
            else:
                plain.append(tcp.block(count, one_way=True))
                ours.append(wire.block(count))
    return ours, plain


def one_way(block: Block) -> list[float]:
    """From the beginning of the side that sends to the end of the side that receives, seconds."""
    return [end - start for start, end in zip(block.starts[0], block.ends[1], strict=True)]


def summary(wire: list[Block], tcp: list[Block], size: int, curve: bool) -> Measurement:
    """All that is said."""
    seconds = [value for block in wire for value in one_way(block)]
    plain = statistics.median(value for block in tcp for value in one_way(block))
    alone = passes_alone(size)
    checks = 2 * (alone["checksum"] + alone["norm"])
    rows = [(sent, got, end) for block in wire for sent, got, end in zip(block.rows[0], block.rows[1], block.ends[1], strict=True)]
    stages = {
        "norm and checksum of the sending side": [
            row["described"] - start for block in wire for row, start in zip(block.rows[0], block.starts[0], strict=True)
        ],
        "on its way": [got["arrived"] - sent["described"] for sent, got, _ in rows],
        "norm and checksum of the receiving side": [end - got["arrived"] for _, got, end in rows],
    }
    table = {name: statistics.median(values) for name, values in stages.items()}
    slowest = max(table, key=lambda name: table[name])
    pairs = [
        Pair(order, statistics.median(one_way(ours)), statistics.median(one_way(theirs)))
        for order, ours, theirs in zip(orders(len(wire)), wire, tcp, strict=True)
    ]
    against = summarise(pairs)
    return Measurement(
        what=f"{len(seconds)} snapshots of {4e-6 * size:.1f} MB, one way between two processes here{', with keys' if curve else ''}",
        kind="time",
        unit="message",
        measured=statistics.median(seconds),
        floor=plain + checks,
        parts=[
            Part("TCP", plain, "message", "sendall, recv_into"),
            *(Part(name, value, "pass", "alone") for name, value in alone.items()),
            *(Part(name, value, "message", "within the whole") for name, value in table.items()),
        ],
        formula="TCP + 2 x (checksum + norm)",
        bottleneck=f"{slowest}: {1000 * table[slowest]:.2f} ms",
        facts={
            "quantiles": "  ".join(f"p{percent} {1000 * quantile(seconds, percent):.2f} ms" for percent in (50, 90, 99)),
            "CPU": "  ".join(
                f"{name} {1000 * statistics.median(block.cpu_s[side] / len(block.ends[0]) for block in blocks):.2f} ms"
                for name, blocks in (("zpala", wire), ("tcp", tcp))
                for side in range(2)
            )
            + "  per message: sending and receiving side",
            "to tcp": f"{against}",
            "settings": {"size": size, "curve": curve, "messages": len(seconds)},
            "stages_s": table,
            "alone_s": alone,
            "ratios": {"tcp": {"median": against.ratio_median, "low": against.ratio_low, "high": against.ratio_high}},
        },
    )


def passes_alone(size: int, repetitions: int = 15) -> dict[str, float]:
    """Median seconds of one pass over a vector f32[size] that is not in the nearest cache: copied, summed up, squared."""
    vectors = [start_vector(0, size) for _ in range(4)]
    place = np.zeros_like(vectors[0])
    passes: dict[str, Callable[[Vector], object]] = {
        "memcpy": lambda vector: np.copyto(place, vector),
        "checksum": checksum,
        "norm": square_norm,
    }
    found: dict[str, float] = {}
    for name, step in passes.items():
        times = []
        for number in range(repetitions):
            began = time.perf_counter()
            step(vectors[number % len(vectors)])
            times.append(time.perf_counter() - began)
        found[name] = statistics.median(times)
    return found


if __name__ == "__main__":
    main()
