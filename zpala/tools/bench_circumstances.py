"""Where and how a measurement was made: machine, load, versions, commit, command."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUSY_LOAD_PER_CORE = 0.25  # above it the machine has other work


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

    def lines(self) -> list[str]:
        """For a person."""
        lines = [
            f"machine     {self.cpu}, {self.cores} cores, {self.memory_gb} GB, {self.platform}",
            f"versions    {', '.join(f'{name} {version}' for name, version in self.versions.items())}",
            f"commit      {self.commit}",
            f"command     {self.command}",
        ]
        if self.load > BUSY_LOAD_PER_CORE * self.cores:
            lines.append(f"warning     the machine had other work (load {self.load} on {self.cores} cores): take no figure seriously")
        return lines


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


def cores_here() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _field(path: Path, name: str) -> str:
    """The value of the first line ``name : value`` of a file of /proc; "" where there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
