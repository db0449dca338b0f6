"""The ledger against hand-worked sums: what it accepts, what it accounts for, what it calls a violation."""

from __future__ import annotations

import numpy as np
import pytest

from zpala.gossip.exchange_state import Exchange, State
from zpala.gossip.membership import Member
from zpala.gossip.messages import ExchangeId, SnapshotDescription
from zpala.sim.ledger import Ledger

A, B = (0, 10), (1, 20)  # line, incarnation
DELTA = np.array([0.25, -0.5], np.float32)


def exchange(peer: tuple[int, int], number: int = 0, started_at: float = 5.0) -> Exchange:
    """One side of exchange ``number``; ``peer`` is whom it is with."""
    member = Member(peer[0], incarnation=peer[1])
    mine = SnapshotDescription(version=1, nbytes=8, checksum=0, square_norm=1.0)
    xid = ExchangeId(0, 10, number)
    return Exchange(xid, member, State.APPLIED, 0, 1, mine, False, started_at, 10.0, 10.0)


@pytest.fixture
def violations() -> list[str]:
    return []


@pytest.fixture
def ledger(violations: list[str]) -> Ledger:
    return Ledger(2, 30.0, violations)


def test_what_both_sides_apply_cancels(ledger: Ledger, violations: list[str]) -> None:
    start = np.array([3.0, 4.0])
    ledger.moved(start)
    ledger.completed(A, exchange(B), DELTA, 6.0)
    assert ledger.error(start + DELTA) == 0  # on one side so far
    assert ledger.error(start) == 0.5
    ledger.completed(B, exchange(A), -DELTA, 6.1)
    assert ledger.error(start) == 0
    ledger.check_halves(1000.0)
    assert violations == []


def test_deltas_that_do_not_cancel(ledger: Ledger, violations: list[str]) -> None:
    ledger.completed(A, exchange(B), DELTA, 6.0)
    ledger.completed(B, exchange(A), -np.nextafter(DELTA, np.float32(9)), 6.1)
    assert ["do not cancel" in text for text in violations] == [True]


def test_applying_twice(ledger: Ledger, violations: list[str]) -> None:
    ledger.completed(A, exchange(B), DELTA, 6.0)
    ledger.completed(A, exchange(B), -DELTA, 6.1)
    assert ["twice" in text for text in violations] == [True]


def test_one_side_only_for_too_long(ledger: Ledger, violations: list[str]) -> None:
    ledger.completed(A, exchange(B), DELTA, 6.0)
    ledger.check_halves(36.0)
    assert violations == []
    ledger.check_halves(36.1)
    assert "never by node 1" in violations[0]


@pytest.mark.parametrize("expires_first", [True, False])
def test_a_counted_defect_is_accounted_for(ledger: Ledger, violations: list[str], expires_first: bool) -> None:
    if expires_first:
        ledger.expired(B, exchange(A))
        ledger.completed(A, exchange(B), DELTA, 6.0)
    else:
        ledger.completed(A, exchange(B), DELTA, 6.0)
        ledger.expired(B, exchange(A))
    assert (ledger.defects, ledger.deaths) == (1, 0)
    assert ledger.error(DELTA.astype(np.float64)) == 0
    ledger.check_halves(1000.0)
    assert violations == []


@pytest.mark.parametrize("gone", [A, B])
def test_whoever_dies_in_the_middle_is_accounted_for(ledger: Ledger, violations: list[str], gone: tuple[int, int]) -> None:
    """A has applied, B not yet. Of two nodes at 1 the survivor is at 1 + delta (A) or at 1 (B)."""
    ledger.moved(np.full(2, 2.0))
    ledger.completed(A, exchange(B), DELTA, 6.0)
    ledger.moved(-(1.0 + DELTA.astype(np.float64)) if gone == A else -np.ones(2))
    ledger.ended(gone)
    assert ledger.error(np.ones(2) if gone == A else 1.0 + DELTA.astype(np.float64)) == 0
    assert (ledger.defects, ledger.deaths) == (0, 1)
    if gone == A:  # its OK was under way
        ledger.completed(B, exchange(A), -DELTA, 7.0)
        assert ledger.error(1.0 - DELTA.astype(np.float64)) == 0
    ledger.check_halves(1000.0)
    assert violations == []


def test_a_sum_that_is_off(ledger: Ledger, violations: list[str]) -> None:
    ledger.check(np.zeros(2), 1.0)
    ledger.check(np.array([0.0, 1e-3]), 2.0)
    assert ["away from the ledger" in text for text in violations] == [True]
    assert ledger.worst_error == pytest.approx(1e-3)


def test_two_exchanges_at_once(ledger: Ledger, violations: list[str]) -> None:
    ledger.slot(A, exchange(B, 0, started_at=1.0), 2.0)
    ledger.slot(A, exchange(B, 1, started_at=2.0), 4.0)
    ledger.slot(B, exchange(A, 1, started_at=3.0), 4.0)
    assert violations == []
    ledger.slot(A, exchange(B, 2, started_at=3.9), 5.0)
    assert ["two exchanges at once" in text for text in violations] == [True]
