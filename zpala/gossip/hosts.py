"""hosts.txt: one ``[name] host:port [key]`` per line, in the order that all nodes share (design D10).

Owns the syntax and the errors. Reads text, not files, resolves no name and opens nothing. The line index, counted from 0 over the
lines that hold a node, is the node's number in the topology, in messages and in the counters, so a line must keep its place. While a run
lives, lines may be appended; nodes compare the lines that both have when they meet. Which node a line stands for is told by its name and
key, not by its address: a node may move. Either every line has a public key or none has: a run is authenticated or it is not.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass

LINES_MAX = 2**16
DIGEST_BYTES = 16
_COMMENT = re.compile(r"(?:^|\s)#.*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_KEY = re.compile(r"[0-9a-fA-F]{64}")
_AGREED = re.compile(r"([1-9][0-9]{0,4}) lines [0-9a-f]{32}")


class HostsError(ValueError):
    """A hosts.txt that cannot be used. The text is ``file:line: what; fix``."""


@dataclass(frozen=True, slots=True)
class Host:
    """One node's line.

    Args:
        line: index from 0 among the lines that hold a node.
        name: the given name, or "host:port".
        address: numeric address or host name in canonical spelling, IPv6 without brackets.
        port: 1 to 65535.
        key: public key, 64 lower-case hex digits, or None.
        source_line: number from 1 in the file.
    """

    line: int
    name: str
    address: str
    port: int
    key: str | None
    source_line: int

    @property
    def host_port(self) -> str:
        """``host:port`` with IPv6 in brackets, as in the file."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    @property
    def identity(self) -> str:
        """Who the node is, wherever it is: its name and key; without a name its key, without either its address."""
        unnamed = self.key is not None and self.name == self.host_port
        return f"{'-' if unnamed else self.name} {self.key or '-'}"


@dataclass(frozen=True, slots=True)
class HostList:
    """All nodes of a hosts.txt."""

    hosts: tuple[Host, ...]

    @property
    def keyed(self) -> bool:
        """Whether the nodes have keys; then all of them have."""
        return self.hosts[0].key is not None

    @property
    def digest(self) -> str:
        """32 hex digits, equal for equal nodes in equal order, whatever their addresses, the comments and the blanks."""
        return _digest(self.hosts)

    def agreed(self, lines: int) -> str:
        """What two nodes must have equal about the first ``lines`` lines, as text: see ``agreed_lines``."""
        return f"{lines} lines {_digest(self.hosts[:lines])}"

    def discontinued(self, later: HostList, source: str) -> str | None:
        """Why ``later``, read from the file ``source``, cannot follow on this list while a run lives; None: it can.

        It can when it begins with the same nodes in the same order, wherever they are now.
        """
        for before, after in zip(self.hosts, later.hosts, strict=False):
            if before.identity != after.identity:
                was, now = _difference(before, after)
                text = f"{source}:{after.source_line}: node number {after.line + 1} was {was} and is now {now}"
                break
        else:
            if len(later) >= len(self):
                return None
            missing = self.hosts[len(later)]
            text = (
                f"{source}:{later.hosts[-1].source_line}: the file ends after {len(later)} nodes and had {len(self)}: "
                f"{missing.name}, line {missing.source_line} until now, is missing"
            )
        return f"{text}; while a run lives, nodes may be appended and addresses of nodes with a name or key changed: put it back"

    def __len__(self) -> int:
        return len(self.hosts)

    def __getitem__(self, line: int) -> Host:
        return self.hosts[line]

    def __iter__(self) -> Iterator[Host]:
        return iter(self.hosts)


def parse_hosts(text: str, source: str) -> HostList:
    """Parse the text of a hosts.txt.

    Args:
        text: the file's content; CRLF and a byte order mark are tolerated.
        source: the file's name, for errors.

    Raises:
        HostsError: the first line that is wrong, appears twice, is one too many or alone in having a key or none, or no line at all.
    """
    hosts: list[Host] = []
    seen: dict[tuple[str, str], Host] = {}
    for source_line, raw in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        words = _COMMENT.sub("", raw).split()
        if not words:
            continue
        try:
            host = _parse_line(words, len(hosts), source_line)
            for value, what in ((host.host_port, "address"), (host.name, "name"), (host.key, "key")):
                before = seen.setdefault((what, value), host) if value else host
                if before is not host:
                    raise _LineError(f"the {what} {value} stands in line {before.source_line} already", "give every node its own")
            if hosts and (hosts[0].key is None) != (host.key is None):
                has, has_not = ("no key", "one") if host.key is None else ("a key", "none")
                raise _LineError(f"{host.name} has {has}, and line {hosts[0].source_line} has {has_not}", "give every node a key or none")
        except _LineError as error:
            raise HostsError(f"{source}:{source_line}: {error.what}; {error.fix}") from None
        hosts.append(host)
    if not hosts:
        raise HostsError(f"{source}:1: no node in the file; write one 'host:port' per line, for example '127.0.0.1:5670'")
    if len(hosts) > LINES_MAX:
        raise HostsError(f"{source}:{hosts[LINES_MAX].source_line}: node number {LINES_MAX + 1}; a run has at most {LINES_MAX} nodes")
    return HostList(tuple(hosts))


def agreed_lines(text: str) -> int:
    """How many lines an ``HostList.agreed`` is about; 0 when ``text``, a peer's, is none."""
    found = _AGREED.fullmatch(text)
    return int(found[1]) if found else 0


def _digest(hosts: tuple[Host, ...]) -> str:
    canonical = "".join(f"{host.identity}\n" for host in hosts)
    return hashlib.blake2b(canonical.encode(), digest_size=DIGEST_BYTES).hexdigest()


def _difference(before: Host, after: Host) -> tuple[str, str]:
    """What differs in two lines that stand for different nodes, for a person."""
    if before.key == after.key:
        return before.name, after.name
    return f"{before.name} with {_key(before)}", f"{after.name} with {_key(after)}"


def _key(host: Host) -> str:
    return f"the key {host.key}" if host.key else "no key"


class _LineError(Exception):
    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix


def _parse_line(words: list[str], line: int, source_line: int) -> Host:
    """``[name] host:port [key]``: a first word without a colon is the name, because neither an address nor a key may stand there."""
    rest = list(words)
    name = rest.pop(0) if len(rest) > 1 and ":" not in rest[0] else None
    if name is not None and not _NAME.fullmatch(name):
        raise _LineError(f"the name {name!r} cannot be used", "use 1 to 64 letters, digits, '.', '_', '-', the first a letter or digit")
    address, port = _parse_address(rest.pop(0))
    key = rest.pop(0) if rest else None
    if rest:
        raise _LineError(f"{len(words)} words", "write '[name] host:port [key]', and '#' before a comment")
    if key is not None and not _KEY.fullmatch(key):
        raise _LineError(f"{_shortened(key)!r} is no key", "a key has 64 hex digits, a name stands before the address")
    host = Host(line, name or "", address, port, key.lower() if key else None, source_line)
    return host if name else Host(line, host.host_port, address, port, host.key, source_line)


def _parse_address(word: str) -> tuple[str, int]:
    host, colon, digits = word.rpartition(":")
    if not colon or not host or (word.startswith("[") and word.endswith("]")):
        missing = "host" if colon and not host else "port"
        raise _LineError(f"{_shortened(word)!r} has no {missing}", "write host:port, for example node1:5670")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and 1 <= int(digits) <= 65535):
        raise _LineError(f"the port {_shortened(digits)!r} is none", "a port is a number from 1 to 65535")
    return _canonical_address(host), int(digits)


def _canonical_address(host: str) -> str:
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed or ":" in host:
        try:
            address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.IPv6Address(host[1:-1] if bracketed else host)
        except ValueError:
            raise _LineError(f"{_shortened(host)!r} is no IPv6 address", "write it in brackets, for example [2001:db8::7]:5670") from None
        if not bracketed:
            raise _LineError(f"the IPv6 address {host} stands without brackets", f"write [{host}]:port")
        return _dialable(address)
    if re.fullmatch(r"[0-9.]+", host):
        try:
            return _dialable(ipaddress.IPv4Address(host))
        except ValueError:
            raise _LineError(f"{_shortened(host)!r} is no IPv4 address", "write four numbers of 0 to 255, as in 192.168.0.7") from None
    host = host.lower().removesuffix(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise _LineError(f"{_shortened(host)!r} is no host name", "use letters, digits, '-' and '.' (a foreign name in its xn-- form)")
    return host


def _dialable(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    if address.is_unspecified or address.is_multicast:
        raise _LineError(f"{address} is no address that a peer can dial", "write the one under which the other nodes reach this machine")
    return str(address)


def _shortened(word: str) -> str:
    return word if len(word) <= 40 else word[:37] + "..."
