"""What a field of a message may hold: one ``Kind`` per sort of value, checked in both directions. ``codec`` combines them to a table.

``pack`` turns a Python value into what msgpack writes, ``unpack`` does the reverse; both raise FieldError for anything out of bounds, and
neither ever changes a value silently. No sockets, no frames, no knowledge of any message.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import operator
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

TEXT_MAX_BYTES = 256  # of UTF-8; also what the msgpack reader allows
WORD_MAX_BYTES = 32  # codes, reasons, phases, names of fields
U64_MAX = 2**64 - 1


class FieldError(ValueError):
    """A value that its field cannot hold; the text shows it, shortened."""


class Kind(NamedTuple):
    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]


def integer(low: int = 0, high: int = U64_MAX) -> Kind:
    """An int in [low, high]. bool is none; a numpy integer is turned into an int when packing."""

    def unpack(value: Any) -> int:
        if type(value) is int and low <= value <= high:
            return value
        raise FieldError(f"{_shown(value)} is no integer in [{low}, {high}]")

    def pack(value: Any) -> int:
        return unpack(value if type(value) is int or isinstance(value, bool) else _called(operator.index, value))

    return Kind(pack, unpack)


def real(low: float = -math.inf) -> Kind:
    """A finite float >= low. On the wire always a float64; other numbers are turned into one when packing."""

    def unpack(value: Any) -> float:
        if type(value) is float and low <= value < math.inf and value != -math.inf:
            return value
        raise FieldError(f"{_shown(value)} is no finite number >= {low}")

    def pack(value: Any) -> float:
        return unpack(value if type(value) is float else _called(float, value))

    return Kind(pack, unpack)


def boolean() -> Kind:
    """True or False, never 0 or 1."""

    def check(value: Any) -> bool:
        if value is True or value is False:
            return bool(value)
        raise FieldError(f"{_shown(value)} is neither true nor false")

    return Kind(check, check)


def text(max_bytes: int = TEXT_MAX_BYTES, *, empty: bool = True) -> Kind:
    """A printable str of at most ``max_bytes`` bytes of UTF-8. No control characters: it may end up in a log or on a terminal."""

    def check(value: Any) -> str:
        if type(value) is str and value.isprintable() and (value or empty):
            length = len(value) if value.isascii() else len(value.encode())
            if length <= max_bytes:
                return value
        raise FieldError(f"{_shown(value)} is no printable text of {'0' if empty else '1'} to {max_bytes} bytes")

    return Kind(check, check)


def binary(*lengths: int) -> Kind:
    """bytes of exactly one of the given lengths."""

    def check(value: Any) -> bytes:
        if type(value) is bytes and len(value) in lengths:
            return value
        raise FieldError(f"{_shown(value)} is no byte string of length {' or '.join(map(str, lengths))}")

    return Kind(check, check)


def mapping(value_kind: Kind, max_entries: int) -> Kind:
    """dict from words (1 to 32 bytes) to values of one kind."""
    key = text(WORD_MAX_BYTES, empty=False)

    def converter(check_key: Callable[[Any], Any], convert: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
        def check(value: Any) -> dict[str, Any]:
            if type(value) is not dict or len(value) > max_entries:
                raise FieldError(f"{_shown(value)} is no map of at most {max_entries} entries")
            return {check_key(name): convert(entry) for name, entry in value.items()}

        return check

    return Kind(converter(key.pack, value_kind.pack), converter(key.unpack, value_kind.unpack))


def sequence(entry: Kind, max_entries: int) -> Kind:
    """tuple of at most ``max_entries`` values of one kind; an array on the wire."""

    def pack(value: Any) -> list[Any]:
        if type(value) is not tuple or len(value) > max_entries:
            raise FieldError(f"{_shown(value)} is no tuple of at most {max_entries} entries")
        return [entry.pack(one) for one in value]

    def unpack(value: Any) -> tuple[Any, ...]:
        if type(value) is not list or len(value) > max_entries:
            raise FieldError(f"{_shown(value)} is no array of at most {max_entries} entries")
        return tuple([entry.unpack(one) for one in value])

    return Kind(pack, unpack)


def integers(cls: Any, *bounds: tuple[int, int]) -> Kind:
    """A NamedTuple of ints, each within its (low, high); an array on the wire.

    Entries that are missing at its end take the NamedTuple's defaults: an earlier version's frames, which have fewer, are understood.
    """
    count = len(bounds)
    defaults = [cls._field_defaults[name] for name in cls._fields if name in cls._field_defaults]
    shortest = count - len(defaults)

    def check(value: Any) -> None:
        if len(value) != count:
            raise FieldError(f"{_shown(value)} has not {count} entries")
        for one, (low, high) in zip(value, bounds, strict=False):
            if type(one) is not int or not low <= one <= high:
                raise FieldError(f"{_shown(one)} in {_shown(value)} is no integer in [{low}, {high}]")

    def pack(value: Any) -> list[int]:
        if not isinstance(value, tuple):
            raise FieldError(f"{_shown(value)} is no {count}-tuple")
        numbers = [one if type(one) is int or isinstance(one, bool) else _called(operator.index, one) for one in value]
        check(numbers)
        return numbers

    def unpack(value: Any) -> Any:
        if type(value) is not list:
            raise FieldError(f"{_shown(value)} is no array of {count}")
        if shortest <= len(value) < count:
            value = value + defaults[len(value) - shortest :]
        check(value)
        return tuple.__new__(cls, value)  # the length is right: twice as fast as cls(*value)

    return Kind(pack, unpack)


def record(cls: type, **fields: tuple[str, Kind]) -> Kind:
    """A frozen dataclass: a map with a short key per field on the wire. Unknown keys are ignored.

    A key that is missing takes the dataclass's default; without a default it is an error. So a later version may add fields that have
    one, and talk with this version.

    Args:
        cls: the dataclass.
        fields: attribute name -> (key on the wire, kind); exactly the attributes of ``cls``.
    """
    attributes = {field.name: field for field in dataclasses.fields(cls)}
    if set(attributes) != set(fields) or len({key for key, _ in fields.values()}) != len(fields):
        raise TypeError(f"the table of {cls.__name__} does not mirror its fields")
    required = frozenset(
        name for name, field in attributes.items() if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    )
    packing = tuple((key, name, kind.pack) for name, (key, kind) in fields.items())
    unpacking = tuple((key, name, kind.unpack, name in required) for name, (key, kind) in fields.items())

    def pack(value: Any) -> dict[str, Any]:
        if type(value) is not cls:
            raise FieldError(f"{_shown(value)} is no {cls.__name__}")
        packed = {}
        name = ""
        try:
            for key, name, convert in packing:
                packed[key] = convert(getattr(value, name))
        except ValueError as error:
            raise FieldError(f"{cls.__name__}.{name}: {error}") from None
        return packed

    def unpack(value: Any) -> Any:
        if type(value) is not dict:
            raise FieldError(f"{_shown(value)} is no map")
        values = {}
        name = ""
        try:
            for key, name, convert, is_required in unpacking:
                if key in value:
                    values[name] = convert(value[key])
                elif is_required:
                    raise FieldError("missing")
        except ValueError as error:
            raise FieldError(f"{cls.__name__}.{name}: {error}") from None
        return cls(**values)

    return Kind(pack, unpack)


def clip(sentence: str, max_bytes: int = TEXT_MAX_BYTES) -> str:
    """``sentence`` made to fit a text field: control characters become blanks, what is too long ends in "...". For error texts only."""
    printable = "".join(letter if letter.isprintable() else " " for letter in sentence).encode(errors="replace")
    if len(printable) <= max_bytes:
        return printable.decode()
    return printable[: max_bytes - 3].decode(errors="ignore") + "..."


def shortened(value: str, max_bytes: int = TEXT_MAX_BYTES) -> str:
    """``value`` made to fit a text field so that two results are equal only when the values are: its beginning and a SHA-256."""
    encoded = value.encode()
    if len(encoded) <= max_bytes:
        return value
    digest = f"... sha256 {hashlib.sha256(encoded).hexdigest()[:32]}"
    return encoded[: max_bytes - len(digest)].decode(errors="ignore") + digest


def _called(convert: Callable[[Any], Any], value: Any) -> Any:
    try:
        return convert(value)
    except (TypeError, ValueError, OverflowError):
        raise FieldError(f"{_shown(value)} is no number") from None


def _shown(value: Mapping[Any, Any] | object) -> str:
    return clip(reprlib.repr(value), 100)
