"""The programs and the hosts file of examples/ do what their own texts say, made small. The run files are run by test_example_runs.py."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.processes import SMALL, ZPALA, Processes, column, spread
from zpala.gossip.hosts import parse_hosts
from zpala.metrics import read_rows
from zpala.node.claim import is_own_address
from zpala.tools.evaluate import evaluate_runs
from zpala.tools.launch import free_ports

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.cluster


def command_in(file: str, program: str) -> list[str]:
    """The words after ``program`` in the first line of ``file`` that shows how to use it."""
    found = re.search(rf"^#? {{2,}}(?:cd examples && )?{re.escape(program)} (.*)$", (EXAMPLES / file).read_text(), re.MULTILINE)
    assert found is not None
    return shlex.split(found[1])


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_the_hosts_file_gives_four_nodes_to_four_times_the_same_command(processes: Processes) -> None:
    text = (EXAMPLES / "hosts.localhost.txt").read_text()
    hosts = parse_hosts(text, "hosts.localhost.txt")
    assert len(hosts) == 4
    assert all(is_own_address(host.address) for host in hosts)

    ports = free_ports(4)  # those of the file may be in use on this machine
    for host, port in zip(hosts, ports, strict=True):
        text = text.replace(f":{host.port}\n", f":{port}\n")
    peers = processes.folder / "hosts.txt"
    peers.write_text(text)
    node, option, file, run_file = command_in("hosts.localhost.txt", "zpala")
    assert (node, option, file) == ("node", "--peers", "examples/hosts.localhost.txt")
    command = (node, option, peers, ROOT / run_file, *SMALL[2:], "--total-env-steps", "30_000", "--run-dir", processes.folder / "run")
    nodes = [processes(*command) for _ in range(4)]
    assert [process.end(50.0) for process in nodes] == [0, 0, 0, 0], "\n".join(process.text for process in nodes)
    assert {process.wait_for(r"127.0.0.1:(\d+): line \d ").group(1) for process in nodes} == set(map(str, ports))
    for process in nodes:
        process.wait_for("averaged with 3/3 peers")
    assert spread(sorted((processes.folder / "run/nodes").iterdir())) <= 0.01


def test_average_consensus_finds_the_mean(processes: Processes) -> None:
    usage = command_in("average_consensus.py", "python examples/average_consensus.py")
    small = {"--nodes": "3", "--size": "2000", "--slow": "3"}
    assert set(usage[::2]) == set(small)
    words = [word for pair in small.items() for word in pair]
    done = processes("examples/average_consensus.py", *words, "--rounds", "60", cwd=ROOT, command=ZPALA[:1])
    assert done.end(50.0) == 0, done.text
    distances = [float(line.split()[1]) for line in done.lines if re.fullmatch(r" *[\d.]+ +[\d.e+-]+", line)]
    assert distances[0] > 0.01
    assert sum(line.startswith("node ") and "defects 0" in line for line in done.lines) == 3
    worst, moved = done.wait_for(r"worst node (\S+) from the true mean, mean of the nodes moved by (\S+), ").groups()
    assert max(float(worst), float(moved)) < 1e-6


def test_an_environment_of_ones_own_is_learned(processes: Processes) -> None:
    command = command_in("custom_env.py", "zpala")
    assert "custom_env:make" in command
    small = ("--total-env-steps", "20_000", "--set", "run.log_interval_s=0.5", "--run-dir", processes.folder / "run")
    done = processes(*command, *small, cwd=EXAMPLES)
    assert done.end(50.0) == 0, done.text
    done.wait_for("2 nodes learn custom_env:make")
    for name in ("n0", "n1"):
        last = list(read_rows(processes.folder / "run/nodes" / name / "metrics.jsonl"))[-1]
        assert last["charts/episodic_return"] > 0.7, "a random walk gets 0.5"


@pytest.mark.timeout(90)  # games are played after the run, too
def test_an_algorithm_of_ones_own_learns_and_is_evaluated_from_anywhere(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    command = command_in("custom_algorithm.py", "zpala")
    assert "examples/custom_algorithm.py:Reinforce" in command
    run = processes.folder / "run"
    small = ("--total-env-steps", "40_000", "--algorithm-arg", "baseline=true", "--set", "run.log_interval_s=0.5", "--run-dir", run)
    done = processes(*command, *small, cwd=ROOT)
    assert done.end(55.0) == 0, done.text
    done.wait_for(r"2 nodes learn CartPole-v1 \(custom_algorithm.py:Reinforce,")
    for name in ("n0", "n1"):
        assert column(run / "nodes" / name, "charts/episodic_return")[-1] > 44.0, "a random policy gets 22"
        assert column(run / "nodes" / name, "gossip/deltas_applied")[-1] > 0
    monkeypatch.chdir(processes.folder)
    assert evaluate_runs([run], episodes=8).scores[-1].mean > 44.0


def test_every_example_is_run_by_a_test() -> None:
    tests = "".join((ROOT / "tests" / name).read_text() for name in ("test_examples.py", "test_example_runs.py"))
    for path in EXAMPLES.iterdir():
        if path.is_file():
            assert path.name in tests or f'"{path.stem}"' in tests
