"""Two proxies with a toxic link each way: late, damaged or broken off DATA costs an exchange at most, and never a bit of the mean."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from tests.faults.toxic_proxy import Fault, ToxicProxy
from tests.node.pair import Pair
from zpala.node.links import Address

NUMEL = {"small": 10_000, "large": 200_000}  # 40 kB: OK travels with DATA; 800 kB: DATA both ways at once, and sent without a copy
ROUNDING = 1e-4  # of float32 additions; a delta that were lost, or applied on one side only, would be some 0.1
LIMIT_S = 30.0

MakePair = Callable[..., Pair]


class Wires:
    """A toxic proxy for every way in which one node dials another."""

    def __init__(self) -> None:
        self.links: dict[tuple[int, int], ToxicProxy] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Wires:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self, source: int, line: int, address: Address) -> Address:
        if source == line:
            return address
        link = self._stack.enter_context(ToxicProxy(address, seed=10 * source + line))
        self.links[source, line] = link
        return "127.0.0.1", link.port


@pytest.fixture
def wires() -> Iterator[Wires]:
    with Wires() as made:
        yield made


def start(make_pair: MakePair, wires: Wires, numel: int) -> tuple[Pair, np.ndarray]:
    """A pair that averages over the wires while its models drift apart, and what both held together in the beginning."""
    pair = make_pair(numel, through=wires, drift=0.1)
    before = pair.total()
    pair.more(2)
    return pair, before


def settle(pair: Pair, before: np.ndarray) -> None:
    """Waits for a moment at which both have applied the same exchanges, and compares what they hold together."""
    pair.run_until(lambda: pair.learners[0].deltas == pair.learners[1].deltas and pair.metric("doubts_open") == [0, 0], limit_s=LIMIT_S)
    np.testing.assert_allclose(pair.total(), before, atol=ROUNDING)
    assert pair.metric("defects") == [0, 0]
    assert pair.metric("abort_after_applied") == [0, 0]


def test_latency_and_jitter_make_exchanges_slow_and_nobody_dead(make_pair: MakePair, wires: Wires) -> None:
    pair, before = start(make_pair, wires, NUMEL["small"])
    for link in wires.links.values():
        for way in (link.up, link.down):
            way.delay(0.2, 0.1)
    pair.more(1)  # it may have been on its way
    began = time.monotonic()
    pair.more(4)
    assert time.monotonic() - began > 4 * 3 * 0.1, "an exchange takes three hops at least, and a hop 0.1 s"
    settle(pair, before)
    assert pair.metric("dead") == [0, 0]
    assert pair.metric("suspects") == [0, 0]
    for link in wires.links.values():
        for way in (link.up, link.down):
            assert way.counts["delayed"] > 0
    delays = [way.delay_sum_s / way.counts["delayed"] for link in wires.links.values() for way in (link.up, link.down)]
    assert min(delays) > 0.1


@pytest.mark.parametrize("numel", NUMEL.values(), ids=NUMEL)
def test_a_flipped_bit_in_data_is_refused_and_the_next_exchange_is_good(make_pair: MakePair, wires: Wires, numel: int) -> None:
    pair, before = start(make_pair, wires, numel)
    link = wires.links[0, 1]  # node 0 gets node 1's DATA as answers to what it asks here
    link.down.arm(Fault.FLIP, frame=4 * numel, offset=2 * numel)
    pair.run_until(lambda: pair.metric("rejected_checksum") == [1, 0], limit_s=LIMIT_S)
    assert [happened.fault for happened in link.down.happened] == [Fault.FLIP]
    pair.run_until(lambda: pair.metric("aborted") == [1, 1], limit_s=LIMIT_S)
    pair.more(3)
    settle(pair, before)
    assert pair.metric("rejected_checksum") == [1, 0]
    assert pair.metric("aborted") == [1, 1]


@pytest.mark.parametrize("line", [0, 1])
@pytest.mark.parametrize("numel", NUMEL.values(), ids=NUMEL)
def test_a_reset_in_the_middle_of_data_costs_the_exchange_at_most(make_pair: MakePair, wires: Wires, numel: int, line: int) -> None:
    pair, before = start(make_pair, wires, numel)
    link = wires.links[line, 1 - line]
    for offset in (1, 2 * numel, 4 * numel - 1):
        done = len(link.down.happened) + 1
        link.down.arm(Fault.RESET, frame=4 * numel, offset=offset)
        pair.run_until(lambda done=done: len(link.down.happened) == done, limit_s=LIMIT_S)  # type: ignore[misc]
        pair.more(2)
    settle(pair, before)
    assert [happened.fault for happened in link.down.happened] == [Fault.RESET] * 3
    assert link.resets >= 3
    assert pair.metric("rejected_checksum") == [0, 0]
    pair.run_until(lambda: pair.metric("sends_in_flight") == [0, 0])
