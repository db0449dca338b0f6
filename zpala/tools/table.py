"""What ``zpala launch`` shows: one live table on a terminal, one line per interval elsewhere, one summary at the end.

Owns the console of the launching process. It only reads what the children said; it starts and stops nothing.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from zpala.config import Config
from zpala.console import discard_output
from zpala.metrics import averaged_with, format_number, format_percent, format_return

COLUMNS = ("node", "env_steps", "SPS", "return", "peers", "exchanges", "gate wait", "staleness", "distance", "phase")
PLAIN_WIDTH = 120  # of the summary where there is no terminal to ask


@dataclass(slots=True)
class NodeState:
    """The last that is known of one node. ``row`` holds the newest value of every key of its metrics."""

    name: str
    row: dict[str, Any] = field(default_factory=dict)
    rows: int = 0
    summary: dict[str, Any] | None = None
    exit_code: int | None = None

    def take_row(self, row: dict[str, Any]) -> None:
        self.row.update(row)
        self.rows += 1

    def take_summary(self, facts: dict[str, Any]) -> None:
        self.row.update(facts)
        self.summary = facts


class Display:
    """Use as a context manager around the run.

    Args:
        names: the nodes, in the order of the table.
        output: a terminal gets the live table (unless it is dumb), anything else plain lines. NO_COLOR is honoured.
    """

    def __init__(self, config: Config, run: Path, names: list[str], output: IO[str]) -> None:
        self.states = {name: NodeState(name) for name in names}
        self._config = config
        self._run = run
        self._console = _Console(file=output, highlight=False, width=None if output.isatty() else PLAIN_WIDTH)
        self._started = time.monotonic()
        self._live: Live | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True, get_renderable=self._table)
        self._told_rows = dict.fromkeys(names, 0)

    def __enter__(self) -> Display:
        gossip = f"topology {self._config.gossip.topology}" if self._config.gossip.enabled else "no gossip"
        settings = self._config
        who = "1 node learns" if len(self.states) == 1 else f"{len(self.states)} nodes learn"
        self._line(f"{who} {settings.environment.label} ({settings.algorithm.label}, {gossip}), run directory {self._run}")
        if self._live is not None:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, name: str, text: str) -> None:
        """Something that one node said or did, above the table."""
        for line in text.splitlines():
            self._line(f"[{name}] {line}")

    def row_came(self, state: NodeState) -> None:
        """Without a terminal: a line about all nodes as soon as every living one has said something new."""
        if self._live is not None:
            return
        alive = [state for state in self.states.values() if state.exit_code is None and state.summary is None]
        overtaken = state.rows > self._told_rows[state.name] + 1  # one node is silent: the others' news do not wait for it
        if overtaken or all(other.rows > self._told_rows[other.name] for other in alive):
            self._line(self.line())
            self._told_rows = {name: other.rows for name, other in self.states.items()}

    def refresh(self) -> None:
        """Draws the live table anew."""
        if self._live is not None:
            self._live.refresh()

    def line(self) -> str:
        """All nodes in one line: sums where they add up, else the worst or the range."""
        rows = [state.row for state in self.states.values() if state.row]
        cluster, budget = self.cluster_env_steps(), self._config.run.total_env_steps
        least = min(rows, key=lambda row: (_value(row, "gossip/averaged") / max(_value(row, "gossip/live"), 1), _value(row, "gossip/live")))
        returns = [_value(row, "charts/episodic_return", math.nan) for row in rows]
        return "  ".join(
            (
                f"{time.monotonic() - self._started:.0f} s",
                f"cluster env_steps {cluster:,} ({100 * cluster / budget:.0f} %)",
                f"SPS {sum(_value(row, 'charts/SPS') for row in rows):,.0f}",
                "return " + " ".join("-" if math.isnan(value) else f"{value:.1f}" for value in returns),
                averaged_with(least) if self._config.gossip.enabled else "no gossip",
                f"exchanges {sum(int(_value(row, 'gossip/exchanges')) for row in rows):,}",
                f"gate wait {100 * max(_value(row, 'gossip/gate_wait_fraction') for row in rows):.1f} %",
                f"staleness {max(_value(row, 'gossip/staleness_mean') for row in rows):.1f}",
                f"distance {max(_value(row, 'gossip/consensus_distance') for row in rows):.1e}",
            )
        )

    def cluster_env_steps(self) -> int:
        """The larger of what the nodes know of the cluster and what they say of themselves."""
        rows = [state.row for state in self.states.values()]
        own = sum(int(_value(row, "env_steps")) for row in rows)
        return max([own, *(int(_value(row, "cluster_env_steps")) for row in rows)])

    def summarise(self, status: int) -> None:
        """The end: the last table, what came out and what to do next."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._console.print(self._table())
        reasons = {str(state.summary["reason"]) for state in self.states.values() if state.summary and state.summary.get("reason")}
        elapsed_s = time.monotonic() - self._started
        what = f"finished ({', '.join(sorted(reasons)) or 'done'})" if status == 0 else f"ended with exit status {status}"
        self._line(f"{what} after {elapsed_s:.1f} s and {self.cluster_env_steps():,} env_steps of the cluster")
        self._line(f"run directory {self._run}")
        if status == 0:
            self._line(f"next: zpala eval {self._run}")

    def _table(self) -> Table:
        table = Table(*COLUMNS, box=box.SIMPLE_HEAD, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for state in self.states.values():
            row = state.row
            table.add_row(
                state.name,
                format_number(row, "env_steps"),
                format_number(row, "charts/SPS"),
                format_return(row),
                f"{format_number(row, 'gossip/averaged')}/{format_number(row, 'gossip/live')}" if self._config.gossip.enabled else "off",
                format_number(row, "gossip/exchanges"),
                format_percent(row, "gossip/gate_wait_fraction"),
                format_number(row, "gossip/staleness_mean", ".1f"),
                format_number(row, "gossip/consensus_distance", ".1e"),
                self._phase(state),
            )
        return table

    def _phase(self, state: NodeState) -> str:
        if state.exit_code is not None:
            return "finished" if state.exit_code == 0 else f"exit {state.exit_code}"
        return str(state.row.get("phase", "starting")).lower()

    def _line(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


class _Console(Console):
    """Goes on in silence when nobody reads any more (``launch | tee`` and Ctrl-C), where rich would end the process."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        discard_output(self.file)


def _value(row: dict[str, Any], key: str, default: float = 0.0) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else default
