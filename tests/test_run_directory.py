"""Run directories: layout, who may write what, atomic files, checkpoints."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from zpala.run_directory import (
    NodeDirectory,
    RunDirectoryError,
    create_node_directory,
    default_run_directory,
    directory_name,
    load_checkpoint,
    node_directories,
    write_atomically,
)

MODEL = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.zeros(3, dtype=np.float32)}
OPTIMIZER = {"square_average": np.full(16, 0.5, dtype=np.float32)}


def create(run: Path, node: str = "n0", config: str = "c", hosts: str = "h") -> NodeDirectory:
    return create_node_directory(run, node, config_toml=config, hosts_text=hosts, command=["zpala", "node"])


def test_the_layout(tmp_path: Path) -> None:
    run = tmp_path / "run"
    directory = create(run, "127.0.0.1:5670", "seed = 1\n", "127.0.0.1:5670\n")
    directory.save_final(MODEL, OPTIMIZER, {"env_steps": 7})
    assert sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()) == [
        "config.toml",
        "hosts.txt",
        "nodes/127.0.0.1_5670/checkpoints/final/model.safetensors",
        "nodes/127.0.0.1_5670/checkpoints/final/optimizer.safetensors",
        "nodes/127.0.0.1_5670/checkpoints/final/state.json",
        "nodes/127.0.0.1_5670/config.toml",
        "nodes/127.0.0.1_5670/run.json",
        "run.json",
    ]
    facts = json.loads((directory.path / "run.json").read_text())
    assert facts["command"] == ["zpala", "node"]
    assert facts["versions"]["torch"]
    assert "finished" not in facts


def test_a_node_directory_that_exists_is_an_error_and_stays_as_it_is(tmp_path: Path) -> None:
    create(tmp_path / "run", config="first")
    with pytest.raises(RunDirectoryError, match="never overwritten"):
        create(tmp_path / "run", config="second")
    assert (tmp_path / "run/nodes/n0/config.toml").read_text() == "first"


def test_the_first_node_writes_the_shared_files(tmp_path: Path) -> None:
    create(tmp_path / "run", "n0", config="first")
    create(tmp_path / "run", "n1", config="second")
    assert (tmp_path / "run/config.toml").read_text() == "first"
    assert (tmp_path / "run/nodes/n1/config.toml").read_text() == "second"
    assert [path.name for path in node_directories(tmp_path / "run")] == ["n0", "n1"]


def test_a_file_system_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for node in ("a", "b"):
        create_node_directory(tmp_path / "run", node, config_toml=f"# {node}\n", hosts_text="h:1\n")
    assert (tmp_path / "run/config.toml").read_text() == "# a\n"
    assert not list((tmp_path / "run").glob(".*.tmp"))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match=r"file.*--run-dir"):
        create(tmp_path / "file")


def test_the_end_of_a_node_is_recorded(tmp_path: Path) -> None:
    directory = create(tmp_path / "run")
    directory.finish(7, reason="budget")
    facts = json.loads((directory.path / "run.json").read_text())
    assert (facts["exit_code"], facts["reason"], facts["node"]) == (7, "budget", "n0")
    assert facts["finished"] >= facts["started"]


def test_the_environment_is_not_recorded_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hush")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    directory = create(tmp_path / "run")
    text = (directory.path / "run.json").read_text()
    assert "hush" not in text
    assert json.loads(text)["variables"]["SLURM_JOB_ID"] == "17"


def test_a_checkpoint_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    directory = create(tmp_path / "run")
    directory.save_final(MODEL, OPTIMIZER, {"env_steps": 7, "updates": 2, "version": 3})
    checkpoint = load_checkpoint(directory.path)
    assert checkpoint.node == "n0"
    assert checkpoint.state["env_steps"] == 7
    assert set(checkpoint.model) == set(MODEL)
    for name, array in MODEL.items():
        np.testing.assert_array_equal(checkpoint.model[name], array)
    np.testing.assert_array_equal(checkpoint.optimizer["square_average"], OPTIMIZER["square_average"])
    assert checkpoint.local == {}


def test_what_else_an_algorithm_keeps_is_read_back(tmp_path: Path) -> None:
    directory = create(tmp_path / "run")
    final = directory.save_final(MODEL, OPTIMIZER, {}, {"generator": np.arange(5, dtype=np.uint8)})
    assert load_checkpoint(directory.path).local["generator"].tolist() == [0, 1, 2, 3, 4]
    (final / "local.safetensors").write_bytes(b"{")
    with pytest.raises(RunDirectoryError, match=r"local\.safetensors"):
        load_checkpoint(directory.path)


def test_an_array_that_is_a_slice_is_saved_as_it_looks(tmp_path: Path) -> None:
    directory = create(tmp_path / "run")
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    directory.save_final({"w": whole.T}, {}, {})
    np.testing.assert_array_equal(load_checkpoint(directory.path).model["w"], whole.T)


def test_a_checkpoint_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    directory = create(tmp_path / "run")
    with pytest.raises(ValueError, match="JSON"):
        directory.save_final(MODEL, OPTIMIZER, {"return_mean": float("nan")})
    assert not list((directory.path / "checkpoints").iterdir())


@pytest.mark.parametrize("name", ["state.json", "model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff" * 100])
def test_a_damaged_checkpoint_names_the_file(tmp_path: Path, name: str, content: bytes) -> None:
    directory = create(tmp_path / "run")
    final = directory.save_final(MODEL, OPTIMIZER, {})
    (final / name).write_bytes(content)
    with pytest.raises(RunDirectoryError, match=name):
        load_checkpoint(directory.path)


def test_a_checkpoint_of_the_future_is_refused(tmp_path: Path) -> None:
    directory = create(tmp_path / "run")
    final = directory.save_final(MODEL, OPTIMIZER, {})
    (final / "state.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(RunDirectoryError, match="Update zpala"):
        load_checkpoint(directory.path)


def test_a_node_that_did_not_finish_and_a_directory_that_is_no_run(tmp_path: Path) -> None:
    directory = create(tmp_path / "run")
    with pytest.raises(RunDirectoryError, match="did not finish"):
        load_checkpoint(directory.path)
    with pytest.raises(RunDirectoryError, match="no run directory"):
        node_directories(tmp_path / "absent")


def test_the_newest_run_is_latest(tmp_path: Path) -> None:
    for name in ("first", "second"):
        create(tmp_path / "runs" / name)
    assert (tmp_path / "runs" / "latest").resolve().name == "second"


def test_default_names_never_collide_and_are_one_component() -> None:
    one, other = (default_run_directory("ALE/Pong-v5", "pala", 1) for _ in range(2))
    assert one != other
    assert one.parent == Path("runs")
    assert one.name.startswith("ALE_Pong-v5__pala__s1__")


@pytest.mark.parametrize(
    ("name", "component"),
    [("n0", "n0"), ("10.0.0.1:5670", "10.0.0.1_5670"), ("[::1]:5670", "1_5670"), ("../x", "x"), ("..", "_"), ("a/b", "a_b")],
)
def test_names_become_one_path_component(name: str, component: str) -> None:
    assert directory_name(name) == component


def test_an_atomic_write_leaves_no_partial_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "f", "one")
    write_atomically(tmp_path / "f", "two")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_text() == "two"
