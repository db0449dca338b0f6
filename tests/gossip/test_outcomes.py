"""The memory of how exchanges ended: long enough for every question, and bounded."""

from __future__ import annotations

from zpala.gossip.exchange_outcomes import OUTCOMES_MAX, Outcomes
from zpala.gossip.exchange_state import Exchange, State
from zpala.gossip.membership import Member
from zpala.gossip.messages import ExchangeId, SnapshotDescription

KEEP_S = 10.0
MINE = SnapshotDescription(version=1, nbytes=4, checksum=0, square_norm=1.0)


def ended(number: int, state: State = State.APPLIED) -> Exchange:
    return Exchange(ExchangeId(0, 1, number), Member(1), state, 0, 1, MINE, final=False, started_at=0.0, deadline=0.0, retransmit_at=0.0)


def test_it_lasts_for_twice_the_time_that_a_doubt_does() -> None:
    outcomes = Outcomes(KEEP_S)
    outcomes.remember(ended(0), 5.0)
    outcomes.remember(ended(1, State.ABORTED), 6.0)
    assert outcomes.get(ExchangeId(0, 1, 0), 5.0 + 2 * KEEP_S) is State.APPLIED
    assert outcomes.get(ExchangeId(0, 1, 0), 5.1 + 2 * KEEP_S) is None
    assert outcomes.get(ExchangeId(0, 1, 1), 5.1 + 2 * KEEP_S) is State.ABORTED


def test_it_holds_so_many_and_then_forgets_the_oldest() -> None:
    outcomes = Outcomes(KEEP_S)
    exchange = ended(0)
    for number in range(OUTCOMES_MAX):
        exchange.xid = ExchangeId(0, 1, number)
        outcomes.remember(exchange, 5.0)
    assert outcomes.get(ExchangeId(0, 1, 0), 5.0) is State.APPLIED
    outcomes.remember(ended(OUTCOMES_MAX), 5.0)
    assert outcomes.get(ExchangeId(0, 1, 0), 5.0) is None
    assert outcomes.get(ExchangeId(0, 1, 1), 5.0) is State.APPLIED
    assert outcomes.get(ExchangeId(0, 1, OUTCOMES_MAX), 5.0) is State.APPLIED
