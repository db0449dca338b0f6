"""Two nodes as threads: real protocols, real proxies, real sockets; only the learners are played, by the test's own thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.node.conftest import terminate
from tests.node.pair import Pair
from zpala.node.mailbox import LeaveRun, RunFinished


@pytest.fixture
def make_pair() -> Iterator[Callable[..., Pair]]:
    made: list[Pair] = []

    def factory(numel: int, initial: str = "own") -> Pair:
        made.append(Pair(numel, initial))
        return made[-1]

    yield factory
    for pair in made:
        pair.stop()
    for pair in made:
        assert all(supervisor.first is None for supervisor in pair.supervisors)


@pytest.mark.parametrize("numel", [1_008, 10_000, 1_700_000], ids=["4 kB, copied", "40 kB, copied", "6.8 MB, tracked"])
def test_two_nodes_average_to_their_mean(make_pair: Callable[..., Pair], numel: int) -> None:
    pair = make_pair(numel)
    before = sum(learner.model.astype(np.float64) for learner in pair.learners)
    pair.run_until(lambda: min(learner.deltas for learner in pair.learners) >= 5, limit_s=30.0)
    assert pair.distance() < 1e-5
    pair.run_until(lambda: pair.learners[0].deltas == pair.learners[1].deltas)
    after = sum(learner.model.astype(np.float64) for learner in pair.learners)
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_the_second_node_adopts_the_first_one_s_parameters(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(50_000, "adopt")
    first = pair.learners[0].model.copy()
    pair.run_until(lambda: min(learner.deltas for learner in pair.learners) >= 1)
    for learner in pair.learners:
        np.testing.assert_allclose(learner.model, first, atol=1e-6)


def test_a_finished_run_drains_and_both_leave(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(50_000)
    pair.run_until(lambda: min(learner.deltas for learner in pair.learners) >= 1)
    for learner in pair.learners:
        learner.proxy.mailbox.send(RunFinished("budget"))
    pair.run_until(lambda: all(learner.drained for learner in pair.learners), limit_s=20.0)
    assert pair.distance() < 1e-3


def test_a_node_that_leaves_is_gone_for_the_other(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(50_000)
    first, second = pair.learners
    pair.run_until(lambda: first.view is not None and first.view.live == 1 and second.deltas >= 1)
    second.proxy.mailbox.send(LeaveRun())
    pair.run_until(lambda: bool(second.drained))
    second.proxy.stop()
    pair.learners = [first]
    pair.supervisors, others = pair.supervisors[:1], pair.supervisors[1:]
    pair.run_until(lambda: first.view is not None and first.view.live == 0)
    for supervisor in others:
        supervisor.close()
    terminate(pair.contexts.pop())
