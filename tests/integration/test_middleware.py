"""Keys in front of an app, over ASGI and WSGI alike, on real servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from api_key_manager import KeyManager, RateLimit, open_manager
from api_key_manager.core.exceptions import StorageError
from api_key_manager.core.memory import MemoryNonceStore, MemoryStore
from tests.integration.faces import FACES, Answered, Service

Serve = Callable[..., AbstractContextManager[Service]]
REFUSAL = {
    "type": "about:blank", "title": "Unauthorized", "status": 401,
    "detail": "A valid API key is needed.", "reason": "unauthorized",
}  # fmt: skip


@pytest.fixture(params=sorted(FACES))
def face(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def serve(face: str) -> Serve:
    made: Serve = FACES[face]
    return made


@pytest.fixture
def manager() -> KeyManager:
    # Keys in memory refuse nonces of before their birth: as if this had run for an hour.
    return KeyManager(nonces=MemoryNonceStore(0), failures_per_minute=0)


def create(manager: KeyManager, **fields: Any) -> dict[str, Any]:
    return asyncio.run(manager.create_key(**fields))


@pytest.fixture
def service(serve: Serve, manager: KeyManager) -> Iterator[Service]:
    with serve(manager=manager, exempt=["/healthz", "/public/*"]) as service:
        yield service


def is_refused(answer: Answered, service: Service) -> bool:
    """A 401 of the same bytes as every other, before the app was called."""
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"] == "Bearer"
    return (answer.status, answer.json, service.app.calls) == (401, REFUSAL, [])


def bearer(key: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {key['token']}"}


class TestBearer:
    def test_accepted(self, service: Service, manager: KeyManager):
        """A token in either header is accepted, and the verdict and the body reach the app."""
        key = create(manager, kind="bearer")
        for headers in (bearer(key), {"X-Api-Key": key["token"]}, {"x-API-key": key["token"]}):
            answer = service.send("POST", "/orders?a=1", headers, b"{}")
            assert answer.status == 200
            assert answer.headers["x-app"] == "yes"
            assert "ratelimit" not in answer.headers
            assert answer.json == {
                "method": "POST", "path": "/orders", "key": key["key_id"], "verified": None,
                "body": "{}",
            }  # fmt: skip

    def test_refused(self, service: Service, manager: KeyManager):
        """No key, an unknown, a wrong and a revoked one: the same bytes, and the app is not
        called."""
        key, gone = create(manager, kind="bearer"), create(manager, kind="bearer")
        asyncio.run(manager.revoke_key(gone["key_id"]))
        token = key["token"]
        bodies = set()
        for headers in (
            {}, bearer(gone), {"Authorization": f"Bearer {token[:-1]}"}, {"X-Api-Key": ""},
            {"Authorization": "Bearer"}, {"Authorization": f"Basic {token}"},
            {"Authorization": f"Bearer x{token}"}, {"Authorization": f"Bearer {token} {token}"},
        ):  # fmt: skip
            answer = service.send("POST", "/", headers, b"{}")
            assert is_refused(answer, service), headers
            bodies.add(answer.body)
        assert len(bodies) == 1

    def test_head(self, service: Service):
        """HEAD is refused without a body."""
        answer = service.send("HEAD")
        assert (answer.status, answer.body) == (401, b"")

    def test_two_credentials(self, service: Service, manager: KeyManager):
        """Two at once are malformed, also the same one twice."""
        key = create(manager, kind="bearer")
        signer = create(manager)
        token = key["token"]
        for headers in (
            [("Authorization", f"Bearer {token}"), ("X-Api-Key", token)],
            [("Authorization", f"Bearer {token}"), ("Authorization", f"Bearer {token}")],
            [("Authorization", f"Bearer {token}"), ("Authorization", "Basic YTpi")],
            [("X-Api-Key", token), ("X-Api-Key", token)],
            [*service.signed(signer).items(), ("X-Api-Key", token)],
            [("Signature", "akm=:AAAA:"), ("X-Api-Key", token)],
        ):
            assert is_refused(service.send("GET", "/", headers), service), headers

    def test_a_signed_key_is_no_token(self, service: Service, manager: KeyManager):
        """The secret of a signed key is not taken for a token."""
        key = create(manager)
        assert is_refused(service.send("GET", "/", {"X-Api-Key": key["secret"]}), service)

    def test_smuggled_verdict(self, service: Service, manager: KeyManager):
        """No header that a client sends becomes the verdict, and none counts beside a real one."""
        fakes = {
            "Api-Key": "admin", "api_key": "admin", "X-Key-Id": "admin", "State": "api_key=admin",
            "Wsgi.api-Key": "admin",
        }  # fmt: skip
        assert is_refused(service.send("GET", "/", fakes), service)
        assert service.send("GET", "/healthz", fakes).json["key"] is None
        key = create(manager, kind="bearer")
        assert service.send("GET", "/", {**fakes, **bearer(key)}).json["key"] == key["key_id"]


class TestExempt:
    @pytest.mark.parametrize("path", ["/healthz", "/public/", "/public/a/b.css", "/healthz?x=1"])
    def test_open(self, service: Service, path: str):
        """Exempt paths need no key, and have no verdict."""
        answer = service.send("GET", path)
        assert (answer.status, answer.json["key"]) == (200, None)

    @pytest.mark.parametrize(
        "path",
        [
            "/", "/healthz/", "/healthzz", "/Healthz", "/public", "/publicly", "/a/healthz",
            "/public/../admin", "/public/%2e%2e/admin", "/public/..%2fadmin", "/public//admin",
            "/public/%2fadmin", "/public/.%2e/", "/public/..", "/public/%5c..%5cadmin",
            "/public/%252e%252e/admin", "/public/%00", "/?/healthz",
        ],
    )  # fmt: skip
    def test_closed(self, service: Service, path: str):
        """What only looks like an exempt path needs a key."""
        assert is_refused(service.send("GET", path), service)


class TestSigned:
    @pytest.mark.parametrize(
        "target", ["/", "/orders?limit=10&x=%20", "/a-b_c.d~e/(f)!$&'*+,;=:@/g", "/orders?"]
    )
    @pytest.mark.parametrize(
        ("method", "body"), [("GET", None), ("POST", b""), ("PUT", b"{}\0\xff")]
    )
    def test_accepted(
        self, service: Service, manager: KeyManager, target: str, method: str, body: bytes | None
    ):
        """A signed request is accepted, and its body verified and given to the app."""
        key = create(manager)
        signature = service.signed(key, method, target, body or b"")
        answer = service.send(method, target, signature, body)
        assert answer.status == 200, answer
        assert answer.json["key"] == key["key_id"]
        assert answer.json["verified"] is True
        assert answer.json["body"] == (body or b"").decode("latin-1")

    def test_escapes(self, service: Service, manager: KeyManager):
        """Escapes in upper case, as clients write them, are what was signed."""
        key = create(manager)
        for target in ("/caf%C3%A9", "/a%20b?c=%2F%2f"):
            answer = service.send("GET", target, service.signed(key, "GET", target))
            assert answer.status == 200, target

    def test_replayed(self, service: Service, manager: KeyManager):
        """The same request again is refused."""
        signature = service.signed(create(manager))
        assert service.send("GET", "/", signature).status == 200
        service.app.calls.clear()
        assert is_refused(service.send("GET", "/", signature), service)

    @pytest.mark.parametrize(
        ("method", "target"),
        [
            ("PUT", "/orders?limit=10"), ("POST", "/orderz?limit=10"), ("POST", "/orders?limit=11"),
            ("POST", "/orders"), ("POST", "/orders?"), ("POST", "/orders/?limit=10"),
            ("POST", "/Orders?limit=10"), ("POST", "/orders//?limit=10"),
            ("POST", "/./orders?limit=10"), ("POST", "/x/../orders?limit=10"),
            ("POST", "/orders?limit=10&"), ("POST", "/orders?limit=%310"),
            ("POST", "/orders;?limit=10"), ("POST", "/orders%00?limit=10"),
        ],
    )  # fmt: skip
    def test_changed_line(self, service: Service, manager: KeyManager, method: str, target: str):
        """Another method, path or query than what was signed is refused."""
        signature = service.signed(create(manager), "POST", "/orders?limit=10", b"{}")
        assert is_refused(service.send(method, target, signature, b"{}"), service)

    def test_rewritten_path(self, face: str, service: Service, manager: KeyManager):
        """An escape or a slash added on the way is refused. A server that takes it away again
        calls the app with the path that was signed."""
        key = create(manager)
        unseen = {"wsgi-wsgiref": ["/%6frders", "//orders"], "wsgi-werkzeug": ["//orders"]}
        for target in ("/%6frders", "//orders"):
            answer = service.send("GET", target, service.signed(key, "GET", "/orders"))
            if target in unseen.get(face, []):
                assert answer.json["path"] == "/orders"
                service.app.calls.clear()
            else:
                assert is_refused(answer, service)

    def test_every_byte(self, service: Service, manager: KeyManager):
        """Any byte of host, digest, signature or body changed: refused, each time."""
        key, body = create(manager), b'{"item": 7}'
        for part in ("Host", "Content-Digest", "Signature-Input", "Signature", "body"):
            whole = {"Host": service.host, "body": body, **service.signed(key, "POST", "/", body)}
            for place in range(len(whole[part])):
                headers, sent, host = service.signed(key, "POST", "/", body), body, service.host
                if part == "body":
                    sent = _change(body, place)
                elif part == "Host":
                    host = _change(host.encode(), place).decode()
                else:
                    headers[part] = _change(headers[part].encode(), place).decode()
                answer = service.send("POST", "/", headers, sent, host=host)
                # A host that cannot be one is a matter of the server's, before anybody else's.
                assert answer.status in ((400, 401) if part == "Host" else (401,)), (part, place)
                assert service.app.calls == []

    @pytest.mark.parametrize("host", ["127.0.0.1/orders", "x@{}", "{}/", "{}?", "{},{}", " "])
    def test_host_with_a_path(self, service: Service, manager: KeyManager, host: str):
        """What stands in Host moves no part of the path."""
        key = create(manager)
        signature = service.signed(key, "GET", "/orders/x", base="http://127.0.0.1")
        answer = service.send("GET", "/x", signature, host=host.format(service.host, service.host))
        assert answer.status in (400, 401)
        assert service.app.calls == []

    def test_duplicate_headers(self, service: Service, manager: KeyManager):
        """Any of the three twice, or two hosts, is refused."""
        key = create(manager)
        for name in ("Content-Digest", "Signature-Input", "Signature"):
            headers = service.signed(key)
            answer = service.send("GET", "/", [*headers.items(), (name, headers[name])])
            assert is_refused(answer, service), name
        answer = service.send("GET", "/", [*service.signed(key).items(), ("Host", service.host)])
        assert answer.status in (400, 401)
        assert service.app.calls == []

    def test_added_and_removed_body(self, service: Service, manager: KeyManager):
        """A body that was added or left out is refused."""
        key = create(manager)
        added = service.send("POST", "/", service.signed(key, "POST"), b"x")
        left_out = service.send("POST", "/", service.signed(key, "POST", body=b"x"), b"")
        assert is_refused(added, service)
        assert is_refused(left_out, service)

    def test_forwarded_headers_count_for_nothing(self, service: Service, manager: KeyManager):
        """X-Forwarded-Host and the like do not say what was signed."""
        signature = service.signed(create(manager), base="https://api.example.com")
        more = {
            "X-Forwarded-Host": "api.example.com", "X-Forwarded-Proto": "https",
            "Forwarded": "host=api.example.com;proto=https", "X-Original-URL": "/",
        }  # fmt: skip
        assert is_refused(service.send("GET", "/", {**signature, **more}), service)

    def test_base_url(self, serve: Serve, manager: KeyManager):
        """Behind a proxy that changes scheme, host and path, the URL is what `base_url` says."""
        key, base = create(manager), "https://api.example.com/v1"
        with serve(manager=manager, base_url=base) as service:
            signature = service.signed(key, "GET", "/orders?a=b", base=base)
            assert service.send("GET", "/orders?a=b", signature).status == 200
            service.app.calls.clear()
            assert is_refused(service.send("GET", "/", service.signed(key)), service)


def _change(text: bytes, place: int) -> bytes:
    """Another byte of the same kind: to no other meaning by accident."""
    old = text[place]
    new = b"1" if chr(old).isdigit() and old != ord("1") else b"2" if chr(old).isdigit() else b"Q"
    return text[:place] + (new if new[0] != old else b"R") + text[place + 1 :]


class TestBody:
    def test_too_large(self, serve: Serve, manager: KeyManager):
        """A signed body of one byte more than allowed is a 413; of a token's nobody counts."""
        key, app = create(manager), create(manager, kind="bearer")
        with serve(manager=manager, max_body=100_000) as service:
            for size, status in ((100_000, 200), (100_001, 413)):
                body = b"x" * size
                answer = service.send("POST", "/", service.signed(key, "POST", "/", body), body)
                assert answer.status == status
            assert answer.json["reason"] == "too_large"
            assert len(service.app.calls) == 1
            assert service.send("POST", "/", bearer(app), body).status == 200

    def test_said_too_large(self, service: Service, manager: KeyManager):
        """What says that it is too large is refused before it is sent."""
        headers = service.signed(create(manager), "POST")
        assert service.send("POST", "/", {**headers, "Content-Length": "99999999"}).status == 413
        assert service.app.calls == []

    def test_default_bound(self, service: Service, manager: KeyManager):
        """One MiB is taken, and no more."""
        key = create(manager)
        for size, status in ((1024 * 1024, 200), (1024 * 1024 + 1, 413)):
            body = b"y" * size
            signature = service.signed(key, "POST", "/", body)
            assert service.send("POST", "/", signature, body).status == status

    def test_chunked(self, face: str, service: Service, manager: KeyManager):
        """A body in chunks is checked and given on; where the server does not take chunks apart,
        a length is asked for."""
        key, body = create(manager), b"0123456789" * 1000
        signature = service.signed(key, "POST", "/", body)
        answer = service.send("POST", "/", signature, body, chunks=7)
        if face == "wsgi-wsgiref":
            assert (answer.status, answer.json["reason"]) == (411, "length_required")
            return
        assert answer.json["body"] == body.decode()
        service.app.calls.clear()
        signature = service.signed(key, "POST", "/", body)
        assert is_refused(service.send("POST", "/", signature, body + b"x", chunks=7), service)

    def test_chunked_too_large(self, face: str, service: Service, manager: KeyManager):
        """A body whose length nobody says is bounded as it comes."""
        body = b"z" * (1024 * 1024 + 1)
        signature = service.signed(create(manager), "POST", "/", body)
        answer = service.send("POST", "/", signature, body, chunks=20)
        assert answer.status == (411 if face == "wsgi-wsgiref" else 413)
        assert service.app.calls == []


class TestRefusals:
    def test_permissions(self, serve: Serve, manager: KeyManager):
        """What the app asks of every key: 403 without it."""
        wanted = "documents.read and not trial"
        reader = create(manager, kind="bearer", permissions=["documents.*"])
        trial = create(manager, kind="bearer", permissions=["documents.read", "trial"])
        with serve(manager=manager, permissions=wanted) as service:
            assert service.send("GET", "/", bearer(reader)).status == 200
            answer = service.send("GET", "/", bearer(trial))
        assert (answer.status, answer.json["reason"]) == (403, "forbidden")
        assert answer.headers["content-type"] == "application/problem+json"
        assert len(service.app.calls) == 1

    def test_rate_limit(self, service: Service, manager: KeyManager):
        """A key's limits show in accepted answers, and refuse with 429."""
        limits = [RateLimit("two", 2, 3600)]
        key = create(manager, kind="bearer", rate_limits=limits)
        for left in ("1", "0"):
            answer = service.send("GET", "/", bearer(key))
            assert answer.status == 200
            assert answer.headers["ratelimit-policy"] == '"two";q=2;w=3600'
            assert answer.headers["ratelimit"].startswith(f'"two";r={left};t=')
        answer = service.send("GET", "/", bearer(key))
        assert (answer.status, answer.json["reason"]) == (429, "rate_limited")
        assert 1790 <= int(answer.headers["retry-after"]) <= 1800
        assert answer.headers["ratelimit"].startswith('"two";r=0;t=')
        assert len(service.app.calls) == 2

    def test_allowlist(self, serve: Serve, manager: KeyManager):
        """The address is the peer's; a proxy's word counts only where it is trusted."""
        key = create(manager, kind="bearer", ip_allowlist=["10.0.0.7"])
        said = {**bearer(key), "X-Forwarded-For": "10.0.0.7"}
        with serve(manager=manager, trusted_proxies=["127.0.0.1"]) as service:
            assert service.send("GET", "/", said).status == 200
            spoofed = {**said, "X-Forwarded-For": "10.0.0.7, 203.0.113.9"}
            answer = service.send("GET", "/", spoofed)
            assert (answer.status, answer.json["reason"]) == (403, "ip_denied")
            assert service.send("GET", "/", bearer(key)).status == 403

    def test_untrusted_proxy(self, serve: Serve, manager: KeyManager):
        """Nobody's X-Forwarded-For is believed by default."""
        key = create(manager, kind="bearer", ip_allowlist=["10.0.0.7"])
        with serve(manager=manager) as service:
            said = {**bearer(key), "X-Forwarded-For": "10.0.0.7"}
            assert service.send("GET", "/", said).status == 403

    def test_store_down(self, serve: Serve):
        """A store that cannot answer is a 503, and nobody passes."""

        class Broken(MemoryStore):
            async def load(self, key_ids: Any) -> Any:
                raise StorageError("gone")

        key = create(KeyManager(), kind="bearer")
        with serve(manager=KeyManager(store=Broken())) as service:
            answer = service.send("GET", "/", bearer(key))
            assert (answer.status, answer.json["reason"]) == (503, "unavailable")
            assert answer.headers["retry-after"] == "1"
            assert "gone" not in answer.body.decode()
            assert service.app.calls == []

    def test_optional(self, serve: Serve, manager: KeyManager):
        """Without `require` nobody needs a key, and a bad one is refused all the same."""
        key = create(manager, kind="bearer")
        with serve(manager=manager, require=False) as service:
            assert service.send("GET", "/").json["key"] is None
            basic = service.send("GET", "/", {"Authorization": "Basic YTpi"})
            assert basic.json["key"] is None
            assert service.send("GET", "/", bearer(key)).json["key"] == key["key_id"]
            service.app.calls.clear()
            for headers in (
                {"X-Api-Key": "nonsense"}, {"Authorization": "Bearer"}, {"Signature": "x"},
                {"Signature-Input": "x"}, {"X-Api-Key": ""},
            ):  # fmt: skip
                assert is_refused(service.send("GET", "/", headers), service), headers

    def test_audit(self, service: Service, manager: KeyManager):
        """The log has accepted and refused, with the address and who asked."""
        key = create(manager, kind="bearer")
        service.send("GET", "/", bearer(key))
        service.send("GET", "/", {"X-Api-Key": "nonsense"})
        events = manager.get_audit_log()
        assert [event["action"] for event in events] == [
            "key_created", "key_validated", "key_refused",
        ]  # fmt: skip
        assert {(event["actor"], event["ip"]) for event in events[1:]} == {
            ("middleware", "127.0.0.1")
        }
        assert key["token"] not in json.dumps(events)


def test_on_a_database(serve: Serve, tmp_path: Any):
    """`open_manager` is opened with the app and closed with it, and what it saw is in the log."""
    url = f"sqlite:///{tmp_path}/data/keys.db"

    async def prepare() -> dict[str, Any]:
        async with open_manager(url) as manager:
            return await manager.create_key(rate_limits=[RateLimit("r", 5, 60)])

    async def told() -> list[str]:
        async with open_manager(url) as manager:
            return [event["action"] for event in manager.get_audit_log()]

    key = asyncio.run(prepare())
    with serve(manager=open_manager(url, AUDIT_FLUSH_SECONDS=5)) as service:
        for left in (4, 3):
            answer = service.send("POST", "/", service.signed(key, "POST", "/", b"{}"), b"{}")
            assert answer.status == 200
            assert answer.headers["ratelimit"].startswith(f'"r";r={left}')
    assert asyncio.run(told()) == ["key_created", "key_validated", "key_validated"]
