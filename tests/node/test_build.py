"""What nodes must have equal names what was built."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from zpala.config import load_config
from zpala.gossip.hosts import parse_hosts
from zpala.gossip.topology import load_topology
from zpala.node.build import agreement, build_parts, check_device, check_parts
from zpala.node.errors import UsageError
from zpala.node.specification import specification
from zpala.rl.algorithms import ALGORITHMS
from zpala.rl.compiled import Compiled
from zpala.rl.graphs import Graphs

HOSTS = "127.0.0.1:5670\n127.0.0.1:5671\n"


MINE = "from zpala.rl import A2C\nclass Mine(A2C): ...\nclass Other(A2C): ...\n"


def agreed(name: str) -> dict[str, str]:
    config = load_config(None, {"algorithm.name": name}, {})
    spec = specification(config.environment)
    parts = build_parts(config, spec, 0, torch.device("cpu"))
    return dict(agreement(config, spec, parts, parse_hosts(HOSTS, "hosts.txt"), load_topology("full", 2)))


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_another_algorithm_is_another_agreement(name: str) -> None:
    found = agreed(name)
    assert found["algorithm"] == name
    others = {"algorithm"} if ALGORITHMS[name].HEADS == ALGORITHMS["a2c"].HEADS else {"algorithm", "network", "layout"}
    assert {field for field, value in agreed("a2c").items() if found[field] != value} == (others if name != "a2c" else set())


def test_nodes_with_an_algorithm_of_ones_own_agree_on_file_name_and_class(tmp_path: Path) -> None:
    found = []
    for folder, name in (("here", "Mine"), ("there", "Mine"), ("there", "Other")):
        path = tmp_path / folder / "mine.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(MINE)
        found.append(agreed(f"{path}:{name}"))
    assert found[0] == found[1]
    assert found[0]["algorithm"] == "mine.py:Mine"
    assert {field for field, value in found[2].items() if found[0][field] != value} == {"algorithm"}


def test_precision_is_each_nodes_own() -> None:
    def agreed_with(precision: str) -> dict[str, str]:
        config = load_config(None, {"network.precision": precision}, {})
        spec = specification(config.environment)
        parts = build_parts(config, spec, 0, torch.device("cpu"))
        assert parts.algorithm.network.precision == precision
        return dict(agreement(config, spec, parts, parse_hosts(HOSTS, "hosts.txt"), load_topology("full", 2)))

    assert agreed_with("float32") == agreed_with("bf16")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"node.cuda_graphs": True}, r"node\.cuda_graphs: true needs a CUDA device, and this node computes on the cpu\. Leave it at auto"),
        ({"network.precision": "tf32"}, r"network\.precision: tf32 .* computes on the cpu\. Use float32 or bf16"),
    ],
)
def test_what_the_device_cannot_do_is_refused_when_it_is_known(settings: dict[str, object], words: str) -> None:
    config = load_config(None, settings, {})
    with pytest.raises(UsageError, match=words):
        check_device(config, torch.device("cpu"))
    check_device(config, torch.device("cuda"))


def test_compiling_is_refused_without_a_compiler_and_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(None, {"node.compile": True}, {})
    with pytest.raises(UsageError, match=r"node\.compile: true is for CPUs, .* cuda:0, where node\.cuda_graphs does as much"):
        check_device(config, torch.device("cuda:0"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        UsageError, match=r"needs a C\+\+ compiler, and there is no no-such-compiler here\. Install it, name another in CXX"
    ):
        check_device(config, torch.device("cpu"))
    monkeypatch.setenv("CXX", sys.executable)
    check_device(config, torch.device("cpu"))


@pytest.mark.parametrize(
    ("settings", "compiles"),
    [
        ({"node.compile": True}, True),
        ({}, False),
        ({"node.compile": True, "network.core": "lstm"}, None),
        ({"node.compile": True, "preset": "pala"}, None),
    ],
)
def test_compiling_is_for_vectors_without_a_memory(settings: dict[str, object], compiles: bool | None) -> None:
    config = load_config(None, settings, {})
    spec = specification(config.environment)
    if compiles is None:
        with pytest.raises(UsageError, match=r"node\.compile: true is for networks on vectors without a memory, and .* Set it to false"):
            check_parts(config, spec)
        return
    check_parts(config, spec)
    assert isinstance(build_parts(config, spec, 0, torch.device("cpu")).algorithm.executor, Compiled) is compiles


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("settings", "replays"),
    [
        ({}, True),
        ({"node.cuda_graphs": False}, False),
        ({"algorithm.reuse_activations": True}, False),
        ({"algorithm.name": "examples/custom_algorithm.py:Reinforce"}, False),
        ({"algorithm.name": "examples/custom_algorithm.py:Reinforce", "node.cuda_graphs": True}, True),
    ],
)
def test_graphs_are_for_algorithms_that_are_known_to_be_fit(settings: dict[str, object], replays: bool) -> None:
    config = load_config(None, settings, {})
    parts = build_parts(config, specification(config.environment), 0, torch.device("cuda"))
    assert isinstance(parts.algorithm.executor, Graphs) is replays
