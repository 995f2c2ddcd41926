"""Bytes: what may be stored comes back, the rest is refused with its path, and garbage is a typed error."""

from __future__ import annotations

import enum
import math
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamq.codec import (
    MessageTemplate,
    check_headers,
    decode_cron,
    decode_message,
    decode_payload,
    decode_result,
    encode_cron,
    encode_message,
    encode_payload,
    encode_result,
)
from streamq.errors import MessageError, OptionError, PayloadError, StoredDataError
from streamq.model.limits import MAX_DEPTH, Limits
from streamq.model.message import Message
from streamq.model.schedule import CronEntry, Schedule

SMALL = Limits(payload_bytes=100, result_bytes=50, headers_bytes=40, depth=3)


def round_trip(value: Any) -> Any:
    args, kwargs = decode_payload(encode_payload((value,), {"named": value}))
    assert args == [kwargs["named"]] or value != value  # noqa: PLR0124  # nan differs from itself
    assert type(decode_result(encode_result(value))) is type(args[0])
    return args[0]


# What may be stored


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        -1,
        2**53,
        2**53 + 1,
        -(2**53) - 1,
        2**63,
        2**64 - 1,
        2**64,
        -(2**64),
        10**60,
        0.1,
        -0.0,
        1e308,
        math.inf,
        "",
        "text",
        "日本\x00",
        b"",
        b"\x00\xff",
        Decimal("0.10"),
        Decimal("-1E+40"),
        Decimal("123456789012345678901234567890.5"),
        date(2026, 1, 2),
        datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        UUID("12345678-1234-5678-1234-567812345678"),
        set(),
        {1, 2, 3},
        {"a", b"b", None},
        [],
        [1, [2, [3]]],
        {},
        {"a": {"b": [1, None]}},
        {1: "int key", b"b": "bytes key", None: 0},
        {UUID(int=1): Decimal("1.5")},
        [{"mixed": [1, 2.5, "x", b"y", None, True]}],
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_plain_value_comes_back_exactly(value: Any) -> None:
    """A50: integers beyond 2**53 among them; types are kept."""
    again = round_trip(value)
    assert again == value
    assert type(again) is type(value)


def test_some_kinds_come_back_plainer() -> None:
    """CBOR has one kind of list, and nan is not equal to itself."""
    assert round_trip((1, (2, 3))) == [1, [2, 3]]
    assert round_trip(frozenset({1, 2})) == {1, 2}
    assert math.isnan(round_trip(math.nan))
    assert round_trip(OrderedDict(b=1, a=2)) == {"b": 1, "a": 2}
    assert math.copysign(1, round_trip(-0.0)) == -1


def test_a_moment_keeps_its_offset_and_its_microseconds() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=-3)))
    again = round_trip(moment)
    assert (again, again.utcoffset()) == (moment, moment.utcoffset())


PLAIN: Any = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**80), 2**80),
        st.floats(allow_nan=False),
        st.text(max_size=10),
        st.binary(max_size=10),
        st.decimals(allow_nan=False, allow_infinity=False, places=3),
        st.uuids(),
        st.dates(),
        st.datetimes(timezones=st.just(UTC)),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=6,
)


@given(st.lists(PLAIN, max_size=4), st.dictionaries(st.text(max_size=8), PLAIN, max_size=4))
def test_arguments_come_back(args: list[Any], kwargs: dict[str, Any]) -> None:
    assert decode_payload(encode_payload(tuple(args), kwargs)) == (args, kwargs)


@given(st.lists(PLAIN, max_size=3), st.dictionaries(st.text(max_size=8), PLAIN, max_size=3))
def test_a_payload_is_ordinary_cbor(args: list[Any], kwargs: dict[str, Any]) -> None:
    """Its outer list is written by hand; any other implementation reads the same."""
    assert cbor2.loads(encode_payload(tuple(args), kwargs)) == [args, kwargs]


# What may not


class Thing:
    pass


@dataclass
class Record:
    x: int = 1


class Colour(enum.Enum):
    RED = 1


Point = namedtuple("Point", "x y")  # noqa: PYI024  # as users have it

REFUSED = [
    Thing(),
    Thing,
    Record(),
    Colour.RED,
    object(),
    lambda: None,
    print,
    iter([]),
    range(3),
    1j,
    timedelta(1),
    datetime(2026, 1, 2),  # noqa: DTZ001  # no time zone is the point
    bytearray(b"x"),
    memoryview(b"x"),
    Exception("x"),
    ...,
    {1: Thing()}.values(),
]


@pytest.mark.parametrize("value", REFUSED, ids=lambda value: f"{type(value).__name__}")
def test_a_value_that_cannot_be_read_back_is_refused_with_its_path(value: Any) -> None:
    """Before anything is sent; the path names the argument and the way inside, not the value."""
    cases: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((1, value), {}, "args[1]"),
        ((), {"to": value}, "to"),
        (([0, {"deep": [value]}],), {}, "args[0][1]['deep'][0]"),
        ((), {"to": {"x": (1, 2, value)}}, "to['x'][2]"),
    ]
    for args, kwargs, path in cases:
        with pytest.raises(PayloadError) as caught:
            encode_payload(args, kwargs)
        assert caught.value.field == path
    with pytest.raises(PayloadError) as caught:
        encode_result([value])
    assert caught.value.field == "result[0]"


def test_a_map_with_such_a_key_is_refused() -> None:
    with pytest.raises(PayloadError, match=r"a key"):
        encode_payload(({Colour.RED: 1},), {})


def test_a_refusal_shows_neither_value_nor_long_keys() -> None:
    class Secret:
        def __repr__(self) -> str:
            return "hunter2"

    for value in (Secret(), [Secret()], {"a": Secret()}, {"k" * 500: Secret()}, {Secret(): 1}):
        with pytest.raises(PayloadError) as caught:
            encode_payload((value,), {})
        assert "hunter2" not in str(caught.value)
        assert len(str(caught.value)) < 300


def test_text_that_is_no_text_is_refused() -> None:
    with pytest.raises(PayloadError, match="CBOR"):
        encode_payload(("\ud800",), {})


# Limits


def test_an_argument_may_be_so_deep_and_no_deeper() -> None:
    """Whatever is stored must be readable again, and the check comes before the encoder's own recursion."""
    limits = Limits()
    value: Any = 1
    for _ in range(limits.depth):
        value = [value]
    assert decode_payload(encode_payload((value,), {"x": value})) == ([value], {"x": value})
    assert decode_result(encode_result(value)) == value
    for deeper in ([value], {"a": value}, (value,)):
        with pytest.raises(PayloadError, match="too deep"):
            encode_payload((deeper,), {})
        with pytest.raises(PayloadError, match="too deep"):
            encode_result(deeper)


def test_the_deepest_setting_that_can_be_stored_can_be_read() -> None:
    """B2: nothing may pass the writer that the reader refuses, also with tags inside."""
    value: Any = {Decimal("1.5"), Decimal(10) ** 70}
    for _ in range(MAX_DEPTH - 1):
        value = {"a": value}
    limits = Limits(depth=MAX_DEPTH)
    assert decode_payload(encode_payload((value,), {"x": value}, limits)) == ([value], {"x": value})
    with pytest.raises(OptionError, match="depth"):
        Limits(depth=MAX_DEPTH + 1)


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    cycle: dict[str, Any] = {}
    cycle["a"] = {"b": cycle}
    for value in (loop, cycle, [loop], {"x": [cycle]}):
        with pytest.raises(PayloadError, match="contains itself"):
            encode_payload((value,), {})
        with pytest.raises(PayloadError, match="contains itself"):
            encode_result(value)


def test_a_value_that_unfolds_without_end_is_refused_soon() -> None:
    """The same list many times inside itself: small in memory, endless when written."""
    bomb: Any = []
    for _ in range(40):
        bomb = [bomb, bomb]
    with pytest.raises(PayloadError, match="too many values"):
        encode_payload((bomb,), {}, Limits(payload_bytes=10_000, result_bytes=10_000))


def test_a_value_named_twice_is_stored_twice() -> None:
    shared = [1, 2]
    assert decode_payload(encode_payload(([shared, shared],), {"x": shared})) == (
        [[shared, shared]],
        {"x": shared},
    )


def test_sizes_are_checked_before_anything_is_sent() -> None:
    encode_payload((b"x" * 90,), {}, SMALL)
    for args, kwargs in (((b"x" * 100,), {}), ((), {"a": b"x" * 100}), ((b"x" * 60,), {"a": b"x" * 60})):
        with pytest.raises(PayloadError, match="bytes; the limit is") as caught:
            encode_payload(args, kwargs, SMALL)
        assert caught.value.field == "payload"
    encode_result(b"x" * 45, SMALL)
    with pytest.raises(PayloadError, match="the limit is 50"):
        encode_result(b"x" * 50, SMALL)
    check_headers({"a": "1"}, SMALL)
    check_headers({}, SMALL)
    with pytest.raises(PayloadError, match="headers"):
        check_headers({"a": "1" * 40}, SMALL)


def test_limits_without_meaning_are_refused() -> None:
    for name in ("payload_bytes", "result_bytes", "headers_bytes", "depth", "error_chars"):
        with pytest.raises(OptionError, match=name):
            Limits(**{name: 0})


# Reading


@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_but_a_typed_error(stored: bytes) -> None:
    """B2: whatever stands in Redis, the worker lives."""
    for decode in (decode_message, decode_payload, decode_result):
        try:
            decode(stored)
        except StoredDataError:
            continue


@given(st.data())
def test_a_damaged_message_is_a_typed_error(data: st.DataObject) -> None:
    """B3: a bit flipped, an end cut off, something put in between."""
    whole = encode_message(
        Message.new(type="t", payload=b"\x82\x80\xa0", enqueued_ms=2**41, headers={"a": "1"})
    )
    at = data.draw(st.integers(0, len(whole) - 1))
    put = data.draw(st.binary(max_size=3))
    skip = data.draw(st.integers(0, 4))
    try:
        message = decode_message(whole[:at] + put + whole[at + skip :])
    except StoredDataError:
        return
    assert isinstance(message.type, str)
    assert isinstance(message.payload, bytes)


@given(st.one_of(PLAIN, st.dictionaries(st.sampled_from("vtpeoryhwzn"), PLAIN, max_size=6)))
def test_no_value_in_the_place_of_a_message_breaks_the_reader(value: Any) -> None:
    try:
        message = decode_message(cbor2.dumps(value))
    except StoredDataError:
        return
    assert isinstance(message.type, str)


@pytest.mark.parametrize(
    "stored",
    [
        cbor2.dumps(cbor2.CBORTag(35, "(a+)+$")),  # a regular expression
        cbor2.dumps(cbor2.CBORTag(36, "Content-Type: text/plain\n\nx")),  # a MIME message
        b"\xd8\x1c\x81\xd8\x1d\x00",  # a list that contains itself, by shared references
        b"\xd9\x01\x00\x82\x61a\xd8\x19\x00",  # string references
        b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",  # a list of 2**64 - 1
        b"\x5b\x7f\xff\xff\xff\xff\xff\xff\xff",  # as many bytes
        b"\x81" * 10_000 + b"\x00",  # nested beyond the stack
        b"\xc2\x5a\x7f\xff\xff\xff",  # a huge integer that ends at once
        b"",
        b"\xff",
    ],
    ids=lambda stored: stored[:6].hex(),
)
def test_what_would_build_objects_or_eat_memory_is_refused(stored: bytes) -> None:
    """No object construction, no references, no pattern to compile, no room for what is not there."""
    for decode in (decode_result, decode_message, decode_payload):
        with pytest.raises(MessageError):
            decode(stored)


@pytest.mark.parametrize(
    "value", [[], [[]], [[], []], [[], {}, 1], [{}, {}], [(), [("a", 1)]], {"a": 1}, "x", None]
)
def test_a_payload_of_another_shape_is_refused(value: Any) -> None:
    with pytest.raises(MessageError, match=r"args, kwargs"):
        decode_payload(cbor2.dumps(value))


def test_an_error_of_the_reader_shows_no_content() -> None:
    for stored in (b"\x67hunter2\xff\xff", cbor2.dumps({"hunter2": "hunter2"}), cbor2.dumps("hunter2")):
        with pytest.raises(MessageError) as caught:
            decode_message(stored)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None


# The template: the same bytes by a shorter way


# Cron entries


@given(st.binary(max_size=60))
def test_a_cron_entry_that_makes_no_sense_is_a_typed_error(stored: bytes) -> None:
    for value in (stored, b"00000000:" + stored):
        with pytest.raises(StoredDataError):
            decode_cron("e", "q", value)


ENTRY = CronEntry(
    id="e",
    queue="q",
    schedule=Schedule("@daily", "Europe/Berlin", 5, 6, None, "all"),
    how=b"n-D5",
    message=b"m",
    dedup_key=b"k",
    expires_ms=7,
    owner="app",
    paused=True,
    more={"future": [1]},
)


def test_a_cron_entry_comes_back_as_it_was() -> None:
    assert decode_cron("e", "q", encode_cron(ENTRY)) == ENTRY


@pytest.mark.parametrize("key", ["v", "s", "h", "m", "u", "w", "p", "x"])
@pytest.mark.parametrize("wrong", [1.5, ["@daily"], [], {}, ["@daily", "UTC", 0, 10**15, None, "one"]])
def test_a_cron_entry_with_a_wrong_value_is_a_message_error(key: str, wrong: object) -> None:
    head, _, body = encode_cron(ENTRY).partition(b":")
    stored = {**cbor2.loads(body), key: wrong}
    with pytest.raises(MessageError):
        decode_cron("e", "q", head + b":" + cbor2.dumps(stored))
    del stored[key]
    with pytest.raises(MessageError):
        decode_cron("e", "q", head + b":" + cbor2.dumps(stored))


FIELDS: Any = st.fixed_dictionaries(
    {"type": st.text(min_size=1, max_size=300)},
    optional={
        "max_retries": st.integers(0, 10**6),
        "retry_policy": st.just(["e", 2000, 2.0, 86_400_000, 0.2]),
        "timeout_ms": st.integers(0, 2**45),
        "deadline_ms": st.integers(0, 2**45),
        "expires_ms": st.integers(0, 2**45),
        "retention_ms": st.integers(0, 2**45),
        "headers": st.dictionaries(st.text(max_size=5), st.text(max_size=5), min_size=1, max_size=30),
    },
)


@given(FIELDS, st.binary(max_size=40), st.integers(0, 2**45))
def test_a_template_makes_the_message_that_the_encoder_makes(
    fields: dict[str, Any], payload: bytes, enqueued_ms: int
) -> None:
    made = MessageTemplate(fields).encode(payload, enqueued_ms)
    expected = Message.new(**fields, payload=payload, enqueued_ms=enqueued_ms)
    assert decode_message(made) == expected == decode_message(encode_message(expected))


@pytest.mark.parametrize("size", [0, 1, 23, 24, 255, 256, 65_535, 65_536, 1 << 20])
def test_a_template_takes_payloads_of_every_size(size: int) -> None:
    """The head of a byte string changes its form at these lengths."""
    template = MessageTemplate({"type": "t"})
    for payload in (b"x" * size, bytes(size)):
        assert decode_message(template.encode(payload, 1)).payload == payload


def test_a_template_can_be_used_again() -> None:
    template = MessageTemplate({"type": "t", "headers": {"a": "1"}})
    made = [decode_message(template.encode(b"%d" % turn, turn)) for turn in range(3)]
    assert [(message.payload, message.enqueued_ms) for message in made] == [(b"0", 0), (b"1", 1), (b"2", 2)]
