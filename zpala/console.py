"""What one node says while it runs: log lines, rows of metrics and the summary, to a person or to ``zpala launch``.

Owns stdout and the handlers of the ``zpala`` logger. With ``ZPALA_LOG_FORMAT=json`` every line on stdout is one JSON object:
``{"event": "metrics", ...row}``, ``{"event": "log", "level": ..., "text": ...}``, ``{"event": "summary", ...}``. Otherwise rows stand on
stdout and log lines on stderr. Any thread may log; rows and the summary come from one thread.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from zpala.metrics import Row, format_line, jsonable

FORMAT_VARIABLE = "ZPALA_LOG_FORMAT"

_LOGGER = logging.getLogger("zpala")


class Console:
    """Use as a context manager around the life of a node; ``json_lines`` speaks to ``launch`` instead of a person."""

    def __init__(self, *, json_lines: bool) -> None:
        self._json_lines = json_lines
        self._lock = threading.Lock()
        self._handlers: list[logging.Handler] = [_JsonHandler(self) if json_lines else _person_handler()]

    def __enter__(self) -> Console:
        _LOGGER.setLevel(logging.INFO)
        _LOGGER.propagate = False
        for handler in self._handlers:
            _LOGGER.addHandler(handler)
        return self

    def __exit__(self, *exception: object) -> None:
        _LOGGER.propagate = True
        for handler in self._handlers:
            _LOGGER.removeHandler(handler)
            handler.close()

    def log_to(self, path: Path) -> None:
        """From now on log lines go to ``path`` too, with their time in UTC. A full disk ends no run."""
        handler = logging.FileHandler(path, encoding="utf-8", delay=True)
        formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(threadName)s %(message)s", "%Y-%m-%dT%H:%M:%S")
        formatter.converter = time.gmtime
        handler.setFormatter(formatter)
        handler.handleError = lambda record: None  # type: ignore[method-assign]
        self._handlers.append(handler)
        _LOGGER.addHandler(handler)

    def row(self, row: Row) -> None:
        """Shows one row of metrics. Never raises."""
        self._print(_event("metrics", row) if self._json_lines else format_line(row))

    def summary(self, facts: Row) -> None:
        """Shows how the run ended for this node: ``reason``, ``checkpoint``, ``exit_code``, final numbers. Never raises."""
        text = f"[{facts.get('node', 'node')}] ended ({facts.get('reason', '-')}), checkpoint {facts.get('checkpoint', '-')}"
        self._print(_event("summary", facts) if self._json_lines else text)

    def print_log(self, level: str, text: str) -> None:
        """A log line as an event on stdout."""
        self._print(_event("log", {"level": level, "text": text}))

    def _print(self, text: str) -> None:
        with self._lock:
            try:
                sys.stdout.write(text + "\n")
                sys.stdout.flush()
            except BrokenPipeError:  # nobody reads any more: the run goes on
                discard_output(sys.stdout)
            except (OSError, ValueError):
                pass


def discard_output(stream: IO[str]) -> None:
    """What ``stream`` still holds and what comes goes nowhere, also at the interpreter's end, which would turn the exit status into 120."""
    with suppress(OSError, ValueError, AttributeError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(descriptor, stream.fileno())
        finally:
            os.close(descriptor)


class _JsonHandler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        self._console.print_log(record.levelname, text)


def _event(name: str, facts: Row) -> str:
    return json.dumps({"event": name, **jsonable(facts)})


def _person_handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    return handler
