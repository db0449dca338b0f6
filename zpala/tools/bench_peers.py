"""Two processes that do something together, as often as they are told: how ``zpala bench`` measures what takes two.

Owns the two children and the order of what they are told; what they do stands in their own modules (``bench_gossip``, ``bench_tcp``,
``bench_gloo``). Between two blocks they wait for orders and take no core, so several pairs can be measured in turn within one run.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from zpala.exit_codes import ExitCode
from zpala.tools.child import Child, ChildFailed

LIMIT_S = 60.0  # for a block, and for the start: importing torch takes seconds on a busy machine
SIDES = 2


@dataclass(frozen=True, slots=True)
class Block:
    """What both processes did in one block.

    Attributes:
        starts, ends: per side, per repetition, monotonic seconds; the clock is one for all processes of a machine.
        cpu_s: per side, of the whole block, all threads of the process.
        rows: per side, per repetition: whatever else it noted.
    """

    starts: Sequence[Sequence[float]]
    ends: Sequence[Sequence[float]]
    cpu_s: Sequence[float]
    rows: Sequence[Sequence[Mapping[str, float]]] = field(default_factory=tuple)

    @property
    def seconds(self) -> list[float]:
        """Of every repetition: from the moment at which the later side began to the moment at which the later side was done."""
        began = (max(pair) for pair in zip(*self.starts, strict=True))
        ended = (max(pair) for pair in zip(*self.ends, strict=True))
        return [end - begin for begin, end in zip(began, ended, strict=True)]

    @property
    def cpu_per_repetition_s(self) -> float:
        """Mean of the two sides."""
        return statistics.fmean(self.cpu_s) / len(self.ends[0])


class Peers:
    """Use as a context manager: both processes are gone afterwards.

    Args:
        name: what error texts call them.
        module: started twice as ``python -m module '<settings as JSON>'``, with ``"side"`` 0 and 1 among the settings. Each says an object
            with ``"event": "here"`` when it has started; the first order that it gets is ``{"peers": [both objects]}``.
        variables: of their environment.
    """

    def __init__(self, name: str, module: str, settings: Mapping[str, Any], variables: Mapping[str, str] | None = None) -> None:
        self._name = name
        self._command = [sys.executable, "-m", module]
        self._settings = settings
        self._variables = dict(variables or {})
        self._stack = ExitStack()
        self._children: list[Child] = []
        self._events: list[Iterator[dict[str, Any]]] = []

    def __enter__(self) -> Peers:
        with ExitStack() as stack:
            for side in range(SIDES):
                command = [*self._command, json.dumps({**self._settings, "side": side})]
                child = stack.enter_context(Child(f"{self._name} {side}", command, self._variables, takes_orders=True))
                self._children.append(child)
                self._events.append(child.events(LIMIT_S))
            here = self._hear("here")
            self._tell({"peers": here})
            self._hear("ready")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def block(self, count: int, **order: Any) -> Block:
        """``count`` repetitions. Raises ChildFailed."""
        self._tell({"count": count, **order})
        said = self._hear("block")
        return Block(*([side[key] for side in said] for key in ("starts", "ends", "cpu_s", "rows")))

    def result(self, **order: Any) -> list[dict[str, Any]]:
        """What each side has to say when asked for the state that the blocks so far have led to."""
        self._tell({"result": True, **order})
        return self._hear("result")

    def _tell(self, order: Mapping[str, Any]) -> None:
        for child in self._children:
            child.tell(order)

    def _hear(self, kind: str) -> list[dict[str, Any]]:
        """The next event of this kind of each side. When one side fails, the other waits for it in vain: both tell what they said."""
        found, failures = [], []
        for side in range(SIDES):
            try:
                found.append(self._next(side, kind))
            except ChildFailed as error:
                failures.append(error)
        if failures:
            raise ChildFailed("\n".join(map(str, failures)), failures[-1].exit_code)
        return found

    def _next(self, side: int, kind: str) -> dict[str, Any]:
        for event in self._events[side]:
            if event.get("event") == kind:
                return event
        raise ChildFailed(f"{self._name} {side} ended too early.", ExitCode.UNEXPECTED)
