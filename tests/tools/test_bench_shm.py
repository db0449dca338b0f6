"""Gossip over shared memory: what is sent, mixed and waited for, against lists of floats; in one process and in two."""

from __future__ import annotations

import multiprocessing
import threading

import pytest
import torch
from torch import Tensor

from zpala.tools.bench_shm import Neighbours, Ring

LIMIT_S = 120.0
START = {0: [1.0, -2.0, 8.0], 1: [5.0, 6.0, 0.5], 2: [0.0, 3.0, -4.0]}


def ring(learners: int) -> Ring:
    return Ring(multiprocessing.get_context("spawn"), learners, 3)


def members(shared: Ring, max_staleness: int = 0, limit_s: float = LIMIT_S) -> list[tuple[Tensor, Neighbours]]:
    made = []
    for line in range(shared.learners):
        parameters = torch.tensor(START[line])
        made.append((parameters, Neighbours(shared, line, parameters, max_staleness, limit_s)))
    return made


def mean(one: list[float], other: list[float]) -> list[float]:
    return [(a + b) / 2 for a, b in zip(one, other, strict=True)]


def test_a_learner_mixes_what_its_predecessor_has_sent() -> None:
    (x0, first), (x1, second), (x2, third) = members(ring(3))
    first.updated()  # nothing has come from the third yet
    assert x0.tolist() == START[0]
    second.updated()
    assert x1.tolist() == mean(START[1], START[0])
    third.updated()  # the second sent what it was before it mixed
    assert x2.tolist() == mean(START[2], START[1])
    first.updated()
    assert x0.tolist() == mean(START[0], START[2])
    assert [one.mixed for one in (first, second, third)] == [1, 1, 1]


def test_a_message_is_read_once_and_not_overwritten_before() -> None:
    (x0, first), (x1, second) = members(ring(2))
    first.updated()
    x0.add_(100.0)
    first.updated()  # its first message is unread: this one is not sent
    assert (first.sent, first.skipped) == (1, 1)
    second.updated()
    assert x1.tolist() == mean(START[1], START[0])
    before = x1.tolist()
    second.updated()  # nothing new
    assert x1.tolist() == before
    assert (second.mixed, second.staleness) == (1, 1)
    first.updated()  # reads the second's first message; its own goes out again
    assert x0.tolist() == mean([value + 100.0 for value in START[0]], START[1])
    assert first.sent == 2


def test_many_updates_in_any_order_follow_the_slow_formula() -> None:
    made = members(ring(3))
    x, box = {line: list(values) for line, values in START.items()}, dict.fromkeys(range(3), None)
    slow: dict[int, list[float] | None] = dict(box)
    for step, line in enumerate([0, 0, 2, 1, 1, 2, 0, 2, 1, 0, 0, 1, 2, 2, 1]):
        made[line][0].add_(step / 4)
        made[line][1].updated()
        x[line] = [value + step / 4 for value in x[line]]
        if slow[line] is None:
            slow[line] = list(x[line])
        message = slow[(line - 1) % 3]
        if message is not None:
            x[line] = mean(x[line], message)
            slow[(line - 1) % 3] = None
    for line in range(3):
        assert made[line][0].tolist() == pytest.approx(x[line], rel=1e-6)


def test_without_a_gate_nobody_waits() -> None:
    first = members(ring(2), max_staleness=0, limit_s=0.0)[0][1]
    for _ in range(50):
        first.updated()
    assert (first.staleness, first.mixed, first.waited_s) == (50, 0, 0.0)


def test_the_gate_closes_after_so_many_updates_without_news() -> None:
    first = members(ring(2), max_staleness=3, limit_s=0.01)[0][1]
    first.updated()
    first.updated()
    with pytest.raises(TimeoutError, match=r"sent nothing for 0\.01 s"):
        first.updated()


def test_news_open_the_gate() -> None:
    (x0, first), (_, second) = members(ring(2), max_staleness=1)
    waiting = threading.Thread(target=first.updated)
    waiting.start()
    second.updated()  # sends, and mixes what the first had sent
    waiting.join(LIMIT_S)
    assert not waiting.is_alive()
    assert x0.tolist() == mean(START[0], START[1])
    assert first.staleness == 0


def test_the_distance_is_relative_to_the_own_parameters() -> None:
    (x0, first), (x1, second) = members(ring(2))
    x0.copy_(torch.tensor([3.0, 4.0, 0.0]))
    x1.copy_(torch.tensor([3.0, 4.0, 10.0]))
    second.updated()
    first.updated(measure=True)
    assert first.distance == pytest.approx(2.0)


def test_a_learner_alone_goes_on_alone() -> None:
    ((x0, first),) = members(ring(1), max_staleness=1, limit_s=0.0)
    first.updated()
    assert x0.tolist() == START[0]


def rounds(
    shared: Ring, line: int, count: int, results: multiprocessing.queues.Queue[list[list[float]]] | None = None
) -> list[list[float]]:
    """``count`` updates, each of which adds line + 1 to the parameters; a barrier keeps both learners in step."""
    parameters = torch.tensor(START[line])
    neighbours = Neighbours(shared, line, parameters, max_staleness=1, limit_s=LIMIT_S)
    seen = []
    for _ in range(count):
        parameters.add_(line + 1.0)
        shared.start.wait(LIMIT_S)
        neighbours.updated()
        shared.start.wait(LIMIT_S)
        seen.append(parameters.tolist())
    if results is not None:
        results.put(seen)
    return seen


@pytest.mark.cluster
@pytest.mark.timeout(180)
def test_two_processes_mix_through_the_shared_memory() -> None:
    context = multiprocessing.get_context("spawn")
    shared = Ring(context, 2, 3)
    results = context.Queue()
    other = context.Process(target=rounds, args=(shared, 1, 4, results), daemon=True)
    other.start()
    try:
        mine, theirs = rounds(shared, 0, 4), results.get(timeout=LIMIT_S)
    finally:
        other.join(LIMIT_S)
        results.close()
        results.join_thread()
    x0, x1 = START[0], START[1]
    for row in range(4):
        x0, x1 = [value + 1 for value in x0], [value + 2 for value in x1]
        x0, x1 = mean(x0, x1), mean(x1, x0)
        assert mine[row] == x0
        assert theirs[row] == x1
