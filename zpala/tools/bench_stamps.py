"""Where the time of an exchange goes: a protocol that notes when which message came and how long it thought about it.

``StampedProtocol`` stands between the proxy and the real protocol, which it changes in nothing; ``Stamps`` keeps what it notes and makes
one row per exchange of it. Runs in the proxy thread; the learner reads it between two blocks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from zpala.gossip import messages as m
from zpala.gossip.actions import Action, Payload, SendUp
from zpala.gossip.events import Published
from zpala.gossip.protocol import Protocol

FREEZE = "frozen and described"
SIDE = " @ "  # between the name of a stage and the side whose it is
ASKING, ANSWERING = "asking side", "answering side"


class Stamps:
    """Moments by exchange number and column; monotonic seconds."""

    def __init__(self) -> None:
        self._moments: dict[int, dict[str, float]] = {}

    def note(self, number: int, **moments: float) -> None:
        """The first of every column counts: what is repeated comes later."""
        row = self._moments.setdefault(number, {})
        for column, moment in moments.items():
            row.setdefault(column, moment)

    def take(self, learner: Sequence[tuple[float, float, float]]) -> list[dict[str, float]]:
        """One row per exchange that has ended with a delta since the last call, in order; ``learner``: its stamps of the same deltas."""
        moments, self._moments = self._moments, {}
        rows = [moments[number] for number in sorted(moments) if {"judged_to", "agreed"} <= moments[number].keys()]
        found = []
        for row, (mailed, applied, published) in zip(rows, learner, strict=True):
            queued = max(row["judged_to"], row["agreed"])
            found.append({**row, "queued": queued, "mailed": mailed, "applied": applied, "published": published})
        return found


class StampedProtocol:
    """Everything that ``protocol`` is to a proxy, and ``stamps`` of what goes through it."""

    def __init__(self, protocol: Protocol, stamps: Stamps) -> None:
        self._protocol, self._stamps = protocol, stamps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol, name)

    def on_gate(self, closed: bool, now: float) -> list[Action]:
        began = time.monotonic()
        return self._offered(began, self._protocol.on_gate(closed, now))

    def on_published(self, published: Published, buffer: int, now: float) -> list[Action]:
        began = time.monotonic()
        return self._offered(began, self._protocol.on_published(published, buffer, now))

    def on_timer(self, now: float) -> list[Action]:
        began = time.monotonic()
        return self._offered(began, self._protocol.on_timer(now))

    def on_sent(self, payload: Payload, now: float) -> list[Action]:
        began = time.monotonic()
        return self._offered(began, self._protocol.on_sent(payload, now))

    def on_up(self, link: bytes, message: m.UpMessage, now: float, key: str | None = None) -> list[Action]:
        began = time.monotonic()
        actions = self._protocol.on_up(link, message, now, key)
        if isinstance(message, m.Offer):
            self._stamps.note(message.xid.number, frozen_from=began, frozen_to=time.monotonic())
        elif isinstance(message, m.Ok):
            self._stamps.note(message.xid.number, agreed=time.monotonic())
        return self._offered(began, actions)

    def on_down(self, line: int, message: m.DownMessage, payload: memoryview | None, now: float) -> list[Action]:
        began = time.monotonic()
        actions = self._protocol.on_down(line, message, payload, now)
        if isinstance(message, m.Accept):
            self._stamps.note(message.xid.number, accepted=began)
        elif isinstance(message, m.Data):
            ended = time.monotonic()
            self._stamps.note(message.xid.number, arrived=began, judged_to=ended, **({"agreed": ended} if message.ok else {}))
        return self._offered(began, actions)

    def _offered(self, began: float, actions: list[Action]) -> list[Action]:
        """Whatever the protocol was told, it may have led to an offer of its own."""
        for action in actions:
            if isinstance(action, SendUp) and isinstance(action.message, m.Offer):
                self._stamps.note(action.message.xid.number, frozen_from=began, frozen_to=time.monotonic())
        return actions


def stages(asking: Sequence[Mapping[str, float]], answering: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Stage -> seconds in every exchange, in the order in which they happen. ``asking``, ``answering``: the rows of side 0 and side 1."""
    found: dict[str, list[float]] = {}

    def add(name: str, side: str, seconds: float) -> None:
        found.setdefault(name + (SIDE + side if side else ""), []).append(seconds)

    for i, r in zip(asking, answering, strict=True):
        add(FREEZE, ASKING, i["frozen_to"] - i["frozen_from"])
        add("OFFER on its way", "", r["frozen_from"] - i["frozen_to"])
        add(FREEZE, ANSWERING, r["frozen_to"] - r["frozen_from"])
        add("DATA on its way", ASKING, i["arrived"] - r["frozen_to"])
        add("DATA on its way", ANSWERING, r["arrived"] - i["accepted"])
        for side, name in ((i, ASKING), (r, ANSWERING)):
            add("checked, made the delta", name, side["judged_to"] - side["arrived"])
            add("waited for the peer's OK", name, side["queued"] - side["judged_to"])
            add("mailed to the learner", name, side["mailed"] - side["queued"])
            add("added by the learner", name, side["applied"] - side["mailed"])
    return found
