"""That the simulation's checks can fail: protocols with one rule broken are found out, each by the check that is meant for it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from zpala.gossip.buffers import BufferPool
from zpala.gossip.exchange import Exchanges
from zpala.gossip.exchange_state import State
from zpala.gossip.membership import Membership
from zpala.gossip.shadow import Shadow, Vector
from zpala.sim.faults import NAMES
from zpala.sim.simulation import Scenario, Simulation, simulate

SEEDS = 200


def caught(*texts: str, first: int = 0, seeds: int = SEEDS, faults: tuple[str, ...] = NAMES) -> int:
    """The first seed, from ``first`` on, with a violation that contains one of ``texts``; fails when there is none."""
    for seed in range(first, seeds):
        outcome = simulate(Scenario(seed=seed, seconds=60.0, faults=faults))
        if any(text in violation for violation in outcome.violations for text in texts):
            return seed
        if outcome.violations:
            pytest.fail(f"seed {seed} was caught by another check: {outcome.violations[:3]}")
    pytest.fail(f"not caught in {seeds} seeds")


def test_applying_without_the_peers_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Exchanges.on_data

    def on_data(self: Exchanges, member: Any, message: Any, payload: memoryview | None, now: float) -> None:
        original(self, member, dataclasses.replace(message, ok=True), payload, now)

    monkeypatch.setattr(Exchanges, "on_data", on_data)
    caught("and never by node", "was told to abort what it had applied", faults=("lost_message", "reset"))


def test_aborting_after_the_own_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Exchanges._expire

    def expire(self: Exchanges, item: Any, now: float) -> None:
        item.ok_sent = False
        original(self, item, now)

    monkeypatch.setattr(Exchanges, "_expire", expire)
    caught("and never by node", "was told to abort what it had applied", first=15)


def test_answering_an_offer_while_engaged(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Exchanges.on_offer

    def on_offer(self: Exchanges, member: Any, message: Any, refusal: str | None, final: bool, now: float) -> None:
        open_one = self.current
        if open_one is not None and open_one.xid != message.xid and open_one.state is State.ENGAGED and self._pool.free >= 2:
            self.doubts[open_one.xid] = open_one  # kept aside, still served: two exchanges from one shadow
            self.current = None
        original(self, member, message, refusal, final, now)

    monkeypatch.setattr(Exchanges, "on_offer", on_offer)
    caught("was in two exchanges at once", "KeyError")  # an illegal step raises


def test_freezing_the_snapshot_instead_of_the_shadow(monkeypatch: pytest.MonkeyPatch) -> None:
    publish = Shadow.publish
    last: dict[int, Vector] = {}

    def remember(self: Shadow, buffer: int, version: int, applied_through: int) -> tuple[int, ...]:
        last[id(self)] = self._pool[buffer].copy()
        return publish(self, buffer, version, applied_through)

    def freeze(self: Shadow) -> int:
        buffer = self._pool.take()
        assert buffer is not None
        self._pool[buffer][:] = last[id(self)]
        return buffer

    monkeypatch.setattr(Shadow, "publish", remember)
    monkeypatch.setattr(Shadow, "freeze", freeze)
    caught("its shadow is version")


def test_freeing_buffers_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BufferPool, "send", lambda self, index: None)
    monkeypatch.setattr(BufferPool, "sent", lambda self, index: None)
    caught("was overwritten while it was being sent", "have not come back", "only")


def test_blaming_others_for_the_own_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check that nobody is declared dead by a process that slept is the pause counter of a node; without it, the dead are many."""
    scenario = Scenario(seed=3, faults=("pause",))
    honest = simulate(scenario)
    assert honest.faults["pause"] > 3
    assert honest.counts["pauses"] > 0
    monkeypatch.setattr(Membership, "observe", lambda self, now: False)
    assert simulate(scenario).counts["dead"] > honest.counts["dead"]


def test_waiting_for_a_learner_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Membership, "stalled", lambda self, member, now: False)
    caught("whose learner it has not heard of", faults=("hang",))


def test_waiting_for_a_learner_that_hangs_with_max_lead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then its neighbours are forced on again and again, an update every six seconds."""
    scenario = Scenario(seed=24, seconds=60.0, faults=("hang",))
    honest = Simulation(scenario)
    outcome = honest.play()
    assert honest.cluster.settings.max_lead > 0
    assert outcome.faults["hang"] > 0
    assert outcome.violations == []
    monkeypatch.setattr(Membership, "stalled", lambda self, member, now: False)
    mutant = simulate(scenario)
    assert mutant.counts["gate_forced"] > outcome.counts["gate_forced"]
    assert any("was forced to open its gate" in violation for violation in mutant.violations)


def test_the_real_protocol_is_not_caught() -> None:
    for seed in range(6):
        outcome = simulate(Scenario(seed=seed, seconds=60.0))
        assert outcome.violations == [], f"seed {seed}"
