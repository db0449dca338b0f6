"""The vectors that ``zpala bench`` moves: where each side starts, the mean of the starts, and how far from it something is."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]

SIDES = 2
ALIGNMENT = 16  # floats; every size is a multiple of it, as a model's flat vector is


def start_vector(side: int, size: int) -> Vector:
    """f32[size]: anybody can compute it, so that the mean of the starts is known everywhere."""
    return np.random.default_rng(side).normal(1.0, 0.5, size).astype(np.float32)


def mean_of_starts(size: int) -> npt.NDArray[np.float64]:
    """f64[size]."""
    mean = np.zeros(size)
    for side in range(SIDES):
        mean += start_vector(side, size) / SIDES
    return mean


def digest(vector: Vector) -> dict[str, Any]:
    """What a side says of its vector f32[size]: its relative distance from the mean of the starts, and whether all of it is finite."""
    mean = mean_of_starts(vector.size)
    distance = float(np.linalg.norm(vector - mean) / np.linalg.norm(mean))
    return {"distance": distance, "finite": bool(np.isfinite(vector).all()), "sum": float(vector.astype(np.float64).sum())}
