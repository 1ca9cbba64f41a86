"""What a gateway says of the original request is taken whole, or not at all."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api_key_manager.core.http_signatures import read_target
from api_key_manager.server.exchange import Request
from api_key_manager.server.gateways import PROFILES, Gateway, Original

hosts = st.one_of(
    st.sampled_from(
        ["shop.example", "SHOP.example:443", "h:80", "[::1]:8080", "a_b", "h:", "h:0", ""]
    ),
    st.text("ah.:/?#@[]\\ %é", max_size=8),
)
uris = st.one_of(
    st.sampled_from(
        ["/", "/a?b=c", "//evil/x", "/?", "/a#b", "*", "http://h/x", "/\\", "/a b", ""]
    ),
    st.text("/a.?#%2e&=;@:\\é \t\r\n", max_size=16).map("/{}".format),
)


def original(name: str, scheme: str, host: str, uri: str, method: str = "GET") -> Original | None:
    """What a profile's headers are read as."""
    profile, said = PROFILES[name], (method, scheme, host, uri)
    fields = {
        header: [value.encode("latin-1")]
        for header, value in zip(profile, said, strict=True)
        if header is not None
    }
    path, _, query = f"/v1/authorize{uri}".partition("?")
    request = Request(method, path, query.encode("latin-1"), (), {}, ("127.0.0.1", 1), "r")
    return Gateway(name, (), tls=False).original(request, fields)


@pytest.mark.parametrize("name", ["nginx", "traefik", "caddy", "envoy"])
@given(
    scheme=st.sampled_from(["http", "https", "HTTP", "ftp", "https://evil/", ""]),
    host=hosts,
    uri=uris,
)
@example(scheme="https", host="shop.example/orders", uri="/7")
@example(scheme="https", host="shop.example?", uri="/7")
@example(scheme="https", host="user@shop.example", uri="/7")
def test_no_part_leaks_into_another(name: str, scheme: str, host: str, uri: str):
    """Host, path and query of the URL that is checked are those that were said, byte for byte."""
    found = original(name, scheme, host, uri)
    if found is None:
        return
    target = read_target(found.url)
    assert target is not None
    default = ":443" if scheme == "https" else ":80"
    assert target.authority == host.lower().removesuffix(default)
    path, mark, query = uri.partition("?")
    if name == "envoy" and not query:
        mark = ""  # to @query no query and an empty one are the same
    assert (target.path, target.query) == (path, f"{mark}{query}" or "?")
    assert found.path == path
    assert found.url == f"{scheme}://{host}{path}{mark}{query}"


@pytest.mark.parametrize("name", ["nginx", "traefik", "caddy", "envoy"])
@pytest.mark.parametrize("method", ["", "GET ", "G\tT", "é", "A" * 33, "GET/x"])
def test_methods(name: str, method: str):
    """What is no method is none."""
    if name == "envoy" and not method.isascii():
        pytest.skip("no HTTP parser lets that through as a method")
    assert original(name, "https", "h", "/", method) is None
    assert original(name, "https", "h", "/", "M-SEARCH") is not None


def test_long_uris():
    """A URI over 8 KiB is not read."""
    assert original("nginx", "https", "h", "/" + "a" * 8000) is not None
    assert original("nginx", "https", "h", "/" + "a" * 8200) is None
