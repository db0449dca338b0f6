"""What ``zpala bench`` says about its measurements: pairs and their summary, circumstances, text for people. Measures nothing."""

from __future__ import annotations

import os
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zpala.config import Config
from zpala.tools.bench_node import NodeSpeed
from zpala.tools.bench_sb3 import Sb3Speed

BUSY_LOAD_PER_CORE = 0.25  # above it the machine has other work


@dataclass(frozen=True, slots=True)
class Pair:
    """Two measurements in a row, in env_steps per second. ``order``: "AB" when zpala came first."""

    order: str
    zpala: float
    sb3: float

    @property
    def ratio(self) -> float:
        return self.zpala / self.sb3


@dataclass(frozen=True, slots=True)
class Summary:
    """Of all pairs: the ratio zpala / sb3, and the medians of both."""

    ratio_median: float
    ratio_min: float
    ratio_max: float
    zpala_median: float
    sb3_median: float


@dataclass(frozen=True, slots=True)
class Circumstances:
    """Where and how a measurement was made. ``load``: processes that wanted a core in the minute before."""

    command: str
    commit: str
    cpu: str
    cores: int
    memory_gb: float
    load: float
    platform: str
    versions: Mapping[str, str]


def orders(pairs: int) -> list[str]:
    """Who comes first in each pair: A-B, B-A, A-B, ..."""
    return ["AB" if index % 2 == 0 else "BA" for index in range(pairs)]


def summarise(pairs: Sequence[Pair]) -> Summary:
    """Medians and the range of the ratios; at least one pair."""
    ratios = [pair.ratio for pair in pairs]
    speeds = (statistics.median(pair.zpala for pair in pairs), statistics.median(pair.sb3 for pair in pairs))
    return Summary(statistics.median(ratios), min(ratios), max(ratios), *speeds)


def node_text(config: Config, speed: NodeSpeed, where: Circumstances, seconds: float, warmup_s: float) -> str:
    """The speed of one node for a person."""
    update_ms = 1000 * speed.seconds / speed.updates
    lines = [
        _headline(config, seconds, warmup_s),
        f"SPS         {speed.sps:,.1f}   ({speed.env_steps:,} env_steps, {speed.updates:,} updates in {speed.seconds:.1f} s)",
        f"per update  {update_ms:.2f} ms",
        *(f"  {stage:<10}{ms:9.3f} ms  {100 * ms / update_ms:5.1f} %" for stage, ms in speed.stages_ms.items()),
        f"node        {speed.device}, {speed.threads} thread(s), {speed.parameters:,} parameters, "
        f"{speed.cpu_share:.2f} cores busy, {speed.rss_mb:,.0f} MB",
    ]
    return "\n".join([*lines, *_circumstances_lines(where)])


def comparison_text(
    config: Config,
    pairs: Sequence[Pair],
    node: NodeSpeed,
    sb3: Sb3Speed,
    calibration: Mapping[int, float],
    where: Circumstances,
    seconds: float,
    warmup_s: float,
) -> str:
    """All pairs and their summary for a person."""
    summary = summarise(pairs)
    tried = ", ".join(f"{threads} thread(s) {sps:.0f}" for threads, sps in calibration.items())
    lines = [
        _headline(config, seconds, warmup_s),
        "pair  order  zpala SPS   sb3 SPS   ratio",
        *(
            f"{number:4d}  {pair.order:5s}  {pair.zpala:9,.1f} {pair.sb3:9,.1f}  {pair.ratio:6.3f}"
            for number, pair in enumerate(pairs, start=1)
        ),
        f"ratio       median {summary.ratio_median:.3f}, range {summary.ratio_min:.3f} to {summary.ratio_max:.3f}   "
        f"(median SPS {summary.zpala_median:,.1f} and {summary.sb3_median:,.1f})",
        f"zpala       {node.device}, {node.threads} thread(s), {node.parameters:,} parameters",
        f"sb3         {sb3.device}, {sb3.threads} thread(s), {sb3.parameters:,} parameters, "
        f"{config.algorithm.name.upper()} with CnnPolicy and SubprocVecEnv ({sb3.start_method})" + (f"; tried: {tried}" if tried else ""),
    ]
    return "\n".join([*lines, *_circumstances_lines(where)])


def circumstances(facts: Mapping[str, Any], load: float, versions: Mapping[str, str] | None = None) -> Circumstances:
    """What run.json of the measured node says, and what this machine is."""
    return Circumstances(
        command=shlex.join(["zpala", *sys.argv[1:]]),
        commit=str(facts.get("commit") or "unknown"),
        cpu=_field(Path("/proc/cpuinfo"), "model name") or "unknown",
        cores=cores_here(),
        memory_gb=round(int(_field(Path("/proc/meminfo"), "MemTotal").partition(" ")[0] or 0) / 1e6, 1),
        load=round(load, 2),
        platform=str(facts.get("platform", "unknown")),
        versions={**facts.get("versions", {}), **(versions or {})},
    )


def _headline(config: Config, seconds: float, warmup_s: float) -> str:
    e = config.environment
    return (
        f"{e.id}, {e.num_envs} environments, {config.algorithm.num_steps} steps per update, preset {config.preset or 'none'}: "
        f"env_steps per second (SPS) over {seconds:g} s after {warmup_s:g} s of warm-up"
    )


def _circumstances_lines(where: Circumstances) -> list[str]:
    lines = [
        f"machine     {where.cpu}, {where.cores} cores, {where.memory_gb} GB, {where.platform}",
        f"versions    {', '.join(f'{name} {version}' for name, version in where.versions.items())}",
        f"commit      {where.commit}",
        f"command     {where.command}",
    ]
    if where.load > BUSY_LOAD_PER_CORE * where.cores:
        lines.append(f"warning     the machine had other work (load {where.load} on {where.cores} cores): take no figure seriously")
    return lines


def cores_here() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _field(path: Path, name: str) -> str:
    """The value of the first line ``name : value`` of a file of /proc; "" where there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
