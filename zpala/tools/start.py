"""``zpala node``: ties the process to its launcher, reads hosts.txt and hands over to the node."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from zpala.config import Config, ConfigError
from zpala.gossip.hosts import HostList, parse_hosts
from zpala.gossip.topology import load_topology
from zpala.tools.parent import die_with_parent


def start_node(config: Config, *, peers: Path, environ: Mapping[str, str] = os.environ) -> int:
    """Runs one node of the hosts in ``peers`` to its end; returns the exit status.

    Raises: ConfigError, HostsError, TopologyError, RunDirectoryError when the input is wrong (exit status 2).
    """
    die_with_parent(environ)
    text, hosts = read_hosts(peers)
    load_topology(config.gossip.topology, len(hosts))
    wait_without_spinning()
    from zpala.node.node import run_node  # torch and zmq: only once the input is known to be right

    return run_node(config, hosts=hosts, hosts_text=text, hosts_source=peers, name=config.node.name)


def wait_without_spinning() -> None:
    """OpenMP threads that wait for work give up their core; to be called before torch is imported.

    Nodes on one machine share its cores: a pool that spins for its next piece of work takes them from whoever has some (two nodes of two
    threads each on two cores learned 20 to 140 times slower). A value that the person has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")


def read_hosts(path: Path) -> tuple[str, HostList]:
    """The text of a hosts.txt and its nodes. Raises ConfigError for a file that cannot be read, HostsError for a wrong line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: cannot read hosts.txt ({reason}). Give --peers a file with one host:port per line.") from None
    return text, parse_hosts(text, str(path))
