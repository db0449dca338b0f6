"""What ``zpala topology`` says about a graph."""

from __future__ import annotations

import json

import pytest

from zpala.tools.topologies import examine, listing


def test_a_ring_of_four_by_hand() -> None:
    examination = examine("ring", 4)
    assert examination.usable
    report = examination.report
    assert (report.edges, report.degree_min, report.degree_max, report.diameter) == (4, 2, 2, 2)
    text = examination.text()
    for line in ("usable     yes", "edges      4", "diameter   2", "   0 - 1 3", "   2 - 1 3"):
        assert line in text
    document = json.loads(examination.json())
    assert document["neighbours"] == [[1, 3], [0, 2], [1, 3], [0, 2]]


@pytest.mark.parametrize("name", ["full", "star", "exponential"])
def test_large_graphs_are_not_written_out(name: str) -> None:
    assert "   0 - " not in examine(name, 33).text()


def test_every_shipped_topology_is_described_in_one_line() -> None:
    for line in listing().splitlines():
        assert len(line.split()) > 4
