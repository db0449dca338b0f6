"""What a node says: JSON lines for launch, text for people, log.txt for later."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path

import pytest

from zpala.console import Console

LOG = logging.getLogger("zpala.somewhere")


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Console(json_lines=True) as console:
        LOG.info("hello %d", 5)
        console.row({"env_steps": 3, "charts/SPS": float("nan")})
        console.summary({"node": "n0", "reason": "budget"})
    output = capsys.readouterr()
    assert [json.loads(line) for line in output.out.splitlines()] == [
        {"event": "log", "level": "INFO", "text": "hello 5"},
        {"event": "metrics", "env_steps": 3, "charts/SPS": None},
        {"event": "summary", "node": "n0", "reason": "budget"},
    ]
    assert output.err == ""


def test_text_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    with Console(json_lines=False) as console:
        LOG.warning("careful")
        LOG.debug("not shown")
        console.row({"env_steps": 3, "gossip/averaged": 2, "gossip/live": 3})
        console.summary({"node": "n0", "reason": "target", "checkpoint": "somewhere"})
    output = capsys.readouterr()
    assert "averaged with 2/3 peers" in output.out
    assert "[n0] ended (target), checkpoint somewhere" in output.out
    assert re.fullmatch(r"\d\d:\d\d:\d\d careful\n", output.err)


def test_the_log_file_has_time_level_thread_and_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Console(json_lines=True) as console:
        LOG.info("before")
        console.log_to(tmp_path / "log.txt")
        try:
            raise ValueError("broken")
        except ValueError:
            LOG.exception("it failed")
    LOG.warning("after")
    text = (tmp_path / "log.txt").read_text()
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ERROR MainThread it failed\n", text)
    assert "ValueError: broken" in text
    assert "before" not in text
    assert "after" not in text
    assert "ValueError: broken" in json.loads(capsys.readouterr().out.splitlines()[1])["text"]


def test_a_reader_that_has_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None: ...

    monkeypatch.setattr(sys, "stdout", Gone())
    with Console(json_lines=True) as console:
        console.row({"env_steps": 3})


def test_the_logger_is_left_as_it_was() -> None:
    logger = logging.getLogger("zpala")
    before = (list(logger.handlers), logger.propagate)
    with Console(json_lines=False):
        assert len(logger.handlers) == len(before[0]) + 1
    assert (list(logger.handlers), logger.propagate) == before
