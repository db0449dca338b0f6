from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from zpala.rl.priorities import Priorities, tree_bytes


def chi_square_limit(cells: int) -> float:
    """Four standard deviations above what chance gives."""
    return (cells - 1) + 4 * math.sqrt(2 * (cells - 1))


@pytest.mark.parametrize("size", [2, 5, 64, 100])
def test_slots_are_drawn_as_often_as_their_priorities_say(size: int) -> None:
    priorities = Priorities(size)
    rng = np.random.default_rng(size)
    values = rng.exponential(size=size)
    values[rng.random(size) < 0.3] = 0.0
    values[-1] = 2.0
    priorities.set(rng.permutation(size), 7.0)  # what is set again counts no more
    priorities.set(np.arange(size), values)
    assert priorities.total == pytest.approx(values.sum())
    generator = torch.Generator().manual_seed(3)
    drawn = np.concatenate([priorities.draw(10, generator) for _ in range(2000)])
    counts = np.bincount(drawn, minlength=size)
    assert len(counts) == size
    assert counts[values == 0.0].sum() == 0
    expected = 20_000 * values[values > 0] / values.sum()
    assert ((counts[values > 0] - expected) ** 2 / expected).sum() < chi_square_limit(len(expected))


def test_sums_stay_right_under_many_changes() -> None:
    priorities, values = Priorities(37), np.zeros(37)
    rng = np.random.default_rng(0)
    for _ in range(300):
        slots = rng.integers(0, 37, 9)
        given = rng.random(9)
        priorities.set(slots, given)
        for slot, value in zip(slots, given, strict=True):  # the last one of equal slots counts
            values[slot] = value
        assert priorities.get(np.arange(37)).tolist() == values.tolist()
        assert priorities.total == pytest.approx(values.sum(), rel=1e-12)


def test_one_is_drawn_from_each_share() -> None:
    priorities = Priorities(8)
    priorities.set(np.arange(8), 1.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        assert priorities.draw(8, generator).tolist() == list(range(8))


def test_no_rounding_leads_to_a_slot_that_holds_nothing() -> None:
    priorities = Priorities(64)
    rng = np.random.default_rng(1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        values = rng.random(64) * 10.0 ** rng.integers(-12, 12, 64)
        values[rng.random(64) < 0.6] = 0.0
        values[-5:] = 0.0
        values[0] = 1e-3
        priorities.set(np.arange(64), values)
        assert (values[priorities.draw(256, generator)] > 0.0).all()


def test_the_only_slot_is_always_drawn() -> None:
    priorities = Priorities(1)
    priorities.set(np.array([0]), 0.25)
    assert priorities.total == 0.25
    assert priorities.draw(3, torch.Generator()).tolist() == [0, 0, 0]


def test_nothing_can_be_drawn_from_nothing() -> None:
    with pytest.raises(ValueError, match="above 0"):
        Priorities(4).draw(1, torch.Generator())
    with pytest.raises(ValueError, match="at least one"):
        Priorities(0)


def test_its_memory_is_told_beforehand() -> None:
    assert [tree_bytes(size) for size in (1, 5, 8)] == [16, 128, 128]
