"""Which line of hosts.txt this process is (design D11), and the listening socket that proves it.

Owns: the rule that matches lines with this machine, and the two things that hold a claimed line until ``Claim.close()``. No thread, no zmq.

The claim *is* the listening TCP socket, which the proxy's ROUTER later takes over: no moment exists in which a port is chosen but not
held. The kernel gives a port to one listener only, so of several processes started in the same instant each gets another line. A second
thing is held, a socket in the abstract unix namespace named after address and port (it belongs to the network namespace as the port
does, and ends with the process): it tells "another zpala node has this line, take the next one" from "a stranger has our port, say so".
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from zpala.gossip.hosts import Host, HostList
from zpala.node import sockets
from zpala.node.errors import NoOwnLine, PortInUse, SecurityRefused, UsageError
from zpala.node.holder import port_holder
from zpala.node.keys import SecretKey
from zpala.node.resolver import is_numeric, look_up_all

WILDCARD = "*"
LOOKUP_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Claim:
    """A line of hosts.txt that is ours: its index, what is bound for it, and what holds it until ``close()``."""

    line: int
    host: str  # a numeric address, or "*" for every address of this machine
    port: int
    listener: socket.socket  # listening; the proxy's ROUTER takes it over
    mark: socket.socket
    key: SecretKey | None = None  # the one that belongs to the public key of the line; None when the file has no keys

    def close(self) -> None:
        """Gives the line back. A listener that was taken over is closed by its ROUTER."""
        self.listener.close()
        self.mark.close()


def is_own_address(address: str) -> bool:
    """Whether a numeric address is one of this machine's (of this network namespace's): it is when a socket can be bound to it.

    Where the system lets foreign addresses be bound too (``ip_nonlocal_bind``), the way to the address tells: it starts at itself.
    """
    try:
        family, _, _, _, target = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((target[0], 0, *target[2:]))
        if _is_loopback(address):
            return True
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing
            return str(probe.getsockname()[0]).partition("%")[0] == str(target[0]).partition("%")[0]
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class Machine:
    """What a claim asks this machine; tests ask another one."""

    hostname: str = field(default_factory=socket.gethostname)
    is_own: Callable[[str], bool] = is_own_address
    look_up: Callable[[list[str]], dict[str, tuple[str, ...]]] = lambda names: look_up_all(names, LOOKUP_LIMIT_S)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A line that may be ours. ``bind``: what to listen on for it."""

    host: Host
    bind: str


def claim_line(
    hosts: HostList,
    *,
    name: str | None = None,
    listen: str | None = None,
    insecure: bool = False,
    keys: Sequence[SecretKey] = (),
    machine: Machine | None = None,
) -> Claim:
    """Finds this machine's lines in the file and claims the first free one.

    A line is ours when its address is an address of this machine; when there is none, when its host is this machine's own name. A
    loopback line binds loopback, any other the wildcard. ``name`` picks one line, ``listen`` ("HOST", "HOST:PORT", "*:PORT") says what
    to bind instead. When the lines have public keys, only one whose secret key is among ``keys`` is ours; ``keys`` do not count otherwise.

    Raises:
        NoOwnLine: no line is ours; several are and only a name can tell; all are taken by zpala nodes.
        PortInUse: a foreign process holds a port of ours, or whoever holds the line that ``name`` says.
        SecurityRefused: others could reach the socket, the file has no keys and ``insecure`` is not set; or it has, and ours is not there.
        UsageError: an unknown ``name``, or a ``listen`` that is no address of this machine.
    """
    machine = machine or Machine()
    candidates = [_named(hosts, name, machine)] if name is not None else _matching(hosts, machine)
    if listen is not None:
        candidates = [_listening(candidates, listen)]
    own = {key.public: key for key in keys} if hosts.keyed else {}
    if hosts.keyed:
        candidates = _with_key(candidates, keys)
    for candidate in candidates:
        if not hosts.keyed and not insecure and not _is_loopback(candidate.bind):
            raise SecurityRefused(
                f"line {candidate.host.source_line} of the hosts file ({candidate.host.host_port}) needs a socket that others can reach "
                f"({_shown(candidate)}), and its lines have no keys: anybody who reaches it could take part. Either run 'zpala keys new' "
                "on every node and write the public key that it prints at the end of the node's line, in every copy of the file; or, on "
                "a network that you trust, say --insecure. For a trial on one machine use 127.0.0.1."
            )
    taken = []
    for candidate in candidates:
        claim = _take(candidate, own.get(candidate.host.key or ""))
        if claim is not None:
            return claim
        taken.append(f"line {candidate.host.source_line} ({candidate.host.host_port}) by {_holder(candidate.host.port)}")
    if name is not None or listen is not None:
        raise PortInUse(f"node {candidates[0].host.name} runs already: {taken[0]}. Stop it, or start another line of the file.")
    raise NoOwnLine(
        f"every line of the hosts file that is this machine's is taken: {'; '.join(taken)}. "
        "Add a line for one more node, or stop one of these."
    )


def _named(hosts: HostList, name: str, machine: Machine) -> _Candidate:
    for host in hosts:
        if name in (host.name, host.host_port):
            own = [address for address in machine.look_up([host.address]).get(host.address, ()) if machine.is_own(address)]
            return _Candidate(host, _bind_address(host, own, machine))
    raise UsageError(f"no line of the hosts file has the name {name!r}. It has: {_listed(hosts)}.")


def _matching(hosts: HostList, machine: Machine) -> list[_Candidate]:
    """The lines that are this machine's, in the order of the file: several loopback lines, or one other."""
    addresses = machine.look_up([host.address for host in hosts])
    own = {host: [a for a in addresses.get(host.address, ()) if machine.is_own(a)] for host in hosts}
    matching = [host for host in hosts if own[host]] or [host for host in hosts if _is_own_name(host.address, machine.hostname)]
    if not matching:
        unknown = [host.address for host in hosts if not addresses.get(host.address)]
        raise NoOwnLine(
            f"no line of the hosts file is this machine's ({machine.hostname}): none of {_listed(hosts)} is an address of it"
            + (f", and {', '.join(unknown[:8])} could not be looked up" if unknown else "")
            + ". Add a line with an address under which the others reach this machine, or say which line it is with --name."
        )
    candidates = [_Candidate(host, _bind_address(host, own[host], machine)) for host in matching]
    if len(candidates) > 1 and not all(_is_loopback(candidate.bind) for candidate in candidates):
        raise NoOwnLine(
            f"{len(candidates)} lines of the hosts file are this machine's: {_listed(matching)}. Say which one this node is with --name."
        )
    return candidates


def _with_key(candidates: list[_Candidate], keys: Sequence[SecretKey]) -> list[_Candidate]:
    """The candidates whose secret key we have; an error that names both public keys when there is none."""
    found = [candidate for candidate in candidates if any(key.public == candidate.host.key for key in keys)]
    if found:
        return found
    line_keys = [f"line {c.host.source_line} of the hosts file ({c.host.name}) has the public key {c.host.key}" for c in candidates[:4]]
    wanted = "; ".join(line_keys) + ("; and so on" if len(candidates) > 4 else "")
    if any(key.secret.hex() == candidate.host.key for candidate in candidates for key in keys):
        raise SecurityRefused(
            f"line {candidates[0].host.source_line} of the hosts file holds the secret key of this node instead of its public key. "
            "It is no secret any more: delete its file, run 'zpala keys new' and write the public key that it prints on the line."
        )
    if not keys:
        raise SecurityRefused(
            f"{wanted}, and this node has no secret key. Run 'zpala keys new' and write the public key that it prints on the line, in "
            "every copy of the file; or say with --key where the secret key is."
        )
    ours = "; ".join(f"the secret key in {key.path} belongs to {key.public}" for key in keys[:4]) + ("; and so on" if len(keys) > 4 else "")
    raise SecurityRefused(
        f"{wanted}, but {ours}. Write the public key that belongs to this node on its line, in every copy of the file, or give --key the "
        "file of the other secret key."
    )


def _bind_address(host: Host, own: list[str], machine: Machine) -> str:
    """A loopback line binds its loopback address. A machine's own name may stand for 127.0.1.1 in /etc/hosts: others know it better."""
    loopback = [address for address in own if _is_loopback(address)]
    return loopback[0] if loopback == own and own and not _is_own_name(host.address, machine.hostname) else WILDCARD


def _listening(candidates: list[_Candidate], listen: str) -> _Candidate:
    """The candidate that ``--listen`` is meant for, bound as it says."""
    address, port = _parse_listen(listen)
    chosen = [candidate for candidate in candidates if candidate.host.port == port] or candidates
    if len(chosen) > 1:
        raise NoOwnLine(
            f"--listen {listen} could be meant for {_listed(candidate.host for candidate in chosen)}. Say which one it is with --name."
        )
    host = chosen[0].host
    at = host if port is None else Host(host.line, host.name, host.address, port, host.key, host.source_line)
    return _Candidate(at, address)


def _parse_listen(listen: str) -> tuple[str, int | None]:
    """("127.0.0.1", 5670) of "127.0.0.1:5670"; no port: None; "*", "0.0.0.0" and "[::]" are the wildcard."""
    host, port = listen, None
    if not is_numeric(listen.strip("[]")):
        host, colon, digits = listen.rpartition(":")
        if not colon:
            host = listen
        elif not (digits.isascii() and digits.isdigit() and 0 < int(digits) < 65536):
            raise UsageError(f"--listen {listen}: {digits!r} is no port. Write HOST:PORT with a port from 1 to 65535.")
        else:
            port = int(digits)
    host = host.strip("[]")
    if host == "localhost":
        host = "127.0.0.1"
    if host in ("", WILDCARD) or (is_numeric(host) and ipaddress.ip_address(host).is_unspecified):
        return WILDCARD, port
    if not is_numeric(host):
        raise UsageError(f"--listen {listen}: {host!r} is no address. Write a numeric address of this machine, or * for all of them.")
    return host, port


def _take(candidate: _Candidate, key: SecretKey | None) -> Claim | None:
    """The claim; None when another zpala node holds the line."""
    host = candidate.host
    mark = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        mark.bind(f"\0zpala {candidate.bind} {host.port}")
    except OSError as error:
        mark.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise
    try:
        listener = sockets.listening_socket(candidate.bind, host.port)
    except OSError as error:
        mark.close()
        where = f"line {host.source_line} of the hosts file ({host.name}): port {host.port}"
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(f"{where} is held by {_holder(host.port)}. Stop it, or change the port in every copy of the file.") from error
        if error.errno == errno.EACCES:
            raise PortInUse(f"{where} may not be used by this user. Use a port from 1024 on.") from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise UsageError(f"{where} cannot listen on {candidate.bind}: that is no address of this machine.") from error
        raise
    return Claim(host.line, candidate.bind, host.port, listener, mark, key)


def _is_own_name(host: str, hostname: str) -> bool:
    """Whether a host name is this machine's: equal, or equal in the first label where one of the two has no more than that."""
    host, hostname = host.lower(), hostname.lower()
    if is_numeric(host) or host.split(".")[0] == "localhost":
        return False
    return host == hostname or (host.split(".")[0] == hostname.split(".")[0] and ("." not in host or "." not in hostname))


def _is_loopback(address: str) -> bool:
    return is_numeric(address) and ipaddress.ip_address(address).is_loopback


def _holder(port: int) -> str:
    holder = port_holder(port)
    return "another process" if holder is None else str(holder)


def _shown(candidate: _Candidate) -> str:
    where = "all addresses of this machine" if candidate.bind == WILDCARD else candidate.bind
    return f"{where}, port {candidate.host.port}"


def _listed(hosts: Iterable[Host]) -> str:
    shown = [host.name if host.name == host.host_port else f"{host.name} {host.host_port}" for host in hosts]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
