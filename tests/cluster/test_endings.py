"""Every way in which a run ends early: its exit status, what it leaves behind, who goes on; and it takes less than 10 s (design D18)."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.cluster.processes import SMALL, Process, Processes, alive, children, column
from zpala.exit_codes import ExitCode
from zpala.gossip.settings import GossipSettings
from zpala.run_directory import load_checkpoint

pytestmark = pytest.mark.cluster

HERE = Path(__file__).parent
LIMIT_S = 10.0  # between the event and the end
LONG = ("--total-env-steps", "2_000_000")  # minutes: nothing but the event ends it, and a process that is left behind ends too
FAULTY = ("--env", f"{HERE / 'faulty_environment.py'}:make", *LONG)


def status_of(directory: Path) -> object:
    """The exit status as the node's run.json has it."""
    return json.loads((directory / "run.json").read_text())["exit_code"]


# ---- signals to one node


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.TERMINATED)])
def test_a_signal_ends_a_node_in_order(processes: Processes, number: signal.Signals, status: ExitCode) -> None:
    node = processes.node(processes.hosts(1), *LONG)
    node.wait_for(r"env_steps [1-9]")
    node.send(number)
    assert node.end(LIMIT_S) == status
    node.wait_for(rf"stopped by signal {number.value}")
    node.wait_for(r"ended \(signal\)")
    directory = processes.folder / "run/nodes/n0"
    assert status_of(directory) == status
    state = load_checkpoint(directory).state
    assert state["env_steps"] > 0
    assert state["finish_reason"] == "signal"


def test_a_signal_ends_a_node_that_waits_for_others(processes: Processes) -> None:
    node = processes.node(processes.hosts(2), *LONG)
    node.wait_for("n0: line 1 of")
    node.send(signal.SIGINT)
    assert node.end(LIMIT_S) == ExitCode.INTERRUPTED
    assert status_of(processes.folder / "run/nodes/n0") == ExitCode.INTERRUPTED


def test_a_signal_ends_a_node_whose_environment_hangs(processes: Processes) -> None:
    node = processes.node(processes.hosts(1), *FAULTY, "--env-arg", "fault=hang")
    node.wait_for("step 50: hang")
    node.send(signal.SIGINT)
    assert node.end(LIMIT_S) == ExitCode.INTERRUPTED
    node.wait_for("actor 0: did not end within")
    assert status_of(processes.folder / "run/nodes/n0") == ExitCode.INTERRUPTED
    assert load_checkpoint(processes.folder / "run/nodes/n0").state["finish_reason"] == "signal"


# ---- failures inside one node


@pytest.fixture(scope="module")
def failed(shared: Processes) -> dict[str, Process]:
    """One node for each fault, at the same time; each has its own run directory of the fault's name. All have ended."""
    broken_learner = (sys.executable, str(HERE / "broken_learner.py"))
    started = {
        fault: shared.node(shared.hosts(1, f"{fault}.txt"), "--run-dir", fault, *FAULTY, "--env-arg", f"fault={fault}")
        for fault in ("exception", "reward")
    }
    started["learner"] = shared.node(shared.hosts(1, "learner.txt"), "--run-dir", "learner", *LONG, command=broken_learner)
    for fault, text in (("exception", "step 50: exception"), ("reward", "step 50: reward"), ("learner", "lost its way")):
        started[fault].wait_for(text)
        started[fault].end(LIMIT_S)
    return started


def directory_of(shared: Processes, fault: str) -> Path:
    return shared.folder / fault / "nodes/n0"


def test_an_exception_in_an_actor_is_exit_7_with_the_environments_own_words(shared: Processes, failed: dict[str, Process]) -> None:
    node = failed["exception"]
    assert node.end() == ExitCode.ACTORS
    node.wait_for("actor 0: RuntimeError: the joint of the arm is broken")
    node.wait_for(r'File ".*/faulty_environment.py", line \d+, in step')
    directory = directory_of(shared, "exception")
    assert status_of(directory) == ExitCode.ACTORS
    assert "the joint of the arm is broken" in (directory / "log.txt").read_text()
    assert not (directory / "checkpoints").exists()


def test_a_loss_that_is_not_finite_is_exit_5_and_leaves_the_batch(shared: Processes, failed: dict[str, Process]) -> None:
    node = failed["reward"]
    assert node.end() == ExitCode.NUMERICAL
    said = node.wait_for(r"the loss of update (\d+) or its gradient is not finite.* The batch lies in (\S+safetensors)")
    assert "Traceback" not in node.text
    directory = directory_of(shared, "reward")
    (batch,) = (directory / "faults").iterdir()
    assert shared.folder / said.group(2) == batch
    assert np.isnan(load_file(batch)["rewards"]).any()
    assert status_of(directory) == ExitCode.NUMERICAL
    assert not (directory / "checkpoints").exists()


def test_an_exception_in_the_learner_is_exit_1_with_its_traceback(shared: Processes, failed: dict[str, Process]) -> None:
    node = failed["learner"]
    assert node.end() == ExitCode.UNEXPECTED
    node.wait_for("the node failed unexpectedly: ArithmeticError: the learner lost its way")
    node.wait_for(r'File ".*/broken_learner.py", line \d+, in fail_at_last')
    assert status_of(directory_of(shared, "learner")) == ExitCode.UNEXPECTED


# ---- peers that go

BUDGET = 100_000
ALERT = ("gossip.heartbeat_s=0.25", "gossip.suspect_s=0.75", "gossip.dead_s=1.5")  # a peer is missed sooner than by default


@pytest.fixture
def pair(processes: Processes) -> tuple[Process, Process]:
    """Two nodes that average with each other; the second one is about to go."""
    hosts = processes.hosts(2)
    options = ["--total-env-steps", BUDGET, *(word for setting in ALERT for word in ("--set", setting))]
    stays, goes = (processes.node(hosts, *options, "--name", name) for name in ("n0", "n1"))
    for process in (stays, goes):
        process.wait_for("averaged with 1/1 peers")
    return stays, goes


def goes_on_alone(stays: Process, directory: Path) -> None:
    """The budget is spent, the steps of who has gone count, and the gate opened because nobody was there to be waited for."""
    assert stays.end() == ExitCode.FINISHED, stays.text
    state = load_checkpoint(directory).state
    assert state["finish_reason"] == "budget"
    assert state["cluster_env_steps"] >= BUDGET
    assert state["env_steps"] < state["cluster_env_steps"]
    assert column(directory, "gossip/live")[-1] == 0
    waits = np.diff(column(directory, "gossip/gate_wait_s"))
    assert waits.max() < GossipSettings().gate_limit_s
    assert column(directory, "gossip/gate_forced")[-1] == 0


def test_who_loses_its_peer_goes_on_alone(processes: Processes, pair: tuple[Process, Process]) -> None:
    stays, goes = pair
    goes.send(signal.SIGKILL)
    assert goes.end() == -signal.SIGKILL
    stays.wait_for("n1 is silent")
    stays.wait_for("n1 is dead: nothing heard for 1.5 s")
    directory = processes.folder / "run/nodes/n0"
    goes_on_alone(stays, directory)
    assert column(directory, "gossip/defects")[-1] <= 1, "at most the exchange that was cut in two"


def test_who_leaves_in_order_is_not_missed(processes: Processes, pair: tuple[Process, Process]) -> None:
    stays, goes = pair
    goes.send(signal.SIGTERM)
    assert goes.end(LIMIT_S) == ExitCode.TERMINATED
    stays.wait_for(r"n1 leaves \(leave\)")
    directory = processes.folder / "run/nodes/n0"
    goes_on_alone(stays, directory)
    assert "n1 is dead" not in stays.text
    assert column(directory, "gossip/defects")[-1] == 0


# ---- launch


def launch(processes: Processes) -> tuple[Process, list[int]]:
    """``zpala launch`` with two nodes that have begun to learn; their process ids."""
    process = processes("launch", "-n", "2", *SMALL, *LONG, "--run-dir", "run")
    process.wait_for("averaged with 1/1 peers")
    pids = children(process.pid)
    assert len(pids) == 2
    assert all(map(alive, pids))
    return process, pids


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.TERMINATED)])
def test_a_signal_to_launch_ends_all_in_order(processes: Processes, number: signal.Signals, status: ExitCode) -> None:
    process, pids = launch(processes)
    process.send(number)
    assert process.end(LIMIT_S) == status
    assert not any(map(alive, pids))
    for name in ("n0", "n1"):
        process.wait_for(rf"\[{name}\] ended with exit status {int(status)}")
        directory = processes.folder / "run/nodes" / name
        assert status_of(directory) == status
        assert load_checkpoint(directory).state["env_steps"] > 0
    assert "killed" not in process.text


def test_nodes_end_in_order_when_launch_is_killed(processes: Processes) -> None:
    process, pids = launch(processes)
    watched = [os.pidfd_open(pid) for pid in pids]
    process.send(signal.SIGKILL)
    deadline = time.monotonic() + LIMIT_S
    for descriptor in watched:
        ended, _, _ = select.select([descriptor], [], [], max(deadline - time.monotonic(), 0.0))
        os.close(descriptor)
        assert ended, "a node outlives the launch that started it"
    assert process.end() == -signal.SIGKILL
    for name in ("n0", "n1"):
        assert status_of(processes.folder / "run/nodes" / name) == ExitCode.TERMINATED


def test_launch_ends_with_the_status_of_the_node_that_failed(processes: Processes) -> None:
    process = processes("launch", "-n", "2", *SMALL, *FAULTY, "--env-arg", "fault=exception", "--run-dir", "run")
    assert process.end() == ExitCode.ACTORS
    process.wait_for(r"\[n[01]\] .*RuntimeError: the joint of the arm is broken")
    process.wait_for(rf"\[n[01]\] ended with exit status 7: {ExitCode.ACTORS.meaning}")
