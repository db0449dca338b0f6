"""What a node believes of its peers: liveness, progress, incarnations, and that it blames nobody for its own pause."""

from __future__ import annotations

import pytest

from zpala.gossip.membership import Liveness, Member, Membership, Phase
from zpala.gossip.messages import Condition
from zpala.gossip.settings import GossipSettings

SETTINGS = GossipSettings()  # suspect 2 s, dead 5 s, stall 10 s, heartbeat 0.5 s


def make(now: float = 0.0) -> tuple[Membership, Member]:
    membership = Membership(0, 3, SETTINGS, now)
    member = membership.get(1)
    assert member is not None
    membership.renew(member, 7, now)
    membership.bind(member, b"link", 42)
    member.session_out, member.incarnation_out = 5, 7
    membership.heard(member, now)
    return membership, member


def running(updates: int) -> Condition:
    return Condition(phase=Phase.RUNNING, updates=updates, version=updates)


def advance(membership: Membership, start: float, end: float) -> list[tuple[float, Liveness]]:
    """Judge every half second, as the protocol does; returns when line 1 became what."""
    changes = []
    now = start
    while now <= end:
        membership.observe(now)
        changes += [(now, change.after) for change in membership.judge(now) if change.member.line == 1]
        now += 0.5
    return changes


def test_everybody_but_me_is_a_member() -> None:
    membership = Membership(1, 4, SETTINGS, 0.0)
    assert sorted(member.line for member in membership) == [0, 2, 3]
    assert membership.get(1) is None
    assert membership.get(9) is None


def test_silence_makes_suspect_then_dead_and_a_word_makes_alive() -> None:
    membership, member = make()
    assert advance(membership, 0.0, 8.0) == [(2.5, Liveness.SUSPECT), (5.5, Liveness.DEAD)]
    assert membership.heard(member, 8.0) is Liveness.DEAD
    assert member.liveness is Liveness.ALIVE


def test_who_was_never_heard_of_is_neither_suspect_nor_dead() -> None:
    membership, _ = make()
    advance(membership, 0.0, 20.0)
    stranger = membership.get(2)
    assert stranger is not None
    assert stranger.liveness is Liveness.UNKNOWN


def test_my_own_pause_is_nobodys_fault() -> None:
    membership, member = make()
    membership.learn(member, running(20), b"", 0.0)
    assert membership.observe(0.9) is False
    assert membership.observe(30.0) is True
    assert membership.judge(30.0) == []
    assert not membership.stalled(member, 30.0)
    assert membership.pauses == 1


def test_who_left_comes_back_only_as_another_process() -> None:
    membership, member = make()
    membership.left(member)
    assert membership.heard(member, 1.0) is Liveness.LEFT
    assert not member.live
    membership.renew(member, 8, 2.0)
    assert membership.heard(member, 2.0) is Liveness.UNKNOWN
    assert member.live


def test_a_new_incarnation_forgets_the_old_one() -> None:
    membership, member = make()
    membership.learn(member, running(50), b"n", 0.0)
    member.mixed_version, member.strikes, member.unanswered = 50, 2, 5
    membership.renew(member, 8, 1.0)
    assert (member.condition.updates, member.nonce, member.mixed_version, member.strikes, member.unanswered) == (0, b"", -1, 0, 0)
    assert membership.of_link(b"link") is None
    assert not member.established


def test_established_needs_both_directions_with_the_same_process() -> None:
    for incarnation_out, session_out, linked in [(7, 5, True), (6, 5, True), (7, None, True), (7, 5, False)]:
        membership, member = make()
        member.incarnation_out, member.session_out = incarnation_out, session_out
        if not linked:
            membership.unbind(member)
        assert member.established == ((incarnation_out, session_out, linked) == (7, 5, True))


def test_the_same_link_keeps_its_session_and_another_gets_a_new_one() -> None:
    membership, member = make()
    assert membership.bind(member, b"link", 43) == 42
    assert membership.bind(member, b"other", 44) == 44
    assert membership.of_link(b"link") is None
    assert membership.of_link(b"other") is member


def test_a_learner_that_counts_no_updates_stalls() -> None:
    membership, member = make()
    for k in range(1, 31):
        membership.learn(member, running(k), b"", 0.1 * k)
    membership.heard(member, 13.0)
    assert not membership.stalled(member, 13.0)
    assert membership.stalled(member, 13.1)
    membership.learn(member, running(31), b"", 13.2)
    assert not membership.stalled(member, 13.3)


def test_a_slow_learner_has_twenty_of_its_own_updates() -> None:
    membership, member = make()
    for k in range(1, 31):
        membership.learn(member, running(k), b"", 2.0 * k)
    assert member.update_period_s == pytest.approx(2.0)
    assert not membership.stalled(member, 60.0 + 39.0)
    assert membership.stalled(member, 60.0 + 41.0)


def test_the_first_ten_updates_neither_stall_nor_hold_the_gate() -> None:
    membership, member = make()
    membership.learn(member, running(9), b"", 0.0)
    assert not membership.stalled(member, 100.0)
    assert not membership.holds_gate(member, 0.1)
    membership.learn(member, running(10), b"", 1.0)
    assert membership.holds_gate(member, 1.1)


@pytest.mark.parametrize(
    "condition",
    [
        Condition(phase=Phase.FINISHED, updates=50),
        Condition(phase=Phase.JOINING, updates=50),
        Condition(phase=Phase.RUNNING, updates=50, finish_reason="budget"),
    ],
)
def test_who_does_not_learn_holds_no_gate(condition: Condition) -> None:
    membership, member = make()
    membership.learn(member, condition, b"", 0.0)
    assert not membership.holds_gate(member, 0.1)


def test_suspects_the_silent_and_the_quarantined_hold_no_gate() -> None:
    membership, member = make()
    membership.learn(member, running(50), b"", 0.0)
    assert membership.holds_gate(member, 0.1)
    member.unanswered = 3
    assert not membership.holds_gate(member, 0.1)
    member.unanswered = 0
    assert [membership.strike(member, 1.0) for _ in range(3)] == [False, False, True]
    assert not membership.holds_gate(member, 60.9)
    assert not membership.partner(member, 60.9)
    assert membership.holds_gate(member, 61.0 + 1e-9) == (not membership.stalled(member, 61.0))
    membership.judge(3.0)
    assert not membership.holds_gate(member, 100.0)


def test_older_news_is_not_taken() -> None:
    membership, member = make()
    assert membership.learn(member, running(10), b"n", 0.0)
    assert not membership.learn(member, Condition(phase=Phase.READY, updates=0), b"", 0.1)
    assert (member.condition.phase, member.nonce) == (Phase.RUNNING, b"n")


def test_quarantine_doubles() -> None:
    membership, member = make()
    for expected in (60.0, 120.0, 240.0):
        for _ in range(3):
            membership.strike(member, 0.0)
        assert member.quarantined_until == expected


def test_what_spoke_against_a_dropped_ones_pace_is_forgotten() -> None:
    """Else it would be SLOW, or no longer, at its first heartbeat after it has been taken back."""
    membership = Membership(0, 30, SETTINGS, 0.0)
    member = membership.get(1)
    assert member is not None
    assert membership.bounded
    membership.take(member)
    member.pace_since = 1.0
    membership.drop(member)
    membership.take(member)
    assert member.pace_since == float("inf")
