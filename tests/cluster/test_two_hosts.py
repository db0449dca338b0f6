"""Two hosts with addresses of their own, made of network namespaces: the wildcard is bound, real interfaces carry the gossip."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.processes import ZPALA, Processes, spread
from zpala.run_directory import load_checkpoint

pytestmark = pytest.mark.cluster

PREFIX = f"zpala{os.getpid() % 100_000}"
ADDRESSES = ("10.97.31.1", "10.97.31.2")
PORT = 5670
BUDGET = 60_000


def ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=20, check=False)


def namespaces_work() -> bool:
    """Making one needs root and a kernel that has them: asked for, not assumed."""
    if shutil.which("ip") is None or ip("netns", "add", f"{PREFIX}p").returncode != 0:
        return False
    return ip("netns", "delete", f"{PREFIX}p").returncode == 0


@pytest.fixture
def hosts() -> Iterator[list[tuple[str, ...]]]:
    """The commands that run ``zpala`` on either of two hosts joined by a cable."""
    names = [f"{PREFIX}a", f"{PREFIX}b"]
    try:
        for name in names:
            assert ip("netns", "add", name).returncode == 0
        made = ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        assert made.returncode == 0, made.stderr
        for name, address in zip(names, ADDRESSES, strict=True):
            for command in (f"addr add {address}/24 dev eth0", "link set lo up", "link set eth0 up"):
                done = ip("-n", name, *command.split())
                assert done.returncode == 0, done.stderr
        yield [("ip", "netns", "exec", name, *ZPALA) for name in names]
    finally:
        for name in names:
            ip("netns", "delete", name)


@pytest.mark.skipif(not namespaces_work(), reason="network namespaces cannot be made here: it needs root and iproute2")
def test_the_same_command_on_two_hosts(hosts: list[tuple[str, ...]], processes: Processes, tmp_path: Path) -> None:
    peers = tmp_path / "hosts.txt"
    peers.write_text("".join(f"{address}:{PORT}\n" for address in ADDRESSES))
    options = ("--total-env-steps", BUDGET, "--set", "gossip.max_staleness=64")

    refused = processes.node(peers, *options, command=hosts[0])
    assert refused.end() == 4
    assert "--insecure" in refused.text
    assert not (tmp_path / "run").exists()

    pair = [processes.node(peers, *options, "--insecure", command=command) for command in hosts]
    for index, process in enumerate(pair):
        process.wait_for(f"{ADDRESSES[index]}:{PORT}: line {index + 1} of ")
        process.wait_for("averaged with 1/1 peers")
    assert [process.end() for process in pair] == [0, 0], pair[0].text + pair[1].text

    directories = sorted((tmp_path / "run/nodes").iterdir())
    assert len(directories) == 2
    assert spread(directories) <= 0.01
    assert min(load_checkpoint(directory).state["env_steps"] for directory in directories) > 0
