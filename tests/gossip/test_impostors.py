"""With keys in hosts.txt, who speaks for a line is whoever holds the line's key: in every message, whatever it says of itself."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gossip.test_protocol import ALONE, alone_with_a_session, fatals, hello, make, of_type
from zpala.gossip.actions import Log, SendUp
from zpala.gossip.codec import encode
from zpala.gossip.hosts import parse_hosts
from zpala.gossip.messages import ExchangeId, Heartbeat, Leave, Nack, Ok, Reject, UpMessage, Welcome
from zpala.gossip.protocol import Protocol
from zpala.gossip.sessions import INCARNATION_MAX, SAID_MAX

KEYS = [f"{line:x}" * 64 for line in range(1, 4)]
HOSTS = parse_hosts("\n".join(f"n{line} 10.0.0.{line + 1}:5000 {key}" for line, key in enumerate(KEYS)), "hosts.txt")
REJECT = Reject(code="key", field="key", mine=KEYS[1], yours=KEYS[0], fatal=True)


def keyed(**options: Any) -> Protocol:
    return make(hosts=HOSTS, **options)


def warnings(actions: list[Any]) -> list[str]:
    return [action.text for action in actions if isinstance(action, Log) and action.level == "warning"]


def test_the_holder_of_the_lines_key_is_admitted() -> None:
    (welcome,) = of_type(keyed().on_up(b"x", hello(1), 0.2, KEYS[1]), Welcome)
    assert welcome.line == 0


@pytest.mark.parametrize(
    ("line", "key"),
    [
        (1, KEYS[2]),
        (1, KEYS[0]),
        (1, "f" * 64),
        (1, None),
        (0, KEYS[1]),
        (0, None),
        (3, KEYS[1]),
        (200, KEYS[1]),
        (2, KEYS[1].upper() + "0"),
    ],
)
def test_anybody_elses_hello_is_refused_by_name_and_changes_nothing(line: int, key: str | None) -> None:
    protocol = keyed()
    protocol.on_up(b"real", hello(1), 0.1, KEYS[1])
    before = protocol.describe()
    actions = protocol.on_up(b"x", hello(line, incarnation=2**62, agreement={"seed": "other"}), 0.2, key)
    (reject,) = of_type(actions, Reject)
    assert (reject.code, reject.field, reject.fatal) == ("key", "key", True)
    assert reject.mine == (KEYS[line] if line < 3 else "(no such line)")
    assert reject.yours == (key or "(none)")
    assert not of_type(actions, Welcome)
    assert not fatals(actions), "a forged HELLO that disagrees must not end this node"
    assert protocol.describe() == before
    assert protocol.metrics()["forged"] == 1


def test_it_is_said_once_who_claims_to_be_whom() -> None:
    protocol = keyed()
    said = [text for number in range(20) for text in warnings(protocol.on_up(b"%d" % number, hello(1 + number % 2), 0.1, KEYS[2]))]
    assert len(said) == 1
    assert said[0].startswith("who holds the key of n2 (10.0.0.3:5000) claims to be n1 (10.0.0.2:5000) and was refused")
    said = warnings(protocol.on_up(b"x", hello(200), 0.2, None))
    assert said[0].startswith("somebody without a key claims to be on a line that hosts.txt has not and was refused")
    assert protocol.metrics()["forged"] == 11


def test_a_session_is_of_no_use_to_another_key() -> None:
    """Routing ids come back after a reconnect: even on the very link of a session, another key's messages are nobody's."""
    protocol = keyed()
    (welcome,) = of_type(protocol.on_up(b"x", hello(1), 0.1, KEYS[1]), Welcome)
    before = protocol.describe()
    messages: list[UpMessage] = [
        Heartbeat(session=welcome.session, nonce=b"", condition=ALONE),
        Leave(session=welcome.session, incarnation=7, reason="end"),
        Ok(session=welcome.session, xid=ExchangeId(1, 7, 0)),
    ]
    for message in messages:
        for key in (KEYS[2], None):
            actions = protocol.on_up(b"x", message, 0.2, key)
            assert of_type(actions, Nack) == [Nack(code="no_session")]
    assert protocol.describe() == before
    assert protocol.metrics()["no_session"] == 6
    protocol.on_up(b"x", messages[1], 0.3, KEYS[1])
    assert protocol.describe()["peers"][0]["liveness"] == "left"


def test_what_an_insider_says_fills_neither_the_log_nor_the_memory() -> None:
    """The names in a HELLO's agreement and the codes of a NACK are the peer's own."""
    protocol, _ = alone_with_a_session()
    said = []
    for number in range(100):
        agreement = {"seed": "1", f"field {number}": "x"}
        said += warnings(protocol.on_up(b"%d" % number, hello(1, incarnation=9, agreement=agreement), 0.6, None))
        said += warnings(protocol.on_down(1, Nack(code=f"code {number}"), None, 0.6))
    assert len(said) == SAID_MAX
    assert protocol.metrics()["rejects_sent"] == 100


@pytest.mark.parametrize("known", [INCARNATION_MAX, 2**64 - 1])
def test_an_incarnation_beyond_all_others_does_not_end_the_node_that_it_is_told_of(known: int) -> None:
    """Somebody has said HELLO for this line with it before this node came; there is no higher one to answer with."""
    protocol = make()
    protocol.start(0.0)
    reject = Reject(code="stale_incarnation", field="incarnation", mine="", yours="", fatal=False, known_incarnation=known)
    said = []
    for second in range(1, 6):
        actions = [*protocol.on_down(1, reject, None, float(second)), *protocol.on_timer(second + 0.5)]
        said += warnings(actions)
        assert not fatals(actions)
        for action in of_type(actions, SendUp):
            encode(action.message)
    assert len(said) == 1
    assert "somebody has passed for this node" in said[0]


def test_a_file_without_keys_asks_for_none() -> None:
    protocol = make()
    assert of_type(protocol.on_up(b"x", hello(1), 0.1, None), Welcome)
    assert of_type(protocol.on_up(b"y", hello(2), 0.1, "f" * 64), Welcome)


def test_who_is_refused_for_its_key_before_the_start_stops_and_says_both_keys() -> None:
    (fatal,) = fatals(keyed().on_down(1, REJECT, None, 0.2))
    assert fatal.exit_code == 4
    for part in ("n1 (10.0.0.2:5000) refuses this node", "the line of n0", KEYS[0], KEYS[1], "same hosts.txt everywhere"):
        assert part in fatal.text


def test_a_running_node_only_says_so() -> None:
    protocol, _ = alone_with_a_session()
    said = [text for number in range(5) for text in warnings(protocol.on_down(1, REJECT, None, 0.6 + number / 10))]
    assert len(said) == 1
    assert "n1 (10.0.0.2:5000) refuses this node" in said[0]
    assert protocol.phase == "running"
