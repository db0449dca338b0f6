"""What ``zpala topology`` prints: the shipped graphs, and the measurements of one graph."""

from __future__ import annotations

import ast
import json
from dataclasses import asdict, dataclass

from zpala.gossip.topology import Report, Topology, read_topology, shipped_topologies

DRAWN_NODES_MAX = 32  # larger graphs are measured but not written out


@dataclass(frozen=True, slots=True)
class Examination:
    """One graph, its measurements and what is wrong with it ("" when nothing is)."""

    topology: Topology
    report: Report
    problem: str

    @property
    def usable(self) -> bool:
        """Can a run use it: is it symmetric and connected?"""
        return not self.problem

    def text(self) -> str:
        """Measurements, then who the neighbours of every node are."""
        report = self.report
        exchanges = "never" if report.exchanges is None else f"{report.exchanges:.0f} ({report.exchanges / report.size:.1f} per node)"
        degree = str(report.degree_min) if report.degree_min == report.degree_max else f"{report.degree_min} to {report.degree_max}"
        lines = [
            f"topology   {report.name} with {report.size} nodes ({self.topology.source})",
            f"usable     {'yes' if self.usable else 'no: ' + self.problem}",
            f"symmetric  {_yes(report.symmetric)}",
            f"connected  {_yes(report.connected)}",
            f"edges      {report.edges}",
            f"degree     {degree}",
            f"diameter   {'-' if report.diameter is None else report.diameter}",
            f"gap        {report.spectral_gap:.4g} (spectral gap of one exchange between random neighbours)",
            f"exchanges  {exchanges} until the nodes agree to 1e-3",
        ]
        if report.size <= DRAWN_NODES_MAX:
            lines += ["", *(f"{index:>4} - {' '.join(map(str, sorted(row)))}" for index, row in enumerate(self.topology.adjacency))]
        return "\n".join(lines)

    def json(self) -> str:
        """The measurements as one JSON document."""
        neighbours = [sorted(row) for row in self.topology.adjacency]
        return json.dumps({**asdict(self.report), "usable": self.usable, "problem": self.problem, "neighbours": neighbours}, indent=2)


def examine(name_or_path: str, size: int) -> Examination:
    """Loads and measures a graph, usable or not. Raises TopologyError when there is no graph to measure."""
    topology = read_topology(name_or_path, size)
    report = topology.check()
    pair = topology.asymmetric_pair()
    problem = ""
    if pair is not None:
        i, j = pair
        problem = f"{j} is a neighbour of {i}, but {i} is none of {j}; neighbours({j}, {size}) has to contain {i}"
    elif not report.connected:
        lost = min(set(range(size)) - set(topology.distances(0)))
        problem = f"no way leads from 0 to {lost}; add an edge between the parts"
    return Examination(topology, report, problem)


def listing() -> str:
    """Name and first line of every shipped topology."""
    rows = []
    for name, path in shipped_topologies().items():
        documentation = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        rows.append(f"{name:<12} {documentation.partition(chr(10))[0]}")
    return "\n".join(rows)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
