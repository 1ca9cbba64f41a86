"""Redis URLs: what is understood, and that everything else is refused without being repeated."""

from __future__ import annotations

import ssl

import pytest

from api_key_manager.connections.redis import Redis
from api_key_manager.connections.redis_url import read_url
from api_key_manager.core.exceptions import ConfigurationError


@pytest.mark.parametrize(
    ("url", "place", "greeting"),
    [
        ("redis://localhost", "localhost:6379/0", []),
        ("redis://localhost:7000/3", "localhost:7000/3", [("SELECT", "3")]),
        ("redis://localhost?db=3", "localhost:6379/3", [("SELECT", "3")]),
        ("redis://[::1]:7000", "[::1]:7000/0", []),
        ("redis://:p%40ss%2F@h/1", "h:6379/1", [("AUTH", "p@ss/"), ("SELECT", "1")]),
        ("redis://u%3A:p@h", "h:6379/0", [("AUTH", "u:", "p")]),
        ("unix:///run/redis%20one.sock", "/run/redis one.sock/0", []),
        ("unix://u:p@/run/r.sock?db=2", "/run/r.sock/2", [("AUTH", "u", "p"), ("SELECT", "2")]),
    ],
)
def test_understood(url, place, greeting):
    """Credentials are decoded and greet; host, port and database are what the URL says."""
    address = read_url(url)
    assert str(address) == place
    assert address.greeting == greeting
    assert address.tls is None


def test_tls_checks_the_certificate():
    """Unless it is told otherwise by name."""
    strict = read_url("rediss://h").tls
    assert strict is not None
    assert (strict.verify_mode, strict.check_hostname) == (ssl.CERT_REQUIRED, True)
    loose = read_url("rediss://h?ssl_cert_reqs=none").tls
    assert loose is not None
    assert (loose.verify_mode, loose.check_hostname) == (ssl.CERT_NONE, False)


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "redis://"),
        ("localhost:6379", "redis://"),
        (f"http://u:{SECRET}@h", "redis://"),
        (f"redis://u:{SECRET}@", "the host is missing"),
        (f"redis://u:{SECRET}@h:0", "redis://"),
        (f"redis://u:{SECRET}@h:65536", "port from 1 to 65535"),
        (f"redis://u:{SECRET}@h:x", "port from 1 to 65535"),
        # A password with characters that were not encoded ends up anywhere.
        (f"redis://u:{SECRET}/x@h", "port from 1 to 65535"),
        (f"redis://u:a#{SECRET}@h", "redis://"),
        (f"redis://u:{SECRET} @h", "spaces"),
        (f"redis://u:{SECRET}@h\n", "control characters"),
        (f"redis://:a?{SECRET}=x@h", "redis://"),
        (f"redis://h?{SECRET}=x", "unknown parameter"),
        (f"redis://h?password={SECRET}", "unknown parameter"),
        ("redis://h?db", "no list of name=value"),
        ("redis://h?db=", "db: given once"),
        ("redis://h?db=1&db=2", "db: given once"),
        ("redis://h/1?db=1", "not in both"),
        ("redis://h/x", "the database is a number"),
        ("redis://h/-1", "the database is a number"),
        ("redis://h/65536", "the database is a number"),
        ("redis://h/1/2", "the database is a number"),
        ("redis://h?ssl_cert_reqs=none", "unknown parameter; allowed are db"),
        ("redis://user@h", "a user without a password"),
        ("redis://user:@h", "the password is empty"),
        ("rediss://h?ssl_cert_reqs=optional", "ssl_cert_reqs: required or none"),
        ("rediss://h?ssl_ca_certs=/nowhere.pem", "ssl_ca_certs: a file"),
        ("rediss://h?ssl_keyfile=/nowhere.pem", "ssl_keyfile: goes with ssl_certfile"),
        ("rediss://h?ssl_certfile=/nowhere.pem", "ssl_certfile, ssl_keyfile: "),
        ("unix://host/path", "unix:// takes a path"),
        ("unix://", "unix:// takes a path"),
    ],
)
def test_refused(url, message):
    """The setting is named, with what is allowed; no part of a password is repeated."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_url(url)
    assert str(caught.value).startswith("REDIS_URL: ")
    assert SECRET not in str(caught.value)


def test_no_secret_in_texts():
    """Neither the connection nor its address tells the password, however it is written out."""
    redis = Redis(f"redis://user:{SECRET}@h/2")
    for text in (
        repr(redis),
        str(redis),
        repr(redis.address),
        f"{redis.address}",
        str(vars(redis)),
    ):
        assert SECRET not in text
    assert repr(redis) == "Redis('h:6379/2')"


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_time_outs_that_are_none(timeout):
    """Without a deadline a call could hang for ever."""
    with pytest.raises(ValueError, match="timeout"):
        Redis("redis://h", timeout=timeout)
