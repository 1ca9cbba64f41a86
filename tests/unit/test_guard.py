"""The guard: what it is told at the start, what it reads, and that it fails closed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_key_manager import ConfigurationError, KeyManager, Reason, Verdict, sign_request
from api_key_manager.core.credentials import CREDENTIAL_HEADERS, absolute_url, credential
from api_key_manager.core.presented import present
from api_key_manager.integrations.answers import RefusedError
from api_key_manager.integrations.guard import Call, Guard, has_permissions


@pytest.mark.parametrize(
    ("named", "options"),
    [
        ("permissions", {"permissions": "documents.read and"}),
        ("permissions", {"permissions": ["a", 5]}),
        ("permissions", {"permissions": "a", "require": False}),
        ("exempt", {"exempt": "/healthz"}),
        ("exempt", {"exempt": ["healthz"]}),
        ("exempt", {"exempt": ["*"]}),
        ("exempt", {"exempt": ["/a*"]}),
        ("exempt", {"exempt": ["/a/*/b"]}),
        ("exempt", {"exempt": ["/a/../b"]}),
        ("exempt", {"exempt": ["/a%20b"]}),
        ("exempt", {"exempt": [5]}),
        ("base_url", {"base_url": ""}),
        ("base_url", {"base_url": "api.example.com"}),
        ("base_url", {"base_url": "https://api.example.com/"}),
        ("base_url", {"base_url": "https://api.example.com/v1/"}),
        ("base_url", {"base_url": "https://api.example.com?a"}),
        ("base_url", {"base_url": "https://api.example.com/v1?"}),
        ("base_url", {"base_url": "https://user@api.example.com"}),
        ("base_url", {"base_url": "ftp://api.example.com"}),
        ("base_url", {"base_url": 5}),
        ("trusted_proxies", {"trusted_proxies": "10.0.0.0/8"}),
        ("trusted_proxies", {"trusted_proxies": ["proxy.example.com"]}),
        ("max_body", {"max_body": -1}),
        ("max_body", {"max_body": True}),
    ],
)
def test_configuration(named: str, options: dict[str, Any]):
    """What cannot be meant is refused by name, before anything is served."""
    with pytest.raises(ConfigurationError, match=rf"^{named}: "):
        Guard(**options)


def call(path: str = "/", headers: dict[str, str] | None = None, **more: Any) -> Call:
    lines = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    usual = Call("GET", "http", path, path.encode(), [(b"host", b"app.test"), *lines], None)
    return usual._replace(**more)


async def test_a_body_that_was_forgotten():
    """A signed request that was judged without its body does not pass, whatever the verdict."""
    manager, guard = KeyManager(), Guard()
    key = await manager.create_key()
    now = int(manager.clock())
    headers = sign_request(
        key["secret"], key["key_id"], "GET", "http://app.test/", created=now, nonce="n" * 16
    )
    presented = guard.present(call(headers=headers))
    assert presented is not None
    assert presented.request is not None
    assert presented.request.body_matches is None
    accepted = Verdict(Reason.VALID, scheme="request", body_verified=False)
    with pytest.raises(RuntimeError, match="without its body"):
        guard.passed(accepted, 0)
    with pytest.raises(RuntimeError, match="without its body"):
        guard.passed(accepted._replace(body_verified=None), 0)
    assert guard.passed(accepted._replace(body_verified=True), 0) == ()


def test_every_refusal_has_an_answer():
    """Each reason is refused with its status; the 401s are equal."""
    seen: dict[int, set[bytes]] = {}
    for reason in Reason:
        if reason is Reason.VALID:
            continue
        with pytest.raises(RefusedError) as refused:
            Guard().passed(Verdict(reason, "some-key"), 0)
        answer = refused.value.answer
        assert b"some-key" not in answer.body
        assert dict(answer.headers)[b"content-length"] == b"%d" % len(answer.body)
        seen.setdefault(answer.status, set()).add(answer.body)
    assert set(seen) == {401, 403, 429, 503}
    assert len(seen[401]) == 1


@given(st.text(alphabet="/.ab%\\", max_size=12))
def test_exempt_paths_stay_below(path: str):
    """Whatever is exempt below a path is still below it once dots are resolved."""
    guard = Guard(exempt=["/a/*"])
    if guard.present(call(f"/a/{path}")) is None:
        parts = path.split("/")
        assert not {".", ".."} & set(parts)
        assert "\\" not in path
        assert "%" not in path
        assert "" not in parts[:-1]


_values = st.lists(
    st.sampled_from([b"Bearer a", b"Basic b", b"akm_a", b"", b"bearer", b"x"]), max_size=3
)


@given(st.dictionaries(st.sampled_from(sorted(CREDENTIAL_HEADERS)), _values.filter(len)))
def test_one_credential(fields: dict[bytes, list[bytes]]):
    """Never two credentials at once, and nothing is shown only when no header shows anything."""
    shown = credential(fields)
    tokens = [*fields.get(b"x-api-key", [])]
    tokens += [v for v in fields.get(b"authorization", []) if v.lower().startswith(b"bearer")]
    signed = b"signature" in fields or b"signature-input" in fields
    assert bool(shown) is bool(tokens or signed)
    if len(tokens) + signed > 1:
        assert present(**shown).malformed
    assert ("token" in shown) is bool(tokens)


@pytest.mark.parametrize(
    ("scheme", "host", "target", "url"),
    [
        ("https", b"a.example", b"/b?c", "https://a.example/b?c"),
        ("http", b"[::1]:80", b"/", "http://[::1]:80/"),
        ("ws", b"a", b"/", None),
        ("http", b"", b"/", None),
        ("http", b"a/b", b"/c", None),
        ("http", b"a?", b"/c", None),
        ("http", b"u@a", b"/", None),
        ("http", b"a:x", b"/", None),
        ("http", b"a:99999", b"/", None),
        ("http", b"a\n", b"/", None),
        ("http", b"a", b"*", None),
        ("http", b"a", b"", None),
        ("http", b"a", b"http://b/", None),
        ("http", b"a", b"/#b", None),
        ("http", b"a", b"/\xc3\xa9", None),
        ("http", b"a", b"/" + b"x" * 8192, None),
    ],
)
def test_absolute_url(scheme: str, host: bytes, target: bytes, url: str | None):
    """The host brings no path, the target no host."""
    assert absolute_url(scheme, host, target) == url


async def test_has_permissions():
    """Only an accepted key holds anything."""
    manager = KeyManager()
    key = await manager.create_key(kind="bearer", permissions=["a.b"])
    verdict = await manager.verify(token=key["token"])
    assert has_permissions(verdict, "a.* and not c")
    assert has_permissions(verdict, ["a.b"])
    assert not has_permissions(verdict, "c")
    assert not has_permissions(verdict._replace(reason=Reason.FORBIDDEN), "a.b")
    assert not has_permissions(None, "not c")
