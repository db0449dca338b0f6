"""Where settings come from: a file, the environment or the command line, and how to name the place of one value in an error.

Pure text: it knows TOML, but no setting; ``config`` knows the settings and judges the values.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_HEADER = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(#.*)?$")
_ASSIGNMENT = re.compile(rf"\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*=")


@dataclass(frozen=True, slots=True)
class Source:
    """Values from one place.

    Args:
        name: the file's name; "" when ``places`` says it all.
        values: dotted name (``gossip.topology``) -> value.
        places: dotted name -> how a person finds it: "line 3", "--lr", "environment variable ZPALA_LR".
    """

    name: str
    values: Mapping[str, object]
    places: Mapping[str, str]

    def place(self, key: str) -> str:
        """Where ``key`` was set, or the closest thing around it."""
        part = key
        while part:
            if part in self.places:
                return f"{self.name}, {self.places[part]}" if self.name else self.places[part]
            part = part.rpartition(".")[0]
        return self.name or key


def toml_source(text: str, name: str) -> Source:
    """The values of a TOML document, one level of tables deep. Raises ``tomllib.TOMLDecodeError``."""
    values: dict[str, object] = {}
    for key, value in tomllib.loads(text).items():
        if isinstance(value, dict):
            values.update({f"{key}.{field}": entry for field, entry in value.items()})
        else:
            values[key] = value
    return Source(name, values, {key: f"line {number}" for key, number in key_lines(text).items()})


def key_lines(text: str) -> dict[str, int]:
    """Line of every key and table header. A scan, not a parser: good enough to point at a place in a file that has parsed."""
    lines: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = _dotted(header[1])
            lines.setdefault(table, number)
        elif assignment := _ASSIGNMENT.match(line):
            key = _dotted(assignment[1])
            lines.setdefault(f"{table}.{key}" if table else key, number)
    return lines


def parse_value(text: str) -> object:
    """A value as TOML writes it (12, 0.5, true, [1, 2], "text"); ``none`` is no value; anything else is the text itself."""
    text = text.strip()
    if text == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"] if "\n" not in text else text
    except tomllib.TOMLDecodeError:
        return text


def toml_value(value: object) -> str:
    """``value`` as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(entry) for entry in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {toml_value(entry)}" for key, entry in value.items()) + "}"
    return json.dumps(str(value)).replace("\x7f", "\\u007f")


def closest(word: str, names: Iterable[str]) -> str:
    """A sentence that offers the names most like ``word``, or all of them."""
    known = sorted(names)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(known)}."


def _dotted(key: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in key.split("."))
