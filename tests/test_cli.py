"""The command line: options become settings, errors become one paragraph and an exit status."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from zpala import __version__, cli
from zpala.config import ALGORITHM_NAMES, Config
from zpala.exit_codes import ExitCode
from zpala.gossip.hosts import parse_hosts
from zpala.rl.algorithms import ALGORITHMS
from zpala.tools import launch, start

ROOT = Path(__file__).resolve().parent.parent
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Calls the command in this process; returns exit status, stdout and stderr."""
    for variable in ("ZPALA_PEERS", "ZPALA_LR"):
        monkeypatch.delenv(variable, raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["zpala", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        output = capsys.readouterr()
        return int(caught.value.code or 0), output.out, output.err

    return call


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, Path]]:
    """What ``zpala node`` would have started."""
    calls: list[tuple[Config, Path]] = []

    def record(config: Config, *, peers: Path) -> int:
        calls.append((config, peers))
        return 0

    monkeypatch.setattr(start, "start_node", record)
    return calls


def test_every_option_of_the_issue_reaches_its_setting(run: Run, started: list[tuple[Config, Path]], tmp_path: Path) -> None:
    options = (
        "--env pong --algorithm a2c --total-env-steps 1000 --num-envs 8 --num-steps 7 --lr 1e-3 --seed 9 --device cpu --topology ring "
        "--max-staleness 32 --max-lead 40 --on-diverged average "
        "--listen 127.0.0.1:1 --name n3 --no-gossip --wait-for 2 --start-timeout 5 --insecure --target-return 475 "
        "--set gossip.keep_s=11.0 --set network.hidden_sizes=[8] --env-arg size=3 --env-arg kind=small"
    )
    status, _, _ = run("node", "--peers", "hosts.txt", *options.split(), "--run-dir", str(tmp_path / "r"))
    assert status == 0
    ((config, peers),) = started
    assert peers == Path("hosts.txt")
    assert (config.environment.id, config.environment.num_envs, config.environment.args) == ("pong", 8, {"size": 3, "kind": "small"})
    assert (config.run.total_env_steps, config.run.seed, config.run.target_return) == (1000, 9, 475)
    assert config.run.directory == tmp_path / "r"
    assert (config.algorithm.name, config.algorithm.num_steps, config.optimizer.lr) == ("a2c", 7, 1e-3)
    assert (config.node.device, config.node.listen, config.node.name, config.node.insecure) == ("cpu", "127.0.0.1:1", "n3", True)
    assert (config.gossip.topology, config.gossip.max_staleness, config.gossip.enabled) == ("ring", 32, False)
    assert (config.gossip.max_lead, config.gossip.on_diverged) == (40, "average")
    assert (config.gossip.wait_for, config.gossip.start_timeout_s, config.gossip.keep_s) == (2, 5, 11)
    assert config.network.hidden_sizes == (8,)


def test_node_and_launch_have_the_same_options(run: Run) -> None:
    _, node, _ = run("node", "--help")
    _, launched, _ = run("launch", "--help")

    def options(text: str) -> set[str]:
        return {word for word in text.split() if word.startswith("--")}

    assert options(node) - {"--peers"} == options(launched) - {"--nodes"}
    assert "--max-staleness" in node


def test_names_that_users_of_other_code_bases_know(run: Run, started: list[tuple[Config, Path]]) -> None:
    assert run("node", "--peers", "h", "--total-timesteps", "77", "--learning-rate", "0.5", "--env-id", "x")[0] == 0
    config, _ = started[0]
    assert (config.run.total_env_steps, config.optimizer.lr, config.environment.id) == (77, 0.5, "x")
    assert "--total-timesteps" not in run("node", "--help")[1]


def test_launch_passes_the_number_of_nodes_and_its_status(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Config, int]] = []

    def record(config: Config, *, nodes: int) -> int:
        calls.append((config, nodes))
        return 7

    monkeypatch.setattr(launch, "launch", record)
    assert run("launch", str(ROOT / "examples/cartpole.toml"), "-n", "3", "--seed", "5", "--target-return", "475")[0] == 7
    ((config, nodes),) = calls
    assert (nodes, config.run.seed, config.run.target_return) == (3, 5, 475)


def test_the_environment_variable_is_read(run: Run, started: list[tuple[Config, Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZPALA_PEERS", "from-variable.txt")
    monkeypatch.setenv("ZPALA_LR", "0.25")
    assert run("node")[0] == 0
    config, peers = started[0]
    assert (peers, config.optimizer.lr) == (Path("from-variable.txt"), 0.25)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["config", "show", "--lr", "fast"], ["--lr", "optimizer.lr", "'fast'", "a number"]),
        (["config", "show", "--set", "gossip.max_stalness=3"], ["--set gossip.max_stalness", "max_staleness"]),
        (["config", "show", "--set", "nonsense"], ["--set 'nonsense'", "section.field=value"]),
        (["config", "show", "absent.toml"], ["absent.toml", "cannot read"]),
        (["config", "show", "--preset", "cartpol"], ["--preset", "cartpole"]),
        (["topology", "check", "rign"], ["'rign'", "'ring'"]),
        (["node", "--peers", "absent.txt"], ["absent.txt", "cannot read hosts.txt"]),
        (["eval", "absent"], ["absent", "no run directory"]),
        (["launch", "--topology", "cube", "-n", "2"], ["'cube'"]),
        (["launch", "--topology", "hypercube", "-n", "3"], ["hypercube.py", "power of two"]),
        (["launch", "--env", "CartPol-v1", "-n", "2"], ["environment.id", "CartPole-v1"]),
        (["launch", "--algorithm", "ppp", "-n", "2"], ["--algorithm", ", ".join(ALGORITHM_NAMES), 'did you mean "ppo"']),
        (["launch", "--algorithm", "absent.py:Mine", "-n", "2"], ["algorithm: ", "absent.py:Mine: there is no file"]),
        (["launch", "--algorithm", "tests.rl.scripted:GuessEnv", "-n", "2"], ["GuessEnv", "no subclass of Algorithm"]),
        (["launch", "--algorithm-arg", "speed=3", "-n", "2"], ["algorithm.args.speed: a2c has no such setting", "gamma"]),
        (["launch", "--set", "algorithm.args.gamma=0.5", "-n", "2"], ["algorithm.args.gamma: the run file has a field of its own"]),
        (["config", "show", "--algorithm-arg", "speed"], ["--algorithm-arg 'speed'", "key=value"]),
        (["launch", "--set", "network.name=nature_cnn", "-n", "2"], ["network: nature_cnn needs uint8 images", "there is the mlp"]),
    ],
)
def test_wrong_input_is_one_paragraph_and_exit_2(
    run: Run, arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*arguments)
    assert status == ExitCode.USAGE
    assert out == ""
    assert err.startswith("zpala: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert not list(tmp_path.iterdir()), "nothing was started, nothing was written"


VALUES = """from zpala.rl.a2c import A2C

class Values(A2C):
    HEADS = "action_values"
"""
POLICIES = [name for name, kind in ALGORITHMS.items() if kind.HEADS == "actor_critic"]
LEARN_VALUES = [name for name, kind in ALGORITHMS.items() if kind.HEADS == "action_values"]
CHOICES, PARTS = (f"tests.rl.scripted_spaces:make_{name}" for name in ("choices", "parts"))


@pytest.mark.parametrize("name", ["values.py:Values", *LEARN_VALUES])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--env", "Pendulum-v1"), ("algorithm.name: ", "actions must be Discrete", "box 1: -2 to 2", "Use ", *POLICIES)),
        (("--env", CHOICES), ("algorithm.name: ", "actions must be Discrete", "multi_discrete 2,3", "Use ", *POLICIES)),
        (("--set", "network.core=lstm"), ("network.core: ", "no use for a memory", "Leave network.core at none, or use ", *POLICIES)),
        (("--set", "network.separate_critic=true"), ("network.separate_critic: ", "no critic", "auto")),
        (("--set", "network.squash_actions=true"), ("network.squash_actions: ", "discrete 2", "Leave it at false")),
        (("--set", "network.name=nature_cnn"), ("network: nature_cnn needs uint8 images", "there is the mlp")),
    ],
)
def test_what_does_not_go_together_with_values_of_actions_is_refused(
    run: Run, name: str, options: tuple[str, ...], words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(run, ("--algorithm", name, *options), (name, *words) if words[0] == "algorithm.name: " else words, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--set", "network.dueling=true"), ("network.dueling: ", "no values of actions", "Leave it at false")),
        (("--set", "network.squash_actions=true"), ("network.squash_actions: ", "discrete 2", "Leave it at false")),
        (("--env", CHOICES, "--set", "network.squash_actions=true"), ("network.squash_actions: ", "multi_discrete 2,3")),
        (("--env", PARTS, "--set", "network.name=nips_cnn"), ("network: nips_cnn needs uint8 images", "no part of", "there is the mlp")),
        (("--set", "network.name=impala_resnet"), ("network: impala_resnet needs uint8 images", "there is the mlp")),
    ],
)
def test_what_does_not_go_together_with_a_policy_is_refused(
    run: Run, name: str, options: tuple[str, ...], words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(run, ("--algorithm", name, *options), words, tmp_path, monkeypatch)


def test_what_an_algorithm_of_ones_own_refuses_is_refused_by_launch(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--algorithm", f"{ROOT}/examples/custom_algorithm.py:Reinforce", "--set", "network.core=lstm")
    refused(run, options, ("Reinforce cannot be made: ValueError: leave network.core", "custom_algorithm.py:"), tmp_path, monkeypatch)


def refused(run: Run, options: Sequence[str], words: Sequence[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``zpala launch`` says why in one paragraph, and makes nothing."""
    (folder / "values.py").write_text(VALUES)
    monkeypatch.chdir(folder)
    status, out, err = run("launch", "-n", "2", *options)
    assert (status, out) == (ExitCode.USAGE, "")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert [path.name for path in folder.iterdir() if path.name != "__pycache__"] == ["values.py"], (
        "nothing was started, nothing was written"
    )


def test_a_malformed_hosts_line_names_file_and_line(run: Run, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts.txt"
    hosts.write_text("127.0.0.1:5670\nnode2\n")
    status, _, err = run("node", "--peers", str(hosts))
    assert status == ExitCode.USAGE
    assert f"{hosts}:2:" in err


def test_keys_are_made_and_shown(run: Run, tmp_path: Path) -> None:
    status, out, err = run("keys", "new", "--dir", str(tmp_path / "keys"), "--name", "n0")
    path, public = tmp_path / "keys/n0.key", out.strip()
    assert (status, path.stat().st_mode & 0o777) == (0, 0o600)
    assert out == f"{public}\n"
    assert re.fullmatch("[0-9a-f]{64}", public)
    assert parse_hosts(f"127.0.0.1:5670 {public}", "h").keyed
    assert str(path) in err
    assert f"--key {path}" in err
    secret = path.read_text().split()[-1]
    assert secret not in out + err
    for place in (path, path.parent):
        assert run("keys", "show", str(place)) == (0, f"{public}  {path}\n", "")
    assert json.loads(run("keys", "show", str(path), "--json")[1]) == [{"public": public, "path": str(path)}]
    assert run("keys", "new", "--dir", str(tmp_path / "keys"), "--name", "n0")[0] == ExitCode.USAGE
    assert path.read_text().split()[-1] == secret


def test_keys_lie_in_the_configuration_folder_under_the_name_of_the_machine(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu1.lan")
    status, _, err = run("keys", "show")
    assert status == ExitCode.USAGE
    assert f"{tmp_path / 'zpala'}: no secret key here" in err
    assert run("keys", "new")[2].count("--key") == 0
    assert run("keys", "show")[1].endswith(f"  {tmp_path / 'zpala/gpu1.lan.key'}\n")


def test_a_key_file_that_others_may_read_is_a_security_error(run: Run, tmp_path: Path) -> None:
    run("keys", "new", "--dir", str(tmp_path), "--name", "n0")
    (tmp_path / "n0.key").chmod(0o640)
    status, out, err = run("keys", "show", str(tmp_path))
    assert (status, out, err.count("\n")) == (ExitCode.SECURITY, "", 1)
    assert f"zpala: {tmp_path / 'n0.key'}: " in err
    assert "chmod 600" in err


def test_options_that_do_not_exist_are_usage_errors(run: Run) -> None:
    status, _, err = run("node", "--peers", "h", "--max-stalness", "3")
    assert status == ExitCode.USAGE
    assert "--max-stalness" in err
    assert run("node")[0] == ExitCode.USAGE


def test_config_show_prints_a_run_file(run: Run, tmp_path: Path) -> None:
    status, out, _ = run("config", "show", "--preset", "paac", "--set", "run.seed=8")
    assert status == 0
    path = tmp_path / "shown.toml"
    path.write_text(out)
    assert run("config", "show", str(path))[1] == out


def test_topology_list_and_check(run: Run, tmp_path: Path) -> None:
    status, out, _ = run("topology", "list")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == ["exponential", "full", "hypercube", "ring", "small_world", "star", "torus"]
    hosts = tmp_path / "hosts.txt"
    hosts.write_text("".join(f"127.0.0.1:{5000 + index}\n" for index in range(6)))
    status, out, _ = run("topology", "check", "ring", "--peers", str(hosts), "--json")
    report = json.loads(out)
    assert (status, report["size"], report["diameter"], report["neighbours"][0]) == (0, 6, 3, [1, 5])


def test_a_graph_that_cannot_be_used_is_shown_and_exits_2(run: Run, tmp_path: Path) -> None:
    one_way = tmp_path / "one_way.py"
    one_way.write_text("def neighbours(index, size):\n    return {(index + 1) % size}\n")
    status, out, _ = run("topology", "check", str(one_way), "-n", "4")
    assert status == ExitCode.USAGE
    assert "neighbours(1, 4) has to contain 0" in out
    edges = tmp_path / "two.edges"
    edges.write_text("0 1\n2 3\n")
    status, out, _ = run("topology", "check", str(edges), "-n", "4")
    assert status == ExitCode.USAGE
    assert "no way leads from 0 to 2" in out


@pytest.mark.parametrize("arguments", [["--version"], ["version"]])
def test_the_version(run: Run, arguments: list[str]) -> None:
    assert run(*arguments) == (0, f"zpala {__version__}\n", "")


def test_help_names_every_command(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    for command in ("node", "launch", "eval", "plot", "bench", "topology", "keys", "config"):
        assert command in out


@pytest.mark.cluster
def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zpala", "topology", "check", "rign"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.startswith("zpala: unknown topology")


def test_help_and_configuration_errors_load_neither_torch_nor_zmq() -> None:
    code = (
        "import sys; sys.argv = ['zpala', 'config', 'show', '--lr', 'fast']\n"
        "from zpala import cli\n"
        "try:\n    cli.main()\n"
        "except SystemExit as end:\n    assert end.code == 2\n"
        "assert not {'torch', 'zmq', 'gymnasium'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def test_an_environment_is_looked_at_with_its_arguments(run: Run) -> None:
    arguments = ("--env-arg", "length=5", "--num-envs", "2", "--steps", "200")
    status, output, _ = run("env", "check", f"{ROOT}/examples/custom_env.py:make", *arguments, "--json")
    document = json.loads(output)
    assert (status, document["usable"], document["stored_as"], document["num_envs"]) == (0, True, "float32[5]", 2)
    assert document["games"]["length_max"] <= 20


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("FrozenLake-v1",), "the observation space is Discrete(16)"),
        (("CartPole-v1", "--set", "environment.life_loss=true"), "life_loss is for Atari games"),
        ((f"{ROOT}/examples/custom_env.py:make", "--env-arg", "length=2"), "length must be at least 3"),
    ],
)
def test_an_environment_that_cannot_be_used_is_exit_2(run: Run, arguments: tuple[str, ...], words: str) -> None:
    status, output, _ = run("env", "check", *arguments)
    assert status == ExitCode.USAGE
    assert words in output


def test_an_environment_that_does_not_exist_is_exit_2_with_the_closest(run: Run) -> None:
    for arguments in (("check", "CartPol-v1"), ("list", "cartpol-v1")):
        status, _, error = run("env", *arguments)
        assert status == ExitCode.USAGE
        assert "CartPole-v1" in error
    assert "ALE/Pong-v5" in run("env", "list", "pong")[1]


def test_launch_refuses_a_replay_beyond_the_memory_of_all_its_nodes(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """9 of 10 GB for three nodes, of which each needs half a GB for itself: 2.5 GB each."""
    monkeypatch.setattr("zpala.node.memory.available_bytes", lambda: 10_000_000_000)
    folder = tmp_path / "run"
    status, _, text = run("launch", "-n", "3", "--algorithm", "dqn", "--set", "dqn.capacity=100_000_000", "--run-dir", str(folder))
    assert status == ExitCode.USAGE
    said = re.search(
        r"dqn.capacity = 100,000,000 env_steps of CartPole-v1 need [\d.]+ GB, and this node may have 2.5 GB. About ([\d,]+) ", text
    )
    assert said is not None, text
    assert 10_000_000 < int(said[1].replace(",", "")) < 100_000_000
    assert not folder.exists()
