"""What ``launch`` shows of many nodes at once."""

from __future__ import annotations

import io

import pytest

from zpala.config import Config, load_config
from zpala.tools.table import Display


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def row(env_steps: int, averaged: int, live: int, gate: float = 0.0, **more: object) -> dict[str, object]:
    return {
        "env_steps": env_steps,
        "charts/SPS": 10.0,
        "gossip/averaged": averaged,
        "gossip/live": live,
        "gossip/gate_wait_fraction": gate,
        **more,
    }


def display(output: io.StringIO, config: Config | None = None) -> Display:
    from pathlib import Path

    return Display(config or load_config(None, {"run.total_env_steps": 1000}, {}), Path("runs/x"), ["n0", "n1", "n2"], output)


def test_the_line_says_the_sums_and_the_worst() -> None:
    output = io.StringIO()
    with display(output) as shown:
        shown.states["n0"].take_row(row(100, 2, 2, 0.01))
        shown.states["n1"].take_row(row(50, 1, 2, 0.2))
        shown.states["n2"].take_row(row(50, 1, 1))
        line = shown.line()
    for part in ("cluster env_steps 200 (20 %)", "SPS 30", "averaged with 1/2 peers", "gate wait 20.0 %", "return - - -"):
        assert part in line


def test_a_line_comes_when_every_living_node_has_said_something_new() -> None:
    output = io.StringIO()
    with display(output) as shown:
        shown.states["n2"].exit_code = 1
        for step, name in enumerate(["n0", "n1", "n1", "n0", "n0", "n0"]):
            shown.states[name].take_row(row(step, 1, 1))
            shown.row_came(shown.states[name])
    # n0 n1 | n1 n0 | n0 n0: the last one overtakes the silent n1
    assert output.getvalue().count("cluster env_steps") == 3


def test_without_a_terminal_there_are_no_escape_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    output = io.StringIO()
    with display(output) as shown:
        shown.note("n0", "first\nsecond [not markup]")
        shown.refresh()
        shown.summarise(0)
    text = output.getvalue()
    assert "\x1b" not in text
    assert "[n0] first\n[n0] second [not markup]\n" in text
    assert "next: zpala eval runs/x" in text


def test_a_dumb_terminal_gets_lines_and_no_colour_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("NO_COLOR", "1")
    output = Terminal()
    with display(output) as shown:
        for name in shown.states:
            shown.states[name].take_row(row(5, 1, 1))
            shown.row_came(shown.states[name])
        shown.summarise(3)
    assert "cluster env_steps 15" in output.getvalue()
    assert "\x1b[3" not in output.getvalue()
    assert "ended with exit status 3" in output.getvalue()


def test_a_terminal_gets_one_live_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    output = Terminal()
    with display(output) as shown:
        shown.states["n0"].take_row(row(1234, 2, 2))
        shown.row_came(shown.states["n0"])
        shown.refresh()
        shown.note("n0", "a note")
        shown.summarise(0)
    text = output.getvalue()
    assert "1,234" in text
    assert "a note" in text
    assert "cluster env_steps" not in text
    assert "\x1b[" in text


def test_without_gossip_no_peers_are_counted() -> None:
    output = io.StringIO()
    with display(output, load_config(None, {"gossip.enabled": False}, {})) as shown:
        shown.states["n0"].take_row(row(1, 0, 0))
        assert "no gossip" in shown.line()
