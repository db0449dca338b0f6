"""Real nodes with keys: they find each other as without, strangers are kept out by name, and what was wrong can be mended."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from tests.cluster.processes import Processes, column, spread
from zpala.exit_codes import ExitCode
from zpala.node.keys import SecretKey, new_key
from zpala.tools.launch import free_ports

pytestmark = pytest.mark.cluster

BUDGET = 20_000


def make_keys(folder: Path, names: list[str]) -> list[SecretKey]:
    return [new_key(folder, name) for name in names]


def write_hosts(path: Path, ports: list[int], public: list[str]) -> Path:
    path.write_text("".join(f"n{line} 127.0.0.1:{port} {key}\n" for line, (port, key) in enumerate(zip(ports, public, strict=True))))
    return path


def mechanism(port: int) -> bytes:
    """What the node on ``port`` asks of whoever connects: bytes 12 to 32 of its greeting (ZMTP 3.0). This client then offers NULL."""
    greeting = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        raw.sendall(b"\xff" + bytes(8) + b"\x7f\x03")
        while len(greeting) < 32:
            received = raw.recv(64)
            assert received, "the node has hung up before it said what it asks"
            greeting += received
        raw.sendall(b"\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
    return greeting[12:32].rstrip(b"\0")


def test_the_same_command_twice_with_a_folder_of_keys_is_one_run(processes: Processes, tmp_path: Path) -> None:
    ports, keys = free_ports(2), make_keys(tmp_path / "zpala", ["k0", "k1"])  # the default folder: $XDG_CONFIG_HOME/zpala
    hosts = write_hosts(tmp_path / "hosts.txt", ports, [key.public for key in keys])
    options = ("--preset", "cartpole", "--num-envs", "4", "--set", "network.hidden_sizes=[16]", "--set", "run.log_interval_s=0.25")
    command = ("node", "--peers", hosts, *options, "--run-dir", "run", "--total-env-steps", BUDGET, "--set", "gossip.max_staleness=64")
    pair = [processes(*command, XDG_CONFIG_HOME=str(tmp_path)) for _ in range(2)]
    for process in pair:
        process.wait_for("every connection is encrypted and authenticated")
        process.wait_for("averaged with 1/1 peers")
    assert [process.end() for process in pair] == [0, 0], pair[0].text + pair[1].text
    directories = [tmp_path / "run/nodes" / name for name in ("n0", "n1")]
    assert spread(directories) <= 0.01
    assert min(column(directory, "gossip/exchanges")[-1] for directory in directories) > 10
    assert [column(directory, key)[-1] for directory in directories for key in ("gossip/keys_denied", "gossip/defects")] == [0.0] * 4
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            assert not any(key.secret in path.read_bytes() or key.secret.hex().encode() in path.read_bytes() for key in keys), path


def test_strangers_are_kept_out_by_name_and_come_in_when_it_is_mended(processes: Processes, tmp_path: Path) -> None:
    ports, keys = free_ports(2), make_keys(tmp_path / "keys", ["k0", "k1", "stranger"])
    public = [key.public for key in keys]
    right = write_hosts(tmp_path / "hosts.txt", ports, public[:2])
    forged = write_hosts(tmp_path / "forged.txt", ports, [public[0], public[2]])
    long = ("--total-env-steps", "2_000_000", "--set", "gossip.max_staleness=64")
    first = processes.node(right, *long, "--name", "n0", "--key", keys[0].path)
    first.wait_for("n0: line 1 of ")

    stranger = processes.node(forged, *long, "--name", "n1", "--key", keys[2].path, "--run-dir", "stranger")
    first.wait_for(f"somebody at 127.0.0.1 was refused: the key {public[2]} stands on no line of hosts.txt")
    stranger.wait_for(f"127.0.0.1:{ports[0]} does not let this node in: this node's key {public[2]}")
    assert mechanism(ports[0]) == b"CURVE"
    first.wait_for("a connection to this node's port was refused: it uses no keys")
    assert first.running()
    assert stranger.running()
    stranger.send(signal.SIGTERM)
    assert stranger.end() == ExitCode.TERMINATED
    assert "averaged with 1/1" not in stranger.text

    mended = processes.node(right, *long, "--name", "n1", "--key", keys[1].path)
    for process in (first, mended):
        process.wait_for("averaged with 1/1 peers")
    assert len([line for line in first.lines if public[2] in line]) == 1
    for process in (first, mended):
        process.send(signal.SIGTERM)
    assert [process.end() for process in (first, mended)] == [ExitCode.TERMINATED] * 2
    assert column(tmp_path / "run/nodes/n0", "gossip/keys_denied")[-1] >= 1
    assert column(tmp_path / "run/nodes/n0", "gossip/handshakes_failed")[-1] >= 1


def test_options_that_do_nothing_are_told_of(processes: Processes, tmp_path: Path) -> None:
    (key,) = make_keys(tmp_path / "keys", ["k0"])
    keyed = write_hosts(tmp_path / "keyed.txt", free_ports(1), [key.public])
    alone = ("--total-env-steps", "400", "--key", key.path)
    insecure = processes.node(keyed, *alone, "--insecure", "--run-dir", "a")
    unused = processes.node(processes.hosts(1), *alone, "--run-dir", "b")
    assert (insecure.end(), unused.end()) == (0, 0), insecure.text + unused.text
    insecure.wait_for("--insecure does nothing here")
    unused.wait_for(r"--key .*k0\.key does nothing here: no line of the hosts file has a key, and nothing is encrypted")
