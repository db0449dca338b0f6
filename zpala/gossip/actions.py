"""What the protocol wants done: the proxy turns these values into sends, connections, and mails to the learner. Nothing here runs.

Order matters: the proxy carries out the actions of one event in the order of the list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from zpala.gossip.events import ToLearnerEvent
from zpala.gossip.messages import DownMessage, UpMessage


@dataclass(frozen=True, slots=True)
class Payload:
    """Names the array that travels as the last frame; ``Protocol.payload_array`` gives the array itself.

    The array must not be copied; it stays untouched until the proxy has called ``Protocol.on_sent`` with this very value,
    once per SendDown, also when the send failed.
    """

    kind: Literal["buffer", "state"]
    index: int  # of the buffer pool, or of the state parts in their order


@dataclass(frozen=True, slots=True)
class SendUp:
    """Send on my DEALER to ``line``; a send that would block is dropped (and reported by ``on_link_lost``)."""

    line: int
    message: UpMessage


@dataclass(frozen=True, slots=True)
class SendDown:
    """Send on my ROUTER to the DEALER with routing id ``link``."""

    link: bytes
    message: DownMessage
    payload: Payload | None = None


@dataclass(frozen=True, slots=True)
class Dial:
    """Open a DEALER to the host of ``line``. No effect when there is one."""

    line: int


@dataclass(frozen=True, slots=True)
class Hangup:
    """Close the DEALER to ``line``. No effect when there is none."""

    line: int


@dataclass(frozen=True, slots=True)
class ToLearner:
    """Mail to the learner thread, in order."""

    event: ToLearnerEvent


@dataclass(frozen=True, slots=True)
class Log:
    """A line for the node's log; ``level`` is a name of the logging module."""

    level: Literal["debug", "info", "warning", "error"]
    text: str


Action = SendUp | SendDown | Dial | Hangup | ToLearner | Log


class Outbox:
    """Collects the actions of one event; the parts of the protocol write, ``Protocol`` empties it."""

    def __init__(self) -> None:
        self._actions: list[Action] = []

    def add(self, action: Action) -> None:
        self._actions.append(action)

    def learner(self, event: ToLearnerEvent) -> None:
        self._actions.append(ToLearner(event))

    def log(self, level: Literal["debug", "info", "warning", "error"], text: str) -> None:
        self._actions.append(Log(level, text))

    def take(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions
