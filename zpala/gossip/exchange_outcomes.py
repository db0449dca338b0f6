"""How exchanges ended, remembered for long enough to answer a peer that still asks. Owns that memory; runs in the proxy thread."""

from __future__ import annotations

from zpala.gossip.exchange_state import Exchange, State
from zpala.gossip.messages import ExchangeId

OUTCOMES_MAX = 16_384


class Outcomes:
    """``keep_s``: how long a peer may be in doubt. Twice that outlasts every question it can have."""

    def __init__(self, keep_s: float) -> None:
        self._memory_s = 2 * keep_s
        self._outcomes: dict[ExchangeId, tuple[State, float]] = {}  # oldest first

    def remember(self, exchange: Exchange, now: float) -> None:
        """``exchange`` has ended in the state that it is in; what is too old is forgotten."""
        self._outcomes[exchange.xid] = (exchange.state, now)
        horizon = now - self._memory_s
        while len(self._outcomes) > 1:
            oldest = next(iter(self._outcomes))
            if self._outcomes[oldest][1] >= horizon and len(self._outcomes) <= OUTCOMES_MAX:
                break
            del self._outcomes[oldest]

    def get(self, xid: ExchangeId, now: float) -> State | None:
        """APPLIED, ABORTED or GIVEN_UP; None when it never ended here, or too long ago."""
        state, at = self._outcomes.get(xid, (None, now))
        return state if now - at <= self._memory_s else None
