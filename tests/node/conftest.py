"""Fixtures for tests with real sockets: contexts are terminated with a limit, ports are chosen by the kernel, nothing waits for ever."""

from __future__ import annotations

import itertools
import os
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import zmq

from zpala.node.sockets import Context, Socket
from zpala.node.worker import Supervisor

if TYPE_CHECKING:
    from tests.node.pair import Pair

LIMIT_S = 10.0
_numbers = itertools.count()


def terminate(context: Context) -> None:
    """Terminates a context in a helper thread; a socket that was left open is a failed test, not a hang."""
    helper = threading.Thread(target=context.term, name="terminate", daemon=True)
    helper.start()
    helper.join(LIMIT_S)
    assert not helper.is_alive(), "open sockets remain in the test"


@pytest.fixture
def context() -> Iterator[Context]:
    made: Context = zmq.Context()
    yield made
    terminate(made)


@pytest.fixture
def open_socket(context: Context) -> Iterator[Callable[[int], Socket]]:
    """A factory of plain sockets that are closed after the test."""
    made: list[Socket] = []

    def factory(kind: int) -> Socket:
        one = context.socket(kind)
        one.setsockopt(zmq.LINGER, 0)
        made.append(one)
        return one

    yield factory
    for one in made:
        one.close()


@pytest.fixture
def supervisor(context: Context) -> Iterator[Supervisor]:
    made = Supervisor(context)
    yield made
    made.close()


@pytest.fixture
def inproc_address() -> str:
    return f"inproc://test-{next(_numbers)}"


def poll(socket: Socket, limit_s: float = LIMIT_S) -> None:
    """Waits until ``socket`` has something to read: a message that is missing is an assertion, not a hang."""
    assert socket.poll(round(limit_s * 1000)), f"no message within {limit_s:g} s"


def receive(socket: Socket, limit_s: float = LIMIT_S) -> list[bytes]:
    poll(socket, limit_s)
    return socket.recv_multipart(zmq.DONTWAIT)


@pytest.fixture
def make_pair() -> Iterator[Callable[..., Pair]]:
    """Makes pairs of nodes that are stopped after the test; none of their threads may have failed."""
    from tests.node.pair import Pair  # which needs this module

    made: list[Pair] = []

    def factory(*arguments: Any, **options: Any) -> Pair:
        made.append(Pair(*arguments, **options))
        return made[-1]

    yield factory
    for pair in made:
        pair.stop()
    for pair in made:
        assert all(supervisor.first is None for supervisor in pair.supervisors)


@contextmanager
def few_descriptors(left: int) -> Iterator[None]:
    """This process may open only ``left`` files more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull, "rb") as lowest_free:
        used = lowest_free.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
