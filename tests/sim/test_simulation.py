"""Whole seeds: repeatable, every class of faults really happens, nothing is violated, what is violated is told."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from zpala.gossip.protocol import Protocol
from zpala.sim.cluster import VirtualCluster
from zpala.sim.faults import FAULTS, NAMES
from zpala.sim.simulation import Scenario, Simulation, names_of, simulate


def test_a_seed_is_played_in_the_same_way_twice_and_another_is_not() -> None:
    first, again, traced, other = (
        simulate(Scenario(seed=seed, seconds=60.0), traced=bool(traced)) for seed, traced in ((1, 0), (1, 0), (1, 1), (2, 0))
    )
    assert first == again
    assert first.counts["applied"] > 100
    assert (traced.record(), traced.distances) == (first.record(), first.distances)
    assert traced.trace
    assert first.record() != other.record()


@pytest.mark.parametrize("name", NAMES)
def test_a_class_of_faults_alone(name: str) -> None:
    happened = Counter[str]()
    for seed in range(100, 102 if name in FAULTS else 108):
        outcome = simulate(Scenario(seed=seed, seconds=60.0, faults=(name,)))
        assert outcome.violations == [], f"seed {seed}"
        assert outcome.counts["applied"] > 100
        happened.update(outcome.faults)
        happened.update(outcome.counts)
    assert happened[name] > 0
    effect = {"reset": "resets", "lost_message": "resets", "partition": "dead", "one_way": "held", "crash": "renewed", "pause": "pauses"}
    assert happened[effect.get(name, "applied")] > 0


def test_all_classes_together() -> None:
    happened = Counter[str]()
    for seed in range(200, 206):
        outcome = simulate(Scenario(seed=seed))
        assert outcome.violations == [], f"seed {seed}"
        happened.update(outcome.faults)
    assert {name for name, count in happened.items() if count} == set(NAMES)


def test_without_faults_nobody_is_suspected() -> None:
    outcome = simulate(Scenario(seed=7, seconds=60.0, faults=(), topology="full"))
    assert outcome.violations == []
    assert outcome.faults == {"boot": 0}
    assert (outcome.counts["suspects"], outcome.counts["dead"], outcome.counts["doubts"], outcome.counts["gate_forced"]) == (0, 0, 0, 0)
    assert outcome.distances[-1][1] < 1e-3


class Raises(Protocol):
    def on_cost(self, seconds: float, now: float) -> Any:
        raise RuntimeError("never called")

    def on_gate(self, closed: bool, now: float) -> Any:
        raise RuntimeError("a broken proxy")


def test_an_exception_of_the_protocol_is_a_violation() -> None:
    for seed in range(20):
        outcome = simulate(Scenario(seed=seed, seconds=60.0, faults=("hang",)), Raises)
        if outcome.violations:
            assert "RuntimeError: a broken proxy" in outcome.violations[0]
            assert any("on_gate" in line for line in outcome.trace)
            return
    pytest.fail("no gate was ever closed")


def test_a_node_that_stands_still_is_noticed() -> None:
    simulation = Simulation(Scenario(seed=1, seconds=60.0, faults=()))
    cluster = simulation.cluster
    cluster.later(20.0, setattr, None, cluster.nodes[2].learner, "update", lambda: None)
    cluster.later(20.0, setattr, None, cluster.nodes[2].learner, "when_idle", lambda: None)
    assert any("node 2" in text and "should have gone on" in text for text in simulation.play().violations)


def test_a_learner_that_hung_answers_its_mail_when_it_wakes() -> None:
    """Or nobody could adopt a state from that node ever after."""
    cluster = VirtualCluster(3, 4)
    assert cluster.run(10.0, cluster.all_started)
    donor = cluster.nodes[0]
    donor.learner.hang()
    donor.protocol._donor.capture()
    donor.do(donor.protocol.on_timer(cluster.now))
    cluster.run(2.0)
    assert donor.protocol._donor.capturing
    donor.learner.wake()
    assert not donor.protocol._donor.capturing


def test_a_changed_parameter_is_noticed() -> None:
    cluster = VirtualCluster(3, 1, periods=0.1)
    assert cluster.run(20.0, cluster.all_started)
    cluster.run(1.0)
    assert cluster.problems() == []
    cluster.nodes[1].learner.vector[3] += 0.01
    cluster.run(1.0)
    assert any("away from the ledger" in text for text in cluster.problems())
    cluster.nodes[1].learner.vector[-1] += 0.01
    assert any("must be 1" in text for text in cluster.problems())


def test_names() -> None:
    assert names_of(["pause", "reset", "pause"]) == ("reset", "pause")
    with pytest.raises(ValueError, match="no fault 'flood'; there are reset, "):
        names_of(["flood"])
