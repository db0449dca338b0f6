"""Addresses are passed on at once, names are looked up in threads of their own, a few at a time, and a bad name is an answer too."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.node.conftest import LIMIT_S, few_descriptors, poll
from zpala.node import resolver
from zpala.node.resolver import LOOKUPS_MAX, Resolved, Resolver, addresses_of, look_up_all
from zpala.node.sockets import Context


class NameServer:
    """Answers names when it is told to."""

    def __init__(self) -> None:
        self.names = {"node1": ("10.0.0.1",), "dual": ("10.0.0.2", "2001:db8::2")}
        self.may_answer = threading.Event()
        self.asked: list[str] = []
        self.threads: set[str] = set()

    def __call__(self, host: str) -> tuple[str, ...]:
        self.asked.append(host)
        self.threads.add(threading.current_thread().name)
        assert self.may_answer.wait(10.0)
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.names[host]


@pytest.fixture
def server() -> Iterator[NameServer]:
    made = NameServer()
    yield made
    made.may_answer.set()


@pytest.fixture
def looking(context: Context, server: NameServer) -> Iterator[Resolver]:
    made = Resolver(context, server)
    yield made
    made.close()


def answers(looking: Resolver, count: int) -> dict[int, Resolved]:
    found: dict[int, Resolved] = {}
    while len(found) < count:
        poll(looking.socket)
        found.update({answer.line: answer for answer in looking.answers()})
    return found


@pytest.mark.parametrize(
    ("host", "endpoint"), [("127.0.0.1", "tcp://127.0.0.1:5670"), ("::1", "tcp://[::1]:5670"), ("fe80::1%lo", "tcp://[fe80::1%lo]:5670")]
)
def test_an_address_is_no_question(looking: Resolver, server: NameServer, host: str, endpoint: str) -> None:
    assert looking.request(3, host, 5670) == Resolved(3, (endpoint,))
    assert server.asked == []


def test_names_are_answered_later_and_elsewhere(looking: Resolver, server: NameServer) -> None:
    assert looking.request(0, "node1", 5670) is None
    assert looking.request(1, "dual", 5671) is None
    assert list(looking.answers()) == []
    server.may_answer.set()
    assert answers(looking, 2) == {
        0: Resolved(0, ("tcp://10.0.0.1:5670",)),
        1: Resolved(1, ("tcp://10.0.0.2:5671", "tcp://[2001:db8::2]:5671")),
    }
    assert threading.current_thread().name not in server.threads


def test_an_unknown_name_is_an_answer(looking: Resolver, server: NameServer) -> None:
    server.may_answer.set()
    looking.request(2, "no-such-host.invalid", 5670)
    answer = answers(looking, 1)[2]
    assert answer.endpoints == ()
    assert "not known" in answer.error


def test_a_line_is_asked_for_once_at_a_time_and_again_afterwards(looking: Resolver, server: NameServer) -> None:
    for _ in range(5):
        looking.request(0, "node1", 5670)
    server.may_answer.set()
    answers(looking, 1)
    assert server.asked == ["node1"]
    server.names["node1"] = ("10.0.0.99",)  # it has moved
    looking.request(0, "node1", 5670)
    assert answers(looking, 1)[0].endpoints == ("tcp://10.0.0.99:5670",)


def test_lookups_are_bounded_and_all_are_answered(looking: Resolver, server: NameServer) -> None:
    names = {line: f"host{line}" for line in range(3 * LOOKUPS_MAX)}
    server.names = {name: (f"10.0.1.{line}",) for line, name in names.items()}
    for line, name in names.items():
        looking.request(line, name, 5670)
    running = [thread for thread in threading.enumerate() if thread.name.startswith("lookup host")]
    assert len(running) == LOOKUPS_MAX
    server.may_answer.set()
    assert {line: answer.endpoints for line, answer in answers(looking, len(names)).items()} == {
        line: (f"tcp://10.0.1.{line}:5670",) for line in names
    }


def test_closing_does_not_wait_for_a_silent_name_server(context: Context) -> None:
    server = NameServer()
    looking = Resolver(context, server)
    looking.request(0, "node1", 5670)
    looking.close()
    server.may_answer.set()
    for thread in threading.enumerate():
        if thread.name == "lookup node1":
            thread.join(10.0)
            assert not thread.is_alive()


def test_localhost_is_ipv4_first() -> None:
    assert addresses_of("localhost")[0] == "127.0.0.1"


def test_many_names_at_once_with_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    forever = threading.Event()

    def look_up(host: str) -> tuple[str, ...]:
        if host == "silent":
            forever.wait(10.0)
        if host == "unknown":
            raise socket.gaierror
        return (f"{host}'s address",)

    monkeypatch.setattr(resolver, "addresses_of", look_up)
    found = look_up_all(["node1", "node1", "unknown", "silent", "127.0.0.1"], limit_s=0.2)
    forever.set()
    assert found == {"node1": ("node1's address",), "127.0.0.1": ("127.0.0.1's address",)}


def test_an_answer_that_is_lost_for_want_of_descriptors_is_asked_for_again(looking: Resolver, server: NameServer) -> None:
    assert looking.request(3, "node1", 5670) is None
    lookups = [thread for thread in threading.enumerate() if thread.name == "lookup node1"]
    with few_descriptors(0):
        server.may_answer.set()
        for thread in lookups:
            thread.join(LIMIT_S)
    assert len(lookups) == len(server.asked) == 1
    assert list(looking.answers()) == []
    assert looking.request(3, "node1", 5670) is None
    assert answers(looking, 1)[3].endpoints == ("tcp://10.0.0.1:5670",)
