"""Where a run leaves its files: layout, atomic writes, checkpoints. Nothing here ever overwrites or deletes what another run wrote.

RUN/
  run.json config.toml hosts.txt      written by the first node (or by launch)
  nodes/<name>/
    run.json config.toml              this node's command, versions, host, start, end, exit status; its resolved configuration
    metrics.jsonl  tb/  log.txt
    checkpoints/final/{model.safetensors, optimizer.safetensors, local.safetensors, state.json}

A node directory that exists is an error (design D12). Files appear whole: they are written beside their place and moved there.
"""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from zpala import __version__

FORMAT_VERSION = 1
RECORDED_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "SLURM_JOB_ID", "SLURM_PROCID")  # never the whole environment
_PACKAGES = ("torch", "numpy", "pyzmq", "msgpack", "gymnasium", "ale-py")

Tensors = Mapping[str, NDArray[Any]]


class RunDirectoryError(Exception):
    """A run directory cannot be used as asked: exists already, holds no nodes, or a file in it is damaged (exit status 2)."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One node's saved agent. ``model``: named parameters; ``optimizer``: its vectors; ``state``: counters and the configuration;
    ``local``: what else its algorithm kept."""

    node: str
    path: Path
    model: dict[str, NDArray[np.float32]]
    optimizer: dict[str, NDArray[np.float32]]
    state: dict[str, Any]
    local: dict[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NodeDirectory:
    """The directory of one node of one run, made by ``create_node_directory``."""

    run: Path
    path: Path
    node: str

    @property
    def log_path(self) -> Path:
        return self.path / "log.txt"

    @property
    def faults_path(self) -> Path:
        return self.path / "faults"

    def save_final(self, model: Tensors, optimizer: Tensors, state: Mapping[str, object], local: Tensors | None = None) -> Path:
        """Writes ``checkpoints/final`` in one move.

        Args:
            model: name -> float32 array.
            state: must be JSON (see ``load_checkpoint``).
            local: what else the algorithm keeps; nothing is written for none.
        """
        target = self.path / "checkpoints" / "final"
        partial = target.with_name(f".final-{secrets.token_hex(4)}.tmp")
        partial.mkdir(parents=True)
        try:
            save_file({name: np.ascontiguousarray(array) for name, array in model.items()}, partial / "model.safetensors")
            save_file({name: np.ascontiguousarray(array) for name, array in optimizer.items()}, partial / "optimizer.safetensors")
            if local:
                save_file({name: np.ascontiguousarray(array) for name, array in local.items()}, partial / "local.safetensors")
            document = {"format_version": FORMAT_VERSION, "zpala_version": __version__, "node": self.node, **state}
            (partial / "state.json").write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
            for file in partial.iterdir():
                _sync(file)
            os.replace(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return target

    def finish(self, exit_code: int, **facts: object) -> None:
        """Records in this node's run.json when and how it ended."""
        document = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        document.update(finished=_now(), exit_code=int(exit_code), **facts)
        write_atomically(self.path / "run.json", json.dumps(document, indent=2) + "\n")


def default_run_directory(environment: str, preset: str | None, seed: int, root: Path = Path("runs")) -> Path:
    """``runs/<environment>__<preset>__s<seed>__<UTC time>__<6 hex digits>``: a name no run had before."""
    parts = [
        directory_name(environment),
        preset or "default",
        f"s{seed}",
        datetime.now(UTC).strftime("%Y%m%d-%H%M%S"),
        secrets.token_hex(3),
    ]
    return root / "__".join(parts)


def create_node_directory(run: Path, node: str, *, config_toml: str, hosts_text: str, command: list[str] | None = None) -> NodeDirectory:
    """Makes ``run/nodes/<node>`` and the run's shared files unless they exist.

    Raises:
        RunDirectoryError: the node's directory exists already, or cannot be made.
    """
    path = run / "nodes" / directory_name(node)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir()  # the claim: of two nodes of one name only one passes
        write_run_files(run, config_toml=config_toml, hosts_text=hosts_text, command=command)
        write_atomically(path / "config.toml", config_toml)
        write_atomically(path / "run.json", json.dumps({"node": node, **process_facts(command)}, indent=2) + "\n")
    except FileExistsError:
        raise RunDirectoryError(
            f"{path}: this node's directory exists already and is never overwritten. Give another --run-dir, or move the old one away."
        ) from None
    except OSError as error:
        raise RunDirectoryError(
            f"{error.filename or path}: cannot write the run directory ({error.strerror}). Give another --run-dir."
        ) from None
    return NodeDirectory(run, path, node)


def write_run_files(run: Path, *, config_toml: str, hosts_text: str, command: list[str] | None = None) -> None:
    """The files that the nodes of a run share; whoever comes first writes them."""
    run.mkdir(parents=True, exist_ok=True)
    _write_once(run / "config.toml", config_toml)
    _write_once(run / "hosts.txt", hosts_text)
    _write_once(run / "run.json", json.dumps(process_facts(command), indent=2) + "\n")
    if run.parent.name == "runs":
        _point_latest(run)


def node_directories(run: Path) -> list[Path]:
    """The nodes' directories under ``run``, in the order of their names.

    Raises:
        RunDirectoryError: there is none.
    """
    nodes = sorted(path for path in (run / "nodes").glob("*") if path.is_dir()) if (run / "nodes").is_dir() else []
    if not nodes:
        raise RunDirectoryError(f"{run}: no run directory: there is nothing under {run / 'nodes'}. Name the directory that a run printed.")
    return nodes


def load_checkpoint(node_directory: Path) -> Checkpoint:
    """Reads ``checkpoints/final`` of one node.

    ``state`` holds at least ``format_version``, ``node``, ``env_steps``, ``updates`` and ``version``; the configuration that rebuilds
    environment and network is the node's ``config.toml``.

    Raises:
        RunDirectoryError: missing, damaged, or written by a newer zpala; the text names the file.
    """
    path = node_directory / "checkpoints" / "final"
    if not path.is_dir():
        raise RunDirectoryError(f"{path}: this node has no final checkpoint: it did not finish. See {node_directory / 'log.txt'}.")
    file = path / "state.json"
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        if state["format_version"] > FORMAT_VERSION:
            raise RunDirectoryError(
                f"{file}: format_version {state['format_version']}; this zpala reads up to {FORMAT_VERSION}. Update zpala."
            )
        file = path / "model.safetensors"
        model = load_file(file)
        file = path / "optimizer.safetensors"
        optimizer = load_file(file)
        file = path / "local.safetensors"
        local = load_file(file) if file.exists() else {}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RunDirectoryError(
            f"{file}: cannot be read as part of a checkpoint ({error}). Restore the file or evaluate another node."
        ) from error
    return Checkpoint(str(state.get("node", node_directory.name)), path, model, optimizer, state, local)


def write_atomically(path: Path, text: str) -> None:
    """``path`` has its old content or all of ``text``, never a part."""
    partial = path.with_name(f".{path.name}-{secrets.token_hex(4)}.tmp")
    partial.write_text(text, encoding="utf-8")
    _sync(partial)
    os.replace(partial, path)


def directory_name(name: str) -> str:
    """A node's or an environment's name as one portable path component."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "_"


def _write_once(path: Path, text: str) -> None:
    if path.exists():
        return
    partial = path.with_name(f".{path.name}-{secrets.token_hex(4)}.tmp")
    partial.write_text(text, encoding="utf-8")
    try:
        os.link(partial, path)  # fails where os.replace would overwrite
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        with suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
            file.write(text)
    finally:
        partial.unlink()


def _point_latest(run: Path) -> None:
    """``runs/latest`` points at the newest run. A convenience: where links cannot be made there is none."""
    link = run.parent / "latest"
    partial = run.parent / f".latest-{secrets.token_hex(4)}.tmp"
    try:
        if link.is_symlink() or not link.exists():
            partial.symlink_to(run.name)
            os.replace(partial, link)
    except OSError:
        partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def process_facts(command: list[str] | None = None) -> dict[str, object]:
    """What run.json says of this process: command, commit, versions, machine, variables, and that it starts now."""
    return {
        "format_version": FORMAT_VERSION,
        "command": sys.orig_argv if command is None else command,
        "commit": _commit(),
        "versions": {"zpala": __version__, "python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "host": platform.node(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "variables": {name: os.environ[name] for name in RECORDED_VARIABLES if name in os.environ},
        "started": _now(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str | None:
    """The git commit of the checkout that this code runs from, with "-dirty" if files differ; None when it is no checkout."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
