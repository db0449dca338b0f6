"""Signals, as the node's main thread sees them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from zpala.exit_codes import ExitCode
from zpala.node.ending import exit_code_of, stop_on_signals
from zpala.node.errors import ActorError, NumericalError, PortInUse
from zpala.node.worker import WorkerFailed


def test_the_first_signal_sets_the_flag_and_its_echo_changes_nothing() -> None:
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # at once: an echo
        assert stop.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is not None


def test_a_closed_terminal_is_a_reason_to_end_unless_nohup_ignores_it() -> None:
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.signal == signal.SIGHUP
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal is None
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_ends_the_process_at_once() -> None:
    program = textwrap.dedent("""
        import signal, time
        from zpala.node.ending import SAME_SIGNAL_S, stop_on_signals
        with stop_on_signals() as stop:
            print("ready", flush=True)
            while stop.signal is None:
                signal.pause()
            until = time.monotonic() + SAME_SIGNAL_S
            while time.monotonic() <= until:
                pass
            print("again", flush=True)
            while True:
                signal.pause()
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "again\n"
            process.send_signal(signal.SIGINT)
            started = time.monotonic()
            assert process.wait(10) == ExitCode.INTERRUPTED
            assert time.monotonic() - started < 5.0
        finally:
            process.kill()


def _caused(name: str, cause: BaseException) -> WorkerFailed:
    failed = WorkerFailed(name, str(cause))
    failed.__cause__ = cause
    return failed


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NumericalError("x"), ExitCode.NUMERICAL),
        (ActorError("x"), ExitCode.ACTORS),
        (_caused("actor 2", RuntimeError("x")), ExitCode.ACTORS),
        (_caused("proxy", PortInUse("x")), ExitCode.NETWORK),
        (_caused("proxy", RuntimeError("x")), ExitCode.UNEXPECTED),
        (KeyError("x"), ExitCode.UNEXPECTED),
        (torch.OutOfMemoryError("x"), ExitCode.CUDA),
        (torch.AcceleratorError("x"), ExitCode.CUDA),
    ],
)
def test_exit_statuses(error: BaseException, status: ExitCode) -> None:
    assert exit_code_of(error) == status
