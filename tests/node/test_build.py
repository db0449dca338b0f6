"""What nodes must have equal names what was built."""

from __future__ import annotations

import pytest
import torch

from zpala.config import load_config
from zpala.gossip.hosts import parse_hosts
from zpala.gossip.topology import load_topology
from zpala.node.build import agreement, build_parts
from zpala.node.specification import specification
from zpala.rl.algorithms import ALGORITHMS

HOSTS = "127.0.0.1:5670\n127.0.0.1:5671\n"


def agreed(name: str) -> dict[str, str]:
    config = load_config(None, {"algorithm.name": name}, {})
    spec = specification(config.environment)
    parts = build_parts(config, spec, 0, torch.device("cpu"), 1)
    return dict(agreement(config, spec, parts, parse_hosts(HOSTS, "hosts.txt"), load_topology("full", 2)))


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_another_algorithm_is_another_agreement(name: str) -> None:
    found = agreed(name)
    assert found["algorithm"] == name
    assert {field for field, value in agreed("a2c").items() if found[field] != value} == ({"algorithm"} if name != "a2c" else set())
