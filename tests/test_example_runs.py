"""The run files of examples/ do their work, with small budgets: launch runs them, every node finishes, eval reads what they left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from zpala.metrics import read_rows

ROOT = Path(__file__).resolve().parent.parent

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(150)]


def zpala(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "zpala", *arguments], capture_output=True, text=True, timeout=55, check=False, cwd=ROOT)


@pytest.mark.parametrize(
    ("name", "nodes", "options"),
    [
        ("cartpole", 2, ["--total-env-steps", "6000", "--set", "run.log_interval_s=0.5"]),
        ("cartpole", 2, ["--total-env-steps", "6000", "--algorithm", "ppo", "--set", "run.log_interval_s=0.5"]),
        ("pong", 1, ["--total-env-steps", "160", "--num-envs", "2"]),
        ("breakout", 2, ["--total-env-steps", "160", "--num-envs", "2"]),
    ],
)
def test_a_run_file_runs_and_is_evaluated(tmp_path: Path, name: str, nodes: int, options: list[str]) -> None:
    run = tmp_path / name
    done = zpala("launch", f"examples/{name}.toml", "-n", str(nodes), "--run-dir", str(run), "--device", "cpu", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished (budget)" in done.stdout
    for index in range(nodes):
        rows = list(read_rows(run / f"nodes/n{index}/metrics.jsonl"))
        assert rows[-1]["cluster_env_steps"] >= int(options[1])
        assert (run / f"nodes/n{index}/checkpoints/final/model.safetensors").is_file()
        assert rows[-1].get("gossip/averaged", 0) == nodes - 1
    if name == "cartpole":
        evaluated = zpala("eval", str(run), "--episodes", "2", "--json")
        assert evaluated.returncode == 0, evaluated.stderr
        document = json.loads(evaluated.stdout)
        assert [score["node"] for score in document["scores"]] == ["n0", "n1", "mean model"]
        assert document["max_distance"] <= 0.01
