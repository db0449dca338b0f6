"""``zpala launch``: several nodes on this machine, each a ``python -m zpala node`` like any other, shown and stopped together.

Owns the child processes and nothing of their work. One thread: it waits for the children's output, the clock and signals in one place.
A child writes one JSON object per line on stdout (see ``zpala.console``); its stderr is shown as it is. Children live in process groups of
their own, so Ctrl-C reaches them once, through here; the kernel ends them when this process is killed (see ``parent``).
"""

from __future__ import annotations

import json
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import IOBase
from pathlib import Path
from typing import IO

from zpala.config import Config, ConfigError
from zpala.console import FORMAT_VARIABLE
from zpala.exit_codes import ExitCode, ending_signals
from zpala.gossip.topology import load_topology
from zpala.run_directory import RunDirectoryError, default_run_directory, write_run_files
from zpala.tools.parent import PARENT_VARIABLE
from zpala.tools.table import Display, NodeState

STOP_LIMIT_S = 8.0  # after a signal the children have that long to leave in order, then they are killed
TICK_S = 0.25
PORTS = range(20_000, 32_000)  # below the ports that the kernel hands to outgoing connections
SETUP_FAILURES = {ExitCode.USAGE, ExitCode.NETWORK, ExitCode.SECURITY}  # one such child means that no run was set up: stop the others
COMMAND = (sys.executable, "-m", "zpala")


@dataclass(slots=True)
class Child:
    """One node's process and what it has said so far."""

    process: subprocess.Popen[bytes]
    state: NodeState
    unfinished: dict[int, bytes] = field(default_factory=dict)  # file descriptor -> begun line


def launch(config: Config, *, nodes: int, command: Sequence[str] = COMMAND, output: IO[str] | None = None) -> int:
    """Starts ``nodes`` nodes and stays until all of them have ended.

    Args:
        nodes: 1 to 256.
        command: what stands before ``node`` in a child's command line.
        output: where the table goes; stdout by default.

    Returns: the exit status of the first child that failed, 130 or 143 after a signal, else 0.

    Raises: ConfigError, TopologyError, RunDirectoryError before anything is started.
    """
    load_topology(config.gossip.topology, nodes)
    _check_parts(config, nodes)
    names = [f"n{index}" for index in range(nodes)]
    run = config.run.directory or default_run_directory(config.environment.label, config.preset, config.run.seed)
    taken = [name for name in names if (run / "nodes" / name).exists()]
    if taken:
        raise RunDirectoryError(
            f"{run / 'nodes' / taken[0]}: this run directory is in use. Give another --run-dir, or move the old one away."
        )
    hosts = "# Written by zpala launch: all nodes on this machine.\n"
    hosts += "".join(f"{name} 127.0.0.1:{port}\n" for name, port in zip(names, free_ports(nodes), strict=True))
    try:
        write_run_files(run, config_toml=config.to_toml(), hosts_text=hosts)
    except OSError as error:
        raise RunDirectoryError(
            f"{error.filename or run}: cannot write the run directory ({error.strerror}). Give another --run-dir."
        ) from None
    for file, text in (("hosts.txt", hosts), ("config.toml", config.to_toml())):
        if (run / file).read_text(encoding="utf-8") != text:
            raise RunDirectoryError(f"{run / file}: this run directory belongs to another run. Give another --run-dir.")

    display = Display(config, run, names, output or sys.stdout)
    with _signals() as received, display, selectors.DefaultSelector() as selector:
        children = [_start(command, run, name, selector, display) for name in names]
        return _watch(children, selector, received, display)


def free_ports(count: int) -> list[int]:
    """``count`` different TCP ports of 127.0.0.1 that nobody listens on now."""
    found: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise ConfigError(f"no {count} free ports between {PORTS.start} and {PORTS.stop - 1} on this machine. Start fewer nodes (-n).")


def _check_parts(config: Config, nodes: int) -> None:
    """One paragraph here instead of one from every node."""
    from zpala.node.build import check_memory, check_parts
    from zpala.node.errors import UsageError
    from zpala.node.memory import available_bytes
    from zpala.node.specification import specification

    try:
        spec = specification(config.environment)
        check_parts(config, spec)
        check_memory(config, spec, nodes, available_bytes())
    except UsageError as error:
        raise ConfigError(error.text) from None


def _start(command: Sequence[str], run: Path, name: str, selector: selectors.BaseSelector, display: Display) -> Child:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ZPALA_")}  # resolved in config.toml already
    environment |= {FORMAT_VARIABLE: "json", PARENT_VARIABLE: str(os.getpid())}
    arguments = ["node", "--peers", str(run / "hosts.txt"), str(run / "config.toml"), "--name", name, "--run-dir", str(run)]
    process = subprocess.Popen(
        [*command, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        process_group=0,
    )
    child = Child(process, display.states[name])
    for stream in (process.stdout, process.stderr):
        assert stream is not None  # noqa: S101  # asked for above
        os.set_blocking(stream.fileno(), False)
        selector.register(stream, selectors.EVENT_READ, child)
    return child


def _watch(children: list[Child], selector: selectors.BaseSelector, received: list[int], display: Display) -> int:
    """Reads and shows until every child has ended; returns the exit status."""
    status = 0
    forwarded = 0  # how many of the received signals the children know of
    kill_at: float | None = None
    while True:
        for key, _ in selector.select(TICK_S):
            _read(key, selector, display)
        for child in children:
            if child.state.exit_code is None and child.process.poll() is not None:
                child.state.exit_code = _status(child.process.returncode)
                if child.state.exit_code != 0:
                    status = status or child.state.exit_code
                    display.note(child.state.name, f"ended with exit status {child.state.exit_code}: {_meaning(child.state.exit_code)}")
                    if child.state.exit_code in SETUP_FAILURES and kill_at is None and not any(other.state.rows for other in children):
                        kill_at = time.monotonic() + STOP_LIMIT_S
                        _signal(children, signal.SIGTERM)
        alive = [child for child in children if child.state.exit_code is None]
        if not alive and not selector.get_map():
            break
        if forwarded < len(received):
            polite = signal.SIGINT if received[0] == signal.SIGINT else signal.SIGTERM
            _signal(alive, polite if forwarded == 0 else signal.SIGKILL)  # a second Ctrl-C does not wait
            kill_at = kill_at or time.monotonic() + STOP_LIMIT_S
            forwarded = len(received)
        if kill_at is not None and time.monotonic() > kill_at:
            for child in alive:
                display.note(child.state.name, f"did not leave within {STOP_LIMIT_S:g} s: killed")
            _signal(alive, signal.SIGKILL)
            kill_at = float("inf")
        if not alive:
            _drop_orphaned_pipes(selector)
        display.refresh()
    display.summarise(status if not received else 128 + received[0])
    return 128 + received[0] if received and status else status


def _read(key: selectors.SelectorKey, selector: selectors.BaseSelector, display: Display) -> None:
    """Takes what a child wrote, line by line; a half line waits for its end."""
    descriptor, child = key.fd, key.data
    try:
        data = os.read(descriptor, 1 << 16)
    except BlockingIOError:
        return
    *lines, rest = (child.unfinished.pop(descriptor, b"") + data).split(b"\n")
    if not data:  # closed
        lines, rest = [rest], b""
        _close(selector, key.fileobj)
    if rest:
        child.unfinished[descriptor] = rest
    for line in lines:
        if text := line.decode("utf-8", errors="replace").rstrip():
            _take(child, text, display)


def _take(child: Child, text: str, display: Display) -> None:
    try:
        event = json.loads(text) if text.startswith("{") else {}
    except json.JSONDecodeError:
        event = {}
    match event.pop("event", None) if isinstance(event, dict) else None:
        case "metrics":
            child.state.take_row(event)
            display.row_came(child.state)
        case "summary":
            child.state.take_summary(event)
        case "log":
            display.note(child.state.name, str(event.get("text", "")))
        case _:
            display.note(child.state.name, text)


def _drop_orphaned_pipes(selector: selectors.BaseSelector) -> None:
    """A grandchild may hold a pipe open after its node has ended; nobody waits for it."""
    if not selector.select(0):
        for key in list(selector.get_map().values()):
            _close(selector, key.fileobj)


def _close(selector: selectors.BaseSelector, stream: object) -> None:
    assert isinstance(stream, IOBase)  # noqa: S101  # a pipe of a child
    selector.unregister(stream)
    stream.close()


def _signal(children: Sequence[Child], number: int) -> None:
    for child in children:
        if child.process.poll() is None:
            child.process.send_signal(number)


def _status(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


def _meaning(status: int) -> str:
    try:
        return ExitCode(status).meaning
    except ValueError:
        return f"killed by signal {status - 128}" if status > 128 else "unknown"


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that asked this process to end, in the order they came."""
    received: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in ending_signals()}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
