"""Signed HTTP requests: RFC 9421's own example, another implementation, and every single byte."""

from __future__ import annotations

import base64
import datetime
import hashlib
from dataclasses import replace
from typing import Any

import http_message_signatures as peer
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from api_key_manager.core import Reason, ValidationError, sign_request
from api_key_manager.core.http_signatures import (
    COVERED,
    MAX_URL,
    named_key,
    read_request,
    read_target,
    signature_base,
)
from api_key_manager.core.models import MIN_SCHEMES, ApiKey
from api_key_manager.core.policy import Rules, judge
from api_key_manager.core.presented import present
from api_key_manager.core.records import open_record, seal_record
from api_key_manager.core.signing import MacState, mac
from tests.unit.test_policy import BOX, NOW, SECRET, open_key

NONCE = "q1w2e3r4t5y6u7i8o9p0aA"
KEY = open_key()


def signed(method: str = "POST", url: str = "https://example.com/foo?a=1", body: bytes = b"{}",
           **more: Any) -> dict[str, Any]:  # fmt: skip
    """A signed request as ``present`` takes it, its body known."""
    options = {"secret": SECRET, "key_id": "client", "created": NOW, "nonce": NONCE, **more}
    headers = sign_request(method=method, url=url, body=body, **options)
    digest = hashlib.sha256(body).hexdigest()
    return {"method": method, "url": url, "headers": headers, "body_sha256": digest}


def verdict(request: Any, key: Any = KEY):
    given = present(request=request)
    return None if given.malformed else judge(key, given, NOW, Rules())


def reason(request: Any) -> Reason:
    judged = verdict(request)
    return Reason.MALFORMED if judged is None else judged.reason


def test_rfc_9421_example():
    """The published example B.2.5: the base, and its MAC, byte for byte."""
    secret = base64.b64decode(
        "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ=="
    )
    target = read_target("https://example.com/foo?param=Value&Pet=dog")
    assert target is not None
    base = signature_base(
        [
            ("date", "Tue, 20 Apr 2021 02:07:55 GMT"),
            ("@authority", target.authority),
            ("content-type", "application/json"),
        ],
        '("date" "@authority" "content-type");created=1618884473;keyid="test-shared-secret"',
    )
    assert base == (
        b'"date": Tue, 20 Apr 2021 02:07:55 GMT\n'
        b'"@authority": example.com\n'
        b'"content-type": application/json\n'
        b'"@signature-params": ("date" "@authority" "content-type")'
        b';created=1618884473;keyid="test-shared-secret"'
    )
    expected = base64.b64decode("pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=")
    assert mac(secret, base, "sha256") == expected
    assert MacState(secret).digest(base) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        # The examples of RFC 9421, sections 2.2.3, 2.2.6 and 2.2.7.
        ("https://www.example.com/path?param=value", ("www.example.com", "/path", "?param=value")),
        ("https://www.example.com/path?param=value&foo=bar&baz=bat%2Dman",
         ("www.example.com", "/path", "?param=value&foo=bar&baz=bat%2Dman")),
        ("https://www.example.com/path?queryString",
         ("www.example.com", "/path", "?queryString")),
        ("https://www.example.com/path", ("www.example.com", "/path", "?")),
        ("HTTPS://WWW.Example.COM:443", ("www.example.com", "/", "?")),
        ("http://a:80?", ("a", "/", "?")),
        ("http://a:443/", ("a:443", "/", "?")),
        ("https://a:80/", ("a:80", "/", "?")),
        ("https://[2001:DB8::1]:8443//x/../y/", ("[2001:db8::1]:8443", "//x/../y/", "?")),
        ("https://a/%7Eb/%2e%2E/\\?%3F=?&%zz", ("a", "/%7Eb/%2e%2E/\\", "?%3F=?&%zz")),
    ],
)  # fmt: skip
def test_components_of_a_url(url: str, expected: tuple[str, str, str]):
    """Authority, path and query in the one form that RFC 9421 gives them, and nothing decoded."""
    assert read_target(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        None, 5, b"https://a/", "", "/path", "//a/path", "ftp://a/", "https://", "https:///p",
        "https://user@a/", "https://user:pw@a/", "https://a/#f", "https://a#f", "https://a?q#f",
        "https://a:/", "https://a:0/", "https://a:080/", "https://a:65536/", "https://a:1:2/",
        "https://a b/", "https://a/ ", " https://a/", "https://a/\n", "https://a/\r\nx: y",
        "https://a/\t", "https://a/\0", "https://a/\x7f", "https://a/é", "https://é/", "https://%61/",
        "https://a\\@b/", "https://[::1/", "https://a/" + "x" * MAX_URL, "https://" + "a" * 300,
    ],
)  # fmt: skip
def test_other_urls_are_unreadable(url: Any):
    """What no client sends as it stands, or what two readers could split in two ways."""
    assert read_target(url) is None


def test_vector():
    """Every byte of what is signed, written out once; docs/signing.md shows the same."""
    headers = sign_request(
        "super-secret-key", "client-123", "POST", "https://API.example.com:443/orders?limit=10",
        b'{"item": 7}', created=1767225600, nonce=NONCE,
    )  # fmt: skip
    parameters = (
        '("@method" "@authority" "@path" "@query" "content-digest");created=1767225600'
        ';nonce="q1w2e3r4t5y6u7i8o9p0aA";keyid="client-123";alg="hmac-sha256";tag="akm"'
    )
    digest = base64.b64encode(hashlib.sha256(b'{"item": 7}').digest()).decode()
    message = (
        '"@method": POST\n"@authority": api.example.com\n"@path": /orders\n"@query": ?limit=10\n'
        f'"content-digest": sha-256=:{digest}:\n"@signature-params": {parameters}'
    )
    signature = base64.b64encode(mac(b"super-secret-key", message.encode(), "sha256")).decode()
    assert headers == {
        "Content-Digest": f"sha-256=:{digest}:",
        "Signature-Input": f"akm={parameters}",
        "Signature": f"akm=:{signature}:",
    }


# Random requests, both ways, against the other implementation.

CHARACTERS = "abcXYZ019-._~!$&'()*+,;=:@/"
segments = st.text(CHARACTERS, max_size=20).map(lambda text: f"/{text}" if text else "")
escapes = st.sampled_from(["", "%2e%2E", "%2F", "%41", "/../", "//", "%00"])
queries = st.none() | st.text(CHARACTERS + "?", max_size=20)
hosts = st.sampled_from(
    ["example.com", "EXAMPLE.com", "a", "localhost:5000", "x.test:443", "x.test:80", "[::1]:8443"]
)


@st.composite
def urls(draw: st.DrawFn) -> str:
    path = draw(segments)
    if path:
        path += draw(escapes)
    query = draw(queries)
    url = f"{draw(st.sampled_from(['http', 'https']))}://{draw(hosts)}{path}"
    return url if query is None else f"{url}?{query}"


requests = st.tuples(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "M-SEARCH"]),
    urls(),
    st.binary(max_size=50),
    st.from_regex(r"[A-Za-z0-9_-]{16,128}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9._:-]{1,128}", fullmatch=True),
)


class Message:
    """What the other implementation takes for a request."""

    def __init__(self, method: str, url: str, headers: dict[str, str]) -> None:
        self.method, self.url, self.headers = method, url, headers


class Keys(peer.HTTPSignatureKeyResolver):
    def resolve_public_key(self, key_id: str) -> bytes:
        return SECRET.encode()

    resolve_private_key = resolve_public_key


PEER = {"signature_algorithm": peer.algorithms.HMAC_SHA256, "key_resolver": Keys()}


@given(requests)
def test_the_other_one_accepts_ours(drawn: tuple[str, str, bytes, str, str]):
    """What we sign, the general implementation accepts, with all five components covered."""
    method, url, body, nonce, key_id = drawn
    created = int(datetime.datetime.now().timestamp())
    headers = sign_request(SECRET, key_id, method, url, body, created=created, nonce=nonce)
    (found,) = peer.HTTPMessageVerifier(**PEER).verify(
        Message(method, url, headers), expect_tag="akm", require_components=COVERED, body=body
    )
    assert (found.parameters["keyid"], found.nonce) == (key_id, nonce)


@given(requests, st.permutations(COVERED), st.from_regex(r"[a-z][a-z0-9_.*-]{0,9}", fullmatch=True))
def test_we_accept_the_other_one(
    drawn: tuple[str, str, bytes, str, str], covered: list[str], label: str
):
    """What the general implementation signs, in any order and under any label, we accept."""
    method, url, body, nonce, _ = drawn
    headers: dict[str, str] = {}
    peer.HTTPMessageSigner(**PEER).sign(
        Message(method, url, headers), key_id="client", nonce=nonce, label=label, tag="akm",
        created=datetime.datetime.fromtimestamp(NOW, datetime.UTC), body=body,
        covered_component_ids=covered,
    )  # fmt: skip
    request = {"method": method, "url": url, "headers": headers}
    judged = verdict({**request, "body_sha256": hashlib.sha256(body).hexdigest()})
    assert judged is not None
    assert (judged.reason, judged.scheme, judged.body_verified) == (Reason.VALID, "request", True)
    assert reason({**request, "body_sha256": hashlib.sha256(body + b" ").hexdigest()}) is (
        Reason.BAD_SIGNATURE
    )


@given(requests)
def test_round_trip(drawn: tuple[str, str, bytes, str, str]):
    """What is signed is read back, whatever the request."""
    method, url, body, nonce, key_id = drawn
    read = read_request(signed(method, url, body, nonce=nonce, key_id=key_id))
    assert read is not None
    assert (read.key_id, read.nonce, read.created) == (key_id, nonce, NOW)
    assert read.body_matches is True


REFUSED = {Reason.MALFORMED, Reason.BAD_SIGNATURE, Reason.NOT_FOUND}


def changed(text: str, at: int, by: str) -> str:
    at %= len(text)
    assume(text[at] != by)
    return text[:at] + by + text[at + 1 :]


any_character = st.characters(max_codepoint=0x17F)


@given(st.sampled_from(["method", "url"]), st.integers(0), any_character)
def test_one_changed_character_of_the_target(part: str, at: int, by: str):
    """Method, authority, path, query: any other character in any place, and it is refused."""
    request = signed(url="https://example.com:8443/foo/b%2Fr?param=Value&Pet=dog")
    other = {**request, part: changed(request[part], at, by)}
    if part == "url":
        # The scheme is not covered, and "HTTP" and "Example" are "http" and "example".
        assume(other["url"].lower() != request["url"].lower() or at % len(other["url"]) > 24)
    assert reason(other) in REFUSED


@given(
    st.sampled_from(["Content-Digest", "Signature-Input", "Signature"]), st.integers(0),
    any_character,
)  # fmt: skip
def test_one_changed_character_of_a_header(name: str, at: int, by: str):
    """Digest, components, parameters, label, MAC: any other character, and it is refused."""
    request = signed()
    headers = {**request["headers"], name: changed(request["headers"][name], at, by)}
    # A signature by a key id that nobody has is refused when that id is looked up.
    judged = reason({**request, "headers": headers})
    given = present(request={**request, "headers": headers})
    assert judged in REFUSED or given.key_id != "client"


@given(st.sampled_from(["Content-Digest", "Signature-Input", "Signature"]), st.integers(0),
       st.booleans(), any_character)  # fmt: skip
def test_one_character_more_or_less(name: str, at: int, more: bool, by: str):
    """Inserted or left out, one character is enough."""
    request = signed()
    text = request["headers"][name]
    at %= len(text)
    text = text[:at] + by + text[at:] if more else text[:at] + text[at + 1 :]
    assert reason({**request, "headers": {**request["headers"], name: text}}) in REFUSED


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_one_body_is_not_another(one: bytes, other: bytes):
    """A body that differs from the one that was signed is refused."""
    assume(one != other)
    request = signed(body=one)
    assert reason(request) is Reason.VALID
    digest = hashlib.sha256(other).hexdigest()
    assert reason({**request, "body_sha256": digest}) is Reason.BAD_SIGNATURE


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["method", "url", "headers", "body_sha256", "x"]), json_like)
       | json_like)  # fmt: skip
def test_nothing_raises(request: Any):
    """Whatever is presented, it is read or malformed, and never an exception."""
    assert present(request=request if request is not None else 5).malformed
    named_key(request)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"secret": ""}, "secret"),
        ({"key_id": "no id"}, "key_id"),
        ({"method": "GET /"}, "method"),
        ({"method": ""}, "method"),
        ({"url": "/relative"}, "url"),
        ({"created": -1}, "created"),
        ({"created": 1.5}, "created"),
        ({"nonce": "short"}, "nonce"),
    ],
)
def test_what_cannot_be_signed(change: dict[str, Any], named: str):
    """The signer refuses what the verifier would refuse, and names it."""
    with pytest.raises(ValidationError, match=f"^{named}:"):
        signed(**change)


def test_every_version_that_has_not_ended():
    """During a rotation's overlap requests of both secrets are accepted, each until its end."""
    first = replace(seal_record(BOX, "client", 1, SECRET, "signed", 0), ends_at=NOW * 1_000_000)
    second = seal_record(BOX, "client", 2, "another", "signed", 0)
    record = ApiKey("client", "signed", 0, 0, (second, first))
    key = open_record(replace(record, mac=BOX.record_mac(record)), BOX)
    old, new = present(request=signed()), present(request=signed(secret="another"))
    assert judge(key, old, NOW - 0.001, Rules()).version == 1
    assert judge(key, new, NOW - 0.001, Rules()).version == 2
    assert judge(key, old, NOW, Rules()).reason is Reason.BAD_SIGNATURE
    assert judge(key, new, NOW, Rules()).version == 2


def test_a_bearer_key_signs_nothing():
    """Even who knew the pepper could not pass a signed request off as a bearer key's."""
    assert reason(signed()) is Reason.VALID
    assert verdict(signed(), open_key("bearer")).reason is Reason.BAD_SIGNATURE


@pytest.mark.parametrize("min_scheme", MIN_SCHEMES)
def test_the_strongest_scheme(min_scheme: str):
    """A signed request is enough for every `min_scheme`, also without the body's hash."""
    request = signed()
    key = open_key(min_scheme=min_scheme)
    assert verdict(request, key).body_verified is True
    del request["body_sha256"]
    judged = verdict(request, key)
    assert (judged.reason, judged.body_verified) == (Reason.VALID, False)


def test_a_refusal_after_the_proof_says_whether_the_body_was_seen():
    """Revoked is revoked, with a right body; with a wrong one the secret is not proved at all."""
    key = open_key(revoked=True, revoked_at=0)
    judged = verdict(signed(), key)
    assert (judged.reason, judged.body_verified) == (Reason.REVOKED, True)
    other = verdict({**signed(), "body_sha256": "0" * 64}, key)
    assert (other.reason, other.key, other.body_verified) == (Reason.BAD_SIGNATURE, None, None)
