"""Which lines are this machine's, who gets which when several start at once, and what is said when there is none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zpala.gossip.hosts import HostList, parse_hosts
from zpala.node import sockets
from zpala.node.claim import Claim, Machine, claim_line, is_own_address
from zpala.node.errors import NoOwnLine, PortInUse, SecurityRefused, UsageError
from zpala.node.holder import port_holder
from zpala.node.keys import SecretKey, new_key

OTHER = "203.0.113.77"  # TEST-NET-3: nobody's address
Claimer = Callable[..., Claim]


def free_ports(count: int) -> list[int]:
    listeners = [sockets.listening_socket("127.0.0.1", 0) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def hosts_of(*lines: str) -> HostList:
    return parse_hosts("\n".join(lines), "hosts.txt")


def machine(hostname: str = "here", own: tuple[str, ...] = ("127.0.0.1", "::1"), **names: str) -> Machine:
    """A machine with these addresses and these entries in its name server."""

    def look_up(hosts: list[str]) -> dict[str, tuple[str, ...]]:
        return {host: (names[host.split(".")[0]],) if host.split(".")[0] in names else (host,) for host in hosts}

    return Machine(hostname, own.__contains__, look_up)


@pytest.fixture
def claim() -> Iterator[Claimer]:
    made: list[Claim] = []

    def claimer(*arguments: object, **options: object) -> Claim:
        made.append(claim_line(*arguments, **options))  # type: ignore[arg-type]
        return made[-1]

    yield claimer
    for one in made:
        one.close()


@pytest.fixture
def ports() -> list[int]:
    return free_ports(4)


@pytest.fixture
def local(ports: list[int]) -> HostList:
    return hosts_of(*(f"127.0.0.1:{port}" for port in ports))


def test_the_same_command_four_times_takes_four_lines(claim: Claimer, local: HostList, ports: list[int]) -> None:
    claims = [claim(local) for _ in range(4)]
    assert [one.line for one in claims] == [0, 1, 2, 3]
    assert [one.port for one in claims] == ports
    assert {one.host for one in claims} == {"127.0.0.1"}
    for one in claims:
        socket.create_connection(("127.0.0.1", one.port), timeout=10).close()
    with pytest.raises(NoOwnLine) as caught:
        claim(local)
    assert caught.value.exit_code == 3
    for number, port in enumerate(ports, start=1):
        assert f"line {number} (127.0.0.1:{port}) by process {os.getpid()}" in str(caught.value)


def test_a_line_that_was_given_back_is_free(claim: Claimer, local: HostList) -> None:
    claim(local).close()
    assert claim(local).line == 0


def test_a_stranger_on_our_port_is_an_error_that_names_it(claim: Claimer, local: HostList, ports: list[int]) -> None:
    claim(local)
    with sockets.listening_socket("127.0.0.1", ports[1]), pytest.raises(PortInUse) as caught:
        claim(local)
    assert caught.value.exit_code == 3
    assert f"line 2 of the hosts file (127.0.0.1:{ports[1]}): port {ports[1]} is held by process {os.getpid()}" in str(caught.value)
    assert claim(local).line == 1  # once the stranger has gone


def test_processes_that_start_at_the_same_instant_take_different_lines(local: HostList) -> None:
    program = (
        "import sys\n"
        "from zpala.gossip.hosts import parse_hosts\n"
        "from zpala.node.claim import claim_line\n"
        "hosts = parse_hosts(sys.argv[1], 'hosts.txt')\n"
        "print('ready', flush=True)\n"
        "for _ in sys.stdin:\n"
        "    claim = claim_line(hosts)\n"
        "    print(claim.line, flush=True)\n"
        "    sys.stdin.readline()\n"
        "    claim.close()\n"
        "    print('closed', flush=True)\n"
    )
    text = "\n".join(host.host_port for host in local)
    nodes = [
        subprocess.Popen([sys.executable, "-c", program, text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]

    def ask() -> list[str]:
        for node in nodes:
            assert node.stdin is not None
            node.stdin.write("go\n")
            node.stdin.flush()
        return answers()

    def answers() -> list[str]:
        return [node.stdout.readline().strip() for node in nodes if node.stdout is not None]

    try:
        assert answers() == ["ready"] * 4
        for _ in range(15):
            assert sorted(ask()) == ["0", "1", "2", "3"]
            assert ask() == ["closed"] * 4
    finally:
        for node in nodes:
            node.communicate(timeout=20)
    assert [node.returncode for node in nodes] == [0] * 4


def test_a_process_that_is_killed_gives_its_line_back(claim: Claimer, local: HostList) -> None:
    program = (
        "import sys\n"
        "from zpala.gossip.hosts import parse_hosts\n"
        "from zpala.node.claim import claim_line\n"
        "claim = claim_line(parse_hosts(sys.argv[1], 'hosts.txt'))\n"
        "print(claim.line, flush=True)\n"
        "sys.stdin.read()\n"
    )
    text = "\n".join(host.host_port for host in local)
    with subprocess.Popen([sys.executable, "-c", program, text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout is not None
        assert node.stdout.readline() == "0\n"
        assert claim(local).line == 1
        node.kill()
        node.wait(20)
    assert claim(local).line == 0


def test_one_line_of_several_machines_binds_the_wildcard(claim: Claimer, ports: list[int]) -> None:
    hosts = hosts_of(f"10.9.8.7:{ports[0]}", f"10.9.8.6:{ports[1]}", f"{OTHER}:{ports[2]}")
    one = claim(hosts, insecure=True, machine=machine(own=("127.0.0.1", "10.9.8.6")))
    assert (one.line, one.host, one.port) == (1, "*", ports[1])
    assert one.listener.getsockname()[:2] in (("::", ports[1]), ("0.0.0.0", ports[1]))


def test_what_others_can_reach_is_refused_without_insecure(claim: Claimer, ports: list[int]) -> None:
    hosts = hosts_of(f"10.9.8.6:{ports[0]}")
    with pytest.raises(SecurityRefused, match="--insecure") as caught:
        claim(hosts, machine=machine(own=("10.9.8.6",)))
    assert caught.value.exit_code == 4
    assert f"10.9.8.6:{ports[0]}" in str(caught.value)
    for listen in ("*", "0.0.0.0", "[::]", "10.9.8.6", f"*:{ports[1]}"):
        with pytest.raises(SecurityRefused):
            claim(hosts_of(f"127.0.0.1:{ports[0]}"), listen=listen)
    sockets.listening_socket("127.0.0.1", ports[0]).close()  # nothing was bound


def test_the_refusal_names_both_ways_out(claim: Claimer, ports: list[int]) -> None:
    with pytest.raises(SecurityRefused) as caught:
        claim(hosts_of(f"127.0.0.1:{ports[0]}"), listen="0.0.0.0")
    for part in ("its lines have no keys", "'zpala keys new'", "every copy of the file", "--insecure", "127.0.0.1"):
        assert part in str(caught.value)


@pytest.fixture
def keys(tmp_path: Path) -> list[SecretKey]:
    return [new_key(tmp_path, f"k{number}") for number in range(3)]


def test_with_keys_what_others_can_reach_may_be_served(claim: Claimer, ports: list[int], keys: list[SecretKey]) -> None:
    hosts = hosts_of(f"{OTHER}:{ports[0]} {keys[0].public}", f"10.9.8.6:{ports[1]} {keys[1].public}")
    one = claim(hosts, machine=machine(own=("10.9.8.6",)), keys=keys)
    assert (one.line, one.host, one.key) == (1, "*", keys[1])


def test_a_key_decides_which_line_is_taken(claim: Claimer, ports: list[int], keys: list[SecretKey]) -> None:
    hosts = hosts_of(*(f"n{line} 127.0.0.1:{port} {key.public}" for line, (port, key) in enumerate(zip(ports, keys, strict=False))))
    last = claim(hosts, keys=keys[2:])
    assert (last.line, last.key) == (2, keys[2])
    others = [claim(hosts, keys=keys) for _ in range(2)]  # a folder of keys: the same command takes one line after the other
    assert [(one.line, one.key) for one in others] == [(0, keys[0]), (1, keys[1])]


def test_a_key_that_is_not_that_of_the_line_is_refused_and_both_are_named(claim: Claimer, ports: list[int], keys: list[SecretKey]) -> None:
    hosts = hosts_of("# nodes", f"a 127.0.0.1:{ports[0]} {keys[0].public}", f"b 127.0.0.1:{ports[1]} {keys[1].public}")
    with pytest.raises(SecurityRefused) as caught:
        claim(hosts, name="a", keys=keys[1:2])
    assert caught.value.exit_code == 4
    for part in ("line 2 of the hosts file (a)", keys[0].public, keys[1].public, str(keys[1].path), "every copy of the file", "--key"):
        assert part in str(caught.value)
    with pytest.raises(SecurityRefused, match=r"line 2 .*; line 3 .*, but the secret key in .*k2\.key belongs to"):
        claim(hosts, keys=keys[2:])
    with pytest.raises(SecurityRefused, match=r"this node has no secret key\. Run 'zpala keys new'"):
        claim(hosts, name="b", insecure=True)
    for port in ports[:2]:
        sockets.listening_socket("127.0.0.1", port).close()  # nothing was bound


def test_a_secret_key_in_the_hosts_file_is_found_out(claim: Claimer, ports: list[int], keys: list[SecretKey]) -> None:
    with pytest.raises(SecurityRefused, match="holds the secret key of this node instead of its public key") as caught:
        claim(hosts_of(f"a 127.0.0.1:{ports[0]} {keys[0].secret.hex()}"), keys=keys[:1])
    assert keys[0].secret.hex() not in str(caught.value)


def test_without_keys_in_the_file_a_key_does_not_count(claim: Claimer, local: HostList, keys: list[SecretKey]) -> None:
    assert claim(local, keys=keys).key is None


def test_two_lines_of_one_address_need_a_name(claim: Claimer, ports: list[int]) -> None:
    hosts = hosts_of(f"a 10.9.8.6:{ports[0]}", f"b 10.9.8.6:{ports[1]}", f"c {OTHER}:{ports[2]}")
    here = machine(own=("10.9.8.6",))
    with pytest.raises(NoOwnLine, match="--name") as caught:
        claim(hosts, insecure=True, machine=here)
    assert caught.value.exit_code == 3
    assert f"a 10.9.8.6:{ports[0]}, b 10.9.8.6:{ports[1]}." in str(caught.value)
    assert claim(hosts, name="b", insecure=True, machine=here).line == 1


def test_loopback_beside_an_address_needs_a_name(claim: Claimer, ports: list[int]) -> None:
    hosts = hosts_of(f"127.0.0.1:{ports[0]}", f"10.9.8.6:{ports[1]}")
    here = machine(own=("127.0.0.1", "10.9.8.6"))
    with pytest.raises(NoOwnLine, match="--name"):
        claim(hosts, insecure=True, machine=here)
    assert claim(hosts, name=f"10.9.8.6:{ports[1]}", insecure=True, machine=here).line == 1


@pytest.mark.parametrize("name", ["node1", "node1.example.org"])
def test_the_host_name_decides_when_no_address_does(claim: Claimer, ports: list[int], name: str) -> None:
    """A machine behind a container's network may know none of its addresses, but its name."""
    hosts = hosts_of(f"node0:{ports[0]}", f"{name}:{ports[1]}")
    one = claim(hosts, insecure=True, machine=machine("node1", node0="10.0.0.1", node1="10.0.0.2"))
    assert (one.line, one.host) == (1, "*")


def test_a_host_name_that_stands_for_loopback_here_is_served_for_others(claim: Claimer, ports: list[int]) -> None:
    """Debian writes ``127.0.1.1 node1`` into /etc/hosts of node1: peers dial another address."""
    hosts = hosts_of(f"node0:{ports[0]}", f"node1:{ports[1]}")
    here = machine("node1", own=("127.0.0.1", "127.0.1.1"), node0="10.0.0.1", node1="127.0.1.1")
    assert claim(hosts, insecure=True, machine=here).host == "*"
    with pytest.raises(SecurityRefused):
        claim(hosts, machine=here)


def test_localhost_is_loopback_whatever_the_host_name(claim: Claimer, ports: list[int]) -> None:
    hosts = hosts_of(f"localhost:{ports[0]}", f"localhost:{ports[1]}")
    claims = [claim(hosts, machine=machine("localhost", localhost="127.0.0.1")) for _ in range(2)]
    assert [(one.line, one.host) for one in claims] == [(0, "127.0.0.1"), (1, "127.0.0.1")]
    claims[0].close()
    assert claim(hosts).host == "127.0.0.1"  # the real name service agrees


def test_no_line_of_ours(claim: Claimer) -> None:
    hosts = hosts_of(f"{OTHER}:5670", "203.0.113.78:5670")
    with pytest.raises(NoOwnLine) as caught:
        claim(hosts, insecure=True)
    assert caught.value.exit_code == 3
    assert f"{OTHER}:5670, 203.0.113.78:5670" in str(caught.value)
    assert socket.gethostname() in str(caught.value)


def test_a_name_picks_its_line(claim: Claimer, ports: list[int]) -> None:
    hosts = hosts_of(f"left 127.0.0.1:{ports[0]}", f"right 127.0.0.1:{ports[1]}")
    assert claim(hosts, name="right").line == 1
    with pytest.raises(PortInUse, match=rf"node right runs already: line 2 .* by process {os.getpid()}"):
        claim(hosts, name="right")
    with pytest.raises(UsageError, match=r"'middle'.*left 127\.0\.0\.1.*right") as caught:
        claim(hosts, name="middle")
    assert caught.value.exit_code == 2


def test_listen_says_what_to_bind(claim: Claimer, ports: list[int]) -> None:
    hosts = hosts_of(f"{OTHER}:{ports[0]}", f"203.0.113.78:{ports[1]}")
    one = claim(hosts, name=f"203.0.113.78:{ports[1]}", listen=f"127.0.0.1:{ports[2]}")
    assert (one.line, one.host, one.port) == (1, "127.0.0.1", ports[2])
    two = claim(hosts, name=f"{OTHER}:{ports[0]}", listen="127.0.0.1")
    assert (two.line, two.port) == (0, ports[0])


def test_listen_needs_to_be_meant_for_one_line(claim: Claimer, local: HostList, ports: list[int]) -> None:
    assert claim(local, listen=f"127.0.0.1:{ports[2]}").line == 2
    with pytest.raises(NoOwnLine, match="--name"):
        claim(local, listen="127.0.0.1")


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.0.0.1:99999", "127.0.0.1:http", "node1:5670", OTHER])
def test_a_listen_that_cannot_be(claim: Claimer, ports: list[int], listen: str) -> None:
    with pytest.raises(UsageError) as caught:
        claim(hosts_of(f"127.0.0.1:{ports[0]}"), listen=listen, insecure=True)
    assert caught.value.exit_code == 2
    assert listen.partition(":")[0] in str(caught.value)


@pytest.mark.parametrize(("address", "own"), [("127.0.0.1", True), ("127.0.0.2", True), (OTHER, False), ("2001:db8::1", False)])
def test_own_addresses(address: str, own: bool) -> None:
    assert is_own_address(address) is own


def test_the_address_of_the_way_out_is_own() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((OTHER, 9))
        except OSError:
            pytest.skip("this machine has no way out")
        address = probe.getsockname()[0]
    assert is_own_address(address)


def test_the_holder_of_a_port_is_named() -> None:
    with sockets.listening_socket("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        holder = port_holder(port)
    assert holder is not None
    assert holder.pid == os.getpid()
    whole = Path("/proc/self/cmdline").read_text().replace("\0", " ")
    assert holder.command.startswith(whole.split()[0])
    assert whole.startswith(holder.command), "its beginning"
    assert port_holder(port) is None


def test_a_holder_whose_files_are_hidden_is_somebody(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    header = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    line = "   0: 0100007F:1626 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4242 1\n"
    (tmp_path / "net" / "tcp").write_text(header + line)
    holder = port_holder(0x1626, tmp_path)
    assert str(holder) == "another user's process"
    assert port_holder(0x1627, tmp_path) is None
