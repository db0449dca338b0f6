"""What nodes tell each other of third ones: ages only grow on the way, the younger entry counts, old ones are no sign of life."""

from __future__ import annotations

import random

import pytest

from zpala.gossip.budget import BudgetCounter
from zpala.gossip.hearsay import FRESH_S, STATES, Hearsay, state_of
from zpala.gossip.membership import Phase
from zpala.gossip.messages import AGE_UNKNOWN, Condition, DigestEntry

RUNNING = state_of(Condition(phase=Phase.RUNNING), None)
LEAVING = state_of(Condition(phase=Phase.LEAVING), None)


def told(line: int, age: int, state: int = RUNNING, incarnation: int = 1) -> DigestEntry:
    return DigestEntry(line, incarnation, 0, age, state)


def test_a_chain_of_nodes_never_makes_news_younger() -> None:
    """Line 0 says something once; it is passed on from 1 to 2 to ... with chance pauses, each with a clock of its own."""
    rng = random.Random(3)
    skew = [rng.uniform(0.0, 1e6) for _ in range(20)]
    now, entry = 100.0, told(0, 0)
    for line in range(1, 20):
        node = Hearsay(line)
        node.hear([entry], now + skew[line])
        now += rng.uniform(0.0, 2.0)
        entry = node.entry(0, 1, 7, now + skew[line])
        assert now - 100.0 <= entry.age / 10 < now - 100.0 + 0.1 * line + 1e-6
        assert (entry.env_steps, entry.state) == (7, RUNNING)


def test_the_younger_entry_and_the_newer_process_count() -> None:
    node = Hearsay(0)
    node.hear([told(1, 50)], 100.0)
    node.hear([told(1, 80, LEAVING)], 101.0)
    assert [rumour.phase for rumour in node] == [Phase.RUNNING], "that was said before"
    node.hear([told(1, 0, LEAVING)], 102.0)
    assert node.live(102.0) == 0
    node.hear([told(1, 600, RUNNING, incarnation=2)], 103.0)
    assert [(rumour.phase, rumour.incarnation) for rumour in node] == [(Phase.RUNNING, 2)]
    node.hear([told(1, 0, RUNNING, incarnation=1)], 104.0)
    assert [rumour.incarnation for rumour in node] == [2], "a process that is no more"


def test_old_news_are_no_sign_of_life() -> None:
    node = Hearsay(0)
    node.hear([told(1, 0), told(2, 100)], 100.0)
    assert node.live(100.0) == 2
    assert node.live(100.0 + FRESH_S - 10.0 + 0.1) == 1
    assert [rumour.line for rumour in node.fresh(100.0 + FRESH_S)] == [1]
    assert node.live(100.0 + FRESH_S + 0.1) == 0


def test_nobody_tells_me_of_myself_and_what_says_nothing_is_not_taken() -> None:
    node = Hearsay(0)
    node.hear([told(0, 0), told(1, AGE_UNKNOWN), told(2, 0, STATES)], 100.0)
    assert list(node) == []
    assert node.entry(1, 1, 5, 100.0) == DigestEntry(1, 1, 5)


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_can_be_told(phase: Phase) -> None:
    node = Hearsay(0)
    node.hear([told(1, 0, state_of(Condition(phase=phase, return_mean=9.0, return_count=100), 8.0))], 1.0)
    (rumour,) = node
    assert (rumour.phase, rumour.reached) == (phase, True)
    assert node.all_reached(1.0, set())
    node.hear([told(2, 0, state_of(Condition(phase=Phase.RUNNING, return_mean=7.0, return_count=100), 8.0))], 1.0)
    assert not node.all_reached(1.0, set())
    assert node.all_reached(1.0, {2})


def test_a_long_list_is_told_in_turn_and_the_own_entry_every_time() -> None:
    counter = BudgetCounter(10**6, 1000)
    counter.set_own(500, 1, 5)
    for line in range(1000):
        counter.know(line, 1)
    heard: set[int] = set()
    for _ in range(16):
        entries = counter.entries()
        assert len(entries) == len(set(entries)) == 64
        assert entries[0] == DigestEntry(500, 1, 5)
        heard |= {entry.line for entry in entries}
    assert heard == set(range(1000))
