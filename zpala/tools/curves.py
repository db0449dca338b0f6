"""Learning curves of runs, from their metrics.jsonl or from points saved earlier. Reads only.

Points are thinned. Speeds come from the counters of two rows, never from the mean of logged speeds, so rows of unequal length weigh as they
should.
"""

from __future__ import annotations

import csv
import io
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zpala.config import ALGORITHM_NAMES, ConfigError, algorithm_label
from zpala.metrics import read_rows
from zpala.run_directory import RunDirectoryError, node_directories

POINTS_MAX = 400  # of one node
SPEED_WINDOW = 100_000  # env_steps of one node at either end of its run
COLUMNS = ("run", "node", "time_s", "env_steps", "cluster_env_steps", "return", "return_count", "sps")

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Speed:
    """env_steps per second of one node: over its whole training, its first ``window`` env_steps and its last ones."""

    overall: float
    first: float
    last: float
    window: int

    @property
    def lasting(self) -> float:
        """Last over first: 1 when the node is as fast at the end as at the beginning."""
        return self.last / self.first


@dataclass(frozen=True, slots=True)
class Curve:
    """One node's points, all vectors of one length P <= ``POINTS_MAX``; NaN where a row has no such value.

    ``time_s``: seconds since this node began to train; ``returns``: mean raw return of its last (at most 100) games, ``return_count``
    of them; ``sps``: env_steps per second since the point before.
    """

    node: str
    time_s: Vector
    env_steps: Vector
    cluster_env_steps: Vector
    returns: Vector
    return_count: Vector
    sps: Vector
    speed: Speed | None


@dataclass(frozen=True, slots=True)
class RunCurves:
    """All nodes of one run. ``facts``: what the title is made of."""

    label: str
    curves: tuple[Curve, ...]
    facts: tuple[str, ...]


def read_runs(runs: Sequence[Path], labels: Sequence[str] = ()) -> list[RunCurves]:
    """Reads the curves of ``runs``: run directories, which may still be written, and .csv files that ``zpala plot`` made.

    Args:
        labels: one per run, or none: then a run is called by its directory, its nodes and their environments, or as the .csv calls it. A
            .csv may hold several runs.
    Raises:
        ConfigError: as many labels as runs are needed.
        RunDirectoryError: neither a run directory nor such a .csv, or no node has made a step yet.
    """
    alike = len({run.resolve().name for run in runs}) < len(runs)
    read = [found for run in runs for found in (read_points(run) if run.suffix.lower() == ".csv" else [read_run(run, alike)])]
    if labels and len(labels) != len(read):
        raise ConfigError(f"--label: {len(labels)} label(s) for {len(read)} run(s). Give one --label per run, in the same order, or none.")
    return [replace(run, label=label) for run, label in zip(read, labels, strict=True)] if labels else read


def read_run(run: Path, whole_path: bool = False) -> RunCurves:
    """The curves of one run directory; ``whole_path``: it is called by its path instead of its name."""
    rows = {directory.name: _training_rows(directory / "metrics.jsonl") for directory in node_directories(run)}
    curves = tuple(curve(node, found) for node, found in rows.items() if found)
    if not curves:
        raise RunDirectoryError(f"{run}: no node of this run has logged a step yet. Wait for the first row of metrics.jsonl.")
    config = _config(run)
    name = str(run) if whole_path else run.resolve().name
    label = f"{name}: {len(curves)} x {config.get('environment', {}).get('num_envs', '?')} environments"
    return RunCurves(label, curves, _facts(config))


def read_points(path: Path) -> list[RunCurves]:
    """The runs of a .csv that ``csv_text`` wrote; such a file does not say how a run was set up, so they have no ``facts``."""
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise RunDirectoryError(f"{path}, line 1: the columns are not {','.join(COLUMNS)}. Name a .csv that zpala plot wrote.")
            for point in reader:
                runs.setdefault(point["run"], {}).setdefault(point["node"], []).append(_point_row(point, f"{path}, line {reader.line_num}"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RunDirectoryError(f"{path}: cannot be read ({error}). Name a .csv that zpala plot wrote.") from None
    if not runs:
        raise RunDirectoryError(f"{path}: there are no points in it. Name a .csv that zpala plot wrote.")
    return [RunCurves(label, tuple(curve(node, rows) for node, rows in nodes.items()), ()) for label, nodes in runs.items()]


def curve(node: str, rows: Sequence[Mapping[str, Any]]) -> Curve:
    """The thinned points of ``rows`` (at least one, each with ``time_s`` and ``env_steps``)."""
    indexes = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), POINTS_MAX)).round().astype(np.int64))
    kept = [rows[index] for index in indexes]
    time_s, env_steps = _column(kept, "time_s"), _column(kept, "env_steps")
    elapsed_s, made = np.diff(time_s, prepend=0.0), np.diff(env_steps, prepend=0.0)
    trained = np.array([row.get("phase", "running") == "running" for row in kept]) & (elapsed_s > 0)
    sps = np.divide(made, elapsed_s, out=np.full(len(kept), np.nan), where=trained)
    cluster = _column(kept, "cluster_env_steps")
    return Curve(
        node,
        time_s,
        env_steps,
        np.where(np.isnan(cluster), env_steps, cluster),
        _column(kept, "charts/episodic_return"),
        _column(kept, "charts/episodic_return_count"),
        sps,
        speed(rows),
    )


def speed(rows: Sequence[Mapping[str, Any]], window: int = SPEED_WINDOW) -> Speed | None:
    """Speeds of a node's training; rows of its drain, after the last update, do not count.

    A run shorter than two windows is cut into halves. None before there are two rows to tell a speed from.
    """
    training = [row for row in rows if row.get("phase", "running") == "running"]
    while len(training) > 1 and training[-1]["env_steps"] == training[-2]["env_steps"]:
        training.pop()  # nothing was learnt any more
    time_s, env_steps = (np.concatenate([[0.0], _column(training, key)]) for key in ("time_s", "env_steps"))
    if len(training) < 2 or env_steps[-1] <= 0 or time_s[-1] <= 0:
        return None
    window = int(min(window, env_steps[-1] // 2))
    into, out_of = np.interp([window, env_steps[-1] - window], env_steps, time_s)
    return Speed(float(env_steps[-1] / time_s[-1]), window / float(into), window / float(time_s[-1] - out_of), window)


def mean_curve(points: Sequence[tuple[Vector, Vector]]) -> tuple[Vector, Vector]:
    """Mean of several nodes' curves (x, y), x ascending: at every x the mean over the nodes that have a value there."""
    known = [(x[~np.isnan(y)], y[~np.isnan(y)]) for x, y in points]
    known = [(x, y) for x, y in known if len(x)]
    if not known:
        return np.empty(0), np.empty(0)
    grid = np.linspace(min(x[0] for x, _ in known), max(x[-1] for x, _ in known), POINTS_MAX)
    values = np.stack([np.interp(grid, x, y, left=np.nan, right=np.nan) for x, y in known])
    present = ~np.isnan(values)
    count = present.sum(axis=0)
    return grid[count > 0], np.where(present, values, 0.0).sum(axis=0)[count > 0] / count[count > 0]


def csv_text(runs: Sequence[RunCurves]) -> str:
    """All points as CSV, one line each (``COLUMNS``); a missing value is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for run in runs:
        for one in run.curves:
            vectors = (one.time_s, one.env_steps, one.cluster_env_steps, one.returns, one.return_count, one.sps)
            forms = (".1f", ".0f", ".0f", ".3f", ".0f", ".1f")
            for values in zip(*vectors, strict=True):
                numbers = ("" if np.isnan(value) else format(value, form) for value, form in zip(values, forms, strict=True))
                writer.writerow([run.label, one.node, *numbers])
    return text.getvalue()


def title(runs: Sequence[RunCurves]) -> str:
    """What the runs have in common; in brackets what each kind of run has for itself. Runs without facts are left out."""
    runs = [run for run in runs if run.facts]
    if not runs:
        return ""
    shared = [fact for fact in runs[0].facts if all(fact in run.facts for run in runs)]
    own = dict.fromkeys(", ".join(fact for fact in run.facts if fact not in shared) for run in runs)
    return ", ".join(shared) + (f" ({' / '.join(filter(None, own))})" if any(own) else "")


def _training_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that count env_steps, from the first step on."""
    if not path.exists():
        return []
    rows = [row for row in read_rows(path) if all(isinstance(row.get(key), int | float) for key in ("time_s", "env_steps"))]
    return [row for row in rows if row["env_steps"] > 0]


def _point_row(point: Mapping[str, str | None], place: str) -> dict[str, Any]:
    """A line of points as the row of metrics.jsonl that it came from; a point without a speed was no training."""
    try:
        numbers = {column: float(value) for column in COLUMNS[2:] if (value := point[column]) != ""}  # type: ignore[arg-type]
        row: dict[str, Any] = {"time_s": numbers["time_s"], "env_steps": numbers["env_steps"]}
    except (KeyError, TypeError, ValueError):
        raise RunDirectoryError(f"{place}: time_s and env_steps have to be numbers, the others numbers or nothing.") from None
    names = {"cluster_env_steps": "cluster_env_steps", "return": "charts/episodic_return", "return_count": "charts/episodic_return_count"}
    row |= {name: numbers[column] for column, name in names.items() if column in numbers}
    return row | {"phase": "running" if "sps" in numbers else "draining"}


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> Vector:
    values = [row.get(key) for row in rows]
    return np.array([value if isinstance(value, int | float) else np.nan for value in values], np.float64)


def _config(run: Path) -> dict[str, Any]:
    """The run's settings as they were written: a run of an older zpala is drawn too."""
    try:
        return tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise RunDirectoryError(f"{run / 'config.toml'}: cannot be read ({error}). Name the directory that a run printed.") from None


def _facts(config: Mapping[str, Any]) -> tuple[str, ...]:
    environment, algorithm = config.get("environment", {}), config.get("algorithm", {})
    name = str(algorithm.get("name", "?"))
    facts = [str(environment.get("id", "?")), name.upper() if name in ALGORITHM_NAMES else algorithm_label(name)]
    if "preset" in config:
        facts.append(f"preset {config['preset']}")
    if "num_steps" in algorithm:
        facts.append(f"{algorithm['num_steps']} steps per update")
    facts.append(f"seed {config.get('run', {}).get('seed', '?')}")
    return tuple(facts)
