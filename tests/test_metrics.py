"""Rows of metrics: files, TensorBoard, the line for people, and disks that are full."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from zpala.metrics import MetricsLog, averaged_with, format_line, jsonable, read_rows

ROW: dict[str, float | int | str] = {
    "node": "n0",
    "env_steps": 120_000,
    "cluster_env_steps": 480_000,
    "charts/SPS": 1234.5,
    "charts/episodic_return": 431.25,
    "charts/episodic_return_count": 100,
    "charts/learning_rate": 7e-4,
    "gossip/averaged": 3,
    "gossip/live": 3,
    "gossip/exchanges": 812,
    "gossip/gate_wait_fraction": 0.004,
    "gossip/staleness_mean": 2.15,
    "gossip/consensus_distance": 0.00123,
    "phase": "running",
}


def test_rows_are_read_back_as_they_were_logged(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.log(ROW)
        log.log({"env_steps": 2})
    assert list(read_rows(tmp_path / "metrics.jsonl")) == [ROW, {"env_steps": 2}]


def test_a_row_is_on_disk_before_the_run_ends(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, tensorboard=False)
    log.log(ROW)
    assert len(list(read_rows(tmp_path / "metrics.jsonl"))) == 1
    log.close()
    log.close()


def test_what_is_not_finite_becomes_null(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.log({"a": float("nan"), "b": float("inf"), "c": 1.5})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"a": None, "b": None, "c": 1.5}
    assert jsonable({"a": float("-inf")}) == {"a": None}


def test_a_directory_that_is_gone_is_told_once_and_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = MetricsLog(tmp_path / "absent", tensorboard=False)
    with caplog.at_level(logging.WARNING, logger="zpala"):
        for _ in range(3):
            log.log(ROW)
    log.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "training goes on" in caplog.text


def test_a_full_disk_costs_rows_but_not_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    write = os.write
    room = [1000]

    def short_write(descriptor: int, data: bytes) -> int:
        part = data[: room[0]]
        room[0] -= len(part)
        if not part:
            raise OSError(28, "No space left on device")
        return write(descriptor, part)

    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.log({"row": 1})
        monkeypatch.setattr(os, "write", short_write)
        room[0] = 5
        log.log({"row": 2})  # cut after five bytes
        log.log({"row": 3})  # nothing fits
        room[0] = 1000
        log.log({"row": 4})
    assert list(read_rows(tmp_path / "metrics.jsonl")) == [{"row": 1}, {"row": 4}]
    assert caplog.text.count("metrics.jsonl cannot be written") == 1


def test_tensorboard_gets_the_tags_and_the_step(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with MetricsLog(tmp_path, tensorboard=True, hyperparameters="[run]\nseed = 1\n") as log:
        log.log(ROW)
    events = accumulator.EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {key for key in ROW if "/" in key} | {"charts/env_steps", "charts/cluster_env_steps"}
    (event,) = events.Scalars("charts/episodic_return")
    assert (event.step, event.value) == (120_000, 431.25)
    assert events.Tags()["tensors"] == ["hyperparameters/text_summary"]


def test_a_broken_tensorboard_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "tb").write_text("a file where the directory should be")
    with MetricsLog(tmp_path, tensorboard=True) as log:
        log.log(ROW)
    assert len(list(read_rows(tmp_path / "metrics.jsonl"))) == 1
    assert caplog.text.count("TensorBoard cannot be written") == 1


def test_the_line_for_people() -> None:
    line = format_line(ROW)
    for part in (
        "[n0]",
        "120,000",
        "480,000",
        "1,234",
        "return 431.2",
        "averaged with 3/3 peers",
        "exchanges 812",
        "gate 0.4 %",
        "1.2e-03",
    ):
        assert part in line
    assert "running" not in line


def test_a_line_says_what_it_does_not_know() -> None:
    line = format_line({"env_steps": 5, "charts/episodic_return": 20.0, "charts/episodic_return_count": 7, "phase": "waiting"})
    assert "return 20.0 (n=7)" in line
    assert line.endswith("waiting")
    assert averaged_with({}) == "averaged with -/- peers"
