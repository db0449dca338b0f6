"""The bytes of every message against stored fixtures and hand-worked frames, every limit at its edge, and garbage of all sorts."""

from __future__ import annotations

import dataclasses
import math
import re
import struct
from pathlib import Path
from typing import Any, get_args

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zpala.gossip import codec
from zpala.gossip import messages as m
from zpala.gossip.codec import EncodeError, ProtocolError, decode_down, decode_up, encode
from zpala.gossip.fields import TEXT_MAX_BYTES, U64_MAX, WORD_MAX_BYTES, clip, integer, record, shortened

WIRE = Path(__file__).resolve().parent.parent / "wire"
FUZZ = settings(max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))

CONDITION = m.Condition(
    phase="running",
    updates=12,
    version=4711,
    env_steps=23456,
    rate=464.5,
    load=0.25,
    return_mean=-20.5,
    return_count=100,
    finish_reason="budget",
    update_s=0.125,
)
XID = m.ExchangeId(line=3, incarnation=1_700_000_000_000_000_000, number=77)
SNAPSHOT = m.SnapshotDescription(version=4711, nbytes=6_772_608, checksum=0xFEDCBA9876543210, square_norm=123.5)
DIGEST = (m.DigestEntry(0, 1_700_000_000_000_000_000, 1000, 0, 8), m.DigestEntry(65535, U64_MAX, U64_MAX))
EARLIER_DIGEST = (m.DigestEntry(0, 1_700_000_000_000_000_000, 1000), m.DigestEntry(255, U64_MAX, U64_MAX))
PARTS = (m.StatePart(name="parameters", nbytes=64, checksum=1), m.StatePart(name="square_average", nbytes=64, checksum=2))
NONCE = b"\x00\x01\x02\x03\xfc\xfd\xfe\xff"
SESSION = 2**63 + 1

SAMPLES: dict[str, m.Message] = {
    "hello": m.Hello(
        node="gpu1", line=3, incarnation=9, nonce=NONCE, agreement={"environment": "CartPole-v1", "network": "mlp ä"}, condition=CONDITION
    ),
    "heartbeat": m.Heartbeat(session=SESSION, nonce=NONCE, condition=CONDITION, digest=DIGEST),
    "offer": m.Offer(session=SESSION, xid=XID, snapshot=SNAPSHOT),
    "fetch": m.Fetch(session=SESSION, xid=XID),
    "ok": m.Ok(session=SESSION, xid=XID, ask=True),
    "abort": m.Abort(session=SESSION, xid=XID, code="checksum"),
    "state_request": m.StateRequest(session=SESSION),
    "state_fetch": m.StateFetch(session=SESSION, state_id=5, part=1),
    "leave": m.Leave(session=SESSION, incarnation=9, reason="budget"),
    "part": m.Part(session=SESSION),
    "welcome": m.Welcome(session=SESSION, node="[::1]:5670", line=0, incarnation=8, version=1, nonce=b"", condition=CONDITION),
    "reject": m.Reject(code="agreement", field="seed", mine="1", yours="2", fatal=True, known_incarnation=8),
    "nack": m.Nack(code="no_session", detail="say HELLO"),
    "accept": m.Accept(session=SESSION, xid=XID, snapshot=SNAPSHOT),
    "busy": m.Busy(session=SESSION, xid=XID, reason="engaged"),
    "data": m.Data(session=SESSION, xid=XID, snapshot=SNAPSHOT, ok=True),
    "state_meta": m.StateMeta(session=SESSION, state_id=5, nonce=NONCE, version=4711, optimizer_steps=12, parts=PARTS, digest=DIGEST),
    "state_data": m.StateData(session=SESSION, state_id=5, part=1, nbytes=64, checksum=2),
}
UP = {name: sample for name, sample in SAMPLES.items() if isinstance(sample, get_args(m.UpMessage))}
DOWN = {name: sample for name, sample in SAMPLES.items() if name not in UP}


def decode(message: m.Message, frame: bytes | memoryview) -> m.Message:
    return decode_up(frame) if isinstance(message, get_args(m.UpMessage)) else decode_down(frame)


def outcome_of(message: m.Message, frame: bytes) -> m.Message | ProtocolError:
    try:
        return decode(message, frame)
    except ProtocolError as error:
        return error


def frame_of(number: int, fields: object, *, magic: bytes = b"ZPA1", major: int = 1, flags: int = 0) -> bytes:
    """A header put together by hand, the fields by msgpack."""
    body: bytes = msgpack.packb(fields)
    return magic + struct.pack("<BBH", major, number, flags) + body


def fields_of(message: m.Message) -> dict[str, Any]:
    fields: dict[str, Any] = msgpack.unpackb(encode(message)[8:])
    return fields


def refusal(frame: bytes, *, down: bool = False) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        (decode_down if down else decode_up)(frame)
    assert caught.value.detail
    return caught.value


# --- what the bytes are ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
def test_golden_bytes(name: str) -> None:
    """The stored frames of version 1 stay what they are, in both directions: a node of today and one of tomorrow understand each other."""
    stored = (WIRE / f"{name}.bin").read_bytes()
    assert encode(SAMPLES[name]) == stored
    assert decode(SAMPLES[name], stored) == SAMPLES[name]


@pytest.mark.parametrize("name", ["hello", "heartbeat", "welcome"])
def test_a_node_that_does_not_tell_the_time_of_an_update_is_understood(name: str) -> None:
    """Frames from before ``Condition.update_s`` existed: everything else is as before, and the time is not known."""
    sample: Any = SAMPLES[name]
    earlier = decode(sample, (WIRE / "earlier" / f"{name}.bin").read_bytes())
    told = {"digest": EARLIER_DIGEST} if name == "heartbeat" else {}
    assert earlier == dataclasses.replace(sample, condition=dataclasses.replace(CONDITION, update_s=0.0), **told)


@pytest.mark.parametrize("name", ["heartbeat", "state_meta"])
def test_a_node_that_tells_no_ages_is_understood(name: str) -> None:
    """Frames from when an entry of a digest was three numbers: the counts are there, and nobody is taken to be alive for them."""
    earlier: Any = decode(SAMPLES[name], (WIRE / "earlier" / f"{name}_without_ages.bin").read_bytes())
    assert earlier.digest == EARLIER_DIGEST
    assert {entry.age for entry in EARLIER_DIGEST} == {m.AGE_UNKNOWN}


def test_every_message_has_a_sample_and_a_fixture() -> None:
    assert {type(sample) for sample in SAMPLES.values()} == set(get_args(m.UpMessage) + get_args(m.DownMessage))
    assert {path.stem for path in WIRE.glob("*.bin")} == set(SAMPLES)
    assert set(codec.TABLE) == {type(sample) for sample in SAMPLES.values()}


def test_hand_worked_frame() -> None:
    """ZPA1, major 1, type 7, no flags, {"s": 5}."""
    frame = b"ZPA1" + bytes([1, 7, 0, 0]) + bytes([0x81, 0xA1]) + b"s" + bytes([5])
    assert encode(m.StateRequest(session=5)) == frame
    assert decode_up(frame) == m.StateRequest(session=5)


def test_type_numbers_are_unique_and_tell_the_direction() -> None:
    numbers = {cls: number for cls, (number, _) in codec.TABLE.items()}
    assert len(set(numbers.values())) == len(numbers)
    assert all((number < 64) == (cls in get_args(m.UpMessage)) for cls, number in numbers.items())


@pytest.mark.parametrize("name", SAMPLES)
def test_a_memoryview_is_as_good_as_bytes(name: str) -> None:
    assert decode(SAMPLES[name], memoryview(encode(SAMPLES[name]))) == SAMPLES[name]


def test_numpy_numbers_become_plain_ones() -> None:
    plain = m.Offer(session=7, xid=m.ExchangeId(1, 2, 3), snapshot=dataclasses.replace(SNAPSHOT, version=9, square_norm=2.0))
    numbers: list[Any] = [np.int64(1), np.uint64(2), np.int32(3), np.int64(9), np.float32(2.0), np.uint32(7)]
    from_numpy = m.Offer(
        session=numbers[5],
        xid=m.ExchangeId(*numbers[:3]),
        snapshot=dataclasses.replace(SNAPSHOT, version=numbers[3], square_norm=numbers[4]),
    )
    assert encode(from_numpy) == encode(plain)


def test_a_whole_number_may_stand_for_a_float() -> None:
    decoded = decode_up(encode(m.Heartbeat(session=1, nonce=b"", condition=m.Condition(phase="running", rate=3))))
    assert isinstance(decoded, m.Heartbeat)
    assert type(decoded.condition.rate) is float


# --- versions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
def test_unknown_keys_are_ignored(name: str) -> None:
    sample = SAMPLES[name]
    number = encode(sample)[5]
    assert decode(sample, frame_of(number, fields_of(sample) | {"new": [1, {"x": None}], "zz": b"\x00"})) == sample


@pytest.mark.parametrize("name", SAMPLES)
def test_a_missing_key_takes_its_default_or_is_an_error(name: str) -> None:
    sample = SAMPLES[name]
    number = encode(sample)[5]
    with_default = {
        field.name
        for field in dataclasses.fields(sample)
        if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    }
    fields = fields_of(sample)
    for key, attribute in zip(fields, [field.name for field in dataclasses.fields(sample)], strict=True):
        frame = frame_of(number, {other: value for other, value in fields.items() if other != key})
        if attribute in with_default:
            assert getattr(decode(sample, frame), attribute) != getattr(sample, attribute) or attribute.startswith("version_")
        else:
            error = refusal(frame, down=name in DOWN)
            assert error.code == "field"
            assert f"{type(sample).__name__}.{attribute}: missing" in error.detail


@pytest.mark.parametrize("bit", range(16))
def test_flags_8_to_15_are_critical_and_0_to_7_are_not(bit: int) -> None:
    frame = frame_of(7, {"s": 5}, flags=1 << bit)
    if bit >= 8:
        assert refusal(frame).code == "flags"
    else:
        assert decode_up(frame) == m.StateRequest(session=5)


@pytest.mark.parametrize("major", [0, 2, 255])
def test_another_major_version_is_refused_with_both(major: int) -> None:
    error = refusal(frame_of(7, {"s": 5}, major=major))
    assert error.code == "version"
    assert re.search(rf"\b{major}\b.*\b1\b", error.detail)


@pytest.mark.parametrize("magic", [b"ZPA2", b"zpa1", b"\x00" * 4, b"GET "])
def test_another_magic_is_refused(magic: bytes) -> None:
    assert refusal(frame_of(7, {"s": 5}, magic=magic)).code == "magic"


def test_unknown_types_are_refused() -> None:
    known = {number for number, _ in codec.TABLE.values()}
    for number in set(range(256)) - known:
        assert refusal(frame_of(number, {"s": 5})).code == "type"
        assert refusal(frame_of(number, {"s": 5}), down=True).code == "type"


@pytest.mark.parametrize("name", SAMPLES)
def test_a_message_in_the_wrong_direction_is_refused_by_name(name: str) -> None:
    error = refusal(encode(SAMPLES[name]), down=name in UP)
    assert error.code == "type"
    assert type(SAMPLES[name]).__name__ in error.detail


# --- limits: each at the limit and one beyond -----------------------------------------------------------------------


def padded(number: int, fields: dict[str, Any], length: int) -> bytes:
    """A frame of exactly ``length`` bytes, filled with keys that nobody knows."""
    fields = dict(fields)
    for index in range(codec.MAP_MAX_ENTRIES):
        room = length - len(frame_of(number, fields)) - 5  # key of 2 letters (3 bytes) and a bin8 header (2 bytes)
        if room < 0:
            break
        fields[f"{index:02d}"] = bytes(min(room if room < 500 else 200, 256))
    frame = frame_of(number, fields)
    assert len(frame) == length
    return frame


@pytest.mark.parametrize(("name", "limit"), [("state_request", codec.UP_MAX), ("nack", codec.DOWN_HEADER_MAX)])
def test_frame_length_limit(name: str, limit: int) -> None:
    sample = SAMPLES[name]
    number = encode(sample)[5]
    assert decode(sample, padded(number, fields_of(sample), limit)) == sample
    error = refusal(padded(number, fields_of(sample), limit + 1), down=name in DOWN)
    assert error.code == "limit"
    assert str(limit + 1) in error.detail


@pytest.mark.parametrize("length", range(9))
def test_a_frame_needs_more_than_its_first_8_bytes(length: int) -> None:
    assert refusal(encode(SAMPLES["ok"])[:length]).code in ("limit", "msgpack")
    assert refusal(encode(SAMPLES["ok"])[: min(length, 8)]).code == "limit"


def hello_of(length: int) -> m.Hello:
    """A HELLO whose frame has exactly ``length`` bytes."""
    agreement = {f"k{index:02d}": "x" * 200 for index in range(19)}
    for filler in range(32, 256):
        hello = m.Hello(node="n", line=0, incarnation=1, agreement=agreement | {"z": "x" * filler}, condition=m.Condition(phase="waiting"))
        packed = codec.TABLE[m.Hello][1].pack(hello)
        if 8 + len(msgpack.packb(packed)) == length:
            return hello
    raise AssertionError(f"no HELLO of {length} bytes")


def test_encode_refuses_a_frame_above_up_max() -> None:
    assert codec.UP_MAX == 4096
    frame = encode(hello_of(codec.UP_MAX))
    assert len(frame) == codec.UP_MAX
    assert decode_up(frame) == hello_of(codec.UP_MAX)
    with pytest.raises(EncodeError, match=r"Hello takes 4097 bytes, 4096 are allowed"):
        encode(hello_of(codec.UP_MAX + 1))


@pytest.mark.parametrize(
    ("inside", "beyond"),
    [
        pytest.param({str(i): 0 for i in range(64)}, {str(i): 0 for i in range(65)}, id="map"),
        pytest.param([0] * 256, [0] * 257, id="array"),
        pytest.param("x" * 256, "x" * 257, id="str"),
        pytest.param(b"x" * 256, b"x" * 257, id="bin"),
    ],
)
def test_msgpack_limits_hold_even_inside_unknown_keys(inside: object, beyond: object) -> None:
    assert decode_up(frame_of(7, {"s": 5, "new": inside})) == m.StateRequest(session=5)
    assert refusal(frame_of(7, {"s": 5, "new": beyond})).code == "msgpack"


def test_the_msgpack_limits_are_the_named_constants() -> None:
    assert (codec.MAP_MAX_ENTRIES, codec.ARRAY_MAX_ENTRIES, TEXT_MAX_BYTES) == (64, 256, 256)


def test_top_level_map_limit() -> None:
    keys = {f"k{index}": 0 for index in range(codec.MAP_MAX_ENTRIES - 1)}
    assert decode_up(frame_of(7, {"s": 5} | keys)) == m.StateRequest(session=5)
    assert refusal(frame_of(7, {"s": 5, "more": 0} | keys)).code == "msgpack"


def condition(**changes: Any) -> m.Heartbeat:
    return m.Heartbeat(session=1, nonce=b"", condition=dataclasses.replace(CONDITION, **changes))


def snapshot(**changes: Any) -> m.Offer:
    return m.Offer(session=1, xid=XID, snapshot=dataclasses.replace(SNAPSHOT, **changes))


def digest(count: int) -> tuple[m.DigestEntry, ...]:
    return tuple(m.DigestEntry(index, 1, 1) for index in range(count))


def parts(count: int) -> tuple[m.StatePart, ...]:
    return tuple(m.StatePart(name=f"p{index}", nbytes=0, checksum=0) for index in range(count))


def hello(**changes: Any) -> m.Hello:
    return dataclasses.replace(SAMPLES["hello"], **changes)  # type: ignore[return-value]


def changed(name: str, **changes: Any) -> m.Message:
    return dataclasses.replace(SAMPLES[name], **changes)


# (field as named in the error, message at the limit, message beyond it)
EDGES: list[tuple[str, m.Message, m.Message]] = [
    ("Ok.session", changed("ok", session=0), changed("ok", session=-1)),
    ("Ok.session", changed("ok", session=U64_MAX), changed("ok", session=U64_MAX + 1)),
    ("Ok.xid", changed("ok", xid=m.ExchangeId(codec.LINES_MAX - 1, 0, 0)), changed("ok", xid=m.ExchangeId(codec.LINES_MAX, 0, 0))),
    ("Ok.xid", changed("ok", xid=m.ExchangeId(0, U64_MAX, 0)), changed("ok", xid=m.ExchangeId(0, U64_MAX + 1, 0))),
    ("Ok.xid", changed("ok", xid=m.ExchangeId(0, 0, U64_MAX)), changed("ok", xid=m.ExchangeId(0, 0, U64_MAX + 1))),
    ("Hello.line", hello(line=codec.LINES_MAX - 1), hello(line=codec.LINES_MAX)),
    ("Hello.node", hello(node="x" * TEXT_MAX_BYTES), hello(node="x" * (TEXT_MAX_BYTES + 1))),
    ("Hello.node", hello(node="ä" * (TEXT_MAX_BYTES // 2)), hello(node="ä" * (TEXT_MAX_BYTES // 2) + "x")),
    ("Hello.node", hello(node="x"), hello(node="")),
    ("Hello.nonce", hello(nonce=bytes(codec.NONCE_BYTES)), hello(nonce=bytes(codec.NONCE_BYTES + 1))),
    ("Hello.nonce", hello(nonce=b""), hello(nonce=bytes(codec.NONCE_BYTES - 1))),
    ("Hello.version_min", hello(version_min=1), hello(version_min=0)),
    ("Hello.version_max", hello(version_max=255), hello(version_max=256)),
    (
        "Hello.agreement",
        hello(agreement={str(i): "" for i in range(codec.AGREEMENT_MAX_ENTRIES)}),
        hello(agreement={str(i): "" for i in range(codec.AGREEMENT_MAX_ENTRIES + 1)}),
    ),
    ("Hello.agreement", hello(agreement={"k" * WORD_MAX_BYTES: ""}), hello(agreement={"k" * (WORD_MAX_BYTES + 1): ""})),
    ("Hello.agreement", hello(agreement={"k": "v" * TEXT_MAX_BYTES}), hello(agreement={"k": "v" * (TEXT_MAX_BYTES + 1)})),
    ("Condition.phase", condition(phase="p" * WORD_MAX_BYTES), condition(phase="p" * (WORD_MAX_BYTES + 1))),
    ("Condition.phase", condition(phase="p"), condition(phase="")),
    ("Condition.finish_reason", condition(finish_reason="r" * WORD_MAX_BYTES), condition(finish_reason="r" * (WORD_MAX_BYTES + 1))),
    ("Condition.rate", condition(rate=0.0), condition(rate=-1e-300)),
    ("Condition.load", condition(load=1.7e308), condition(load=math.inf)),
    ("Condition.update_s", condition(update_s=0.0), condition(update_s=-1e-300)),
    ("Condition.return_mean", condition(return_mean=-1.7e308), condition(return_mean=-math.inf)),
    ("Condition.return_mean", condition(return_mean=1.7e308), condition(return_mean=math.nan)),
    ("Condition.return_count", condition(return_count=codec.RETURNS_MAX), condition(return_count=codec.RETURNS_MAX + 1)),
    ("SnapshotDescription.nbytes", snapshot(nbytes=codec.PAYLOAD_MAX_BYTES), snapshot(nbytes=codec.PAYLOAD_MAX_BYTES + 1)),
    ("SnapshotDescription.checksum", snapshot(checksum=U64_MAX), snapshot(checksum=U64_MAX + 1)),
    ("SnapshotDescription.square_norm", snapshot(square_norm=0.0), snapshot(square_norm=math.nan)),
    (
        "Heartbeat.digest",
        changed("heartbeat", digest=digest(codec.DIGEST_MAX)),
        changed("heartbeat", digest=digest(codec.DIGEST_MAX + 1)),
    ),
    ("StateMeta.parts", changed("state_meta", parts=parts(codec.PARTS_MAX)), changed("state_meta", parts=parts(codec.PARTS_MAX + 1))),
    ("StateFetch.part", changed("state_fetch", part=codec.PARTS_MAX - 1), changed("state_fetch", part=codec.PARTS_MAX)),
    ("StateData.nbytes", changed("state_data", nbytes=codec.PAYLOAD_MAX_BYTES), changed("state_data", nbytes=codec.PAYLOAD_MAX_BYTES + 1)),
    ("Nack.detail", changed("nack", detail="d" * TEXT_MAX_BYTES), changed("nack", detail="d" * (TEXT_MAX_BYTES + 1))),
    ("Abort.code", changed("abort", code="c" * WORD_MAX_BYTES), changed("abort", code="c" * (WORD_MAX_BYTES + 1))),
]


@pytest.mark.parametrize(("field", "inside", "beyond"), EDGES)
def test_limits_of_fields_when_sending(field: str, inside: m.Message, beyond: m.Message) -> None:
    assert decode(inside, encode(inside)) == inside
    with pytest.raises(EncodeError, match=re.escape(field)):
        encode(beyond)


def raw_fields(value: Any) -> Any:
    """A message as msgpack fields without any check: the keys are read from the table's own packing of a good sample."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        keys = dict(zip([field.name for field in dataclasses.fields(value)], KEYS[type(value)], strict=True))
        return {keys[field.name]: raw_fields(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return [raw_fields(one) for one in value] if isinstance(value, tuple) else value


KEYS: dict[type, list[str]] = {type(sample): list(fields_of(sample)) for sample in SAMPLES.values()}
KEYS[m.Condition] = list(fields_of(SAMPLES["hello"])["c"])
KEYS[m.SnapshotDescription] = list(fields_of(SAMPLES["offer"])["d"])
KEYS[m.StatePart] = list(fields_of(SAMPLES["state_meta"])["p"][0])


@pytest.mark.parametrize(("field", "inside", "beyond"), EDGES)
def test_limits_of_fields_when_receiving(field: str, inside: m.Message, beyond: m.Message) -> None:
    """The same edges in frames that a stranger's encoder made."""
    number, _ = codec.TABLE[type(inside)]
    assert decode(inside, frame_of(number, raw_fields(inside))) == inside
    try:
        frame = frame_of(number, raw_fields(beyond))
    except OverflowError:  # above 64 bits: msgpack itself cannot say it
        return
    error = refusal(frame, down=not isinstance(beyond, get_args(m.UpMessage)))
    assert (error.code, field in error.detail) in {("field", True), ("msgpack", False)}


WRONG_VALUES: list[Any] = [
    None,
    True,
    -1,
    2**64 - 1,
    1.5,
    "",
    "a\nb",
    b"",
    b"123",
    [],
    [1],
    [1, 2, 3, 4],
    [[1, 2, 3]],
    [[1, 2, 3, 4]],
    {},
    {"p": 1},
    {"a": {"b": {}}},
]


@pytest.mark.parametrize("name", SAMPLES)
def test_a_wrong_type_in_any_field_names_the_field(name: str) -> None:
    """Every field of every message with every sort of value: either the message holds exactly that value, or the field is named."""
    sample = SAMPLES[name]
    number, _ = codec.TABLE[type(sample)]
    refused = 0
    for key, attribute in zip(fields_of(sample), [field.name for field in dataclasses.fields(sample)], strict=True):
        for value in WRONG_VALUES:
            outcome = outcome_of(sample, frame_of(number, fields_of(sample) | {key: value}))
            if isinstance(outcome, ProtocolError):
                refused += 1
                assert outcome.code == "field"
                assert f"{type(sample).__name__}.{attribute}" in outcome.detail
            else:
                assert raw_fields(getattr(outcome, attribute)) == ([_whole(one) for one in value] if attribute == "digest" else value)
    assert refused >= 10 * len(fields_of(sample))


def _whole(entry: list[int]) -> list[int]:
    """An entry of a digest with what an earlier version leaves out."""
    return entry + [m.AGE_UNKNOWN, 0][len(entry) - 3 :]


@pytest.mark.parametrize("text", ["a\nb", "\x1b[31m", "a\x00", "\u202e", "\x7f"])
def test_text_that_could_fool_a_terminal_is_refused(text: str) -> None:
    assert refusal(frame_of(66, {"e": "limit", "m": text}), down=True).code == "field"
    with pytest.raises(EncodeError):
        encode(m.Nack(code="limit", detail=text))
    assert decode_down(encode(m.Nack(code="limit", detail=clip(text)))) == m.Nack(code="limit", detail=clip(text))


def test_lone_surrogates_are_refused_when_sending() -> None:
    with pytest.raises(EncodeError):
        encode(m.Nack(code="limit", detail="\ud800"))


@pytest.mark.parametrize(("length", "ending"), [(256, "xxxx"), (257, "x..."), (10_000, "x...")])
def test_clip_cuts_at_the_limit(length: int, ending: str) -> None:
    clipped = clip("x" * length)
    assert len(clipped) == min(length, TEXT_MAX_BYTES)
    assert clipped.endswith(ending)


@FUZZ
@given(st.text(max_size=400))
def test_whatever_is_clipped_can_be_sent(text: str) -> None:
    message = m.Nack(code="bad_message", detail=clip(text))
    assert decode_down(encode(message)) == message


def test_encode_names_the_innermost_field() -> None:
    with pytest.raises(EncodeError, match=r"Offer\.snapshot: SnapshotDescription\.square_norm: nan"):
        encode(snapshot(square_norm=math.nan))


def test_encode_accepts_no_bool_as_number() -> None:
    with pytest.raises(EncodeError, match=r"Ok\.session: True"):
        encode(changed("ok", session=True))


def test_a_table_that_does_not_mirror_the_dataclass_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="StateRequest"):
        record(m.StateRequest, sessions=("s", integer()))
    with pytest.raises(TypeError, match="Fetch"):
        record(m.Fetch, session=("s", integer()), xid=("s", integer()))


# --- garbage --------------------------------------------------------------------------------------------------------


def only_protocol_errors(frame: bytes) -> None:
    """Whatever arrives is refused with ProtocolError, or is a message that can be sent again as it is."""
    for decoder in (decode_up, decode_down):
        try:
            message = decoder(frame)
        except ProtocolError:
            continue
        assert decoder(encode(message)) == message


HEADERS = [frame_of(number, {})[:8] for number, _ in codec.TABLE.values()]
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_subnormal=False)  # the tests run with denormals flushed, which hypothesis refuses to draw
    | st.text(max_size=40)
    | st.binary(max_size=40)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=16))
    | st.builds(msgpack.Timestamp, st.integers(0, 2**34 - 1), st.integers(0, 999_999_999))
)
keys = (
    st.sampled_from(sorted({key for fields in KEYS.values() for key in fields}))
    | st.text(max_size=3)
    | st.integers()
    | st.binary(max_size=2)
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=5), max_leaves=20)


@FUZZ
@given(st.binary(max_size=200))
def test_random_bytes(noise: bytes) -> None:
    only_protocol_errors(noise)


@FUZZ
@given(st.sampled_from(HEADERS), st.binary(max_size=200))
def test_random_bytes_after_a_good_header(header: bytes, noise: bytes) -> None:
    only_protocol_errors(header + noise)


def packable(fields: object) -> bytes:
    try:
        packed: bytes = msgpack.packb(fields)
    except (OverflowError, UnicodeEncodeError):  # an integer key above 64 bits, a lone surrogate
        return b"\xc1"
    return packed


@FUZZ
@given(st.sampled_from(HEADERS), st.dictionaries(keys, values, max_size=10))
def test_random_fields(header: bytes, fields: dict[Any, Any]) -> None:
    only_protocol_errors(header + packable(fields))


@FUZZ
@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_good_messages_with_some_fields_replaced(name: str, data: st.DataObject) -> None:
    fields = fields_of(SAMPLES[name])
    fields |= data.draw(st.dictionaries(st.sampled_from(sorted(fields)), values, min_size=1, max_size=3))
    only_protocol_errors(encode(SAMPLES[name])[:8] + packable(fields))


@FUZZ
@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_good_frames_with_bytes_changed_removed_and_inserted(name: str, data: st.DataObject) -> None:
    frame = bytearray(encode(SAMPLES[name]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(frame) - 1)))
        sort = data.draw(st.sampled_from(["change", "remove", "insert", "cut", "double"]))
        if sort == "change" and frame:
            frame[at] = data.draw(st.integers(0, 255))
        elif sort == "remove":
            del frame[at : at + data.draw(st.integers(1, 4))]
        elif sort == "insert":
            frame[at:at] = data.draw(st.binary(min_size=1, max_size=4))
        elif sort == "cut":
            del frame[at:]
        else:
            frame[at:at] = frame[at:]
    only_protocol_errors(bytes(frame))


@pytest.mark.parametrize("name", SAMPLES)
def test_every_truncation_and_every_single_changed_byte(name: str) -> None:
    frame = encode(SAMPLES[name])
    for length in range(len(frame)):
        refusal(frame[:length], down=name in DOWN)
    for at in range(len(frame)):
        for value in (0x00, 0x7F, 0x80, 0x90, 0xC0, 0xC1, 0xC7, 0xCB, 0xDB, 0xDD, 0xDF, 0xFF, frame[at] ^ 1, frame[at] ^ 0x80):
            only_protocol_errors(frame[:at] + bytes([value]) + frame[at + 1 :])


@pytest.mark.parametrize("name", SAMPLES)
def test_bytes_after_the_map_are_refused(name: str) -> None:
    assert refusal(encode(SAMPLES[name]) + b"\x00", down=name in DOWN).code == "msgpack"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\x91" * 4000 + b"\xc0", id="nested arrays"),
        pytest.param(b"\x81\xa1s" * 1300 + b"\xc0", id="nested maps"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="array32 of 4 G"),
        pytest.param(b"\xdf\xff\xff\xff\xff", id="map32 of 4 G"),
        pytest.param(b"\xdb\xff\xff\xff\xff", id="str32 of 4 GB"),
        pytest.param(b"\xc6\xff\xff\xff\xff", id="bin32 of 4 GB"),
        pytest.param(b"\xc9\xff\xff\xff\xff\x01", id="ext32 of 4 GB"),
        pytest.param(b"\xdc\x0f\xa0" + b"\x80" * 4000, id="4000 empty maps"),
        pytest.param(b"\x82\xa1s\x05\xa1s\x06", id="key twice"),
        pytest.param(b"\x81\x01\x05", id="integer key"),
        pytest.param(b"\x81\xc0\x05", id="nil key"),
        pytest.param(b"\x81\xa1\xff\x05", id="key that is no UTF-8"),
        pytest.param(b"\x82\xa1s\x05\xa1x\xa2\xc3\x28", id="text that is no UTF-8"),
        pytest.param(b"\x82\xa1s\x05\xa1x\xd6\xff\x00\x00\x00\x00", id="timestamp"),
        pytest.param(b"\x82\xa1s\x05\xa1x\xc7\x00\x05", id="empty extension"),
        pytest.param(b"\x82\xa1s\x05\xa1x\xd4\x01\x00", id="extension"),
        pytest.param(b"\xc1", id="byte that msgpack never uses"),
    ],
)
def test_hostile_msgpack(body: bytes) -> None:
    assert refusal(HEADERS[[number for number, _ in codec.TABLE.values()].index(7)] + body).code == "msgpack"


@pytest.mark.parametrize("body", [b"\x05", b"\xc0", b"\x90", b"\xa1s", b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00", b"\x81\xc4\x01s\x05"])
def test_good_msgpack_that_is_no_map_with_the_fields(body: bytes) -> None:
    assert refusal(frame_of(7, {})[:8] + body).code == "field"


def test_a_long_value_is_shortened_so_that_it_fits_and_still_tells_values_apart() -> None:
    values = ["x" * 256, "x" * 257, "x" * 257 + "y", "x" * 257 + "z", "ä" * 200, "ä" * 201]
    short = [shortened(value) for value in values]
    assert short[0] == values[0]
    assert all(len(value.encode()) <= TEXT_MAX_BYTES for value in short)
    assert len(set(short)) == len(values)
    assert short[1].startswith("xxx")
