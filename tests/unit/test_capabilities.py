"""The answer to INFO tells the product, its version, and with them what may be used."""

from __future__ import annotations

import pytest

from streamq.broker.capabilities import UNKNOWN, Capabilities, read_info
from streamq.errors import UnsupportedServer

REDIS = b"# Server\r\nredis_version:8.2.3\r\nredis_mode:standalone\r\nuptime_in_seconds:77\r\n"
VALKEY = b"# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.1.0\r\n"


def test_redis_tells_its_version_and_uptime() -> None:
    assert read_info(REDIS) == Capabilities("redis", (8, 2, 3), 77)


def test_valkey_is_known_by_its_own_version() -> None:
    """It reports redis_version 7.2.4 for the sake of old clients."""
    assert read_info(VALKEY) == Capabilities("valkey", (9, 1, 0), None)


@pytest.mark.parametrize("version", [b"8.9.240-rc1", b"8.9"])
def test_a_release_candidate_or_a_short_version_is_read(version: bytes) -> None:
    assert read_info(b"redis_version:" + version).version[:2] == (8, 9)


@pytest.mark.parametrize("version", [b"6.0.16", b"5.0.7", b"6.1.99"])
def test_a_server_below_the_floor_is_refused(version: bytes) -> None:
    with pytest.raises(UnsupportedServer, match=r"6\.2 or newer"):
        read_info(b"redis_version:" + version)


@pytest.mark.parametrize("info", [b"", b"redis_version:", b"\xff\x00", b"redis_version:abc"])
def test_an_answer_that_makes_no_sense_is_an_unknown_server(info: bytes) -> None:
    assert read_info(info) is UNKNOWN


def test_a_feature_counts_from_the_version_that_has_it_in_working_order() -> None:
    assert Capabilities("redis", (8, 2, 3)).has("xackdel")
    assert not Capabilities("redis", (8, 2, 2)).has("xackdel")
    assert not Capabilities("valkey", (9, 1, 0)).has("xackdel")
    assert not UNKNOWN.has("xackdel")


def test_a_feature_that_no_table_knows_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        UNKNOWN.has("teleport")
