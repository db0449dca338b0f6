"""Observations of several arrays, packed into one row of bytes, so that whoever stores and carries observations need not know of parts.

Owns where in the row each part lies. A ``Dict`` within a ``Dict`` gives parts with a dot in the name.

===========================  =======================================================================================
space of a part              what the row holds
===========================  =======================================================================================
Box of uint8                 its bytes
Box of anything else         float32
MultiBinary                  float32, 0 or 1
Discrete, MultiDiscrete      float32, 1 at the value's place and 0 elsewhere; of several numbers, one such block after the other
===========================  =======================================================================================

Every part begins at a multiple of 16 bytes and the row is one, so that views of float32 are possible everywhere. The bytes between are 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from zpala.rl.action_spaces import sizes, starts

ALIGNMENT = 16  # bytes


@dataclass(frozen=True, slots=True)
class ObservationPart:
    """One array of an observation: ``dtype`` uint8 or float32, ``offset`` bytes from the beginning of the row."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def describe(self) -> str:
        return f"{self.name} {self.dtype}[{','.join(map(str, self.shape))}]"


def unpack(parts: Sequence[ObservationPart], rows: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """The parts of packed ``rows`` u8[..., row_bytes] by name, [..., *shape] each: views."""
    found = {}
    for part in parts:
        flat = rows[..., part.offset : part.offset + part.nbytes].view(part.dtype)
        found[part.name] = flat.reshape(*rows.shape[:-1], *part.shape)
    return found


class Packing:
    """How observations of a ``Dict`` become rows.

    Raises:
        ValueError: a part of the space is nothing that can be packed, or two have the same name.
    """

    def __init__(self, space: spaces.Dict) -> None:
        self._paths: list[tuple[str, ...]] = []
        self._choices: list[_Choices | None] = []
        found: list[ObservationPart] = []
        offset = 0
        for path, leaf in leaves(space):
            name = ".".join(map(str, path))
            shape, dtype, choices = _stored(name, leaf)
            part = ObservationPart(name, shape, np.dtype(dtype), offset)
            found.append(part)
            self._paths.append(path)
            self._choices.append(choices)
            offset += -(-part.nbytes // ALIGNMENT) * ALIGNMENT
        if not found:
            raise ValueError("a Dict without parts")
        names = [part.name for part in found]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two of its parts are called {twice!r}")
        self.parts: tuple[ObservationPart, ...] = tuple(found)
        self.row_bytes = offset
        ends = [part.offset + part.nbytes for part in found]
        begins = [*(part.offset for part in found[1:]), offset]
        self._padding = [slice(end, begin) for end, begin in zip(ends, begins, strict=True) if begin > end]

    def pack(self, observations: Mapping[str, Any], rows: NDArray[np.uint8]) -> None:
        """Writes N observations, each part an array [N, ...], into ``rows`` u8[N, row_bytes]. A single one needs no first axis."""
        for part, path, choices, into in zip(self.parts, self._paths, self._choices, unpack(self.parts, rows).values(), strict=True):
            value: Any = observations
            for key in path:
                value = value[key]
            if choices is None:
                into[...] = np.reshape(value, into.shape)
            else:
                choices.mark(part.name, np.reshape(value, (len(rows), -1)), into)
        for gap in self._padding:
            rows[:, gap] = 0


def packing_of(space: spaces.Space[Any]) -> Packing | None:
    """How observations of ``space`` become rows; None where each is one array already. Raises what ``Packing`` raises."""
    return Packing(space) if isinstance(space, spaces.Dict) else None


def leaves(space: spaces.Space[Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], spaces.Space[Any]]]:
    """Every space inside ``space`` that is no ``Dict``, with the keys that lead there."""
    if isinstance(space, spaces.Dict):
        for key, inner in space.spaces.items():
            yield from leaves(inner, (*above, key))
    else:
        yield above, space


class _Choices:
    """Numbers with few values each, as ones among zeros."""

    def __init__(self, count: Sequence[int], start: NDArray[np.int64]) -> None:
        self._number = np.repeat(np.arange(len(count)), count)  # of each cell: which number it tells of
        self._value = np.concatenate([np.arange(first, first + n) for first, n in zip(start, count, strict=True)])  # and its value there
        self.length = len(self._value)

    def mark(self, name: str, values: NDArray[np.int64], into: NDArray[np.float32]) -> None:
        marks = values[:, self._number] == self._value
        if np.count_nonzero(marks) != values.size:
            raise ValueError(f"the observation {name!r} has the value {values.tolist()}, which its space does not have")
        into[...] = marks


def _stored(name: str, space: spaces.Space[Any]) -> tuple[tuple[int, ...], type[np.generic], _Choices | None]:
    """Shape and type of a part in the row, and how its values are marked there."""
    if isinstance(space, spaces.Discrete):
        choices = _Choices([int(space.n)], np.array([int(space.start)]))
        return (choices.length,), np.float32, choices
    if isinstance(space, spaces.MultiDiscrete):
        choices = _Choices(sizes(space), starts(space))
        return (choices.length,), np.float32, choices
    if not isinstance(space, spaces.Box | spaces.MultiBinary) or 0 in space.shape:
        raise ValueError(f"its part {name!r} is {space}")
    kind = np.uint8 if isinstance(space, spaces.Box) and space.dtype == np.uint8 else np.float32
    return tuple(space.shape) or (1,), kind, None


__all__ = ["ALIGNMENT", "ObservationPart", "Packing", "leaves", "packing_of", "unpack"]
