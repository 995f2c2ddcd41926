"""The app by itself: registration and settings, without Redis."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from streamq import Address, StreamQ
from streamq.errors import OptionError, RegistrationError
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


def test_an_unknown_worker_setting_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(OptionError, match="concurency: unknown setting; did you mean concurrency"):
        StreamQ().worker(concurency=3)  # type: ignore[call-arg]


def test_an_address_serves_in_place_of_a_url() -> None:
    address = Address.parse("redis://localhost:6390/2")
    assert StreamQ(address).address is address
