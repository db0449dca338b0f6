"""``zpala node``: ties the process to its launcher, reads hosts.txt and hands over to the node."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Collection, Mapping
from pathlib import Path

from zpala.config import Config, ConfigError
from zpala.gossip.hosts import HostList, parse_hosts
from zpala.gossip.topology import load_topology
from zpala.tools.parent import die_with_parent

DNS = "dns:"  # begins a --peers that is no file


def start_node(config: Config, *, peers: Path, environ: Mapping[str, str] = os.environ) -> int:
    """Runs one node of the hosts in ``peers`` to its end; returns the exit status.

    Raises: ConfigError, HostsError, TopologyError, RunDirectoryError when the input is wrong (exit status 2).
    """
    die_with_parent(environ)
    text, hosts = read_hosts(peers)
    load_topology(config.gossip.topology, len(hosts))
    wait_without_spinning()
    ask_for_large_pages()
    from zpala.node.node import run_node  # torch and zmq: only once the input is known to be right

    file = None if str(peers).startswith(DNS) else peers  # what a name stands for comes in numerical order: it grows in the middle
    return run_node(config, hosts=hosts, hosts_text=text, hosts_source=peers, hosts_file=file, name=config.node.name)


def wait_without_spinning() -> None:
    """OpenMP threads that wait for work give up their core; to be called before torch is imported.

    Nodes on one machine share its cores: a pool that spins for its next piece of work takes them from whoever has some (two nodes of two
    threads each on two cores learned 20 to 140 times slower). A value that the person has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")


def ask_for_large_pages() -> None:
    """torch asks the system for pages of 2 MB where tensors are large; to be called before torch is imported.

    Convolutions of a minibatch of images touch a hundred megabytes, whose addresses 4 kB pages do not keep at hand. Three pairs of
    updates of PPO took 2, 6 and 9 % less time. A value that the person has set stays.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def read_hosts(path: Path) -> tuple[str, HostList]:
    """The text of a hosts.txt, or of what ``dns:NAME:PORT`` stands for, and its nodes.

    Raises: ConfigError for a file or a name that cannot be read, HostsError for a wrong line.
    """
    if str(path).startswith(DNS):
        text = hosts_of_name(str(path))
        return text, parse_hosts(text, str(path))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: cannot read hosts.txt ({reason}). Give --peers a file with one host:port per line.") from None
    return text, parse_hosts(text, str(path))


def hosts_of_name(peers: str) -> str:
    """A hosts.txt with a line for every address that the NAME of ``dns:NAME:PORT`` has now, in one order wherever it is asked.

    A machine with addresses of both families would be two nodes: IPv6 counts only when there is no IPv4.
    """
    name, _, port = peers.removeprefix(DNS).rpartition(":")
    if not name or not port.isdecimal() or not 1 <= int(port) <= 65_535:
        raise ConfigError(f"--peers {peers}: write dns:NAME:PORT, with a port from 1 to 65535.")
    try:
        found = socket.getaddrinfo(name, int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"--peers {peers}: {name} has no address ({reason}). Ask for a name that stands for all nodes.") from None
    return hosts_text({str(entry[4][0]) for entry in found}, int(port))


def hosts_text(addresses: Collection[str], port: int) -> str:
    """One ``host:port`` line per address, in numerical order; IPv6 only when there is no IPv4."""
    parsed = [ipaddress.ip_address(address) for address in addresses]
    version = min(address.version for address in parsed)
    chosen = sorted((address for address in parsed if address.version == version), key=int)
    return "".join(f"{f'[{address}]' if version == 6 else address}:{port}\n" for address in chosen)
