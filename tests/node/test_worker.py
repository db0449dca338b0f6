"""A worker starts by a handshake, stops by a message, and its first exception ends up with who supervises it."""

from __future__ import annotations

import threading

import pytest
import zmq

from zpala.node.sockets import Context
from zpala.node.worker import Supervisor, Worker, WorkerControl, WorkerFailed


def idle(control: WorkerControl) -> None:
    control.ready()
    while not control.stop_requested(wait_s=10.0):
        pass


def test_start_returns_only_after_the_body_is_ready(context: Context, supervisor: Supervisor) -> None:
    log: list[str] = []
    may_get_ready = threading.Event()

    def body(control: WorkerControl) -> None:
        may_get_ready.wait(10.0)
        log.append("ready")
        idle(control)

    worker = Worker(context, "slow", body, supervisor)
    threading.Timer(0.05, may_get_ready.set).start()
    worker.start()
    log.append("started")
    worker.stop()
    assert log == ["ready", "started"]
    assert not worker.alive


def test_prepare_runs_first_and_in_the_named_thread(context: Context, supervisor: Supervisor) -> None:
    seen: list[str] = []

    def body(control: WorkerControl) -> None:
        seen.append("body")
        idle(control)

    worker = Worker(context, "actor 3", body, supervisor, prepare=lambda: seen.append(threading.current_thread().name))
    worker.start()
    worker.stop()
    assert seen == ["actor 3", "body"]


def test_an_exception_before_ready_is_raised_by_start_and_not_reported(context: Context, supervisor: Supervisor) -> None:
    def body(control: WorkerControl) -> None:
        raise OSError("no such device")

    worker = Worker(context, "proxy", body, supervisor)
    with pytest.raises(OSError, match="no such device"):
        worker.start()
    assert supervisor.first is None
    assert not worker.alive


def test_a_body_that_never_gets_ready_is_given_up_and_told_to_stop(context: Context, supervisor: Supervisor) -> None:
    def body(control: WorkerControl) -> None:
        assert control.stop_requested(wait_s=10.0)

    worker = Worker(context, "mute", body, supervisor)
    with pytest.raises(WorkerFailed, match=r"mute: not ready within 0\.05 s"):
        worker.start(limit_s=0.05)
    worker.join()
    assert supervisor.first is None


def test_an_exception_reaches_the_thread_that_polls_the_supervisor(context: Context, supervisor: Supervisor) -> None:
    fail = threading.Event()

    def body(control: WorkerControl) -> None:
        control.ready()
        fail.wait(10.0)
        raise ZeroDivisionError("division by zero")

    worker = Worker(context, "actor 0", body, supervisor)
    worker.start()
    poller = zmq.Poller()
    poller.register(supervisor.socket, zmq.POLLIN)
    assert poller.poll(0) == []
    supervisor.raise_if_failed()
    fail.set()
    assert poller.poll(10_000)
    with pytest.raises(WorkerFailed, match="actor 0: ZeroDivisionError: division by zero") as caught:
        supervisor.raise_if_failed()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    worker.stop()


def test_the_first_of_several_exceptions_is_kept(context: Context, supervisor: Supervisor) -> None:
    turns = [threading.Event(), threading.Event()]

    def body_of(number: int) -> Worker:
        def body(control: WorkerControl) -> None:
            control.ready()
            turns[number].wait(10.0)
            raise ValueError(f"failure {number}")

        return Worker(context, f"worker {number}", body, supervisor)

    workers = [body_of(0), body_of(1)]
    for worker in workers:
        worker.start()
    for number in (1, 0):
        turns[number].set()
        workers[number].stop()
    first = supervisor.wait(10.0)
    assert first is not None
    assert str(first.error) == "failure 1"
    assert [failure.name for failure in supervisor.failures] == ["worker 1", "worker 0"]


def test_a_thread_that_ends_unasked_is_a_failure(context: Context, supervisor: Supervisor) -> None:
    worker = Worker(context, "quitter", lambda control: control.ready(), supervisor)
    worker.start()
    failure = supervisor.wait(10.0)
    assert failure is not None
    assert "ended without having been told to stop" in str(failure.error)
    worker.stop()


def test_join_has_a_limit(context: Context, supervisor: Supervisor) -> None:
    let_go = threading.Event()

    def deaf(control: WorkerControl) -> None:
        control.ready()
        let_go.wait(30.0)
        control.stop_requested()

    worker = Worker(context, "deaf", deaf, supervisor)
    worker.start()
    with pytest.raises(WorkerFailed, match=r"deaf: did not end within 0\.05 s"):
        worker.stop(limit_s=0.05)
    let_go.set()
    worker.join()
    assert not worker.alive


def test_stop_may_be_repeated_and_comes_late_or_never(context: Context, supervisor: Supervisor) -> None:
    worker = Worker(context, "idle", idle, supervisor)
    worker.request_stop()  # before start: nothing to tell
    worker.start()
    for _ in range(3):
        worker.stop()
    assert supervisor.first is None


def test_a_terminated_context_is_an_orderly_end() -> None:
    own: Context = zmq.Context()
    supervisor = Supervisor(own)

    def body(control: WorkerControl) -> None:
        control.ready()
        raise zmq.ContextTerminated

    worker = Worker(own, "late", body, supervisor)
    worker.start()
    worker.join()
    assert supervisor.first is None
    supervisor.close()
    own.term()
