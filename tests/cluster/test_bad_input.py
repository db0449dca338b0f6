"""Wrong input: one paragraph that says where, what and how to mend it; its exit status; nothing started, nothing written."""

from __future__ import annotations

import hashlib
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.processes import Process, Processes
from zpala.exit_codes import ExitCode
from zpala.tools.launch import free_ports

pytestmark = pytest.mark.cluster

FAULTY = Path(__file__).parent / "faulty_environment.py"
ONE_WAY = "def neighbours(index, size):\n    return {(index + 1) % size}\n"
HOSTS = "n0 127.0.0.1:PORT0\nn1 127.0.0.1:PORT1\nn2 127.0.0.1:PORT2\n"
NODE = "node --peers hosts.txt --run-dir run"
MINE = """from zpala.rl import A2C
class Mine(A2C):
    def __init__(self, *given, **named):
        raise RuntimeError('no memory left')
"""
ALICE = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"  # RFC 7748, section 6.1
ALICE_PUBLIC = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"


@dataclass(frozen=True)
class Case:
    """Options after ``NODE``, the files beside hosts.txt, and what the answer has to say.

    PORT0, PORT1 and PORT2 are free ports; a stranger listens on STRANGER.
    """

    options: str
    status: ExitCode
    says: tuple[str, ...]
    files: tuple[tuple[str, str], ...] = ()
    hosts: str = HOSTS


USAGE, NETWORK = ExitCode.USAGE, ExitCode.NETWORK
CASES = {
    "unknown environment": Case("--env CartPol-v1", USAGE, ("environment.id", "'CartPol-v1'", "Did you mean CartPole-v1")),
    "unknown argument of the environment": Case(
        f"--env {FAULTY}:make --env-arg falt=3", USAGE, ("environment.id", "falt=3", "unexpected keyword argument", "--env-arg")
    ),
    "environment that cannot be made": Case(
        f"--env {FAULTY}:make --env-arg fault=construction", USAGE, ("the arm is not connected", "faulty_environment.py:")
    ),
    "network for other observations": Case("--set network.name=nature_cnn", USAGE, ("network", "nature_cnn", "float32[4]")),
    "algorithm that cannot be made": Case(
        "--algorithm mine.py:Mine",
        USAGE,
        ("algorithm", "mine.py:Mine cannot be made", "RuntimeError: no memory left", "mine.py:4)"),
        (("mine.py", MINE),),
    ),
    "replay beyond the memory": Case(
        "--algorithm dqn --set dqn.capacity=100_000_000 --set node.max_memory_mb=1500",
        USAGE,
        ("dqn.capacity = 100,000,000 env_steps of CartPole-v1 need ", "this node may have 1.0 GB", "000,000 would fit"),
    ),
    "unknown topology": Case("--topology rign", USAGE, ("'rign'", "did you mean 'ring'")),
    "asymmetric topology": Case(
        "--topology one_way.py",
        USAGE,
        ("one_way.py", "1 is a neighbour of 0, but 0 is none of 1", "neighbours(1, 3) has to contain 0"),
        (("one_way.py", ONE_WAY),),
    ),
    "malformed line of hosts.txt": Case(
        "", USAGE, ("hosts.txt:3:", "'127.0.0.1'", "has no port"), hosts="# two\n127.0.0.1:PORT0\n127.0.0.1\n"
    ),
    "node of another name": Case("--name n7", USAGE, ("hosts.txt", "'n7'", "n0 127.0.0.1:PORT0")),
    "no line of its own": Case("", NETWORK, ("hosts.txt", "192.0.2.1:PORT0", "--name"), hosts="192.0.2.1:PORT0\n"),
    "port of a stranger": Case("", NETWORK, ("hosts.txt", "line 2", "port STRANGER", "process "), hosts="# one\nn0 127.0.0.1:STRANGER\n"),
    "address that others reach": Case(
        "--listen 0.0.0.0:PORT0 --name n0",
        ExitCode.SECURITY,
        ("line 1 ", "127.0.0.1:PORT0", "all addresses", "zpala keys new", "--insecure"),
    ),
    "line without a key among keys": Case(
        "", USAGE, ("hosts.txt:2:", "n1 has no key, and line 1 has one"), hosts=f"n0 127.0.0.1:PORT0 {'e' * 64}\nn1 127.0.0.1:PORT1\n"
    ),
    "key of another": Case(
        "--name n0 --key mine.key",
        ExitCode.SECURITY,
        ("hosts.txt: ", "line 1 ", "e" * 64, "mine.key belongs to", ALICE_PUBLIC),
        (("mine.key", f"zpala-secret-key {ALICE}\n"),),
        hosts=f"n0 127.0.0.1:PORT0 {'e' * 64}\n",
    ),
    "secret key that others may read": Case(
        "--key open.key",
        ExitCode.SECURITY,
        ("open.key: ", "mode 0644", "chmod 600 open.key"),
        (("open.key", f"zpala-secret-key {ALICE}\n"),),
        hosts=f"n0 127.0.0.1:PORT0 {ALICE_PUBLIC}\n",
    ),
    "wrong type in the run file": Case(
        "run.toml",
        USAGE,
        ("run.toml, line 3:", "optimizer.lr", "'fast'", "a number"),
        (("run.toml", '# mine\n[optimizer]\nlr = "fast"\n'),),
    ),
    "unknown key in the run file": Case(
        "run.toml",
        USAGE,
        ("run.toml, line 2:", "[gossip]", "'max_stalness'", "max_staleness"),
        (("run.toml", "[gossip]\nmax_stalness = 3\n"),),
    ),
    "no such CUDA device": Case("--device cuda:77", ExitCode.CUDA, ("node.device", "cuda:77", "--device cpu")),
    "directory of another node": Case(
        "--name n1",
        USAGE,
        ("run/nodes/n1", "exists already", "--run-dir"),
        (("run/nodes/n1/metrics.jsonl", "{}\n"), ("run/config.toml", "# of another run\n")),
    ),
}


@dataclass(frozen=True)
class Answer:
    """What one wrong command said and did."""

    case: Case
    status: int
    text: str
    before: dict[str, str]
    after: dict[str, str]


def contents(folder: Path) -> dict[str, str]:
    """Every file below ``folder`` and every folder -> a digest."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def answers(shared: Processes) -> dict[str, Answer]:
    """All wrong commands at the same time, each in a folder of its own, to their end."""
    with a_stranger() as stranger:
        running: dict[str, tuple[Case, Process, dict[str, str], Path]] = {}
        for name, case in CASES.items():
            folder = shared.folder / name.replace(" ", "-")
            ports = free_ports(3)
            names = {f"PORT{i}": str(port) for i, port in enumerate(ports)} | {"STRANGER": str(stranger)}
            filled = Case(
                fill(case.options, names), case.status, tuple(fill(part, names) for part in case.says), case.files, fill(case.hosts, names)
            )
            for file, content in (("hosts.txt", filled.hosts), *filled.files):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).write_text(content)
                (folder / file).chmod(0o644 if file.startswith("open") else 0o600)
            before = contents(folder)
            running[name] = filled, shared(*f"{NODE} {filled.options}".split(), cwd=folder), before, folder
        return {
            name: Answer(case, process.end(100.0), process.text, before, contents(folder))
            for name, (case, process, before, folder) in running.items()
        }


def fill(text: str, names: dict[str, str]) -> str:
    for name, value in names.items():
        text = text.replace(name, value)
    return text


@contextmanager
def a_stranger() -> Iterator[int]:
    """A program that is no zpala node listens on a port; the port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.timeout(120)  # of the first one: all commands run then, and most of them load torch
@pytest.mark.parametrize("name", CASES)
def test_one_paragraph_an_exit_status_and_nothing_else(answers: dict[str, Answer], name: str) -> None:
    answer = answers[name]
    assert answer.status == answer.case.status, answer.text
    assert len(answer.text.splitlines()) == 1, answer.text
    for part in answer.case.says:
        assert part in answer.text
    assert answer.after == answer.before, "nothing made, nothing changed"


# ---- nodes that meet


def meets(process: Process, status: int, field: str, mine: str, theirs: str) -> None:
    """Ended because a peer has another value; both are told, in words for this node."""
    assert process.end() == status, process.text
    said = process.wait_for("do not agree")
    assert f'"{field}"' in said.string
    assert re.search(f"here it is .*{mine}.*, there .*{theirs}", said.string)
    assert "Traceback" not in process.text


def test_two_networks_meet_at_the_start(processes: Processes) -> None:
    hosts = processes.hosts(2)
    narrow = processes.node(hosts, "--name", "n0")
    wide = processes.node(hosts, "--name", "n1", "--set", "network.hidden_sizes=[32]")
    for process, mine, theirs in ((narrow, "4-16", "4-32"), (wide, "4-32", "4-16")):
        meets(process, USAGE, "network", mine, theirs)
    for name in ("n0", "n1"):
        assert not (processes.folder / "run/nodes" / name / "checkpoints").exists()


def test_two_algorithms_meet_at_the_start(processes: Processes) -> None:
    hosts = processes.hosts(2)
    pair = [processes.node(hosts, "--name", f"n{index}", "--algorithm", name) for index, name in enumerate(("a2c", "ppo"))]
    for process, mine, theirs in zip(pair, ("a2c", "ppo"), ("ppo", "a2c"), strict=True):
        meets(process, USAGE, "algorithm", mine, theirs)


def test_who_has_another_seed_is_refused_by_a_run_that_goes_on(processes: Processes) -> None:
    hosts = processes.hosts(2)
    running = processes.node(hosts, "--total-env-steps", "2_000_000", "--name", "n0", "--start-timeout", "0.5")
    running.wait_for("leading the start")
    newcomer = processes.node(hosts, "--total-env-steps", "2_000_000", "--name", "n1", "--seed", "7")
    meets(newcomer, USAGE, "seed", "7", "1")
    running.wait_for('n1 .*"seed": here it is 1, there 7')
    running.wait_for("env_steps [1-9]", after=len(running.lines))  # it goes on learning
    running.send(signal.SIGTERM)
    assert running.end() == ExitCode.TERMINATED


def test_the_line_of_a_running_node_is_not_taken_twice(processes: Processes) -> None:
    hosts = processes.hosts(1)
    running = processes.node(hosts, "--total-env-steps", "2_000_000")
    running.wait_for("leading the start")
    again, by_name = processes.node(hosts, "--run-dir", "again"), processes.node(hosts, "--run-dir", "again", "--name", "n0")
    assert (again.end(), by_name.end()) == (NETWORK, NETWORK)
    port = hosts.read_text().rpartition(":")[2].strip()
    again.wait_for(f"every line .* is taken: line 1 .*:{port}.* by process {running.pid}")
    by_name.wait_for(f"n0 runs already: line 1 .*:{port}.* by process {running.pid}")
    assert not (processes.folder / "again").exists()
    assert running.running()


def test_two_runs_meet(processes: Processes) -> None:
    """A node of an earlier run wakes up and meets a run of two: it is refused by name and ends nothing but itself."""
    hosts = processes.hosts(3)
    long = ("--total-env-steps", "2_000_000", "--start-timeout", "1")
    straggler = processes.node(hosts, *long, "--name", "n0", "--run-dir", "old")
    old = straggler.wait_for("leading the start of run ([0-9a-f]{16})").group(1)
    straggler.wait_for(r"env_steps [1-9]")
    straggler.send(signal.SIGSTOP)
    pair = [processes.node(hosts, *long, "--name", name, "--run-dir", "new") for name in ("n1", "n2")]
    new = pair[0].wait_for("leading the start of run ([0-9a-f]{16})").group(1)
    for process in pair:
        process.wait_for("averaged with 1/1 peers")
    straggler.send(signal.SIGCONT)
    assert straggler.end() == NETWORK, straggler.text
    refuser = straggler.wait_for(rf"(n\d) .*runs another run \({new}\) than this node \({old}\)").group(1)
    pair[("n1", "n2").index(refuser)].wait_for(f"n0 .*{old}")  # the first refusal ends the straggler: the other may never hear its HELLO
    for process in pair:
        process.wait_for("averaged with 1/1 peers", after=len(process.lines))  # they go on
    for process in pair:
        process.send(signal.SIGTERM)
        assert process.end() == ExitCode.TERMINATED
