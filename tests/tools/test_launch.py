"""``zpala launch`` with children that stand in for nodes: what is shown, how all of them end, and with which status."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from zpala.config import Config, load_config
from zpala.exit_codes import ExitCode
from zpala.run_directory import RunDirectoryError
from zpala.tools import launch as launching
from zpala.tools.launch import free_ports, launch

FAKE = Path(__file__).parent / "fake_node.py"
pytestmark = pytest.mark.cluster


def configure(tmp_path: Path, **plan: int | str) -> Config:
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    if {"interrupt", "hangup"} & set(plan.values()):
        os.mkfifo(tmp_path / "ready")
    return load_config(None, {"run.directory": str(tmp_path / "run"), "run.total_env_steps": 2000}, {})


def start(config: Config) -> tuple[int, str]:
    output = io.StringIO()
    status = launch(config, nodes=2, command=(sys.executable, str(FAKE)), output=output)
    return status, output.getvalue()


def test_nodes_that_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZPALA_LR", "0.1")  # part of the configuration already: the children must not read it again
    status, text = start(configure(tmp_path, n0=0, n1=0))
    assert status == 0
    assert "[n0] n0 is here" in text
    (line,) = [line for line in text.splitlines() if "cluster env_steps" in line]
    for part in ("1,000 (50 %)", "SPS 500", "return 99.5 99.5", "averaged with 1/1 peers"):
        assert part in line
    assert "finished (target)" in text
    assert f"zpala eval {tmp_path / 'run'}" in text
    assert (tmp_path / "run/hosts.txt").read_text().splitlines()[1].startswith("n0 127.0.0.1:")
    assert load_config(tmp_path / "run/config.toml", {}, {}).run.total_env_steps == 2000


def test_the_status_is_that_of_the_child_that_failed(tmp_path: Path) -> None:
    status, text = start(configure(tmp_path, n0=0, n1=7))
    assert status == 7
    assert "[n1] what went wrong" in text
    assert f"[n1] ended with exit status 7: {ExitCode.ACTORS.meaning}" in text


def test_a_child_that_cannot_start_ends_the_others(tmp_path: Path) -> None:
    status, text = start(configure(tmp_path, n0="wait", n1=3))
    assert status == 3
    assert "[n0] ended with exit status 143" in text


def test_ctrl_c_reaches_every_child_and_ends_all(tmp_path: Path) -> None:
    status, text = start(configure(tmp_path, n0="interrupt", n1="obey"))
    assert status == ExitCode.INTERRUPTED
    assert "[n0] ended with exit status 130" in text
    assert "[n1] ended with exit status 130" in text


def test_a_child_that_does_not_leave_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "STOP_LIMIT_S", 0.5)
    status, text = start(configure(tmp_path, n0="interrupt", n1="deaf"))
    assert status == ExitCode.INTERRUPTED
    assert "[n1] did not leave within 0.5 s: killed" in text
    assert "[n1] ended with exit status 137: killed by signal 9" in text


def test_the_handlers_of_signals_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    start(configure(tmp_path, n0=0, n1=0))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_nohup_is_respected(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        status, _ = start(configure(tmp_path, n0="hangup", n1=0))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert status == 0


def test_without_nohup_a_closed_terminal_ends_all(tmp_path: Path) -> None:
    status, text = start(configure(tmp_path, n0="hangup", n1="obey"))
    assert status == ExitCode.HANGUP
    assert "[n1] ended with exit status 143" in text


def test_a_reader_that_has_gone_ends_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as output:
        assert launch(configure(tmp_path, n0=0, n1=0), nodes=2, command=(sys.executable, str(FAKE)), output=output) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ties a child's life to its parent's on Linux only")
def test_children_end_when_launch_is_killed(tmp_path: Path) -> None:
    configure(tmp_path, n0="wait", n1="wait")
    code = (
        "import sys; from zpala.config import load_config; from zpala.tools.launch import launch\n"
        f"launch(load_config(None, {{'run.directory': {str(tmp_path / 'run')!r}}}, {{}}), nodes=2, command=(sys.executable, {str(FAKE)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    waiting: set[str] = set()
    for line in process.stdout:
        if line.startswith("[") and "waits" in line:
            waiting.add(line.split()[0])
        if len(waiting) == 2:
            break
    descriptors = [os.pidfd_open(int((tmp_path / f"run/n{index}.pid").read_text())) for index in range(2)]
    process.kill()
    process.wait(10)
    process.stdout.close()
    for descriptor in descriptors:
        ended, _, _ = select.select([descriptor], [], [], 10)
        os.close(descriptor)
        assert ended, "a node outlives the launch that started it"


def test_a_run_directory_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    config = configure(tmp_path, n0=0, n1=0)
    start(config)
    with pytest.raises(RunDirectoryError, match="another run"):
        start(config)
    (tmp_path / "run/nodes/n1").mkdir(parents=True)
    with pytest.raises(RunDirectoryError, match="n1"):
        start(config)


def test_ports_are_free_different_and_not_those_of_outgoing_connections() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        assert port in launching.PORTS
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
