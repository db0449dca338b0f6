"""The grow-only counter against a plain dictionary of maxima, with heartbeats lost, repeated and reordered."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zpala.gossip import budget
from zpala.gossip.budget import BudgetCounter
from zpala.gossip.messages import AGE_UNKNOWN, DigestEntry

QUICK = settings(max_examples=150, deadline=None, derandomize=True, database=None)
_entry = st.builds(DigestEntry, st.integers(0, 3), st.integers(1, 2), st.integers(0, 50), st.just(AGE_UNKNOWN), st.just(0))
entries = st.lists(_entry, max_size=12)


@QUICK
@given(entries)
def test_total_is_the_sum_of_maxima_in_any_order(news: list[DigestEntry]) -> None:
    best: dict[tuple[int, int], int] = {}
    for line, incarnation, env_steps, _, _ in news:
        best[line, incarnation] = max(env_steps, best.get((line, incarnation), 0))
    forward, backward = BudgetCounter(1000), BudgetCounter(1000)
    forward.merge(news)
    for counter in reversed(news + news):
        backward.merge([counter])
    assert forward.total() == backward.total() == sum(best.values())
    assert set(forward.entries()) == set(backward.entries()) == {DigestEntry(*key, steps) for key, steps in best.items()}


@QUICK
@given(st.lists(entries, max_size=6), st.integers(1, 300))
def test_total_and_progress_never_fall(heartbeats: list[list[DigestEntry]], total: int) -> None:
    counter = BudgetCounter(total)
    before = (0, 0.0)
    for heartbeat in heartbeats:
        grew = counter.merge(heartbeat)
        after = (counter.total(), counter.progress())
        assert after >= before
        assert grew == (after[0] > before[0])
        assert 0.0 <= after[1] <= 1.0
        assert counter.remaining() == max(0, total - after[0])
        before = after


def test_progress_is_clamped() -> None:
    counter = BudgetCounter(200)
    counter.set_own(0, 1, 50)
    assert counter.progress() == 0.25
    counter.set_own(0, 1, 500)
    assert counter.progress() == 1.0
    assert counter.total() == 500
    assert counter.remaining() == 0


def test_own_entry_only_grows_and_a_restart_is_a_new_entry() -> None:
    counter = BudgetCounter(1000)
    counter.set_own(2, 10, 40)
    counter.set_own(2, 10, 30)
    assert counter.total() == 40
    counter.set_own(2, 11, 5)
    assert counter.total() == 45
    assert counter.entries() == [DigestEntry(2, 11, 5), DigestEntry(2, 10, 40)]


def test_an_echo_of_the_own_entry_counts_once() -> None:
    counter = BudgetCounter(1000)
    counter.set_own(0, 1, 40)
    assert not counter.merge([DigestEntry(0, 1, 35), DigestEntry(0, 1, 40)])
    assert counter.total() == 40


@pytest.mark.parametrize("total", [0, -1])
def test_a_budget_is_positive(total: int) -> None:
    with pytest.raises(ValueError, match=f"the budget is {total} env_steps"):
        BudgetCounter(total)


def test_more_entries_than_fit_are_told_in_turn() -> None:
    counter = BudgetCounter(10**6)
    counter.set_own(7, 1, 1)
    counter.merge(DigestEntry(line, 9, line) for line in range(100))
    told: set[DigestEntry] = set()
    for _ in range(2):
        heartbeat = counter.entries(limit=64)
        assert len(heartbeat) == len(set(heartbeat)) == 64
        assert heartbeat[0] == DigestEntry(7, 1, 1)
        told |= set(heartbeat)
    assert len(told) == 101


def test_entries_that_fit_are_told_every_time() -> None:
    counter = BudgetCounter(10**6)
    counter.merge(DigestEntry(line, 9, 1) for line in range(64))
    assert counter.entries() == counter.entries() == [DigestEntry(line, 9, 1) for line in range(64)]
    assert len(counter.entries(limit=1)) == 1
    assert counter.entries(limit=0) == []


def test_the_table_is_bounded_and_the_own_entry_always_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "ENTRIES_MAX", 3)
    counter = BudgetCounter(100)
    counter.merge(DigestEntry(1, incarnation, 1) for incarnation in range(5))
    assert (counter.total(), counter.refused) == (3, 2)
    counter.merge([DigestEntry(1, 0, 2)])
    assert counter.total() == 4
    counter.set_own(0, 1, 10)
    assert (counter.total(), counter.refused) == (14, 2)


def test_rate_is_growth_over_time() -> None:
    counter = BudgetCounter(10**6)
    counter.set_own(0, 1, 0)
    assert counter.rate(10.0) == 0.0
    counter.set_own(0, 1, 500)
    counter.merge([DigestEntry(1, 1, 100)])
    counter.merge([DigestEntry(1, 1, 400)])
    assert counter.rate(12.0) == pytest.approx((500 + 300) / 2)


def test_rate_forgets_what_is_older_than_the_window() -> None:
    counter = BudgetCounter(10**6)
    rate = math.nan
    for second in range(21):
        counter.set_own(0, 1, 100 * min(second, 10))
        rate = counter.rate(float(second))
        assert rate == pytest.approx(100 * (min(second, 10) - min(max(0, second - 5), 10)) / min(second, 5) if second else 0.0)
    assert rate == 0.0


def test_adopting_an_old_run_is_no_speed() -> None:
    counter = BudgetCounter(10**7)
    counter.rate(0.0)
    counter.merge([DigestEntry(0, 1, 10**6), DigestEntry(1, 1, 10**6)])
    assert counter.rate(1.0) == 0.0


def test_rate_may_be_asked_often() -> None:
    """The samples stay few however often one asks."""
    counter = BudgetCounter(10**6)
    rate = math.nan
    for step in range(10_000):
        counter.set_own(0, 1, step)
        rate = counter.rate(step * 0.001)
    assert rate == pytest.approx(1000, rel=0.05)
    assert len(counter._samples) <= 60


def test_counts_that_cannot_be_true_are_refused() -> None:
    counter = BudgetCounter(1000)
    counter.set_own(0, 7, 10)
    counter.merge([DigestEntry(1, 1, 2**50), DigestEntry(1, 2, 2**50 + 1), DigestEntry(2, 1, 2**64 - 1)])
    assert counter.total() == 10 + 2**50
    assert counter.refused == 2
    counter.merge([DigestEntry(0, 7, 500)])  # my own: I know better
    assert counter.total() == 10 + 2**50
    counter.merge([DigestEntry(0, 6, 500)])  # my predecessor's
    assert counter.total() == 510 + 2**50
