"""Every test: one torch thread, and no thread left behind. Tests of CUDA run where there is a device."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest
import torch
from zmq.utils import garbage

LEAVE_LIMIT_S = 5.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda") is not None:
            item.add_marker(pytest.mark.skip(reason="torch finds no CUDA device"))


@pytest.fixture(autouse=True, scope="session")
def _hangup_is_heard() -> None:
    """Under nohup it would be ignored, by this process and by all that it starts: tests set what they are about."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="session")
def _zero_copy_thread() -> None:
    """pyzmq frees zero-copy buffers in a thread that lives as long as the process: it belongs to no single test."""
    garbage.gc.start()


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> None:
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    """A thread that outlives its test would run into the next one."""
    before = set(threading.enumerate())
    yield
    new = [thread for thread in threading.enumerate() if thread not in before]
    for thread in new:
        thread.join(LEAVE_LIMIT_S)
    left = [thread.name for thread in new if thread.is_alive()]
    assert not left, f"threads left behind: {left}"
