"""Snapshots that must not be averaged: each is refused under a name of its own, and the victim's model does not change by a bit.

The victim and its honest peer hold the same vector, so what they exchange all the while is exactly zero, and only the third peer, which is
played with raw sockets, could change anything.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
import xxhash

from tests.faults.raw_zmtp import RawNode, RawServer
from tests.node.pair import Pair
from tests.node.raw_peer import LIMIT_S, NUMEL, RAW, hear_about, join, meanwhile, offer_until_accepted, raw_node
from zpala.gossip import codec
from zpala.gossip import messages as m
from zpala.gossip.schema import Schema, TensorEntry

VICTIM = 0
BEAT_S = 0.5  # who is silent ten times as long is dead
ROLES = ("initiator", "responder")  # the raw peer's
REFUSALS = ("rejected_checksum", "rejected_size", "rejected_nonfinite", "rejected_norm", "rejected_diverged")


@dataclass
class Stage:
    """Two honest nodes that started from the same vector and average, in a file of three lines; ``server`` listens for the third."""

    pair: Pair
    server: RawServer
    incarnations: Iterator[int] = field(default_factory=lambda: itertools.count(5))

    def raw(self) -> RawNode:
        """The third peer, as a process of its own: what an earlier one did is forgotten."""
        return raw_node(self.pair, self.server, incarnation=next(self.incarnations))

    def victims(self, counter: str) -> float:
        return self.pair.metric(counter)[VICTIM]

    def attack(self, attack: Callable[[RawNode], None], counter: str) -> None:
        """Plays it: the victim counts it once under ``counter``, nothing is refused under another name, and it keeps every bit."""
        before, counted = bits(self.pair.learners[VICTIM].model), self.victims(counter)
        others = {name: self.victims(name) for name in REFUSALS if name != counter}

        def run() -> None:
            with self.raw() as node:
                attack(node)

        meanwhile(self.pair, run)
        self.pair.run_until(lambda: self.victims(counter) == counted + 1)
        assert {name: self.victims(name) for name in others} == others
        for learner in self.pair.learners:
            assert np.array_equal(bits(learner.model), before)


@contextmanager
def new_stage() -> Iterator[Stage]:
    with RawServer() as server:
        pair = Pair(NUMEL, "adopt", others=[("127.0.0.1", server.port)], max_share=0.1, max_distance=1.0)
        try:
            pair.more(2)
            assert np.array_equal(bits(pair.learners[0].model), bits(pair.learners[1].model))
            yield Stage(pair, server)
        finally:
            pair.stop()
        assert all(supervisor.first is None for supervisor in pair.supervisors)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with new_stage() as made:
        yield made


def bits(vector: np.ndarray) -> np.ndarray:
    return vector.view(np.uint32).copy()


def describe(payload: bytes) -> m.SnapshotDescription:
    """As its sender would, who believes in it."""
    return m.SnapshotDescription(version=2, nbytes=len(payload), checksum=xxhash.xxh3_64_intdigest(payload), square_norm=1.0)


def offered(node: RawNode) -> m.Offer:
    """The victim's next offer of its own. It can be long in coming: what it has answered before counts as its share of the machine. So the
    raw peer shows all the while that it lives."""
    deadline, beat_at = time.monotonic() + LIMIT_S, 0.0
    while (now := time.monotonic()) < deadline:
        if now >= beat_at:
            node.heartbeat()
            beat_at = now + BEAT_S
        said = node.server.receive_within(BEAT_S)
        if said is not None and isinstance(message := codec.decode_up(said[0]), m.Offer):
            return message
    raise AssertionError(f"no offer within {LIMIT_S:g} s")


def send(node: RawNode, role: str, payload: bytes) -> m.ExchangeId:
    """One exchange with the victim up to the payload, in ``role``; returns which one, when it is known to be under way."""
    if role == "initiator":
        offer, _ = offer_until_accepted(node)
        node.client.hear(m.Data, down=True)
        node.server.say(m.Data(session=node.session, xid=offer.xid, snapshot=describe(payload), ok=True), payload)
        return offer.xid
    offer = offered(node)
    node.server.say(m.Accept(session=node.session, xid=offer.xid, snapshot=describe(payload)))
    node.server.say(m.Data(session=node.session, xid=offer.xid, snapshot=describe(payload)), payload)
    return m.ExchangeId(*offer.xid)


def refusal(node: RawNode, role: str, payload: bytes) -> str:
    """The victim's reason for ABORT. An offer of its own that it has given up since says nothing about the payload."""
    deadline = time.monotonic() + LIMIT_S
    while (code := str(hear_about(node, m.Abort, send(node, role, payload)).code)) == "unknown":
        assert time.monotonic() < deadline
    return code


def changed(vector: np.ndarray, index: int, value: float) -> bytes:
    copy = vector.copy()
    copy[index] = value
    return copy.tobytes()


def shuffled(vector: np.ndarray) -> bytes:
    return np.random.default_rng(1).permutation(vector).tobytes()


POISONS: dict[str, tuple[Callable[[np.ndarray], bytes], str]] = {
    "one NaN": (lambda vector: changed(vector, NUMEL // 2, np.nan), "nonfinite"),
    "one Inf": (lambda vector: changed(vector, NUMEL - 1, -np.inf), "nonfinite"),
    "squares that overflow": (lambda vector: changed(vector, 0, 1e30), "nonfinite"),
    "100 times the norm": (lambda vector: (100 * vector).tobytes(), "norm"),
    "nothing but zeros": (lambda vector: bytes(vector.nbytes), "norm"),
    "another order": (shuffled, "diverged"),
    "another shape": (lambda vector: vector[: NUMEL // 2].tobytes(), "size"),
    "float16": (lambda vector: vector.astype(np.float16).tobytes(), "size"),
    "float64": (lambda vector: vector[: NUMEL // 2].astype(np.float64).tobytes(), "nonfinite"),
    "big-endian": (lambda vector: vector.astype(">f4").tobytes(), "nonfinite"),
    "no payload at all": (lambda vector: b"", "size"),
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("what", POISONS)
def test_a_poisonous_snapshot_is_refused_by_name(stage: Stage, what: str, role: str) -> None:
    make, code = POISONS[what]
    payload = make(stage.pair.learners[VICTIM].model)
    codes: list[str] = []

    def send_it(node: RawNode) -> None:
        join(node)
        codes.append(refusal(node, role, payload))

    stage.attack(send_it, f"rejected_{code}")
    assert codes == [code]


@pytest.mark.parametrize("role", ROLES)
def test_a_good_snapshot_is_averaged(role: str) -> None:
    """The same messages with an honest vector change the victim's model: the tests above would notice."""
    with new_stage() as stage:
        before = stage.pair.learners[VICTIM].model.copy()
        payload = (np.float32(1.5) * before).tobytes()

        def be_good() -> None:
            with stage.raw() as node:
                join(node)
                xid = send(node, role, payload)
                if role == "responder":
                    while node.client.hear(m.Data, down=True).xid != xid:
                        pass
                    node.client.say(m.Ok(session=node.welcome.session, xid=xid))
                else:
                    hear_about(node, m.Ok, xid)

        meanwhile(stage.pair, be_good)
        after = stage.pair.learners[VICTIM].model
        assert np.linalg.norm(after - before) > 0.05 * np.linalg.norm(before)


# ---- replays


def exchange(node: RawNode) -> m.Data:
    """One whole exchange with a vector that is the victim's own; what was sent in it."""
    offer, _ = offer_until_accepted(node)
    data = node.client.hear(m.Data, down=True)
    said = m.Data(session=node.session, xid=offer.xid, snapshot=data.snapshot, ok=True)
    node.server.say(said, node.client.payload[0])
    hear_about(node, m.Ok, offer.xid)
    return said


def test_data_that_are_sent_again_are_not_looked_at(stage: Stage) -> None:
    """Of an exchange that is over; with the same payload or another."""

    def replay(node: RawNode) -> None:
        join(node)
        said = exchange(node)
        node.server.say(said, bytes(range(250)) * (4 * NUMEL // 250))
        is_heard(node)

    stage.attack(replay, "stray")


def test_data_of_an_earlier_session_are_not_looked_at(stage: Stage) -> None:
    def replay(node: RawNode) -> None:
        join(node)
        said = exchange(node)
        node.server.say(dataclasses.replace(said, session=node.session + 1), node.client.payload[0])
        is_heard(node)

    stage.attack(replay, "stale_session")


def is_heard(node: RawNode) -> None:
    """Returns when the victim has read what was sent before: it asks for an exchange that it does not know."""
    unheard = m.ExchangeId(RAW, node.incarnation, 10**6)
    node.server.say(m.Accept(session=node.session, xid=unheard, snapshot=describe(b"")))
    assert hear_about(node, m.Abort, unheard).code == "unknown"


# ---- other models


def fingerprint(*shape: int, name: str = "x") -> str:
    return Schema((TensorEntry(name, shape, 0, NUMEL),), NUMEL).fingerprint


SCHEMAS = {
    "shape": fingerprint(NUMEL // 2, 2),
    "name": fingerprint(NUMEL, name="y"),
    "dtype or layout": "0" * 32,  # there is no other than float32 and contiguous: a fingerprint that no schema has
}


@pytest.mark.parametrize("what", SCHEMAS)
def test_another_schema_gets_no_session(stage: Stage, what: str) -> None:
    """And without one nothing is exchanged."""

    def knock(node: RawNode) -> None:
        hello = m.Hello(
            node="raw", line=RAW, incarnation=node.incarnation, agreement={"schema": SCHEMAS[what]}, condition=m.Condition(phase="waiting")
        )
        node.client.say(hello)
        rejected = node.client.hear(m.Reject, m.Welcome, down=True)
        assert (rejected.code, rejected.field, rejected.yours) == ("agreement", "schema", SCHEMAS[what])
        node.client.say(offer_of(node, 0))
        assert node.client.hear(m.Nack, down=True).code == "no_session"

    stage.attack(knock, "rejects_sent")


def test_the_model_of_another_run_gets_no_session(stage: Stage) -> None:
    def knock(node: RawNode) -> None:
        condition = m.Condition(phase="running", updates=10**6, version=10**6)
        hello = m.Hello(
            node="raw", line=RAW, incarnation=node.incarnation, nonce=b"another!", agreement=stage.pair.agreement, condition=condition
        )
        node.client.say(hello)
        rejected = node.client.hear(m.Reject, m.Welcome, down=True)
        assert (rejected.code, rejected.yours) == ("nonce", b"another!".hex())
        node.client.say(offer_of(node, 0))
        assert node.client.hear(m.Nack, down=True).code == "no_session"

    stage.attack(knock, "rejects_sent")


def test_who_goes_over_to_another_run_loses_its_session(stage: Stage) -> None:
    def go_over(node: RawNode) -> None:
        join(node)
        node.nonce = b"another!"
        node.heartbeat()
        node.client.say(offer_of(node, node.welcome.session))
        assert node.client.hear(m.Accept, m.Nack, down=True).code == "no_session"

    stage.attack(go_over, "foreign_run")


def offer_of(node: RawNode, session: int) -> m.Offer:
    xid = m.ExchangeId(RAW, node.incarnation, 0)
    return m.Offer(session=session, xid=xid, snapshot=dataclasses.replace(describe(b""), nbytes=4 * NUMEL))
