"""``zpala plot``: one picture of the learning curves of several runs, the plotted points as CSV beside it, and the speeds as a table.

matplotlib is the extra ``plot`` and is imported only when a picture is made. The same input gives the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from zpala.config import ConfigError
from zpala.run_directory import RunDirectoryError, write_atomically
from zpala.tools.curves import Curve, RunCurves, Vector, csv_text, mean_curve, read_runs, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours: told apart by colour-blind people too; one per run, from the first again after the last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DOTS_PER_INCH = 110
INCHES = (6.2, 4.4)  # of one panel

Axis = Callable[[Curve], Vector]


def plot_runs(runs: Sequence[Path], *, out: Path | None, labels: Sequence[str] = (), sps: bool = False) -> str:
    """Draws ``runs`` into ``out`` (a .png) and writes their points beside it (.csv); returns what to tell the person.

    Args:
        runs: run directories, or .csv files with the points of earlier pictures.
        out: existing files are replaced; None: only the table is made.
        labels: one per run, or none.
        sps: a third panel with the speed of the nodes.
    Raises:
        ConfigError: labels, the name of ``out`` or the installation do not allow it.
        RunDirectoryError: a run has nothing to draw, or ``out`` cannot be written.
    """
    if out is not None and out.suffix.lower() != ".png":
        raise ConfigError(f"--out {out}: pictures are PNG files, and the points go into a .csv beside it. Give a name that ends in .png.")
    read = read_runs(runs, labels)
    if out is None:
        return table(read)
    picture, points = draw(read, sps=sps), out.with_suffix(".csv")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(picture)
        write_atomically(points, csv_text(read))
    except OSError as error:
        raise RunDirectoryError(f"{out}: cannot be written ({error.strerror}). Give another --out.") from None
    return f"{table(read)}\npicture: {out}\npoints:  {points}"


def draw(runs: Sequence[RunCurves], *, sps: bool) -> bytes:
    """The picture as PNG: returns over env_steps of the cluster and over time, and speeds (env_steps/s) if asked for.

    A thin line is a node, a thick one the mean of a run's nodes.
    """
    try:
        from matplotlib import rc_context, rcParamsDefault
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            f"zpala plot --out needs matplotlib ({error}). Install the extra: pip install -c constraints.txt -e '.[plot]'."
        ) from None
    panels = 3 if sps else 2
    with rc_context({key: value for key, value in rcParamsDefault.items() if not key.startswith(("backend", "toolbar"))}):
        figure = Figure(figsize=(INCHES[0] * panels, INCHES[1]), dpi=DOTS_PER_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, panels)
        _panel(axes[0], runs, _millions, lambda curve: curve.returns)
        axes[0].set(xlabel="env_steps of all nodes (millions)", ylabel="mean raw return of a node's last 100 games")
        _panel(axes[1], runs, _minutes, lambda curve: curve.returns)
        axes[1].set(xlabel="minutes of training", ylabel="mean raw return of a node's last 100 games")
        if sps:
            _panel(axes[2], runs, _millions, lambda curve: curve.sps)
            axes[2].set(xlabel="env_steps of all nodes (millions)", ylabel="env_steps per second (SPS) of a node")
            axes[2].set_ylim(bottom=0)
        axes[0].legend(loc="best", fontsize="small")
        figure.suptitle(title(runs))
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def table(runs: Sequence[RunCurves]) -> str:
    """One row per node: how far it came and how fast it was; whether its speed lasted."""
    columns = ("run", "node", "env_steps", "minutes", "return", "games", "SPS", "SPS first", "SPS last", "last/first")
    shown = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    windows = set()
    for column in shown.columns[2:]:
        column.justify = "right"
    for run in runs:
        for curve in run.curves:
            speeds = ["-"] * 4
            if curve.speed is not None:
                windows.add(curve.speed.window)
                speeds = [f"{value:,.0f}" for value in (curve.speed.overall, curve.speed.first, curve.speed.last)]
                speeds.append(f"{curve.speed.lasting:.3f}")
            counts = (f"{curve.env_steps[-1]:,.0f}", f"{curve.time_s[-1] / 60:.1f}")
            games = (_number(curve.returns[-1], ".1f"), _number(curve.return_count[-1], ".0f"))
            shown.add_row(run.label, curve.node, *counts, *games, *speeds)
    console = Console(file=io.StringIO(), width=160)
    console.print(shown)
    text = "\n".join(line.rstrip() for line in console.file.getvalue().splitlines() if line.strip())  # type: ignore[attr-defined]
    if not windows:
        return text
    spans = " or ".join(f"{window:,}" for window in sorted(windows))
    return f"{text}\nSPS first and last: over the first and the last {spans} env_steps of a node; return: mean of its last games"


def _panel(axes: Axes, runs: Sequence[RunCurves], x: Axis, y: Axis) -> None:
    for index, run in enumerate(runs):
        colour = COLOURS[index % len(COLOURS)]
        if len(run.curves) > 1:
            for curve in run.curves:
                known = ~np.isnan(y(curve))
                axes.plot(x(curve)[known], y(curve)[known], color=colour, linewidth=0.8, alpha=0.5)
        axes.plot(*mean_curve([(x(curve), y(curve)) for curve in run.curves]), color=colour, linewidth=2.2, label=run.label)
    axes.grid(visible=True, linewidth=0.5, alpha=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(left=0)


def _millions(curve: Curve) -> Vector:
    return curve.cluster_env_steps / 1e6


def _minutes(curve: Curve) -> Vector:
    return curve.time_s / 60


def _number(value: float, form: str) -> str:
    return "-" if np.isnan(value) else format(value, form)
