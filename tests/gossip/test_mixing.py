"""The arithmetic against float64 and independent references, its exact antisymmetry, its guards, and that it wakes no BLAS thread."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from zpala.gossip.mixing import (
    BLOCK_ELEMENTS,
    ROW_ELEMENTS,
    Guard,
    Vector,
    checksum,
    delta_into,
    new_digest,
    relative_distance,
    square_distance,
    square_norm,
)

SIZES = [1, 16, ROW_ELEMENTS - 1, ROW_ELEMENTS, ROW_ELEMENTS + 16, BLOCK_ELEMENTS, 2 * BLOCK_ELEMENTS + 3 * ROW_ELEMENTS + 16]
QUICK = settings(max_examples=100, deadline=None, derandomize=True, database=None)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)  # the tests run with denormals flushed


def vectors(size: int, seed: int = 0) -> tuple[Vector, Vector]:
    generator = np.random.default_rng(seed)
    return generator.standard_normal(size, dtype=np.float32), generator.standard_normal(size, dtype=np.float32)


@pytest.mark.parametrize("size", SIZES)
def test_delta_and_norms_against_float64(size: int) -> None:
    own, peer = vectors(size)
    out = np.full_like(own, 1e30)
    difference = peer.astype(np.float64) - own.astype(np.float64)
    digest = new_digest()
    squares = delta_into(peer, own, 0.5, out, digest)
    np.testing.assert_allclose(out, 0.5 * difference, rtol=1e-6, atol=1e-7)
    assert squares.distance == pytest.approx(float(difference @ difference), rel=1e-5)
    assert squares.norm == pytest.approx(float(peer.astype(np.float64) @ peer.astype(np.float64)), rel=1e-5)
    assert (square_norm(peer), square_distance(own, peer)) == squares  # to the last bit: both ends judge by equal numbers
    assert digest.intdigest() == checksum(peer)
    assert square_norm(own) == pytest.approx(float(own.astype(np.float64) @ own.astype(np.float64)), rel=1e-5)
    digest = new_digest()
    assert (square_norm(own, digest), digest.intdigest()) == (square_norm(own), checksum(own))


@pytest.mark.parametrize("size", SIZES)
def test_out_may_be_either_input(size: int) -> None:
    own, peer = vectors(size)
    expected = np.empty_like(own)
    delta_into(peer, own, 0.5, expected)
    over_peer, over_own = peer.copy(), own.copy()
    digest = new_digest()
    assert delta_into(over_peer, own, 0.5, over_peer, digest).norm == delta_into(peer, own, 0.5, expected).norm
    assert digest.intdigest() == checksum(peer)  # of what it was
    delta_into(peer, over_own, 0.5, over_own)
    assert over_peer.tobytes() == over_own.tobytes() == expected.tobytes()
    assert (own.tobytes(), peer.tobytes()) == tuple(vector.tobytes() for vector in vectors(size))


@pytest.mark.parametrize("weight", [0.5, 0.25, 1.0, 0.3])
def test_the_two_deltas_cancel_bit_for_bit(weight: float) -> None:
    own, peer = vectors(ROW_ELEMENTS + 16)
    own[:4] = [1e-42, 3e38, -0.0, 1e-38]  # denormal, near overflow, signed zero
    peer[:4] = [1e-44, 2e38, 0.0, 1.1e-38]
    mine, theirs = np.empty_like(own), np.empty_like(own)
    assert delta_into(peer, own, weight, mine).distance == delta_into(own, peer, weight, theirs).distance
    assert not np.any(mine + theirs)
    assert (-mine[np.nonzero(mine)]).tobytes() == theirs[np.nonzero(mine)].tobytes()


@QUICK
@given(st.lists(st.tuples(floats, floats), min_size=1, max_size=40), st.sampled_from([0.5, 0.1, 1.0]))
def test_the_two_deltas_cancel_for_any_floats(pairs: list[tuple[float, float]], weight: float) -> None:
    own, peer = np.array(pairs, dtype=np.float32).T.copy()
    mine, theirs = np.empty_like(own), np.empty_like(own)
    delta_into(peer, own, weight, mine)
    delta_into(own, peer, weight, theirs)
    np.testing.assert_array_equal(mine, -theirs)


def test_the_weight_scales_the_delta_and_not_the_distance() -> None:
    own, peer, delta = np.array([1, 2, -4], np.float32), np.array([3, 2, 4], np.float32), np.empty(3, np.float32)
    assert delta_into(peer, own, 0.25, delta) == (9 + 4 + 16, 4 + 0 + 64)
    assert delta.tolist() == [0.5, 0, 2]


def test_half_of_both_deltas_meets_in_the_middle() -> None:
    own, peer, delta = np.array([1, 2, -4], np.float32), np.array([3, 2, 4], np.float32), np.empty(3, np.float32)
    assert delta_into(peer, own, 0.5, delta) == (9 + 4 + 16, 4 + 0 + 64)
    assert (own + delta).tolist() == (peer - delta).tolist() == [2, 2, 0]


@pytest.mark.parametrize("size", SIZES)
def test_checksum_is_xxh3_of_the_bytes_and_sees_one_bit(size: int) -> None:
    own, _ = vectors(size)
    before = checksum(own)
    assert before == xxhash.xxh3_64(own.tobytes()).intdigest()
    own.view(np.uint32)[size // 2] ^= 1
    assert checksum(own) != before


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 1e30])
def test_one_bad_element_anywhere_shows_in_the_norm(size: int, poison: float) -> None:
    for place in {0, size // 2, size - 1}:
        own, peer = vectors(size)
        peer[place] = poison
        assert not any(map(math.isfinite, delta_into(peer, own, 0.5, np.empty_like(own))))
        assert not math.isfinite(square_norm(peer))
        assert not math.isfinite(square_distance(own, peer))
        assert Guard().verdict(square_norm(own), square_norm(peer), square_distance(own, peer)) == "nonfinite"


def test_an_empty_vector_has_no_length() -> None:
    nothing = np.empty(0, np.float32)
    assert (square_norm(nothing), square_distance(nothing, nothing), delta_into(nothing, nothing, 0.5, nothing)) == (0.0, 0.0, (0.0, 0.0))


@pytest.mark.parametrize(
    ("own", "peer", "distance"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([3.0, 4.0], [0.0, 0.0], 1.0),
        ([0.0, 0.0], [3.0, 4.0], 1.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([3.0, 4.0], [-3.0, -4.0], 2.0),
        ([0.0, 4.0], [3.0, 4.0], 0.6),
    ],
)
def test_relative_distance(own: list[float], peer: list[float], distance: float) -> None:
    one, two = np.array(own, np.float32), np.array(peer, np.float32)
    for a, b in ((one, two), (two, one)):
        assert relative_distance(square_norm(a), square_norm(b), square_distance(a, b)) == pytest.approx(distance, abs=1e-9)


@pytest.mark.parametrize("squares", [(math.nan, 1.0, 1.0), (1.0, math.inf, 1.0), (1.0, 1.0, math.nan), (math.inf, math.inf, math.inf)])
def test_nothing_finite_no_distance(squares: tuple[float, float, float]) -> None:
    assert relative_distance(*squares) == math.inf
    assert Guard(max_norm_ratio=math.inf, max_distance=math.inf).verdict(*squares) == "nonfinite"


@pytest.mark.parametrize(
    ("own_norm", "peer_norm", "distance", "verdict"),
    [
        (1.0, 1.0, 0.1, None),
        (1.0, 10.0, 9.5, None),
        (1.0, 10.01, 9.5, "norm"),
        (1.0, 0.01, 0.99, None),  # small is not large: the other side refuses this one
        (0.01, 1.0, 0.99, "norm"),
        (1.0, 1.0, 1.0, None),
        (1.0, 1.0, 1.001, "diverged"),
        (1.0, 1.0, 2.0, "diverged"),
        (0.0, 0.0, 0.0, None),
        (0.0, 1.0, 1.0, "norm"),
        (1.0, 0.0, 1.0, "norm"),
    ],
)
def test_guard(own_norm: float, peer_norm: float, distance: float, verdict: str | None) -> None:
    assert Guard().verdict(own_norm**2, peer_norm**2, distance**2) == verdict


def test_guards_can_be_switched_off() -> None:
    off = Guard(max_norm_ratio=math.inf, max_distance=math.inf)
    assert off.verdict(1.0, 1e12, 1e12) is None
    assert off.verdict(0.0, 1.0, 1.0) is None
    assert off.verdict(1.0, 0.0, 1.0) is None
    assert off.verdict(1.0, 1.0, 4.0) is None


def test_no_blas_thread_is_woken() -> None:
    """CPU time of all threads but the caller's, in a fresh process: none for every function here, some for a matrix product."""
    program = textwrap.dedent("""
        import os, pathlib, time
        import numpy as np
        from zpala.gossip.mixing import checksum, delta_into, new_digest, square_distance, square_norm

        def others():
            tasks = [task for task in pathlib.Path("/proc/self/task").iterdir() if task.name != str(os.getpid())]
            return len(tasks), sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)

        def asleep():
            tasks = [task for task in pathlib.Path("/proc/self/task").iterdir() if task.name != str(os.getpid())]
            return all((task / "stat").read_text().rsplit(")", 1)[1].split()[0] == "S" for task in tasks)

        own = np.ones(1_693_152, np.float32)
        peer, out = own * 2, own.copy()
        matrix = np.ones((500, 500), np.float32)
        matrix @ matrix  # the pool exists now; its threads spin for some time before they rest
        resting_since, last = time.monotonic(), others()[1]
        while time.monotonic() - resting_since < 0.3:
            if others()[1] != last or not asleep():  # a thread that spins may wait for a core
                resting_since, last = time.monotonic(), others()[1]
        count, before = others()
        for _ in range(20):
            square_norm(own), square_distance(own, peer), checksum(own), delta_into(peer, own, 0.5, out, new_digest())
        after = others()[1]
        for _ in range(5):
            matrix @ matrix
        print(count, after - before, others()[1] - after)
    """)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=50)
    threads, used_by_mixing, used_by_matrix = map(int, result.stdout.split())
    assert used_by_mixing == 0
    assert used_by_matrix > 0 or threads == 0  # the measure can see a pool, where there is one
