"""A named thread with a start handshake, a stop message and a kept first exception; and the inbox where failures arrive.

Owns: the inproc PAIR between a worker and the thread that started it, and the inproc PULL of the ``Supervisor``. Runs: ``Worker`` and
``Supervisor`` belong to the thread that made them (the main thread); a ``WorkerControl`` belongs to the worker's own thread; only
``Supervisor.report`` and ``Supervisor.first`` may be used from anywhere. Never here: what a worker does.

The life of a background thread follows ``zmq.auth.thread``: ``start()`` returns only after the body has said that it is ready,
``request_stop()`` is a message, ``join()`` has a limit. A thread that ends without having been told to is a failure (design D17).
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import zmq

from zpala.node import sockets

_log = logging.getLogger(__name__)
_numbers = itertools.count()

_READY = b"ready"
_FAILED = b"failed"
_STOP = b"stop"


class WorkerFailed(RuntimeError):
    """A worker ended by an exception (``__cause__``), or did not become ready, or did not end, within its limit."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name


@dataclass(frozen=True, slots=True)
class Failure:
    """Which worker failed, and by what."""

    name: str
    error: BaseException

    def to_exception(self) -> WorkerFailed:
        failed = WorkerFailed(self.name, f"{type(self.error).__name__}: {self.error}")
        failed.__cause__ = self.error
        return failed


class Supervisor:
    """The failure inbox of one node: workers report, the main thread polls ``socket`` (or asks) and raises."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._context = context
        self._failures: list[Failure] = []  # append-only; list.append is atomic, so no lock is needed
        self._endpoint = f"inproc://zpala-failures-{next(_numbers)}"
        self.socket = sockets.inproc_pull(context, self._endpoint)

    @property
    def first(self) -> Failure | None:
        """The first failure that was reported, from any thread, without touching a socket."""
        return self._failures[0] if self._failures else None

    @property
    def failures(self) -> tuple[Failure, ...]:
        return tuple(self._failures)

    def report(self, name: str, error: BaseException) -> None:
        """Called in the failing worker's thread: keeps the exception and wakes whoever polls ``socket``."""
        _log.error("%s failed: %s: %s", name, type(error).__name__, error)
        self._failures.append(Failure(name, error))
        try:
            with sockets.inproc_push(self._context, self._endpoint) as push:
                push.send(name.encode(), zmq.DONTWAIT)
        except zmq.ZMQError:  # nobody polls any more, or the inbox is full: ``first`` tells it all the same
            _log.debug("no one is waiting for the failure of %s", name)

    def wait(self, limit_s: float) -> Failure | None:
        """Waits at most ``limit_s`` seconds (0: does not wait) for a failure; returns the first one ever reported."""
        if not self._failures and self.socket.poll(round(limit_s * 1000)):
            self.socket.recv(zmq.DONTWAIT)
        return self.first

    def raise_if_failed(self) -> None:
        """Raises ``WorkerFailed`` (its ``__cause__`` is the worker's exception) when any worker has failed."""
        if self._failures:
            raise self._failures[0].to_exception()

    def close(self) -> None:
        self.socket.close()


class WorkerControl:
    """A worker's own end of its control pipe. Made, used and closed in the worker's thread.

    ``socket`` becomes readable when the stop message has come: put it into the body's poller, then ask ``stop_requested()``.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], name: str, endpoint: str) -> None:
        self.context = context
        self.name = name
        self.socket = sockets.inproc_pair_connected(context, endpoint)
        self.is_ready = False
        self._stop_seen = False

    def ready(self) -> None:
        """Lets ``Worker.start()`` return. To be called once, when everything that can fail at start has been done."""
        self.is_ready = True
        self.socket.send(_READY, zmq.DONTWAIT)

    def stop_requested(self, wait_s: float = 0.0) -> bool:
        """Whether the stop message has come; waits for it at most ``wait_s`` seconds."""
        if not self._stop_seen and self.socket.poll(round(wait_s * 1000)):
            self._stop_seen = self.socket.recv(zmq.DONTWAIT) == _STOP
        return self._stop_seen


class Worker:
    """One thread that runs ``body(control)``.

    ``prepare``, when given, runs first in the new thread (``torch.set_flush_denormal`` of an actor; this module imports no torch).
    The thread is a daemon: what does not end within its limit must not keep a process alive that has decided to end.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        name: str,
        body: Callable[[WorkerControl], None],
        supervisor: Supervisor,
        *,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self._context = context
        self._body = body
        self._supervisor = supervisor
        self._prepare = prepare
        self._endpoint = f"inproc://zpala-worker-{next(_numbers)}"
        self._pipe: zmq.Socket[bytes] | None = None
        self._start_error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self, limit_s: float = 10.0) -> None:
        """Starts the thread; returns once its body said ``ready()``.

        Raises the body's own exception when it failed before that (it is not reported to the supervisor: the caller has it), and
        ``WorkerFailed`` when nothing was heard within ``limit_s`` seconds; the thread is then told to stop.
        """
        self._pipe = sockets.inproc_pair_bound(self._context, self._endpoint)
        self._thread.start()
        answer = self._pipe.recv(zmq.DONTWAIT) if self._pipe.poll(round(limit_s * 1000)) else b""
        if answer == _READY:
            return
        self.request_stop()
        if answer == _FAILED and self._start_error is not None:
            self.join(limit_s)
            raise self._start_error
        raise WorkerFailed(self.name, f"not ready within {limit_s:g} s")

    def request_stop(self) -> None:
        """Sends the stop message; never waits; harmless when repeated or when the thread has ended."""
        if self._pipe is not None and not self._pipe.closed:
            try:
                self._pipe.send(_STOP, zmq.DONTWAIT)
            except zmq.Again:  # the thread has gone, or has had as many stop messages as the pipe holds
                _log.debug("%s takes no more stop messages", self.name)

    def join(self, limit_s: float = 10.0) -> None:
        """Waits until the thread has ended, closes the pipe. Raises ``WorkerFailed`` when it has not ended within ``limit_s`` s."""
        if self._thread.ident is not None:
            self._thread.join(limit_s)
        if self._pipe is not None:
            self._pipe.close()
        if self._thread.is_alive():
            raise WorkerFailed(self.name, f"did not end within {limit_s:g} s of the stop message")

    def stop(self, limit_s: float = 10.0) -> None:
        """``request_stop()`` and ``join()``. Whether the worker had failed is the supervisor's to tell."""
        self.request_stop()
        self.join(limit_s)

    def _run(self) -> None:
        try:
            control = WorkerControl(self._context, self.name, self._endpoint)
        except zmq.ZMQError as error:  # the context is ending: nobody can be told over a socket
            self._supervisor.report(self.name, error)
            return
        started = time.monotonic()
        try:
            if self._prepare is not None:
                self._prepare()
            self._body(control)
            if not control.stop_requested():
                raise WorkerFailed(self.name, "ended without having been told to stop")
        except BaseException as error:  # the one place where a thread's end becomes known, whatever ended it
            self._tell(control, error)
        finally:
            control.socket.close()
            _log.debug("%s ended after %.1f s", self.name, time.monotonic() - started)

    def _tell(self, control: WorkerControl, error: BaseException) -> None:
        if isinstance(error, zmq.ContextTerminated) or (isinstance(error, zmq.ZMQError) and error.errno == zmq.ENOTSOCK):
            return  # the orderly end of a thread whose context is being terminated
        if control.is_ready:
            self._supervisor.report(self.name, error)
            return
        self._start_error = error
        try:
            control.socket.send(_FAILED, zmq.DONTWAIT)
        except zmq.ZMQError:
            self._supervisor.report(self.name, error)
