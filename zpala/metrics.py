"""The one sink of numbers: a row of metrics becomes a line of metrics.jsonl, TensorBoard scalars and one line for people.

Used by the thread that calls it and by no other. Keys of a row are TensorBoard tags where such a tag is customary (``charts/SPS``); the
same keys stand in metrics.jsonl. A full disk or a broken TensorBoard never ends a run: the first failure is told, the others are silent.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Value = float | int | str
Row = Mapping[str, Value]

LOG = logging.getLogger(__name__)


class MetricsLog:
    """Writes the rows of one node to ``node_directory``.

    Args:
        tensorboard: write TensorBoard events under ``tb/`` too, if the tb extra is installed.
        hyperparameters: shown as text in TensorBoard (the resolved run file).
    """

    def __init__(self, node_directory: Path, *, tensorboard: bool, hyperparameters: str = "") -> None:
        self._path = node_directory / "metrics.jsonl"
        self._file: int | None = None
        self._torn = False  # the last line was cut by a full disk
        self._told: set[str] = set()
        self._writer = self._open_tensorboard(node_directory / "tb", hyperparameters) if tensorboard else None

    def log(self, row: Row) -> None:
        """Adds one row. Never raises."""
        try:
            self._append(row)
        except (OSError, ValueError, TypeError) as error:
            self._tell("metrics.jsonl", error)
        if self._writer is not None:
            try:
                step = int(row.get("env_steps", 0))
                for tag, value in row.items():
                    if "/" in tag and not isinstance(value, str):
                        self._writer.add_scalar(tag, value, step)
                for tag in ("env_steps", "frames", "cluster_env_steps"):
                    if tag in row:
                        self._writer.add_scalar(f"charts/{tag}", row[tag], step)
            except Exception as error:  # the writer's own thread passes on whatever it met
                self._tell("TensorBoard", error)

    def close(self) -> None:
        """Flushes and closes both; a second call does nothing."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except Exception as error:
                self._tell("TensorBoard", error)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _append(self, row: Row) -> None:
        line = json.dumps(jsonable(row), allow_nan=False).encode() + b"\n"
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        data = b"\n" + line if self._torn else line
        self._torn = True
        if os.write(self._file, data) != len(data):
            raise OSError(f"{self._path}: only a part of the line was written")
        self._torn = False

    def _tell(self, what: str, error: Exception) -> None:
        if what not in self._told:
            self._told.add(what)
            LOG.warning("%s cannot be written (%s); training goes on without it", what, error)

    def _open_tensorboard(self, directory: Path, hyperparameters: str) -> SummaryWriter | None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        try:
            writer = SummaryWriter(str(directory))
            if hyperparameters:
                writer.add_text("hyperparameters", "    " + hyperparameters.replace("\n", "\n    "))
        except OSError as error:
            self._tell("TensorBoard", error)
            return None
        return writer


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a metrics.jsonl, in order; lines that a crash or a full disk cut are left out."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict):
                yield row


def jsonable(row: Row) -> dict[str, Value | None]:
    """``row`` with null for what is not finite: JSON has neither NaN nor infinity."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def format_line(row: Row) -> str:
    """One line for people. A value that the row lacks is shown as "-"."""
    parts = [
        f"[{row['node']}]" if "node" in row else "",
        f"env_steps {format_number(row, 'env_steps')} (cluster {format_number(row, 'cluster_env_steps')})",
        f"SPS {format_number(row, 'charts/SPS')}",
        f"return {format_return(row)}",
        averaged_with(row),
        f"exchanges {format_number(row, 'gossip/exchanges')}",
        f"staleness {format_number(row, 'gossip/staleness_mean', '.1f')}",
        f"gate {format_percent(row, 'gossip/gate_wait_fraction')}",
        f"distance {format_number(row, 'gossip/consensus_distance', '.1e')}",
        f"lr {format_number(row, 'charts/learning_rate', '.2g')}",
    ]
    phase = str(row.get("phase", "running")).lower()
    if phase != "running":
        parts.append(phase)
    return "  ".join(part for part in parts if part)


def averaged_with(row: Row) -> str:
    """``averaged with 3/3 peers``: distinct peers averaged with in the last 30 s of the live neighbours that take part (design D19)."""
    return f"averaged with {format_number(row, 'gossip/averaged')}/{format_number(row, 'gossip/live')} peers"


def format_return(row: Row) -> str:
    """``475.0``, with the number n of games while it is below 100."""
    count = row.get("charts/episodic_return_count", 0)
    text = format_number(row, "charts/episodic_return", ".1f")
    return text if not isinstance(count, int) or count >= 100 else f"{text} (n={count})"


def format_number(row: Row, key: str, form: str = ",.0f") -> str:
    value = row.get(key)
    return format(value, form) if isinstance(value, int | float) else "-"


def format_percent(row: Row, key: str) -> str:
    value = row.get(key)
    return f"{100 * value:.1f} %" if isinstance(value, int | float) else "-"
