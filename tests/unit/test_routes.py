"""Which task a type belongs to: decided without Redis."""

from __future__ import annotations

import asyncio

import pytest

from streamq import StreamQ
from streamq.errors import HandlerNotFound, OptionError, RegistrationError, UsageError
from streamq.worker.routes import Routes


async def handler(number: int = 0) -> int:
    return number


def routes(*names: str) -> Routes:
    app = StreamQ()
    for name in names:
        app.task(name=name)(handler)
    return Routes(app.definitions())


def is_unknown(found: Routes, name: str) -> bool:
    try:
        asyncio.run(found[name].handler())
    except HandlerNotFound:
        return True
    return False


def test_an_exact_name_comes_before_a_pattern_and_a_longer_pattern_before_a_shorter() -> None:
    """A132"""
    found = routes("*", "email:*", "email:welcome", "email:weekly:*", "email:we*")
    assert {name: found[name].name for name in FITS} == FITS


FITS = {
    "email:welcome": "email:welcome",
    "email:welcome:again": "email:we*",
    "email:weekly:3": "email:weekly:*",
    "email:weekly:": "email:weekly:*",
    "email:weekly": "email:we*",
    "email:other": "email:*",
    "email:": "email:*",
    "email": "*",
    "sms": "*",
}


def test_a_type_that_is_shorter_than_a_pattern_does_not_fit_it() -> None:
    """A133: nor does one that a name begins with."""
    found = routes("csv:export:*", "csv:import")
    for name in ("csv:", "csv:export", "csv", "csv:imp", "", "csv:import:now", "x csv:export:1"):
        assert is_unknown(found, name), name
    assert not is_unknown(found, "csv:export:")


def test_answers_are_remembered_and_not_without_limit() -> None:
    """Types come from producers: a flood of them costs time, not memory."""
    found = routes("a:*", "b")
    first = found["a:0"]
    assert dict.get(found, "a:0") is first
    for number in range(5_000):
        assert found[f"a:{number}"] is first
        assert is_unknown(found, f"c:{number}")
    assert len(found) <= 1_025
    assert (found["b"].name, found["a:0"]) == ("b", first)


@pytest.mark.parametrize("name", ["", " ", "a\n", " a", 5], ids=repr)
def test_a_name_that_is_blank_or_no_name_is_refused(name: str) -> None:
    """A134"""
    with pytest.raises(OptionError, match="name: "):
        StreamQ().task(name=name)(handler)


@pytest.mark.parametrize("name", ["*:mail", "e*mail", "email:**", "*:*"])
def test_a_star_that_is_not_at_the_end_is_refused(name: str) -> None:
    """A134"""
    with pytest.raises(RegistrationError, match="a star may stand at the end alone"):
        StreamQ().task(name=name)(handler)


@pytest.mark.parametrize("name", ["email", "email:*", "*"])
def test_a_name_or_pattern_is_taken_once(name: str) -> None:
    """A134"""
    app = StreamQ()
    app.task(name=name)(handler)
    with pytest.raises(RegistrationError, match="registered under this name already"):
        app.task(name=name)(handler)


@pytest.mark.parametrize("handler", [None, 5, "print"], ids=repr)
def test_what_cannot_be_called_is_refused(handler: object) -> None:
    """A134"""
    with pytest.raises(RegistrationError, match="handler: must be a function"):
        StreamQ().task(name="x")(handler)  # type: ignore[call-overload]
    assert StreamQ().tasks == {}


def test_the_handler_of_a_pattern_tells_the_parameters_of_all_its_types() -> None:
    """So that calls of a unique task are alike whether arguments come by position or by name."""
    app = StreamQ()
    app.task(name="email:*")(handler)
    app.task(name="other")(print)
    parameters = app.config.parameters
    assert parameters("email:welcome") == ("number",)
    assert parameters("sms") is None


def test_a_pattern_is_enqueued_under_a_name_that_fits_it() -> None:
    app = StreamQ()
    mail, exact = app.task(name="email:*", queue="mail")(handler), app.task(name="exact")(handler)
    call = mail.options(priority="high").named("email:welcome").call(1)
    assert (call.type, call.args, call.options.priority, call.options.queue) == (
        "email:welcome", (1,), "high", "mail",
    )  # fmt: skip
    assert exact.named("exact").call().type == "exact"
    with pytest.raises(OptionError, match=r"'sms:x' does not fit 'email:\*'"):
        mail.named("sms:x")
    with pytest.raises(OptionError, match="'exact:x' does not fit 'exact'"):
        exact.named("exact:x")
    for pattern in (mail, mail.options(priority="low"), mail.named("email:*")):
        with pytest.raises(UsageError, match="is a pattern; say which task"):
            pattern.call(1)
