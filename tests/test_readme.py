"""What README.md says is true: exit statuses, options, presets, topologies, files, and its run file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from zpala.config import OPTION_FIELDS, TABLES, EnvironmentConfig, load_config, preset_names
from zpala.exit_codes import ExitCode
from zpala.gossip.hosts import parse_hosts
from zpala.gossip.topology import shipped_topologies
from zpala.rl import build_network, environment_spec
from zpala.rl.trunks import NetworkName

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(after: str) -> str:
    """The first fenced block after ``after``."""
    found = re.search(r"```\w*\n(.*?)```", README[README.index(after) :], re.DOTALL)
    assert found is not None
    return found[1]


def test_the_exit_statuses_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|$", README, re.MULTILINE)
    assert {int(status): meaning for status, meaning in rows} == {int(code): code.meaning for code in ExitCode}


def test_options_exist() -> None:
    known = {"--" + option.replace("_", "-") for option in OPTION_FIELDS} | {"--peers", "--set", "--episodes", "--stochastic", "--help"}
    known |= {f"--{option}" for option in TABLES.values()}
    known |= {"--out", "--label", "--sps", "--pairs", "--seconds", "--against", "--dir"}  # of plot, bench and keys
    known |= {"--curve", "--size", "--slow", "--exchange-every-update", "--exchanges"}  # of bench
    known |= {"--seeds", "--nodes", "--limit", "--fault", "--plot", "--json"}  # of simulate
    known |= {"--steps"}  # of env check
    known |= {"--task", "--sizes", "--topologies", "--heartbeat-s", "--short", "--max-share"}  # of tests/soak
    assert set(re.findall(r"--[a-z][a-z-]+", README)) <= known


def test_presets_and_topologies_are_the_shipped_ones() -> None:
    for name in (*preset_names(), *shipped_topologies()):
        assert f"`{name}`" in README or f"topology {name}`" in README, name


def test_linked_files_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert not [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]


def test_the_run_file_loads(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(block("### The run file"))
    config = load_config(path, {}, {})
    assert (config.preset, config.environment.id, config.run.total_env_steps) == ("pala", "ALE/Pong-v5", 4_000_000)


def test_the_hosts_file_parses() -> None:
    hosts = parse_hosts(block("### hosts.txt"), "README.md")
    assert [(host.name, host.port) for host in hosts] == [("10.0.0.11:5670", 5670), ("gpu1", 5670), ("v6", 5670)]


def test_the_hosts_file_with_keys_parses() -> None:
    lines = [line for line in block("### Keys").splitlines() if line.startswith("10.")]
    assert len(parse_hosts("\n".join(lines), "README.md")) == 2
    assert parse_hosts("\n".join(lines), "README.md").keyed


@pytest.mark.parametrize("target", ["demo", "test", "lint", "format", "bench", "clean"])
def test_the_makefile_has_the_target(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_constraints_cover_the_direct_dependencies() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *(entry for extra in project["optional-dependencies"].values() for entry in extra)]
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    for requirement in requirements:
        name, bound = re.fullmatch(r"([A-Za-z0-9-]+)(.*)", requirement).groups()  # type: ignore[union-attr]
        assert name.lower() in pinned
        assert re.fullmatch(r">=[0-9.]+", bound), f"{requirement}: a lower bound only"


@pytest.mark.parametrize("name", ["cartpole", "pong", "breakout"])
def test_the_examples_are_valid_run_files(name: str) -> None:
    config = load_config(ROOT / "examples" / f"{name}.toml", {}, {})
    assert config.preset in preset_names()


def test_the_networks_have_the_sizes_that_are_said() -> None:
    rows = dict(re.findall(r"^\| `(\w+_\w+)` \| [^|]*(?:convolutions|units)[^|]* \| ([\d,]+) \|$", README, re.MULTILINE))
    spec = environment_spec("pong")
    assert set(rows) == set(get_args(NetworkName)) - {"auto", "mlp"}
    for name, said in rows.items():
        network = build_network(spec, name, (), "relu", False, 1)
        assert f"{sum(parameter.numel() for parameter in network.parameters()):,}" == said


def test_the_fields_of_the_environment_are_all_told() -> None:
    table = README[README.index("| field of `[environment]`") :].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", table)) - {"environment", "terminated"} == set(EnvironmentConfig.model_fields) - {"id", "num_envs"}
