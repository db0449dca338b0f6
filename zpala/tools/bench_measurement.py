"""What every command of ``zpala bench`` says: parts, the floor that they make, how near the whole comes to it, and what the limit is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from zpala.tools.bench_circumstances import Circumstances

Kind = Literal["speed", "time"]


@dataclass(frozen=True, slots=True)
class Part:
    """Something measured alone, at its best setting. ``seconds``: per unit of ``per``, for example one env_step; ``how``: that setting."""

    name: str
    seconds: float
    per: str
    how: str = ""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measurement beside its floor: what would be reached if nothing but the parts cost anything.

    Attributes:
        what: one line: what was measured, for how long.
        kind: "speed": ``measured`` and ``floor`` are ``unit`` per second and more is better; "time": they are seconds per ``unit``.
        unit: "env_step", "exchange", "message".
        parts: of the floor, and others that explain it.
        formula: of the floor, in the names of the parts.
        bottleneck: the part or stage that costs most, and what could be done about it, in one line.
        facts: everything else by name, for the JSON document and one line each for a person.
        details: the same, for the JSON document alone.
        notes: the same, for a person alone.
    """

    what: str
    kind: Kind
    unit: str
    measured: float
    floor: float
    parts: Sequence[Part]
    formula: str
    bottleneck: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def floor_ratio(self) -> float:
        """How near the whole comes to its floor: 1 is as good as the parts allow, in both kinds."""
        return self.measured / self.floor if self.kind == "speed" else self.floor / self.measured

    def document(self, where: Circumstances) -> dict[str, Any]:
        """As ``--json`` prints it. Of env_steps the keys are ``steps_per_second`` and ``floor_steps_per_second``."""
        if self.kind == "speed":
            name = "steps" if self.unit == "env_step" else f"{self.unit}s"
            figures = {f"{name}_per_second": self.measured, f"floor_{name}_per_second": self.floor}
        else:
            figures = {f"seconds_per_{self.unit}": self.measured, f"floor_seconds_per_{self.unit}": self.floor}
        return {
            "what": self.what,
            **figures,
            "floor_ratio": self.floor_ratio,
            "formula": self.formula,
            "bottleneck": self.bottleneck,
            "parts": [asdict(part) for part in self.parts],
            **self.facts,
            **self.details,
            "circumstances": asdict(where),
        }

    def text(self, where: Circumstances) -> str:
        """For a person, on one screen."""
        width = max((len(part.name) for part in self.parts), default=0)
        if self.kind == "speed":
            figure = f"{self.measured:,.1f} {self.unit}s/s, floor {self.floor:,.1f}, ratio {self.floor_ratio:.2f}"
        else:
            figure = f"{readable(self.measured)} per {self.unit}, floor {readable(self.floor)}, ratio {self.floor_ratio:.2f}"
        return "\n".join(
            [
                self.what,
                *(f"  {part.name:<{width}}  {readable(part.seconds):>9} per {part.per}  {part.how}".rstrip() for part in self.parts),
                f"measured    {figure}",
                f"floor       {self.formula}",
                f"bottleneck  {self.bottleneck}",
                *(f"{name:<10}  {value}" for name, value in self.facts.items() if isinstance(value, str | int | float)),
                *(f"{name:<10}  {value}" for name, value in self.notes.items()),
                *where.lines(),
            ]
        )


def last_line(document: Mapping[str, Any]) -> str:
    """A document as ``--json`` prints it: one line, the last of stdout. Numbers that JSON does not have (infinity) become null."""
    return json.dumps(_finite(document), allow_nan=False)


def readable(seconds: float) -> str:
    """Four digits and a unit: 141 us, 3.4 ms, 12 s."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1.0:
            return f"{seconds * factor:.4g} {unit}"
    return f"{seconds * 1e9:.4g} ns"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
