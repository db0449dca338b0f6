"""Sessions, fencing, and what a node does with messages that it should not get; small parts that need no cluster of their own."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import numpy as np
import pytest

from zpala.gossip.actions import Log, Payload, SendDown, SendUp, ToLearner
from zpala.gossip.codec import encode
from zpala.gossip.events import Fatal, Published, SnapshotLent, View
from zpala.gossip.hosts import parse_hosts
from zpala.gossip.membership import Phase
from zpala.gossip.messages import (
    Abort,
    Condition,
    Data,
    DigestEntry,
    ExchangeId,
    Fetch,
    Heartbeat,
    Hello,
    Leave,
    Nack,
    Offer,
    Ok,
    Reject,
    SnapshotDescription,
    StateData,
    Welcome,
)
from zpala.gossip.pacing import DEBT_S, Pacing
from zpala.gossip.protocol import BUFFERS_MIN, LENT, Protocol
from zpala.gossip.sessions import SAID_MAX
from zpala.gossip.settings import GossipSettings
from zpala.sim.cluster import NUMEL, VirtualCluster, full, schema_of

AGREEMENT = {"seed": "1"}
ALONE = Condition(phase="waiting")


def vectors(count: int) -> list[Any]:
    return [np.zeros(NUMEL, np.float32) for _ in range(count)]


def make(size: int = 3, line: int = 0, **options: Any) -> Protocol:
    arguments: dict[str, Any] = {
        "line": line,
        "hosts": parse_hosts("\n".join(f"n{i} 10.0.0.{i + 1}:5000" for i in range(size)), "hosts.txt"),
        "topology": full(size),
        "agreement": AGREEMENT,
        "schema": schema_of(NUMEL),
        "settings": GossipSettings(),
        "node": f"n{line}",
        "incarnation": 100,
        "nonce": b"nonce..." if line == 0 else b"another.",
        "buffers": vectors(BUFFERS_MIN),
        "state_parts": {"parameters": vectors(1)[0]},
        "budget": 10**6,
        "rng": random.Random(1),
        "now": 0.0,
    }
    protocol = Protocol(**(arguments | options))
    protocol.start(0.0)
    return protocol


def hello(line: int = 1, incarnation: int = 7, **options: Any) -> Hello:
    fields: dict[str, Any] = {"node": f"n{line}", "line": line, "incarnation": incarnation, "agreement": AGREEMENT, "condition": ALONE}
    return Hello(**(fields | options))


def of_type(actions: list[Any], kind: type) -> list[Any]:
    return [action.message for action in actions if isinstance(action, SendDown | SendUp) and isinstance(action.message, kind)]


def fatals(actions: list[Any]) -> list[Fatal]:
    return [action.event for action in actions if isinstance(action, ToLearner) and isinstance(action.event, Fatal)]


# ---- HELLO ---------------------------------------------------------------------------------------------------------------------------


def test_hello_gives_a_session_and_is_answered_by_hello() -> None:
    protocol = make()
    actions = protocol.on_up(b"x", hello(), 0.2)
    (welcome,) = of_type(actions, Welcome)
    assert (welcome.line, welcome.incarnation, welcome.nonce) == (0, 100, b"")
    assert of_type(actions, Hello)


def test_the_same_hello_on_the_same_link_keeps_the_session_and_on_another_replaces_it() -> None:
    protocol = make()
    sessions = [of_type(protocol.on_up(link, hello(), 0.1 * i), Welcome)[0].session for i, link in enumerate([b"x", b"x", b"y"])]
    assert sessions[0] == sessions[1] != sessions[2]
    old = protocol.on_up(b"x", Heartbeat(session=sessions[0], nonce=b"", condition=ALONE), 0.5)
    assert of_type(old, Nack) == [Nack(code="no_session")]


def test_no_end_of_unknown_fields_is_said_so_often_and_no_more() -> None:
    """A stranger chooses how the fields of its agreement are called."""
    protocol = make(1 + 1, settings=GossipSettings(initial="own"))
    protocol.on_up(b"x", hello(), 0.1)
    protocol._run.enter(Phase.RUNNING, 0.1)
    said = [
        [action for action in protocol.on_up(b"y", hello(agreement={**AGREEMENT, f"field {number}": "1"}), 0.2) if isinstance(action, Log)]
        for number in range(SAID_MAX + 1)
    ]
    assert [len(logs) for logs in said] == [1] * SAID_MAX + [0]
    assert protocol.metrics()["rejects_sent"] == SAID_MAX + 1


def test_an_unknown_session_is_told_so() -> None:
    protocol = make()
    assert of_type(protocol.on_up(b"x", Ok(session=1, xid=ExchangeId(1, 7, 0)), 0.1), Nack) == [Nack(code="no_session")]
    protocol.on_up(b"x", hello(), 0.2)
    assert of_type(protocol.on_up(b"x", Ok(session=1, xid=ExchangeId(1, 7, 0)), 0.3), Nack) == [Nack(code="no_session")]
    assert protocol.metrics()["no_session"] == 2


def test_nack_no_session_leads_to_hello() -> None:
    protocol = make()
    protocol.on_down(1, Welcome(session=5, node="n1", line=1, incarnation=7, version=1, nonce=b"", condition=ALONE), None, 0.1)
    assert of_type(protocol.on_down(1, Nack(code="no_session"), None, 0.5), Hello)


def test_an_older_incarnation_is_refused_and_a_newer_one_taken() -> None:
    protocol = make()
    protocol.on_up(b"x", hello(incarnation=7), 0.1)
    (reject,) = of_type(protocol.on_up(b"y", hello(incarnation=6), 0.2), Reject)
    assert (reject.code, reject.known_incarnation, reject.fatal) == ("stale_incarnation", 7, False)
    assert of_type(protocol.on_up(b"y", hello(incarnation=8), 0.3), Welcome)
    assert protocol.metrics()["renewed"] == 1


def test_a_restart_with_a_clock_that_went_back_raises_its_incarnation_once() -> None:
    protocol = make()
    reject = Reject(code="stale_incarnation", field="incarnation", mine="", yours="", fatal=False, known_incarnation=500)
    (again,) = of_type(protocol.on_down(1, reject, None, 0.2), Hello)
    assert again.incarnation == 501
    # Another peer, or this one, refuses the HELLO from before: no twin.
    late = protocol.on_down(2, reject, None, 0.3)
    assert not fatals(late)
    assert [message.incarnation for message in of_type(late, Hello)] == [501]
    twin = dataclasses.replace(reject, known_incarnation=501)
    (fatal,) = fatals(protocol.on_down(1, twin, None, 0.4))
    assert fatal.exit_code == 8


def test_the_older_of_two_live_twins_stops() -> None:
    protocol = make()
    protocol.on_down(1, Welcome(session=5, node="n1", line=1, incarnation=7, version=1, nonce=b"", condition=ALONE), None, 0.1)
    reject = Reject(code="stale_incarnation", field="incarnation", mine="", yours="", fatal=False, known_incarnation=500)
    (fatal,) = fatals(protocol.on_down(1, reject, None, 5.0))
    assert fatal.exit_code == 8
    assert protocol.deadline() == math.inf


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (hello(line=9), "unknown_line"),
        (hello(line=0, incarnation=100), "self"),
        (hello(line=0, incarnation=99), "duplicate"),
        (hello(version_min=2, version_max=3), "version"),
        (hello(agreement={"seed": "2"}), "agreement"),
    ],
)
def test_refusals(message: Hello, code: str) -> None:
    actions = make().on_up(b"x", message, 0.2)
    (reject,) = of_type(actions, Reject)
    assert reject.code == code
    assert reject.fatal
    assert not of_type(actions, Welcome)


def test_a_disagreement_names_field_and_values_even_when_one_side_has_no_such_field() -> None:
    actions = make().on_up(b"x", hello(agreement={"seed": "1", "wire": "f16"}), 0.2)
    (reject,) = of_type(actions, Reject)
    assert (reject.field, reject.mine, reject.yours) == ("wire", "(not given)", "f16")
    (fatal,) = fatals(actions)
    assert '"wire"' in fatal.text
    assert "f16" in fatal.text


def test_an_answer_from_the_wrong_line_is_no_session() -> None:
    protocol = make()
    welcome = Welcome(session=5, node="n2", line=2, incarnation=7, version=1, nonce=b"", condition=ALONE)
    actions = protocol.on_down(1, welcome, None, 0.1)
    assert any(isinstance(action, Log) and "answers as line 2" in action.text for action in actions)
    assert protocol.describe()["peers"][0]["established"] is False


def test_every_header_that_is_sent_can_be_encoded() -> None:
    """The agreement, the texts and the counters must fit the frames."""
    agreement = {f"field {i}": "x" * 32 for i in range(20)}
    protocol = make(agreement=agreement)
    actions = protocol.start(0.0) + protocol.on_up(b"x", hello(agreement=agreement | {"field 3": "y" * 200}), 0.2)
    for action in actions:
        if isinstance(action, SendUp | SendDown):
            encode(action.message)


# ---- nonsense ------------------------------------------------------------------------------------------------------------------------


def alone_with_a_session() -> tuple[Protocol, int]:
    """A running node (line 1 has a session, says it runs with us)."""
    protocol = make(2, settings=GossipSettings(initial="own"))
    welcome = of_type(protocol.on_up(b"x", hello(), 0.1), Welcome)[0]
    waiting = Condition(phase="waiting")
    protocol.on_down(1, Welcome(session=5, node="n1", line=1, incarnation=7, version=1, nonce=b"", condition=waiting), None, 0.2)
    ready = Heartbeat(session=welcome.session, nonce=b"nonce...", condition=Condition(phase="ready"))
    protocol.on_up(b"x", ready, 0.3)
    protocol.on_up(b"x", dataclasses.replace(ready, condition=Condition(phase="running", updates=20)), 0.4)
    assert protocol.phase == "running"
    lent = min(protocol._lent)
    protocol.buffers[lent][:] = 1.0
    protocol.on_published(Published(version=0, updates=0, applied_through=0), lent, 0.5)
    return protocol, welcome.session


def test_an_offer_in_anothers_name_is_ignored() -> None:
    protocol, session = alone_with_a_session()
    description = SnapshotDescription(version=1, nbytes=4 * NUMEL, checksum=0, square_norm=1.0)
    for xid in (ExchangeId(0, 7, 1), ExchangeId(1, 6, 1)):
        assert not of_type(protocol.on_up(b"x", Offer(session=session, xid=xid, snapshot=description), 0.6), Abort)
    assert protocol.metrics()["foreign_offers"] == 2
    assert protocol.metrics()["accepts"] == 0


def test_questions_about_unknown_exchanges_are_answered_by_abort() -> None:
    protocol, session = alone_with_a_session()
    for message in (Fetch(session=session, xid=ExchangeId(1, 7, 99)), Ok(session=session, xid=ExchangeId(1, 7, 99), ask=True)):
        (abort,) = of_type(protocol.on_up(b"x", message, 0.6), Abort)
        assert abort.code == "unknown"


def test_payloads_that_nobody_asked_for_are_not_looked_at() -> None:
    protocol, _ = alone_with_a_session()
    description = SnapshotDescription(version=1, nbytes=4 * NUMEL, checksum=0, square_norm=1.0)
    payload = memoryview(bytes(4 * NUMEL))
    before = protocol.metrics()
    protocol.on_down(1, Data(session=5, xid=ExchangeId(1, 7, 3), snapshot=description), payload, 0.7)
    protocol.on_down(1, StateData(session=5, state_id=1, part=0, nbytes=4 * NUMEL, checksum=0), payload, 0.8)
    changed = {name: value for name, value in protocol.metrics().items() if value != before[name]}
    assert changed == {"stray": 1}
    assert protocol.on_down(7, Data(session=5, xid=ExchangeId(1, 7, 3), snapshot=description), payload, 0.9) is not None
    assert protocol.metrics()["stray"] == 1


def test_answers_to_an_older_session_are_ignored_and_counted() -> None:
    protocol, _ = alone_with_a_session()
    data = Data(session=4, xid=ExchangeId(0, 100, 0), snapshot=SnapshotDescription(version=1, nbytes=64, checksum=0, square_norm=1.0))
    protocol.on_down(1, data, memoryview(bytes(64)), 0.7)
    assert protocol.metrics()["stale_session"] == 1


def test_a_bad_frame_is_counted_logged_sometimes_and_answered() -> None:
    protocol = make()
    actions = [action for i in range(20) for action in protocol.on_bad_frame(None, b"x", ValueError("x" * 5000), 0.1 + 0.01 * i)]
    nacks = of_type(actions, Nack)
    assert len(nacks) == 20
    assert protocol.metrics()["bad_frames"] == 20
    assert sum(isinstance(action, Log) for action in actions) == 2
    encode(nacks[0])


def test_leave_of_an_older_process_is_ignored() -> None:
    protocol, session = alone_with_a_session()
    protocol.on_up(b"x", Leave(session=session, incarnation=6, reason="stop"), 0.6)
    assert protocol.metrics()["left"] == 0
    protocol.on_up(b"x", Leave(session=session, incarnation=7, reason="stop"), 0.7)
    assert protocol.metrics()["left"] == 1


def test_counters_are_merged_by_maximum_and_end_the_run() -> None:
    protocol, session = alone_with_a_session()
    condition = Condition(phase="running", updates=21)

    def beat(steps: int, now: float) -> list[Any]:
        digest = (DigestEntry(1, 7, steps), DigestEntry(5, 3, 10))
        heartbeat = Heartbeat(session=session, nonce=b"nonce...", condition=condition, digest=digest)
        return protocol.on_up(b"x", heartbeat, now)

    beat(700_000, 0.6)
    beat(600_000, 0.7)
    views = [action.event for action in beat(999_990, 0.8) if isinstance(action, ToLearner) and isinstance(action.event, View)]
    assert views[-1].finish_reason == "budget"
    assert views[-1].cluster_env_steps == 1_000_000
    assert views[-1].other_env_steps == 1_000_000
    assert views[-1].progress == 1.0


@pytest.mark.parametrize(("nonce", "phase"), [(b"", "waiting"), (b"another.", "joining")])
def test_steps_of_another_run_do_not_count(nonce: bytes, phase: str) -> None:
    """A newcomer has heard of yesterday's run and tells of it before it joins today's."""
    protocol, session = alone_with_a_session()
    digest = (DigestEntry(5, 3, 10**9),)
    foreign = Heartbeat(session=session, nonce=nonce, condition=Condition(phase=phase), digest=digest)
    views = [
        action.event for action in protocol.on_up(b"x", foreign, 0.6) if isinstance(action, ToLearner) and isinstance(action.event, View)
    ]
    views += [action.event for action in protocol.on_timer(2.0) if isinstance(action, ToLearner) and isinstance(action.event, View)]
    assert views
    assert not any(view.finish_reason or view.other_env_steps for view in views)


def test_what_was_heard_of_a_run_that_could_not_be_joined_is_forgotten() -> None:
    protocol, running = make(line=1), Condition(phase="running", updates=30)
    protocol.start(0.0)
    old: dict[str, Any] = {"line": 0, "incarnation": 7, "nonce": b"old run."}
    (welcome,) = of_type(protocol.on_up(b"x", hello(**old, condition=running), 0.1), Welcome)
    protocol.on_down(0, Welcome(session=5, node="n0", version=1, condition=running, **old), None, 0.2)
    assert protocol.nonce == b"old run."
    heartbeat = Heartbeat(session=welcome.session, nonce=b"old run.", condition=running, digest=(DigestEntry(0, 7, 999),))
    protocol.on_up(b"x", heartbeat, 0.4)
    assert protocol._budget.total() == 999
    protocol.on_up(b"x", Leave(session=welcome.session, incarnation=7, reason="stop"), 0.5)
    protocol.on_timer(0.6)
    assert protocol.nonce == b""
    assert protocol._budget.total() == 0


def test_after_a_fatal_error_nothing_is_done() -> None:
    protocol, session = alone_with_a_session()
    protocol.on_down(1, Reject(code="duplicate", field="line", mine="0", yours="0", fatal=True), None, 0.6)
    assert protocol.deadline() == math.inf
    assert protocol.on_timer(100.0) == []
    assert protocol.on_up(b"x", hello(), 101.0) == []
    assert protocol.on_up(b"x", Ok(session=session, xid=ExchangeId(1, 7, 0)), 102.0) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"buffers": vectors(BUFFERS_MIN - 1)}, "too few"),
        ({"buffers": [*vectors(BUFFERS_MIN), np.zeros(NUMEL + 16, np.float32)]}, f"buffer {BUFFERS_MIN} has"),
        ({"topology": full(4)}, "the topology is for 4 nodes"),
    ],
)
def test_arguments_that_do_not_fit_together(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make(**change)


def test_payload_arrays_are_the_callers() -> None:
    buffers, parts = vectors(BUFFERS_MIN), {"parameters": vectors(1)[0], "slot": vectors(1)[0]}
    protocol = make(buffers=buffers, state_parts=parts)
    assert protocol.payload_array(Payload("buffer", 3)) is buffers[3]
    assert protocol.payload_array(Payload("state", 1)) is parts["slot"]


def test_the_learner_has_always_two_buffers_for_its_snapshots() -> None:
    protocol, _ = alone_with_a_session()
    assert len(protocol._lent) == LENT
    for version in range(1, 20):
        lent = max(protocol._lent)
        actions = protocol.on_published(Published(version=version, updates=version, applied_through=0), lent, 0.5 + version)
        [again] = [action.event for action in actions if isinstance(action, ToLearner) and isinstance(action.event, SnapshotLent)]
        assert again.buffer in protocol._lent
        assert len(protocol._lent) == LENT
        assert lent not in protocol._lent  # it is the shadow's
        with pytest.raises(ValueError, match=f"buffer {lent}, which was not lent"):
            protocol.on_published(Published(version=version, updates=version, applied_through=0), lent, 0.5 + version)


# ---- settings, pacing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"max_staleness": 0}, "max_staleness"),
        ({"max_lead": -1}, "max_lead"),
        ({"slow_factor": 1.0}, "slow_factor"),
        ({"slow_factor": -4.0}, "slow_factor"),
        ({"mixing_weight": 0.6}, "mixing_weight"),
        ({"initial": "zero"}, "initial"),
        ({"partner": "best"}, "partner"),
        ({"on_diverged": "ignore"}, "on_diverged"),
        ({"wait_for": 0}, "wait_for"),
        ({"heartbeat_s": 1.0}, "3 x heartbeat_s <= suspect_s"),
        ({"suspect_s": 5.0}, "suspect_s < dead_s"),
        ({"keep_s": 4.0}, "keep_s"),
        ({"retransmit_s": 1.0}, "retransmit_s < offer_timeout_s"),
        ({"exchange_timeout_s": 10.0}, "exchange_timeout_s < keep_s"),
        ({"drain_s": -1.0}, "drain_s"),
        ({"gate_limit_s": 0.0}, "gate_limit_s"),
    ],
)
def test_settings_that_break_an_argument_of_the_protocol(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        GossipSettings(**change)


def test_one_offer_per_publish() -> None:
    pacing = Pacing(0.2, random.Random(1), 0.0)
    assert not pacing.allows(False, 0.0)
    pacing.published()
    assert pacing.allows(False, 0.0)
    pacing.offered()
    assert not pacing.allows(False, 1.0)
    assert pacing.wake_at(False) == math.inf
    pacing.not_taken()
    assert pacing.allows(False, 1.0)


def test_back_off_after_busy_holds_for_urgent_offers_too() -> None:
    pacing = Pacing(0.2, random.Random(1), 0.0)
    pacing.published()
    waits = []
    for _ in range(200):
        pacing.busy(0.01, 5.0)
        assert not pacing.allows(True, 5.0)
        waits.append(pacing.wake_at(True) - 5.0)
        assert pacing.allows(True, pacing.wake_at(True))
    assert 0.01 <= min(waits) < 0.012
    assert 0.028 < max(waits) <= 0.03


def test_gossip_takes_no_more_than_its_share() -> None:
    share, cost_s = 0.2, 0.01
    pacing = Pacing(share, random.Random(1), 0.0)
    now, spent = 0.0, 0.0
    while now < 20.0:
        pacing.published()
        if pacing.allows(False, now):
            pacing.offered()
            pacing.cost(cost_s, now)
            spent += cost_s
            now += cost_s
        else:
            wake = pacing.wake_at(False)
            assert wake > now
            now = wake
    assert spent == pytest.approx(share * 20.0 + share * 1.0, rel=0.05)  # the share, and what was saved up at the start


def test_what_answers_and_urgent_offers_took_is_owed_for_half_a_minute_at_most() -> None:
    pacing = Pacing(0.05, random.Random(1), 0.0)
    pacing.published()
    pacing.cost(600.0, 1.0)
    assert not pacing.allows(False, 30.0)
    assert 30.0 < pacing.wake_at(False) <= 1.0 + DEBT_S + 1.0
    assert pacing.allows(False, pacing.wake_at(False))


def test_urgent_offers_know_no_share() -> None:
    pacing = Pacing(0.2, random.Random(1), 0.0)
    pacing.cost(100.0, 1.0)
    assert pacing.allows(True, 1.0)
    assert not pacing.allows(False, 1.0)


def test_the_views_numbers_add_up() -> None:
    cluster = VirtualCluster(4, 1, periods=0.05)
    assert cluster.run(20.0, cluster.all_started)
    cluster.run(8.0)
    for node in cluster.nodes:
        view = node.learner.view
        assert view is not None
        assert (view.live, view.neighbours_live, view.averaged, view.phase) == (3, 3, 3, "running")
        assert {line for line, _ in view.eligible} == {0, 1, 2, 3} - {node.line}
        assert view.cluster_rate == pytest.approx(4 * 80 / 0.05, rel=0.2)
        assert 0.0 < view.exchange_p50_s < 0.02
        assert view.bytes_sent > 0
        assert view.progress == pytest.approx(view.cluster_env_steps / cluster.budget)
