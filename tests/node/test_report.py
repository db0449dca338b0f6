"""Rows of metrics against numbers worked out by hand."""

from __future__ import annotations

import pytest

from zpala.node.report import Report
from zpala.rl.algorithm import Statistics

STATISTICS = Statistics(True, {"policy_loss": 0.5, "entropy": 1.5, "of_mine": 7.0})


def test_speed_counts_the_interval_and_not_the_wait_before_the_start() -> None:
    report = Report(frame_skip=4, interval_s=10.0, now=100.0)
    report.start(130.0)
    assert not report.due(139.9)
    assert report.due(140.0)
    first = report.row(140.0, env_steps=800, updates=10)
    assert (first["charts/SPS"], first["charts/FPS"], first["frames"], first["time_s"]) == (80.0, 320.0, 3200, 10.0)
    second = report.row(145.0, env_steps=1800, updates=20)
    assert (second["charts/SPS"], second["time_s"]) == (200.0, 15.0)
    assert report.elapsed_s(150.0) == 20.0


def test_returns_are_of_the_last_hundred_games() -> None:
    report = Report(1, 1.0, 0.0)
    assert "charts/episodic_return" not in report.row(1.0, env_steps=1, updates=1)
    report.games([(1000.0, 5)] * 3)
    report.games([(float(i), 10) for i in range(100)])
    row = report.row(2.0, env_steps=2, updates=2)
    assert row["charts/episodic_return"] == pytest.approx(49.5)
    assert row["charts/episodic_return_median"] == 49.5
    assert row["charts/episodic_length"] == 10.0
    assert (row["charts/episodic_return_count"], row["charts/games"]) == (100, 103)


def test_losses_and_staleness_of_the_interval() -> None:
    report = Report(1, 1.0, 0.0)
    for staleness in (0, 3, 6):
        report.updated(STATISTICS, 1e-3, staleness)
    row = report.row(1.0, env_steps=1, updates=3)
    assert (row["losses/policy_loss"], row["losses/entropy"], row["charts/learning_rate"]) == (0.5, 1.5, 1e-3)
    assert {name for name in row if name.startswith("losses/")} == {"losses/policy_loss", "losses/entropy", "losses/of_mine"}
    assert (row["gossip/staleness_mean"], row["gossip/staleness_max"]) == (3.0, 6)
    assert "gossip/staleness_mean" not in report.row(2.0, env_steps=1, updates=3)


def test_stages_are_milliseconds_per_update() -> None:
    report = Report(1, 1.0, 0.0)
    with report.timed("learn"):
        pass
    row = report.row(1.0, env_steps=1, updates=2)
    assert 0.0 <= row["time/learn_ms"] < 100.0  # type: ignore[operator]
    assert row["system/rss_mb"] > 10.0  # type: ignore[operator]
    assert row["system/fds"] > 0  # type: ignore[operator]
