"""The app by itself: registration and settings, without Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import pytest

from streamq import (
    Address,
    Client,
    Concurrency,
    Cron,
    Exponential,
    GroupRule,
    Inspector,
    Limits,
    Member,
    StreamQ,
    SyncClient,
    TokenBucket,
    Unique,
)
from streamq.errors import AddressError, OptionError, RegistrationError, UsageError
from streamq.task import AsyncTask, SyncTask


def test_a_task_can_be_registered_with_and_without_options() -> None:
    app = StreamQ()

    @app.task
    async def bare(number: int) -> int:
        return number

    @app.task(name="named")
    def named(number: int) -> int:
        return number

    assert isinstance(bare, AsyncTask)
    assert isinstance(named, SyncTask)
    assert set(app.tasks) == {bare.name, "named"}
    assert asyncio.run(bare(1)) == named(1) == 1


def test_a_name_is_taken_once() -> None:
    app = StreamQ()
    app.task(name="x")(print)
    with pytest.raises(RegistrationError, match="x: a handler is registered"):
        app.task(name="x")(print)


def test_worker_settings_are_durations_as_everywhere() -> None:
    config = StreamQ(namespace="shop").worker(lease=timedelta(seconds=3), grace=0.5).config
    assert (config.lease_ms, config.grace_s, config.namespace) == (3000, 0.5, "shop")


@pytest.mark.parametrize(
    "settings, field",
    [
        ({"queues": 5}, "queues"),
        ({"queues": ["default"]}, "queues"),
        ({"queues": "default"}, "queues"),
        ({"lease": 0.1}, "lease"),
        ({"lease": timedelta(days=2)}, "lease"),
        ({"grace": timedelta(days=2)}, "grace"),
    ],
)
def test_a_worker_setting_without_meaning_is_refused_by_the_name_that_it_was_given(
    settings: Any, field: str
) -> None:
    with pytest.raises(OptionError) as caught:
        StreamQ().worker(**settings)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "settings, field",
    [
        ({"namespace": 5}, "namespace"),
        ({"namespace": "a{b"}, "namespace"),
        ({"defaults": ["queue"]}, "defaults"),
        ({"defaults": {"timeout": 0}}, "timeout"),
        ({"limits": 5}, "limits"),
        ({"lifespan": 5}, "lifespan"),
        ({"on_health": 5}, "on_health"),
        ({"on_error": 5}, "on_error"),
    ],
)
def test_a_setting_of_the_app_without_meaning_is_refused_when_the_app_is_made(
    settings: Any, field: str
) -> None:
    with pytest.raises(UsageError) as caught:
        StreamQ(**settings)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "make, field",
    [
        (lambda: Limits(depth="x"), "limits.depth"),  # type: ignore[arg-type]
        (lambda: Limits(payload_bytes=1.5), "limits.payload_bytes"),  # type: ignore[arg-type]
        (lambda: Exponential(factor="x"), "retry.factor"),  # type: ignore[arg-type]
        (lambda: Exponential(jitter=True), "retry.jitter"),
        (lambda: Unique(["order"]), "unique"),  # type: ignore[arg-type]
        (lambda: Unique(keep_when_archived=1), "unique.keep_when_archived"),  # type: ignore[arg-type]
    ],
)
def test_values_of_the_wrong_type_are_refused_by_name(make: Callable[[], object], field: str) -> None:
    with pytest.raises(OptionError) as caught:
        make()
    assert caught.value.field == field


def test_a_repr_names_the_task_and_shows_no_arguments() -> None:
    app = StreamQ()
    mail = app.task(name="mail:*")(lambda to: to)
    secret = mail.options(headers={"key": "hunter2"}).named("mail:x")
    assert repr(mail) == "<SyncTask 'mail:*'>"
    assert repr(secret) == "<BoundTask 'mail:x'>"
    assert "hunter2" not in repr(secret.call("hunter2"))
    assert "hunter2" not in repr(Member("id", ("hunter2",), {"key": "hunter2"}, {"key": "hunter2"}))


def test_a_cron_provider_is_registered_with_and_without_options() -> None:
    app = StreamQ()

    @app.cron_provider
    def one() -> list[Cron]:
        return []

    @app.cron_provider(every=timedelta(seconds=5))
    def two() -> list[Cron]:
        return []

    assert one() == two() == []
    assert [provider.every_ms for provider in app.crontab.timetable().providers] == [60_000, 5_000]
    with pytest.raises(RegistrationError, match="cron_provider: must be a function"):
        app.cron_provider(cast("Any", 5))


def test_only_a_function_stands_in_for_a_function() -> None:
    app, wrong = StreamQ(), cast("Any", 5)
    for provider, stand_in, field in ((wrong, len, "provider"), (len, wrong, "stand_in")):
        with pytest.raises(RegistrationError, match=field), app.override(provider, stand_in):
            pass


def test_an_unknown_worker_setting_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(OptionError, match="concurency: unknown setting; did you mean concurrency"):
        StreamQ().worker(concurency=3)  # type: ignore[call-arg]


def test_an_address_serves_in_place_of_a_url() -> None:
    address = Address.parse("redis://localhost:6390/2")
    assert StreamQ(address).address is address


async def test_a_url_serves_in_place_of_an_address() -> None:
    for made in (Client("redis://localhost:6390/2"), SyncClient("redis://localhost:6390/2")):
        assert made.runner.address == Address.parse("redis://localhost:6390/2")
    with pytest.raises(AddressError, match="redd:// is unknown"):
        Inspector("redd://localhost")
    with pytest.raises(OptionError, match="lease: must be seconds or a timedelta"):
        Inspector("redis://localhost", lease=cast("Any", "10"))


def test_what_belongs_to_a_limit_beside_its_numbers_is_given_by_name() -> None:
    for make in (Concurrency, TokenBucket, GroupRule):
        with pytest.raises(TypeError, match="positional"):
            cast("Any", make)(1, 2, 3)
