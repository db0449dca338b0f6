"""What the flat parameter vector is made of, and the fingerprint by which two nodes see that theirs are the same (design D9).

Owns the description only: names, shapes and offsets. It never sees a tensor; ``rl.flat`` builds the vector, this module only judges it.
Offsets and sizes count float32 elements, never bytes.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property

import msgpack

ELEMENT_BYTES = 4  # float32, the only dtype that the vector has
ALIGNMENT_ELEMENTS = 16  # 64 bytes: a cache line, and the widest SIMD register
FINGERPRINT_BYTES = 16
FORMAT = ("zpala-schema", 1)  # changes when the text below hashes other things


class SchemaError(ValueError):
    """A schema that no flat vector can have; the message names the entry."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor inside the flat vector: elements ``offset`` to ``offset + size``, in logical contiguous (row-major) order.

    Args:
        name: the parameter's dotted name, unique, not empty.
        shape: its lengths, each >= 1; () is a scalar.
        offset: first element, >= 0, a multiple of 16 (64 bytes).
        size: number of elements = product of ``shape``.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class Schema:
    """The whole vector: entries in ascending order without overlap; what lies between them is padding and stays 0.

    Args:
        entries: at least one.
        numel: length of the vector in elements, padding included, a multiple of 16.
        learnt_from: the offset of an entry, or ``numel``. What lies before it are running statistics, averaged like everything else but of
            another size than parameters: they count neither for norms nor for distances. It follows from the names.

    Raises:
        SchemaError: an entry or ``numel`` breaks the rules above.
    """

    entries: tuple[TensorEntry, ...]
    numel: int
    learnt_from: int = 0

    def __post_init__(self) -> None:
        if not self.entries:
            raise SchemaError("a schema needs at least one tensor")
        names = [entry.name for entry in self.entries]
        if len(set(names)) != len(names):
            raise SchemaError(f"tensor {next(name for name in names if names.count(name) > 1)!r} appears twice")
        end = 0
        for entry in self.entries:
            _check_entry(entry)
            if entry.offset < end:
                raise SchemaError(f"tensor {entry.name!r} starts at {entry.offset}, inside the tensor before it, which ends at {end}")
            end = entry.offset + entry.size
        if self.numel < end or self.numel % ALIGNMENT_ELEMENTS:
            raise SchemaError(f"numel {self.numel} must be a multiple of {ALIGNMENT_ELEMENTS} and at least {end}")
        if self.learnt_from not in (0, self.numel, *(entry.offset for entry in self.entries)):
            raise SchemaError(f"learnt_from {self.learnt_from} is where no tensor starts")

    @property
    def nbytes(self) -> int:
        """Length of the vector in bytes, which is the length of every payload."""
        return self.numel * ELEMENT_BYTES

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits, equal on two nodes exactly when names, order, shapes, dtype, offsets, layout and length are equal.

        BLAKE2b over canonical msgpack; the device is left out on purpose, a CUDA node and a CPU node are to match.
        """
        rows = [[entry.name, list(entry.shape), "f32", entry.offset, "contiguous"] for entry in self.entries]
        packed: bytes = msgpack.packb([*FORMAT, rows, self.numel], use_bin_type=True)
        return hashlib.blake2b(packed, digest_size=FINGERPRINT_BYTES).hexdigest()


def _check_entry(entry: TensorEntry) -> None:
    if not entry.name:
        raise SchemaError("a tensor has no name")
    if any(length < 1 for length in entry.shape):
        raise SchemaError(f"tensor {entry.name!r} has the shape {entry.shape}: every length must be at least 1")
    if entry.size != math.prod(entry.shape):
        raise SchemaError(f"tensor {entry.name!r} of shape {entry.shape} has {math.prod(entry.shape)} elements, not {entry.size}")
    if entry.offset < 0 or entry.offset % ALIGNMENT_ELEMENTS:
        raise SchemaError(f"tensor {entry.name!r} starts at {entry.offset}, which is not a multiple of {ALIGNMENT_ELEMENTS}")
