"""A message that never ends fills a node's memory: the node leaves in order before the system ends it."""

from __future__ import annotations

import threading

import pytest

from tests.cluster.processes import Processes
from tests.faults.raw_zmtp import RawClient
from tests.faults.zmtp_frames import MORE, frame
from zpala.exit_codes import ExitCode
from zpala.run_directory import load_checkpoint

pytestmark = pytest.mark.cluster

LIMIT_MB = 400
PIECE = frame(bytes(4000), MORE) * 500  # 2 MB


def test_a_message_without_end_ends_the_node_with_a_checkpoint(processes: Processes) -> None:
    options = ("--total-env-steps", "2_000_000", "--set", "gossip.max_staleness=64")
    hosts = processes.hosts(2)
    victim = processes.node(hosts, *options, "--name", "n0", "--set", f"node.max_memory_mb={LIMIT_MB}")
    other = processes.node(hosts, *options, "--name", "n1")
    for node in (victim, other):
        node.wait_for("averaged with 1/1 peers")
    port = int(hosts.read_text().split()[1].rpartition(":")[2])
    sent = 0

    def attack() -> None:
        nonlocal sent
        with RawClient.dealer(port) as client:
            try:
                while sent < 3 * LIMIT_MB * 10**6:
                    client.send_raw(PIECE)
                    sent += len(PIECE)
            except OSError:  # the node has gone
                pass

    thread = threading.Thread(target=attack, name="attack", daemon=True)
    thread.start()
    victim.wait_for(rf"n0: this node's memory is \d+ MB; its limit is {LIMIT_MB} MB \(node.max_memory_mb\); leaving the run")
    assert victim.end() == ExitCode.MEMORY
    thread.join(10.0)
    assert not thread.is_alive()
    assert sent > 100 * 10**6
    other.wait_for(r"n0 leaves \(leave\)")
    assert other.running()
    state = load_checkpoint(processes.folder / "run/nodes/n0").state
    assert state["finish_reason"] == "memory"
    assert state["env_steps"] > 0
