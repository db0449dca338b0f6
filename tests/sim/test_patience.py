"""For how long a node may wait for a learner that stands still, by hand: what counts as progress, and what is a violation."""

from __future__ import annotations

import pytest

from zpala.gossip.membership import Member
from zpala.gossip.messages import Condition
from zpala.gossip.settings import GossipSettings
from zpala.sim.patience import MAIL_S, Patience

ME = (0, 10)  # line, incarnation
SETTINGS = GossipSettings(heartbeat_s=0.5, stall_s=10.0)
ALLOWED_S = 10.0 + 0.5 + MAIL_S


def peer(updates: int, incarnation: int = 20) -> Member:
    return Member(1, incarnation=incarnation, condition=Condition(phase="running", updates=updates))


@pytest.fixture
def violations() -> list[str]:
    return []


@pytest.fixture
def patience(violations: list[str]) -> Patience:
    patience = Patience(SETTINGS, violations)
    patience.heard(ME, peer(30), 100.0)
    return patience


def test_a_learner_that_stands_still_is_waited_for_until_its_time_is_over(patience: Patience, violations: list[str]) -> None:
    patience.waits(ME, {1: 0.1}, 99.9 + ALLOWED_S, forced=False)
    assert violations == []
    for _ in range(2):  # told once
        patience.waits(ME, {1: 0.1}, 100.1 + ALLOWED_S, forced=False)
        patience.waits(ME, {1: 0.1}, 100.1 + ALLOWED_S, forced=True)
    assert violations == [
        "110.700: node 0 waits in its gate for node 1, whose learner it has not heard of for 10.7 s; 10.6 s are allowed",
        "110.700: node 0 was forced to open its gate, held by node 1, whose learner it has not heard of for 10.7 s; 10.6 s are allowed",
    ]


@pytest.mark.parametrize(
    ("updates", "incarnation", "progress"),
    [(30, 20, False), (29, 20, False), (40, 19, False), (31, 20, True), (0, 21, True)],  # another process is progress
)
def test_only_news_are_progress(patience: Patience, violations: list[str], updates: int, incarnation: int, progress: bool) -> None:
    patience.heard(ME, peer(updates, incarnation), 105.0)
    patience.waits(ME, {1: 0.1}, 101.0 + ALLOWED_S, forced=False)
    assert (violations == []) is progress
    patience.waits(ME, {1: 0.1}, 105.1 + ALLOWED_S, forced=False)
    assert len(violations) == 1


def test_after_a_pause_of_its_own_a_node_starts_anew(patience: Patience, violations: list[str]) -> None:
    patience.woke((2, 30), 108.0)
    patience.woke(ME, 107.0)
    patience.waits(ME, {1: 0.1}, 106.9 + ALLOWED_S, forced=True)
    assert violations == []
    patience.waits(ME, {1: 0.1}, 107.1 + ALLOWED_S, forced=True)
    assert len(violations) == 1


def test_a_slow_learner_has_twenty_of_its_periods(patience: Patience, violations: list[str]) -> None:
    patience.waits(ME, {1: 1.5}, 99.9 + 20 * 1.5 + 0.5 + MAIL_S, forced=False)
    assert violations == []
    patience.waits(ME, {1: 1.5}, 100.1 + 20 * 1.5 + 0.5 + MAIL_S, forced=False)
    assert len(violations) == 1
