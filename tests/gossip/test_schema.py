"""The fingerprint against its definition written out, and against every single difference that two nodes can have."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from zpala.gossip.schema import Schema, SchemaError, TensorEntry

WEIGHT = TensorEntry("body.weight", (3, 4), 0, 12)
BIAS = TensorEntry("body.bias", (3,), 16, 3)
SCALE = TensorEntry("scale", (), 32, 1)
SCHEMA = Schema((WEIGHT, BIAS, SCALE), 48)


def test_fingerprint_is_blake2b_of_the_msgpack_written_by_hand() -> None:
    """["zpala-schema", 1, [["w", [2], "f32", 0, "contiguous"]], 16]."""
    packed = b"\x94\xaczpala-schema\x01\x91\x95\xa1w\x91\x02\xa3f32\x00\xaacontiguous\x10"
    assert Schema((TensorEntry("w", (2,), 0, 2),), 16).fingerprint == hashlib.blake2b(packed, digest_size=16).hexdigest()


def test_equal_schemas_have_equal_fingerprints() -> None:
    assert Schema((replace(WEIGHT), replace(BIAS), replace(SCALE)), 48).fingerprint == SCHEMA.fingerprint
    assert len(SCHEMA.fingerprint) == 32


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(Schema((WEIGHT, BIAS), 48), id="one tensor less"),
        pytest.param(Schema((replace(WEIGHT, name="Body.weight"), BIAS, SCALE), 48), id="name"),
        pytest.param(Schema((replace(WEIGHT, shape=(4, 3)), BIAS, SCALE), 48), id="shape"),
        pytest.param(Schema((replace(WEIGHT, shape=(12,)), BIAS, SCALE), 48), id="rank"),
        pytest.param(Schema((WEIGHT, BIAS, replace(SCALE, offset=48)), 64), id="offset"),
        pytest.param(Schema((WEIGHT, BIAS, SCALE), 64), id="length"),
        pytest.param(Schema((replace(BIAS, offset=0), replace(WEIGHT, offset=16), SCALE), 48), id="order"),
    ],
)
def test_every_difference_changes_the_fingerprint(other: Schema) -> None:
    assert other.fingerprint != SCHEMA.fingerprint


def test_nbytes_is_four_per_element() -> None:
    assert SCHEMA.nbytes == 192


@pytest.mark.parametrize(
    ("entries", "numel", "text"),
    [
        ((), 16, "at least one tensor"),
        ((WEIGHT, replace(BIAS, name="body.weight")), 32, "'body.weight' appears twice"),
        ((replace(WEIGHT, name=""),), 16, "no name"),
        ((replace(WEIGHT, shape=(3, 0), size=0),), 16, "at least 1"),
        ((replace(WEIGHT, size=11),), 16, "12 elements, not 11"),
        ((replace(WEIGHT, offset=8),), 32, "starts at 8"),
        ((replace(WEIGHT, offset=-16),), 32, "starts at -16"),
        ((BIAS, WEIGHT), 32, "'body.weight' starts at 0, inside the tensor before it, which ends at 19"),
        ((TensorEntry("a", (17,), 0, 17), BIAS), 32, "'body.bias' starts at 16, inside"),
        ((WEIGHT, BIAS), 20, "numel 20"),
        ((WEIGHT, BIAS), 16, "numel 16 must be a multiple of 16 and at least 19"),
    ],
)
def test_impossible_schemas_are_refused(entries: tuple[TensorEntry, ...], numel: int, text: str) -> None:
    with pytest.raises(SchemaError, match=text):
        Schema(entries, numel)
