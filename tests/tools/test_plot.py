"""``zpala plot``: points, means and speeds against hand-worked numbers; pictures and CSV that come out the same twice."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zpala import cli
from zpala.config import ConfigError, load_config
from zpala.run_directory import RunDirectoryError, create_node_directory
from zpala.tools.curves import COLUMNS, POINTS_MAX, csv_text, curve, mean_curve, read_runs, speed, title
from zpala.tools.plot import plot_runs

PNG = b"\x89PNG\r\n\x1a\n"


def rows_of(speeds: Sequence[float], interval_s: float = 10.0) -> list[dict[str, Any]]:
    """One row per entry: that many env_steps/s for one interval. No game ends in the first interval."""
    rows: list[dict[str, Any]] = []
    env_steps = 0.0
    for index, sps in enumerate(speeds, start=1):
        env_steps += sps * interval_s
        row = {"time_s": index * interval_s, "env_steps": int(env_steps), "cluster_env_steps": 2 * int(env_steps), "phase": "running"}
        if index > 1:
            row |= {"charts/episodic_return": -20.0 + index, "charts/episodic_return_count": min(index, 100)}
        rows.append(row)
    return rows


def make_run(run: Path, nodes: Mapping[str, Sequence[Mapping[str, Any]]], **overrides: object) -> Path:
    config = load_config(None, {key.replace("__", "."): value for key, value in overrides.items()}, {})
    for name, rows in nodes.items():
        directory = create_node_directory(run, name, config_toml=config.to_toml(), hosts_text="", command=[])
        (directory.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "pair", {"n0": rows_of([100] * 6), "n1": rows_of([200] * 5)}, run__seed=3, environment__num_envs=8)


def test_a_node_as_fast_at_the_end_as_at_the_beginning() -> None:
    found = speed(rows_of([500] * 40), window=100_000)
    assert found is not None
    assert (found.overall, found.first, found.last, found.window) == pytest.approx((500, 500, 500, 100_000))
    assert found.lasting == pytest.approx(1)


def test_speeds_at_both_ends_are_interpolated_between_rows() -> None:
    # 10 s at 100, 10 s at 400, 10 s at 50 env_steps/s: 1000, 5000, 5500 env_steps.
    found = speed(rows_of([100, 400, 50]), window=2000)
    assert found is not None
    assert found.first == pytest.approx(2000 / (10 + 1000 / 400))
    assert found.last == pytest.approx(2000 / (10 + 1500 / 400))
    assert found.overall == pytest.approx(5500 / 30)


def test_a_short_run_is_cut_into_halves() -> None:
    found = speed(rows_of([100, 300]), window=100_000)
    assert found is not None
    assert found.window == 2000
    assert found.lasting == pytest.approx((2000 / (20 / 3)) / (2000 / (10 + 10 / 3)))


def test_what_follows_the_last_update_is_no_training() -> None:
    rows = rows_of([100] * 10)
    drained = [*rows, {**rows[-1], "time_s": 150.0}, {**rows[-1], "time_s": 190.0, "phase": "finished"}]
    assert speed(drained) == speed(rows)
    assert math.isnan(curve("n0", drained).sps[-1])


@pytest.mark.parametrize("rows", [[], rows_of([100])])
def test_too_few_rows_have_no_speed(rows: list[dict[str, Any]]) -> None:
    assert speed(rows) is None


def test_points_are_thinned_and_keep_both_ends() -> None:
    rows = rows_of([100 + index % 7 for index in range(3000)])
    thinned = curve("n0", rows)
    assert len(thinned.time_s) == POINTS_MAX
    assert (thinned.time_s[0], thinned.time_s[-1]) == (10, 30_000)
    assert thinned.env_steps[-1] == rows[-1]["env_steps"]
    elapsed_s = np.diff(thinned.time_s, prepend=0.0)
    assert (thinned.sps * elapsed_s).sum() == pytest.approx(rows[-1]["env_steps"])  # no env_step is lost between the kept points
    assert len(curve("n0", rows[:10]).time_s) == 10


def test_the_mean_is_of_the_nodes_that_have_a_value() -> None:
    x = np.array([0.0, 10.0])
    grid, mean = mean_curve([(x, np.array([0.0, 10.0])), (x + 5, np.array([20.0, 20.0])), (x, np.array([np.nan, np.nan]))])
    expected = [grid_x if grid_x < 5 else (grid_x + 20) / 2 if grid_x <= 10 else 20 for grid_x in grid]
    np.testing.assert_allclose(mean, expected)
    assert (grid[0], grid[-1]) == (0, 15)
    assert len(mean_curve([])[0]) == 0


def test_the_picture_and_its_points(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "curves.png"
    text = plot_runs([run], out=out, sps=True)
    assert out.read_bytes().startswith(PNG)
    assert str(out) in text
    with out.with_suffix(".csv").open(newline="") as file:
        points = list(csv.DictReader(file))
    assert [point["node"] for point in points] == ["n0"] * 6 + ["n1"] * 5
    assert points[0]["run"] == "pair: 2 x 8 environments"
    assert (points[0]["return"], points[1]["return"], points[1]["return_count"]) == ("", "-18.000", "2")
    assert (points[5]["time_s"], points[5]["env_steps"], points[5]["cluster_env_steps"]) == ("60.0", "6000", "12000")
    assert {point["sps"] for point in points} == {"100.0", "200.0"}


def test_points_stand_for_their_runs_in_a_later_picture(run: Path, tmp_path: Path) -> None:
    rows = rows_of([100] * 6)
    drained = make_run(tmp_path / "alone", {"n0": [*rows, {**rows[-1], "time_s": 90.0, "phase": "finished"}]})
    plot_runs([run, drained], out=tmp_path / "first.png", labels=["two", "one"])
    read = read_runs([tmp_path / "first.csv"])
    assert [one.label for one in read] == ["two", "one"]
    assert csv_text(read) == (tmp_path / "first.csv").read_text()
    for saved, original in zip(read, read_runs([run, drained]), strict=True):
        assert [one.speed for one in saved.curves] == [one.speed for one in original.curves]
    plot_runs([tmp_path / "first.csv", run], out=tmp_path / "second.png", labels=["a", "b", "c"])
    assert [one.label for one in read_runs([tmp_path / "second.csv"])] == ["a", "b", "c"]
    assert title(read) == ""
    assert title([*read, *read_runs([run])]) == title(read_runs([run]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "line 1: the columns are not"),
        ("", "line 1: the columns are not"),
        (",".join(COLUMNS) + "\n", "no points"),
        (",".join(COLUMNS) + "\nr,n0,1.0,x,5,,,1.0\n", "line 2: time_s and env_steps have to be numbers"),
        (",".join(COLUMNS) + "\nr,n0,,100,5,,,1.0\n", "line 2: time_s and env_steps have to be numbers"),
        (",".join(COLUMNS) + "\nr,n0,1.0\n", "line 2: time_s and env_steps have to be numbers"),
        ("\xff", "cannot be read"),
    ],
)
def test_points_that_zpala_did_not_write(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RunDirectoryError, match=message) as raised:
        read_runs([path])
    assert str(path) in str(raised.value)


def test_missing_points(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"nothing\.csv: cannot be read"):
        read_runs([tmp_path / "nothing.csv"])


@pytest.mark.parametrize("sps", [False, True])
def test_the_same_run_gives_the_same_bytes(run: Path, tmp_path: Path, sps: bool) -> None:
    written = []
    for name in ("a", "b"):
        plot_runs([run], out=tmp_path / f"{name}.png", sps=sps)
        written.append([(tmp_path / f"{name}{suffix}").read_bytes() for suffix in (".png", ".csv")])
    assert written[0] == written[1]


def test_the_table_says_whether_speed_lasted(tmp_path: Path) -> None:
    slowing = make_run(tmp_path / "slow", {"n0": rows_of([1000] * 100 + [900] * 200)})
    text = plot_runs([slowing], out=None, labels=["control"])
    (line,) = [line for line in text.splitlines() if "n0" in line]
    assert line.split() == ["control", "n0", "2,800,000", "50.0", "280.0", "100", "933", "1,000", "900", "0.900"]
    assert "first and the last 100,000 env_steps" in text


def test_a_title_says_what_the_runs_share(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(seed), {"n0": rows_of([1] * 3)}, run__seed=seed, algorithm__num_steps=5) for seed in (1, 2)]
    assert title(read_runs(runs[:1])) == "CartPole-v1, A2C, 5 steps per update, seed 1"
    assert title(read_runs(runs)) == "CartPole-v1, A2C, 5 steps per update (seed 1 / seed 2)"


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / folder / "run", {"n0": rows_of([1] * 3)}) for folder in ("a", "b")]
    assert [run.label for run in read_runs(runs)] == [f"{run}: 1 x 16 environments" for run in runs]


def test_a_node_without_a_step_is_left_out(run: Path) -> None:
    (run / "nodes" / "n2").mkdir()
    with (run / "nodes/n1/metrics.jsonl").open("a") as file:
        file.write('{"time_s": 60.0, "env_st')  # cut by a crash
    assert [curve.node for curve in read_runs([run])[0].curves] == ["n0", "n1"]


def test_what_cannot_be_drawn(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"2 label\(s\) for 1 run"):
        plot_runs([run], out=None, labels=["a", "b"])
    with pytest.raises(ConfigError, match=r"\.png"):
        plot_runs([run], out=tmp_path / "curves.pdf")
    with pytest.raises(RunDirectoryError, match="no run directory"):
        plot_runs([tmp_path / "absent"], out=None)
    with pytest.raises(RunDirectoryError, match="has logged a step"):
        plot_runs([make_run(tmp_path / "young", {"n0": []})], out=None)
    assert not (tmp_path / "curves.pdf").exists()


def test_without_matplotlib_the_table_still_comes(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "n0" in plot_runs([run], out=None)
    with pytest.raises(ConfigError, match=r"\[plot\]"):
        plot_runs([run], out=tmp_path / "curves.png")
    assert not list(tmp_path.glob("curves.*"))


def test_the_command(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plot", str(run), str(run), "--out", str(tmp_path / "c.png"), "--label", "first", "--label", "second", "--sps"]
    monkeypatch.setattr(sys, "argv", ["zpala", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert (tmp_path / "c.csv").read_text().count("second") == 11
    assert "first" in capsys.readouterr().out
