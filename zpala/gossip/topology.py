"""Who may gossip with whom: loads a topology file, checks it and measures the graph.

Owns the graph of a run, a fixed tuple of neighbour sets over the lines of hosts.txt. A topology is a shipped file (``ring``), a Python file
with a function ``neighbours(index, size) -> set[int]``, or an edge list ``*.edges`` with two line indices per line. A Python file
is executed: it is the user's own code, never a peer's.
"""

from __future__ import annotations

import difflib
import hashlib
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DIGEST_BYTES = 16
NEAR = 1e-3  # relative distance at which a cluster counts as agreed; the drain's default


class TopologyError(ValueError):
    """A topology that cannot be used; the text names the file, what is wrong in it, and the fix."""


@dataclass(frozen=True, slots=True)
class Report:
    """What ``zpala topology check`` says about a graph.

    ``diameter`` is None for a graph that is not connected. ``spectral_gap`` = 1 - lambda_2(E[W]) in [0, 1] for one exchange between
    a uniformly random node and a uniformly random neighbour of it. ``exchanges`` (of the whole cluster together) bring the
    distance from the mean below 1e-3 of what it was, in the root mean square and from the worst start: lambda_2^k = 1e-6, because W is a
    projection and so E|Wx|^2 = x.E[W]x <= lambda_2 |x|^2. None when they never do.
    """

    name: str
    size: int
    edges: int
    symmetric: bool
    connected: bool
    degree_min: int
    degree_max: int
    diameter: int | None
    spectral_gap: float
    exchanges: float | None


@dataclass(frozen=True, slots=True)
class Topology:
    """A graph over ``size`` nodes. ``name`` is what the user called it, ``source`` the file it came from."""

    name: str
    source: str
    size: int
    adjacency: tuple[frozenset[int], ...]

    def neighbours(self, index: int) -> frozenset[int]:
        """The lines that node ``index`` (0 to size - 1) may gossip with."""
        return self.adjacency[index]

    def digest(self) -> str:
        """32 hex digits, equal exactly for equal graphs, whatever file they came from."""
        text = ";".join(",".join(map(str, sorted(row))) for row in self.adjacency)
        return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()

    def asymmetric_pair(self) -> tuple[int, int] | None:
        """The first (i, j) where j is a neighbour of i and i is none of j."""
        return next(((i, j) for i, row in enumerate(self.adjacency) for j in sorted(row) if i not in self.adjacency[j]), None)

    def distances(self, start: int) -> dict[int, int]:
        """Steps from ``start`` to every node that can be reached from it."""
        found = {start: 0}
        border = [start]
        while border:
            steps = found[border[0]] + 1
            border = sorted({j for i in border for j in self.adjacency[i]} - found.keys())
            found.update(dict.fromkeys(border, steps))
        return found

    def check(self) -> Report:
        """Measure the graph; see Report. Linear algebra on [size, size]: for a command, not for the proxy thread."""
        reach = [self.distances(index) for index in range(self.size)]
        connected = all(len(found) == self.size for found in reach)
        degrees = [len(row) for row in self.adjacency]
        gap = _spectral_gap(self.adjacency) if connected else 0.0
        return Report(
            name=self.name,
            size=self.size,
            edges=len({frozenset((i, j)) for i, row in enumerate(self.adjacency) for j in row}),
            symmetric=self.asymmetric_pair() is None,
            connected=connected,
            degree_min=min(degrees),
            degree_max=max(degrees),
            diameter=max(max(found.values()) for found in reach) if connected else None,
            spectral_gap=gap,
            exchanges=_exchanges(gap, self.size),
        )


def load_topology(name_or_path: str, size: int) -> Topology:
    """A graph that a run can use: symmetric and connected.

    Args:
        name_or_path: a shipped name, ``path/to/mine.py`` or ``path/to/graph.edges``.
        size: number of nodes, >= 1.

    Raises:
        TopologyError: no such file, its code fails, it does not know this size, or the graph is unusable.
    """
    topology = read_topology(name_or_path, size)
    pair = topology.asymmetric_pair()
    if pair is not None:
        i, j = pair
        raise TopologyError(
            f"{topology.source}: not symmetric for {size} nodes: {j} is a neighbour of {i}, but {i} is none of {j}; "
            f"neighbours({j}, {size}) has to contain {i} as well"
        )
    reached = topology.distances(0)
    if len(reached) < size:
        lost = min(set(range(size)) - set(reached))
        raise TopologyError(f"{topology.source}: not connected for {size} nodes: no way from 0 to {lost}; add an edge between the parts")
    return topology


def read_topology(name_or_path: str, size: int) -> Topology:
    """Like ``load_topology``, but a graph that is not symmetric or not connected is returned too, to be looked at with ``check``."""
    if size < 1:
        raise TopologyError(f"a topology of {size} nodes; it needs at least one")
    path = _find(name_or_path)
    if path.suffix == ".edges":
        return Topology(name_or_path, str(path), size, _read_edges(path, size))
    function = _load_function(path)
    return Topology(name_or_path, str(path), size, tuple(_row(path, function, index, size) for index in range(size)))


def shipped_topologies() -> dict[str, Path]:
    """Name -> file of every shipped topology: beside this package when installed, at the top of the repository in a checkout."""
    package = Path(__file__).resolve().parent.parent
    folders = (package / "topologies", package.parent / "topologies")
    folder = next((folder for folder in folders if (folder / "full.py").is_file()), folders[0])
    return {path.stem: path for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")}


def _find(name_or_path: str) -> Path:
    shipped = shipped_topologies()
    if name_or_path in shipped:
        return shipped[name_or_path]
    path = Path(name_or_path)
    if path.suffix in (".py", ".edges"):
        if not path.is_file():
            raise TopologyError(f"{name_or_path}: no such topology file; shipped ones are named without ending: {', '.join(shipped)}")
        return path
    close = difflib.get_close_matches(name_or_path, shipped, n=3)
    hint = f"did you mean {' or '.join(repr(name) for name in close)}?" if close else f"shipped are {', '.join(shipped)}"
    raise TopologyError(f"unknown topology {name_or_path!r}; {hint} A file is named by its path, ending in .py or .edges")


def _load_function(path: Path) -> Callable[[int, int], Iterable[int]]:
    namespace: dict[str, object] = {"__name__": "topology", "__file__": str(path)}
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), namespace)  # noqa: S102 - the user's own file, named by the user
    except (Exception, SystemExit) as error:  # whatever it raises is the file's error
        where = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise TopologyError(f"{path}{where}: cannot be loaded: {type(error).__name__}: {error}") from error
    function = namespace.get("neighbours")
    if not callable(function):
        raise TopologyError(f"{path}: no function 'neighbours'; define neighbours(index: int, size: int) -> set[int]")
    loaded: Callable[[int, int], Iterable[int]] = function
    return loaded


def _row(path: Path, function: Callable[[int, int], Iterable[int]], index: int, size: int) -> frozenset[int]:
    call = f"neighbours({index}, {size})"
    try:
        row = frozenset(operator.index(neighbour) for neighbour in function(index, size))
    except ValueError as error:  # the way in which a file says which sizes it knows
        raise TopologyError(f"{path}: {call}: {error}") from error
    except Exception as error:
        raise TopologyError(f"{path}: {call} failed: {type(error).__name__}: {error}") from error
    for neighbour in sorted(row):
        if neighbour == index:
            raise TopologyError(f"{path}: {call} contains {index} itself; leave it out")
        if not 0 <= neighbour < size:
            raise TopologyError(f"{path}: {call} contains {neighbour}; nodes are numbered 0 to {size - 1}")
    return row


def _read_edges(path: Path, size: int) -> tuple[frozenset[int], ...]:
    rows: list[set[int]] = [set() for _ in range(size)]
    for number, raw in enumerate(_read_text(path).split("\n"), start=1):
        words = raw.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
            raise TopologyError(f"{path}:{number}: {raw.strip()!r} is no edge; write two line indices, for example '0 1'")
        first, second = map(int, words)
        if max(first, second) >= size:
            raise TopologyError(f"{path}:{number}: node {max(first, second)}; hosts.txt has {size} nodes, numbered 0 to {size - 1}")
        if first == second:
            raise TopologyError(f"{path}:{number}: an edge from {first} to itself; leave it out")
        rows[first].add(second)
        rows[second].add(first)
    return tuple(frozenset(row) for row in rows)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TopologyError(f"{path}: cannot be read: {error}") from error


def _spectral_gap(adjacency: tuple[frozenset[int], ...]) -> float:
    """1 - lambda_2 of E[W] = I - L / (2 size), where L is the Laplacian with the weight 1/degree(i) + 1/degree(j) on edge (i, j)."""
    size = len(adjacency)
    if size == 1:
        return 1.0
    weight = np.zeros((size, size))
    for i, row in enumerate(adjacency):
        weight[i, list(row)] = 1.0 / len(row)
    weight += weight.T
    laplacian = np.diag(weight.sum(axis=1)) - weight
    return float(min(1.0, max(0.0, np.linalg.eigvalsh(laplacian)[1] / (2 * size))))


def _exchanges(gap: float, size: int) -> float | None:
    if size == 1:
        return 0.0
    if gap <= 0.0:
        return None
    if gap >= 1.0:
        return 1.0
    return max(1.0, float(np.log(NEAR**2) / np.log1p(-gap)))
