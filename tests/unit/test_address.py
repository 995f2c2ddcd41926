"""A Redis URL is read into an Address, or refused by name before anything is opened."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from streamq.broker.address import Address
from streamq.errors import AddressError

SECRET = "hunter2-secret"


@pytest.mark.parametrize(
    "url,expected",
    [
        ("redis://localhost", Address("redis")),
        ("redis://", Address("redis")),
        ("redis://cache.example:7000", Address("redis", "cache.example", 7000)),
        ("redis://localhost:6379/3", Address("redis", db=3)),
        ("redis://localhost/?db=3", Address("redis", db=3)),
        ("redis://:pw@h", Address("redis", "h", password="pw")),
        ("redis://ann:p%40s%2Fs@h", Address("redis", "h", username="ann", password="p@s/s")),
        ("redis://[::1]:7000/1", Address("redis", "::1", 7000, db=1)),
        ("redis://h?client_name=shop-1", Address("redis", "h", client_name="shop-1")),
        ("rediss://h:7000/2", Address("rediss", "h", 7000, db=2)),
        ("rediss://h?ssl_ca_certs=/ca.pem", Address("rediss", "h", ssl_ca_certs="/ca.pem")),
        ("rediss://h?ssl_min_version=1.3", Address("rediss", "h", ssl_min_version="1.3")),
        ("unix:///run/redis.sock", Address("unix", path="/run/redis.sock")),
        ("unix:///run/a%20b.sock?db=4", Address("unix", path="/run/a b.sock", db=4)),
        ("unix://:pw@/run/redis.sock", Address("unix", path="/run/redis.sock", password="pw")),
        ("embedded://", Address("embedded")),
        ("embedded:///var/lib/shop", Address("embedded", path="/var/lib/shop")),
        ("embedded://./data", Address("embedded", path="./data")),
    ],
)
def test_a_url_is_read(url: str, expected: Address) -> None:
    """A136: plain, TLS, database, password and socket addresses are understood."""
    assert Address.parse(url) == expected


def test_arguments_win_over_the_url_and_none_means_not_given() -> None:
    address = Address.parse("redis://ann:old@h", password="new", username=None, db=2)
    assert (address.username, address.password, address.db) == ("ann", "new", 2)


def test_paths_may_be_path_objects() -> None:
    assert Address.parse("rediss://h", ssl_ca_certs=Path("/ca.pem")).ssl_ca_certs == "/ca.pem"


@pytest.mark.parametrize(
    "url,field,word",
    [
        ("http://localhost", "url", "http://"),
        ("localhost:6379", "url", "scheme"),
        ("localhost", "url", "scheme"),
        ("", "url", "scheme"),
        ("redis:localhost", "url", "scheme"),
        ("redis+sentinel://h1,h2/mymaster", "url", "not supported yet"),
        ("rediss+cluster://h1", "url", "not supported yet"),
        ("redis://[::1", "url", "not a URL"),
        ("redis://h/abc", "db", "whole number"),
        ("redis://h/-1", "db", "whole number"),
        ("redis://h/1/2", "db", "whole number"),
        ("redis://h/1?db=2", "db", "twice"),
        ("redis://h?db=2&db=3", "db", "twice"),
        ("redis://h:0", "port", "65535"),
        ("redis://h:70000", "port", "65535"),
        ("redis://h:abc", "port", "65535"),
        ("redis://:pa/ss@h", "port", "%2F"),
        ("redis://:pa#ss@h", "url", "%23"),
        ("unix://", "path", "missing"),
        ("unix:///", "path", "missing"),
        ("unix://run/redis.sock", "path", "relative"),
        ("redis://h?socket_timeout=3", "socket_timeout", "not an option"),
        ("redis://h?password=x", "password", "argument"),
        ("redis://h?ssl_ca_certs=/ca.pem", "ssl_ca_certs", "rediss://"),
        ("rediss://h?ssl_cert_reqs=none", "ssl_cert_reqs", "ssl_ca_certs"),
        ("rediss://h?ssl_check_hostname=false", "ssl_check_hostname", "ssl_ca_certs"),
        ("rediss://h?ssl_min_version=1.1", "ssl_min_version", "1.2"),
        ("rediss://h?ssl_keyfile=/k.pem", "ssl_certfile", "missing"),
        ("rediss://h?ssl_ca_certs=", "ssl_ca_certs", "empty"),
        ("redis://h?client_name=a%20b", "client_name", "spaces"),
    ],
)
def test_a_url_that_makes_no_sense_is_refused_by_field(url: str, field: str, word: str) -> None:
    """A137: wrong scheme, missing scheme, bad database, missing socket path and more are errors."""
    with pytest.raises(AddressError) as refused:
        Address.parse(url)
    assert refused.value.field == field
    assert word in str(refused.value)


@pytest.mark.parametrize(
    "options,field",
    [
        ({"timeout": 3}, "timeout"),
        ({"ssl_cert_reqs": "none"}, "ssl_cert_reqs"),
        ({"db": "x"}, "db"),
        ({"db": True}, "db"),
        ({"password": 5}, "password"),
        ({"ssl_ca_certs": "/ca.pem"}, "ssl_ca_certs"),
    ],
)
def test_a_senseless_argument_is_refused_by_name(options: dict[str, Any], field: str) -> None:
    with pytest.raises(AddressError) as refused:
        Address.parse("redis://h", **options)
    assert refused.value.field == field


def test_something_else_than_a_string_is_refused() -> None:
    with pytest.raises(AddressError):
        Address.parse(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}@h",
        f"redis://ann:{SECRET}@h/2",
        f"redis://{SECRET}@h",
        f"unix://:{SECRET}@/run/s",
        f"rediss://ann:{SECRET}@[::1]:7000",
    ],
)
def test_a_password_is_never_shown(url: str) -> None:
    address = Address.parse(url)
    assert SECRET not in str(address)
    assert SECRET not in repr(address)
    assert "***" in str(address)


@pytest.mark.parametrize(
    "url",
    [
        f"redis://ann:{SECRET}/x@h",
        f"redis://ann:{SECRET}?x@h",
        f"redis://ann:x?{SECRET}&y=1@h",
        f"redis://ann:{SECRET}#x@h",
        f"redis://ann:{SECRET}@h:abc",
        f"redis://ann:{SECRET}@[::1",
        f"http://ann:{SECRET}@h",
        f"ann:{SECRET}@h",
    ],
)
def test_a_refusal_does_not_quote_the_password(url: str) -> None:
    """However the URL is broken: a password with a bare '/', '?' or '#' ends up in odd places."""
    with pytest.raises(AddressError) as refused:
        Address.parse(url)
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_an_address_reads_as_a_url() -> None:
    assert str(Address.parse("redis://h")) == "redis://h:6379/0"
    assert str(Address.parse("redis://[::1]:7/2")) == "redis://[::1]:7/2"
    assert str(Address.parse("unix:///run/s?db=1")) == "unix:///run/s?db=1"


def test_an_embedded_address_becomes_the_socket_of_its_server() -> None:
    address = Address.parse("embedded://./data", db=3).at_socket("/run/s")
    assert address == Address("unix", path="/run/s", db=3)


def test_an_address_survives_pickling_with_its_password() -> None:
    """Worker processes get it that way."""
    address = Address.parse(f"redis://ann:{SECRET}@h")
    assert pickle.loads(pickle.dumps(address)) == address
