"""Loading, refusing and measuring graphs; the spectral gap against closed formulas and against E[W] built exchange by exchange."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zpala.gossip import topology as topology_module
from zpala.gossip.topology import Topology, TopologyError, load_topology, read_topology, shipped_topologies

SHIPPED = {"exponential", "full", "hypercube", "ring", "small_world", "star", "torus"}


def graph(*rows: set[int]) -> Topology:
    return Topology("mine", "mine.py", len(rows), tuple(map(frozenset, rows)))


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


# --- loading --------------------------------------------------------------------------------------------------------


def test_shipped_topologies_are_found_in_a_checkout() -> None:
    assert set(shipped_topologies()) == SHIPPED


def test_shipped_topologies_are_found_beside_the_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "site-packages" / "zpala" / "topologies"
    installed.mkdir(parents=True)
    for name in ("full.py", "_private.py"):
        write(installed, name, "def neighbours(index, size): return set(range(size)) - {index}")
    monkeypatch.setattr(topology_module, "__file__", str(installed.parent / "gossip" / "topology.py"))
    assert shipped_topologies() == {"full": installed / "full.py"}
    assert load_topology("full", 3).neighbours(1) == {0, 2}


def test_a_python_file_plugs_in(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.py", "def neighbours(index, size):\n    return [(index + 1) % size, (index - 1) % size]\n")
    loaded = load_topology(path, 5)
    assert [loaded.neighbours(index) for index in range(5)] == [{1, 4}, {0, 2}, {1, 3}, {2, 4}, {0, 3}]
    assert (loaded.name, loaded.source, loaded.size) == (path, path, 5)
    assert not (tmp_path / "__pycache__").exists()


def test_an_edge_list_plugs_in(tmp_path: Path) -> None:
    path = write(tmp_path, "graph.edges", "\ufeff# a path\r\n0 1\r\n\r\n2 1   # once more\r\n1 2\r\n")
    assert [load_topology(path, 3).neighbours(index) for index in range(3)] == [{1}, {0, 2}, {1}]


def test_equal_graphs_have_equal_digests_whatever_the_file(tmp_path: Path) -> None:
    edges = write(tmp_path, "ring.edges", "\n".join(f"{index} {(index + 1) % 6}" for index in range(6)))
    assert load_topology(edges, 6).digest() == load_topology("ring", 6).digest()
    digests = {load_topology(name, 6).digest() for name in SHIPPED - {"hypercube"}}
    assert len(digests) == len(SHIPPED) - 1
    assert load_topology("ring", 5).digest() != load_topology("ring", 6).digest()


def test_a_node_alone_has_no_neighbours(tmp_path: Path) -> None:
    assert load_topology("full", 1).neighbours(0) == frozenset()
    assert load_topology(write(tmp_path, "none.edges", "# nobody\n"), 1).neighbours(0) == frozenset()


# --- refusing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "meant"), [("rng", "ring"), ("fulll", "full"), ("smallworld", "small_world"), ("tours", "torus")])
def test_unknown_name_offers_the_closest(wrong: str, meant: str) -> None:
    with pytest.raises(TopologyError, match=f"unknown topology '{wrong}'; did you mean .*'{meant}'"):
        load_topology(wrong, 4)


def test_unknown_name_without_a_close_one_lists_all() -> None:
    with pytest.raises(TopologyError, match="shipped are exponential, full, hypercube, ring, small_world, star, torus"):
        load_topology("xyzzy", 4)


@pytest.mark.parametrize("name", ["nowhere/mine.py", "nowhere/graph.edges"])
def test_missing_file_is_named(name: str) -> None:
    with pytest.raises(TopologyError, match=f"^{name}: no such topology file"):
        load_topology(name, 4)


@pytest.mark.parametrize("size", [0, -3])
def test_a_topology_needs_a_node(size: int) -> None:
    with pytest.raises(TopologyError, match=f"a topology of {size} nodes"):
        load_topology("full", size)


def test_shipped_topology_says_which_sizes_work() -> None:
    with pytest.raises(TopologyError, match=r"hypercube\.py: .*power of two, 4 or 8 nodes; 'exponential' takes any size"):
        load_topology("hypercube", 6)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("def neighbours(index, size)\n    return set()", r"mine\.py:1: cannot be loaded: SyntaxError"),
        ("import no_such_module_zpala", r"mine\.py: cannot be loaded: ModuleNotFoundError: No module named 'no_such_module_zpala'"),
        ("raise SystemExit(3)", r"mine\.py: cannot be loaded: SystemExit"),
        ("def neighbors(index, size): return set()", r"mine\.py: no function 'neighbours'; define neighbours\(index: int, size: int\)"),
        ("neighbours = 3", r"mine\.py: no function 'neighbours'"),
        ("def neighbours(index): return set()", r"mine\.py: neighbours\(0, 4\) failed: TypeError"),
        ("def neighbours(index, size): return None", r"mine\.py: neighbours\(0, 4\) failed: TypeError"),
        ("def neighbours(index, size): return {'a'}", r"mine\.py: neighbours\(0, 4\) failed: TypeError"),
        ("def neighbours(index, size): return {0.5}", r"mine\.py: neighbours\(0, 4\) failed: TypeError"),
        ("def neighbours(index, size): raise ValueError('odd sizes only')", r"mine\.py: neighbours\(0, 4\): odd sizes only"),
        ("def neighbours(index, size): return set(range(size))", r"neighbours\(0, 4\) contains 0 itself; leave it out"),
        ("def neighbours(index, size): return {index + 1}", r"neighbours\(3, 4\) contains 4; nodes are numbered 0 to 3"),
        ("def neighbours(index, size): return {index - 1}", r"neighbours\(0, 4\) contains -1; nodes are numbered 0 to 3"),
        (
            "def neighbours(index, size): return {(index + 1) % size}",
            r"mine\.py: not symmetric for 4 nodes: 1 is a neighbour of 0, but 0 is none of 1; neighbours\(1, 4\) has to contain 0",
        ),
        ("def neighbours(index, size): return {index ^ 1}", r"mine\.py: not connected for 4 nodes: no way from 0 to 2; add an edge"),
        ("def neighbours(index, size): return set()", r"mine\.py: not connected for 4 nodes: no way from 0 to 1"),
    ],
)
def test_unusable_python_files(tmp_path: Path, code: str, text: str) -> None:
    with pytest.raises(TopologyError, match=text):
        load_topology(write(tmp_path, "mine.py", code), 4)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("1", "'1' is no edge; write two line indices"),
        ("1 2 3", "'1 2 3' is no edge"),
        ("1, 2", "'1, 2' is no edge"),
        ("a b", "'a b' is no edge"),
        ("0 -1", "'0 -1' is no edge"),
        ("0 4", "node 4; hosts.txt has 4 nodes, numbered 0 to 3"),
        ("2 2", "an edge from 2 to itself; leave it out"),
    ],
)
def test_unusable_edge_lists_name_the_line(tmp_path: Path, line: str, text: str) -> None:
    with pytest.raises(TopologyError, match=rf"graph\.edges:3: {text}"):
        load_topology(write(tmp_path, "graph.edges", f"# mine\n0 1\n{line}\n"), 4)


def test_an_edge_list_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "graph.edges").write_bytes(b"0 1\n\xff\xfe")
    with pytest.raises(TopologyError, match=r"graph\.edges: cannot be read"):
        load_topology(str(tmp_path / "graph.edges"), 2)


def test_reading_for_a_check_takes_what_a_run_refuses(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.py", "def neighbours(index, size): return {index + 1} - {size}")
    report = read_topology(path, 4).check()
    assert not report.symmetric
    assert not report.connected
    assert (report.diameter, report.spectral_gap, report.exchanges) == (None, 0.0, None)


# --- measuring ------------------------------------------------------------------------------------------------------


def mean_exchange(topology: Topology) -> np.ndarray:
    """E[W] as it is defined: the mean over every starter and every partner it may choose of the matrix of that exchange."""
    size = topology.size
    mean = np.zeros((size, size))
    for i in range(size):
        for j in topology.neighbours(i):
            one = np.eye(size)
            one[[i, i, j, j], [i, j, i, j]] = 0.5
            mean += one / (size * len(topology.neighbours(i)))
    return mean


@pytest.mark.parametrize("name", sorted(SHIPPED))
@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_spectral_gap_is_that_of_the_mean_exchange(name: str, size: int) -> None:
    topology = load_topology(name, size)
    second = float(np.linalg.eigvalsh(mean_exchange(topology))[-2])
    report = topology.check()
    assert report.spectral_gap == pytest.approx(1 - second, abs=1e-12)
    if second > 1e-9:
        assert report.exchanges == pytest.approx(math.log(1e-6) / math.log(second))


@pytest.mark.parametrize("size", [2, 3, 5, 8, 20, 64])
def test_closed_formulas(size: int) -> None:
    """Full: 1 / (n - 1). Ring: each of n edges carries an n-th of the exchanges."""
    assert load_topology("full", size).check().spectral_gap == pytest.approx(1 / (size - 1))
    if size > 2:
        assert load_topology("ring", size).check().spectral_gap == pytest.approx((1 - math.cos(2 * math.pi / size)) / size)


def test_the_promised_number_of_exchanges_is_enough() -> None:
    """Random exchanges on a ring of 6 from the worst start: the root mean square distance over 200 runs is below 1e-3."""
    topology = load_topology("ring", 6)
    exchanges = topology.check().exchanges
    assert exchanges is not None
    generator = np.random.default_rng(1)
    start = np.linalg.eigh(mean_exchange(topology))[1][:, -2]
    squares = []
    for _ in range(200):
        values = start.copy()
        for _ in range(math.ceil(exchanges)):
            i = int(generator.integers(6))
            j = int(generator.choice(sorted(topology.neighbours(i))))
            values[[i, j]] = (values[i] + values[j]) / 2
        squares.append(float(values @ values))
    assert math.sqrt(float(np.mean(squares))) < 1e-3
    assert math.sqrt(float(np.mean(squares))) > 1e-5


@pytest.mark.parametrize(
    ("name", "size", "edges", "degrees", "diameter"),
    [
        ("full", 6, 15, (5, 5), 1),
        ("ring", 6, 6, (2, 2), 3),
        ("ring", 7, 7, (2, 2), 3),
        ("torus", 9, 18, (4, 4), 2),
        ("torus", 12, 24, (4, 4), 3),
        ("hypercube", 16, 32, (4, 4), 4),
        ("exponential", 8, 20, (5, 5), 2),
        ("star", 6, 5, (1, 5), 2),
        ("full", 1, 0, (0, 0), 0),
    ],
)
def test_edges_degrees_and_diameter(name: str, size: int, edges: int, degrees: tuple[int, int], diameter: int) -> None:
    report = load_topology(name, size).check()
    assert (report.edges, (report.degree_min, report.degree_max), report.diameter) == (edges, degrees, diameter)
    assert report.symmetric
    assert report.connected


def test_one_and_two_nodes() -> None:
    one, two = load_topology("full", 1).check(), load_topology("full", 2).check()
    assert (one.spectral_gap, one.exchanges) == (1.0, 0.0)
    assert two.spectral_gap == pytest.approx(1.0)
    assert two.exchanges == pytest.approx(1.0)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    st.integers(1, 9).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=20))
    )
)
def test_distances_against_matrix_powers(case: tuple[int, set[tuple[int, int]]]) -> None:
    size, pairs = case
    matrix = np.eye(size, dtype=int)
    for i, j in pairs:
        matrix[i, j] = 1
    topology = graph(*({j for j in range(size) if matrix[i, j] and i != j} for i in range(size)))
    reach = [np.linalg.matrix_power(matrix, steps) > 0 for steps in range(size + 1)]
    for i in range(size):
        assert topology.distances(i) == {j: next(k for k in range(size + 1) if reach[k][i, j]) for j in range(size) if reach[-1][i, j]}
    assert topology.check().connected == bool(reach[-1].all())
    asymmetric = sorted((i, j) for i in range(size) for j in range(size) if matrix[i, j] > matrix[j, i])
    assert topology.asymmetric_pair() == (asymmetric[0] if asymmetric else None)
