"""Nodes that are appended to hosts.txt while the run lives: they join it, and nobody restarts."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.cluster.processes import Processes, column
from zpala.node.keys import new_key
from zpala.tools.launch import free_ports

pytestmark = pytest.mark.cluster


def test_a_third_node_is_appended_to_one_copy_after_the_other(processes: Processes, tmp_path: Path) -> None:
    """The new node starts on its own copy, which is the first to have its line; the two others learn of it later."""
    ports = free_ports(3)
    keys = [new_key(tmp_path / "keys", f"k{line}") for line in range(3)]
    lines = [f"n{line} 127.0.0.1:{port} {keys[line].public}\n" for line, port in enumerate(ports)]
    copies = [tmp_path / f"hosts{line}.txt" for line in range(3)]
    for copy, count in zip(copies, (2, 2, 3), strict=True):
        copy.write_text("".join(lines[:count]))
    options = [("--name", f"n{line}", "--key", keys[line].path) for line in range(3)]
    long = ("--total-env-steps", 100_000_000, "--start-timeout", 2)

    first, second = (processes.node(copies[line], *long, *options[line]) for line in range(2))
    for process in (first, second):
        process.wait_for("averaged with 1/1 peers")
    run = first.wait_for("leading the start of run ([0-9a-f]{16})").group(1)

    third = processes.node(copies[2], *long, *options[2])
    third.wait_for("does not let this node in")
    assert "leading the start" not in third.text
    with copies[0].open("a") as file:
        file.write(lines[2][:20])
        file.flush()
        file.write(lines[2][20:])
    first.wait_for("3 nodes now, 2 before: new are n2")
    assert third.wait_for("joining run ([0-9a-f]{16}), which is under way").group(1) == run
    second.wait_for("n[02] has 3 nodes in its hosts.txt, this node 2")
    with copies[1].open("a") as file:
        file.write(lines[2])
    for process in (first, second, third):
        process.wait_for("averaged with 2/2 peers")
    copies[0].write_text("".join(lines[:2]))
    first.wait_for(r"hosts0\.txt:2: the file ends after 2 nodes and had 3: n2, line 3 until now, is missing")

    assert not any(word in first.text + second.text for word in ("is dead", "has restarted", "leaves"))
    for process in (first, second, third):
        process.send(signal.SIGTERM)
    assert [process.end() for process in (first, second, third)] == [143] * 3
    third_directory = tmp_path / "run/nodes/n2"
    assert column(third_directory, "gossip/exchanges")[-1] > 0
    assert column(third_directory, "cluster_env_steps")[-1] > column(third_directory, "env_steps")[-1]
