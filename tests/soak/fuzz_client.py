"""Sends a node what nobody should, until SIGTERM: one process of ``tests.soak.fuzz``.

    python -m tests.soak.fuzz_client frames PORT SEED CONNECTIONS NBYTES AGREEMENT
    python -m tests.soak.fuzz_client half-open PORT SEED COUNT

``frames``: damaged messages as fast as the node reads them, over several connections, of which every second reads the answers; a connection
lives for ten to a thousand messages, and the first of them has a session of the attacker's line. ``half-open``: ``COUNT``
connections that never finish a handshake, of which a quarter is there at a time; each goes by itself, or when the node ends it.
"""

from __future__ import annotations

import contextlib
import json
import math
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from random import Random

from tests.faults.raw_zmtp import RawClient
from tests.faults.zmtp_frames import MORE, frame, greeting, ready
from tests.soak.fuzz_frames import LINE, bodies, honest
from zpala.gossip import messages as m

BATCH = 50
LIFE_MESSAGES = (10, 1000)  # few enough that many are decoded: a link that sends bad frames is soon ignored
RESETS = 0.1  # of the connections end with what is under way being lost
HELD_S = 8.0  # longer than the node's handshake interval
BROKEN = (ConnectionError, TimeoutError, AssertionError)  # the node has ended the connection, perhaps in the handshake


class Attacker:
    """One connection after the other; without blocking for long, however slowly the node reads."""

    def __init__(self, port: int, random: Random, *, member: bool, reads: bool, agreement: dict[str, str], nbytes: int) -> None:
        self.sent = self.connections = 0
        self._port = port
        self._random = random
        self._member = member
        self._reads = reads
        self._agreement = agreement
        self._nbytes = nbytes
        self._client: RawClient | None = None
        self._messages: Iterator[list[bytes]] = iter(())
        self._left = 0
        self._rest = memoryview(b"")
        self._rest_messages = 0
        self.parting = False

    @property
    def hears(self) -> bool:
        return self._reads or self.parting

    @property
    def connection(self) -> socket.socket | None:
        return None if self._client is None else self._client.socket

    def turn(self) -> None:
        """Sends as much as goes without waiting."""
        try:
            if self._client is None:
                self._connect()
            assert self._client is not None
            if self.hears:
                with contextlib.suppress(BlockingIOError):
                    if not self._client.socket.recv(1 << 16):
                        raise ConnectionResetError
            if not self.parting:
                self._write(self._client.socket)
        except BROKEN:
            self._hang_up()

    def _connect(self) -> None:
        client = self._client = RawClient.dealer(self._port)
        self.connections += 1
        session, incarnation = self._random.getrandbits(62), 1
        if self._member:
            session, incarnation = self._join(client)
        frames = [body for number in range(4) for body in honest(session, incarnation, number, self._agreement, self._nbytes)]
        self._messages = bodies(frames, self._random)
        self._left = int(math.exp(self._random.uniform(*map(math.log, LIFE_MESSAGES))))
        client.socket.setblocking(False)

    def _join(self, client: RawClient) -> tuple[int, int]:
        """A session, and the incarnation that it was given to: a damaged HELLO may have told of a later one."""
        incarnation = 1
        while True:
            condition = m.Condition(phase="waiting")
            client.say(m.Hello(node="raw", line=LINE, incarnation=incarnation, agreement=self._agreement, condition=condition))
            answer = client.hear(m.Welcome, m.Reject, down=True)
            if isinstance(answer, m.Welcome):
                return answer.session, incarnation
            incarnation = answer.known_incarnation + 1

    def _write(self, to: socket.socket) -> None:
        if not self._rest:
            count = min(BATCH, self._left)
            batch = [next(self._messages) for _ in range(count)]
            self._rest, self._rest_messages = memoryview(b"".join(map(_message, batch))), count
        with contextlib.suppress(BlockingIOError):
            self._rest = self._rest[to.send(self._rest) :]
        if not self._rest:
            self.sent += self._rest_messages
            self._left -= self._rest_messages
            if self._left <= 0 and self._random.random() < RESETS:
                self._hang_up()
            elif self._left <= 0:
                to.shutdown(socket.SHUT_WR)  # the node reads what is under way, and ends the connection
                self.parting = True

    def _hang_up(self) -> None:
        if self._client is not None:
            self._client.close(reset=self._random.random() < 0.5)
        self._client, self._rest, self.parting = None, memoryview(b""), False


def _message(frames: list[bytes]) -> bytes:
    *first, last = frames
    return b"".join(frame(body, MORE) for body in first) + frame(last)


def send_frames(port: int, seed: int, connections: int, nbytes: int, agreement: str, told: list[int]) -> dict[str, int]:
    random = Random(seed)
    attackers = [
        Attacker(port, random, member=number == 0, reads=number % 2 == 0, agreement=json.loads(agreement), nbytes=nbytes)
        for number in range(connections)
    ]
    while not told:
        for attacker in attackers:
            attacker.turn()
        there = [(each, connection) for each in attackers if (connection := each.connection) is not None]
        if len(there) == len(attackers):
            hearing = [connection for each, connection in there if each.hears]
            saying = [connection for each, connection in there if not each.parting]
            select.select(hearing, saying, [], 0.1)
    return {"sent": sum(each.sent for each in attackers), "connections": sum(each.connections for each in attackers)}


def stay_half_open(port: int, seed: int, count: int, told: list[int]) -> dict[str, int]:
    random = Random(seed)
    whole = greeting() + ready(b"DEALER")
    there: list[tuple[float, RawClient]] = []
    opened = ended_by_node = 0
    while (opened < count or there) and not told:
        while opened < count and len(there) < max(1, count // 4):
            client = RawClient(port)
            client.send_raw(whole[: random.choice((0, 0, 1, 10, 11, 20, 63, 64, 66, random.randrange(len(whole) - 1)))])
            there.append((time.monotonic() + random.uniform(0.0, HELD_S), client))
            opened += 1
        select.select([client.socket for _, client in there], [], [], 0.05)
        ended = {id(client) for _, client in there if _has_ended(client)}
        for until, client in list(there):
            if id(client) in ended or time.monotonic() > until:
                ended_by_node += id(client) in ended
                client.close(reset=random.random() < 0.3)
                there.remove((until, client))
    for _, client in there:
        client.close()
    return {"opened": opened, "ended_by_node": ended_by_node}


def _has_ended(client: RawClient) -> bool:
    """Whether the node has; what it says in the handshake is read away."""
    try:
        while select.select([client.socket], [], [], 0)[0]:
            if not client.socket.recv(4096):
                return True
    except ConnectionError:
        return True
    return False


def main() -> None:
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    what, port, seed, number, *more = sys.argv[1:]
    if what == "frames":
        nbytes, agreement = more
        result = send_frames(int(port), int(seed), int(number), int(nbytes), agreement, told)
    else:
        result = stay_half_open(int(port), int(seed), int(number), told)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
