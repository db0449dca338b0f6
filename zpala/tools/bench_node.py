"""Measures the speed of one node: a real ``zpala node`` without peers, in a process and a run directory of its own, for some seconds."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zpala.config import Config
from zpala.console import FORMAT_VARIABLE
from zpala.exit_codes import ExitCode
from zpala.run_directory import load_checkpoint
from zpala.tools.child import Child, ChildFailed
from zpala.tools.launch import free_ports

SILENCE_LIMIT_S = 180.0  # a node says something every second once it trains; before that it imports torch and makes its environments
ROW_INTERVAL_S = 1.0
NO_END = 10**12  # env_steps: the time ends the measurement
STAGES = ("env_step", "inference", "learn", "gossip")  # of one update, in the order of metrics.jsonl's time/<stage>_ms
NAME = "n0"


@dataclass(frozen=True, slots=True)
class NodeSpeed:
    """One measurement. ``stages_ms``: wall time of one update by stage; "other" is what no stage accounts for.

    ``facts``: what the node's run.json says of the machine, versions and commit.
    """

    sps: float
    env_steps: int
    seconds: float
    updates: int
    stages_ms: Mapping[str, float]
    cpu_share: float
    rss_mb: float
    device: str
    threads: int
    parameters: int
    facts: Mapping[str, Any]


def alone(config: Config) -> Config:
    """``config`` for a node without peers, with no end but ours, whose rows come often."""
    run = {"directory": None, "total_env_steps": NO_END, "target_return": None, "log_interval_s": ROW_INTERVAL_S}
    return config.model_copy(
        update={
            "run": config.run.model_copy(update=run),
            "gossip": config.gossip.model_copy(update={"topology": "full", "wait_for": "all"}),
            "node": config.node.model_copy(update={"name": None, "listen": None, "insecure": False}),
        }
    )


def measure_node(config: Config, *, seconds: float, warmup_s: float) -> NodeSpeed:
    """Starts the node, lets it train for ``warmup_s`` seconds, measures ``seconds`` more and stops it.

    Raises: ChildFailed: the node did not get there; the text has its last words.
    """
    with tempfile.TemporaryDirectory(prefix="zpala-bench-") as folder:
        run, hosts, run_file = (Path(folder) / name for name in ("run", "hosts.txt", "run.toml"))
        hosts.write_text(f"{NAME} 127.0.0.1:{free_ports(1)[0]}\n", encoding="utf-8")
        run_file.write_text(alone(config).to_toml(), encoding="utf-8")
        arguments = ["node", "--peers", str(hosts), str(run_file), "--name", NAME, "--run-dir", str(run)]
        rows: list[dict[str, Any]] = []
        device, threads = "?", 0
        with Child("zpala node", [sys.executable, "-m", "zpala", *arguments], {FORMAT_VARIABLE: "json"}) as child:
            for event in child.events(SILENCE_LIMIT_S):
                if event.get("event") == "log" and (found := re.search(r", (\S+), (\d+) thread\(s\)", str(event.get("text", "")))):
                    device, threads = found[1], int(found[2])
                if event.get("event") == "metrics":
                    rows.append(event)
                    if measured(rows, seconds, warmup_s) is not None:
                        break
            status = child.stop()
        interval = measured(rows, seconds, warmup_s)
        if interval is None or status != ExitCode.TERMINATED:
            raise ChildFailed(f"zpala node ended with exit status {status} before it was measured.", status or ExitCode.UNEXPECTED)
        node = run / "nodes" / NAME
        parameters = sum(array.size for array in load_checkpoint(node).model.values())
        facts = json.loads((node / "run.json").read_text(encoding="utf-8"))
        return summarise(interval, device=device, threads=threads, parameters=parameters, facts=facts)


def measured(rows: Sequence[Mapping[str, Any]], seconds: float, warmup_s: float) -> list[Mapping[str, Any]] | None:
    """The rows from the first one after ``warmup_s`` to the first one ``seconds`` later; None while that one is missing."""
    late = [row for row in rows if row["time_s"] >= warmup_s]
    for index, row in enumerate(late):
        if row["time_s"] >= late[0]["time_s"] + seconds and row["env_steps"] > late[0]["env_steps"]:
            return late[: index + 1]
    return None


def summarise(interval: Sequence[Mapping[str, Any]], *, device: str, threads: int, parameters: int, facts: Mapping[str, Any]) -> NodeSpeed:
    """The figures between the first and the last row of ``interval``; what a row says per update weighs with its updates."""
    first, last = interval[0], interval[-1]
    seconds, env_steps, updates = (last[key] - first[key] for key in ("time_s", "env_steps", "updates"))
    made = np.diff([row["updates"] for row in interval])
    stages = {stage: float(np.average([row.get(f"time/{stage}_ms", 0.0) for row in interval[1:]], weights=made)) for stage in STAGES}
    stages["other"] = max(0.0, 1000 * seconds / updates - sum(stages.values()))
    return NodeSpeed(
        sps=env_steps / seconds,
        env_steps=env_steps,
        seconds=seconds,
        updates=updates,
        stages_ms=stages,
        cpu_share=float(
            np.average([row["system/cpu_share"] for row in interval[1:]], weights=np.diff([row["time_s"] for row in interval]))
        ),
        rss_mb=last["system/rss_mb"],
        device=device,
        threads=threads,
        parameters=parameters,
        facts=facts,
    )
