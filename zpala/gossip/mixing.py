"""The arithmetic of one exchange on flat float32 vectors: delta, checksum, norm, distance, and the guards of design D16.

Owns no buffer and no state. Runs in the proxy thread, so nothing here may wake a BLAS or OpenMP pool (design D14): a BLAS that threads its
dot product does so for long vectors only (OpenBLAS: above 10,000 elements), so every dot product here is one of many short rows. Vectors
are walked in blocks that stay in the cache from the first step to the last, so that several steps cost about one pass over memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

Vector = npt.NDArray[np.float32]

ROW_ELEMENTS = 8192  # one dot product; below the 10,000 from which OpenBLAS may use its pool
BLOCK_ELEMENTS = 16 * ROW_ELEMENTS  # 512 KiB, half of a usual L2 cache


class Squares(NamedTuple):
    """>= 0; inf or nan when something is not finite."""

    norm: float  # peer.peer
    distance: float  # (peer - own).(peer - own)


def delta_into(peer: Vector, own: Vector, weight: float, out: Vector, digest: xxhash.xxh3_64 | None = None) -> Squares:
    """out = weight * (peer - own), and what the peer is judged by, in one pass; ``out`` may be ``peer`` or ``own`` itself.

    The peer's delta is the same with the sign turned, bit for bit, because rounding is symmetric in sign: so an exchange adds exactly
    zero to the sum over the network.

    Args:
        peer, own, out: f32[numel], contiguous.
        weight: the mixing weight in (0, 1], equal on both nodes.
        digest: is updated with the bytes of ``peer``.
    """
    factor = np.float32(weight)
    norm = distance = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(own), BLOCK_ELEMENTS):
            stop = start + BLOCK_ELEMENTS
            block = peer[start:stop]
            if digest is not None:
                digest.update(block.data)
            norm += _block_square_norm(block)
            block = np.subtract(block, own[start:stop], out=out[start:stop])
            distance += _block_square_norm(block)
            np.multiply(block, factor, out=block)
    return Squares(norm, distance)


def checksum(buffer: Vector) -> int:
    """xxh3_64 of the bytes, an int in [0, 2^64). Detects damage, not malice. Source: github.com/Cyan4973/xxHash."""
    return xxhash.xxh3_64_intdigest(buffer.data)


def new_digest() -> xxhash.xxh3_64:
    """To be updated with the bytes piece by piece: ``intdigest()`` is then their ``checksum``."""
    return xxhash.xxh3_64()


def square_norm(buffer: Vector, digest: xxhash.xxh3_64 | None = None) -> float:
    """buffer.buffer, >= 0. inf or nan exactly when an element is not finite or the squares overflow float32 (|x| about 1e19).

    Rows are summed in float32, the rows' sums in float64. Two machines may differ in the last digits: never compare for equality.

    Args:
        digest: is updated with the bytes, in the same pass.
    """
    norm = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(buffer), BLOCK_ELEMENTS):
            block = buffer[start : start + BLOCK_ELEMENTS]
            if digest is not None:
                digest.update(block.data)
            norm += _block_square_norm(block)
    return norm


def square_distance(own: Vector, peer: Vector) -> float:
    """(peer - own).(peer - own) without changing either; the same number that ``delta_into`` finds."""
    scratch = np.empty(min(BLOCK_ELEMENTS, len(own)), dtype=np.float32)
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(own), BLOCK_ELEMENTS):
            block = own[start : start + BLOCK_ELEMENTS]
            total += _block_square_norm(np.subtract(peer[start : start + BLOCK_ELEMENTS], block, out=scratch[: len(block)]))
    return total


def relative_distance(own_square_norm: float, peer_square_norm: float, square_distance: float) -> float:
    """||peer - own|| / max(||own||, ||peer||), from the squares: 0.0 for two zero vectors, inf when anything is not finite.

    At most 2. Both nodes of an exchange compute it from the same two snapshots.
    """
    if not _all_finite(own_square_norm, peer_square_norm, square_distance):
        return math.inf
    largest = max(own_square_norm, peer_square_norm)
    return math.sqrt(square_distance / largest) if largest > 0.0 else 0.0


@dataclass(frozen=True, slots=True)
class Guard:
    """What a peer's snapshot must satisfy before it may touch the own model (design D16).

    Args:
        max_norm_ratio: refuse ||peer|| > max_norm_ratio * ||own||; > 0, inf switches it off.
        max_distance: refuse a relative distance above it; > 0, inf switches it off.
    """

    max_norm_ratio: float = 10.0
    max_distance: float = 1.0

    def verdict(self, own_square_norm: float, peer_square_norm: float, square_distance: float) -> str | None:
        """None when the snapshot is good, else the code for ABORT: "nonfinite", "norm" or "diverged".

        A zero vector against one that is not zero is refused as "norm" whichever side has it: the ratio is infinite from one of the two.
        """
        if not _all_finite(own_square_norm, peer_square_norm, square_distance):
            return "nonfinite"
        if math.isfinite(self.max_norm_ratio):
            if (own_square_norm == 0.0) != (peer_square_norm == 0.0):
                return "norm"
            if peer_square_norm > self.max_norm_ratio**2 * own_square_norm:
                return "norm"
        if relative_distance(own_square_norm, peer_square_norm, square_distance) > self.max_distance:
            return "diverged"
        return None


def _block_square_norm(block: Vector) -> float:
    if len(block) < ROW_ELEMENTS:
        return float(np.vecdot(block, block))
    whole = len(block) - len(block) % ROW_ELEMENTS
    rows = block[:whole].reshape(-1, ROW_ELEMENTS)
    rest = block[whole:]
    return float(np.vecdot(rows, rows).sum(dtype=np.float64)) + float(np.vecdot(rest, rest))


def _all_finite(*numbers: float) -> bool:
    return all(map(math.isfinite, numbers))
