"""Two hosts with addresses of their own, made of network namespaces: the wildcard is bound, real interfaces carry the gossip."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.processes import ZPALA, Processes, spread
from tests.faults import namespaces
from tests.faults.namespaces import ADDRESSES
from zpala.run_directory import load_checkpoint

pytestmark = pytest.mark.cluster

PORT = 5670
BUDGET = 60_000
OBSTACLE = namespaces.obstacle()


@pytest.fixture
def hosts() -> Iterator[list[tuple[str, ...]]]:
    """The commands that run ``zpala`` on either of two hosts joined by a cable."""
    with namespaces.two_hosts() as cable:
        yield [(*host.command, *ZPALA) for host in cable.hosts]


@pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))
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
