"""``--peers dns:NAME:PORT``: the addresses of a name as a hosts.txt."""

from __future__ import annotations

from pathlib import Path

import pytest

from zpala.config import ConfigError
from zpala.gossip.hosts import parse_hosts
from zpala.tools.start import hosts_text, read_hosts


def test_a_name_stands_for_its_addresses() -> None:
    text, hosts = read_hosts(Path("dns:localhost:5670"))
    assert [(host.address, host.port) for host in hosts] == [("127.0.0.1", 5670)]
    assert parse_hosts(text, "hosts.txt").digest == hosts.digest


def test_an_address_stands_for_itself() -> None:
    assert [host.host_port for host in read_hosts(Path("dns:127.0.0.9:80"))[1]] == ["127.0.0.9:80"]
    assert [host.host_port for host in read_hosts(Path("dns:::1:80"))[1]] == ["[::1]:80"]


def test_the_order_is_that_of_the_numbers_whoever_asks() -> None:
    addresses = ["10.0.0.10", "10.0.0.9", "9.255.0.1", "10.0.0.9"]
    expected = "9.255.0.1:7\n10.0.0.9:7\n10.0.0.10:7\n"
    assert hosts_text(set(addresses), 7) == hosts_text(sorted(set(addresses)), 7) == expected
    assert parse_hosts(expected, "x").digest


def test_a_machine_with_both_families_is_one_node() -> None:
    assert hosts_text({"fd00::2", "10.0.0.1", "fd00::1"}, 7) == "10.0.0.1:7\n"
    assert hosts_text({"fd00::10", "fd00::9"}, 7) == "[fd00::9]:7\n[fd00::10]:7\n"


@pytest.mark.parametrize(
    ("peers", "message"),
    [
        ("dns:localhost", "write dns:NAME:PORT"),
        ("dns::5670", "write dns:NAME:PORT"),
        ("dns:localhost:0", "a port from 1 to 65535"),
        ("dns:localhost:65536", "a port from 1 to 65535"),
        ("dns:localhost:http", "a port from 1 to 65535"),
        ("dns:no-such-host.invalid:5670", "no-such-host.invalid has no address"),
        ("dns:" + "x" * 80 + ".invalid:5670", "has no address"),
    ],
)
def test_what_is_no_name_of_nodes(peers: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        read_hosts(Path(peers))
    assert peers in str(raised.value)
