"""Forward auth, by the headers that each gateway sends: who is let in, and what is believed."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import pytest

from api_key_manager.config import Settings
from api_key_manager.core import AsyncAPIKeyValidator, KeyManager, Verdict, sign_request
from api_key_manager.core.exceptions import OUTCOMES, Reason
from api_key_manager.server.authorize import MAX_METADATA_HEADER, Authorize
from api_key_manager.server.errors import problem_of
from api_key_manager.server.exchange import Exchange, Reply, Request

STAMP = 1_760_000_000
URL = "https://shop.example/orders/7?limit=10"
NONCES = iter(range(10**6))
RULES = """
default = "deny"
[[rules]]
methods = ["GET"]
path = "/orders/*"
permissions = "orders.read"
[[rules]]
path = "/admin/**"
permissions = "admin"
[[rules]]
path = "/**"
"""

Pairs = Sequence[tuple[str, str]]


def asked(
    profile: str,
    method: str = "GET",
    scheme: str = "https",
    host: str = "shop.example",
    uri: str = "/orders/7?limit=10",
) -> dict[str, Any]:
    """The question of a gateway about a request, as keywords of :func:`ask`."""
    values = (method, scheme, host, uri)
    if profile == "nginx":
        names = ("Method", "Scheme", "Host", "URI")
        pairs = zip((f"X-Original-{name}" for name in names), values, strict=True)
        return {"pairs": [("Host", "akm"), *pairs]}
    if profile in ("traefik", "caddy"):
        names = ("Method", "Proto", "Host", "Uri")
        pairs = zip((f"X-Forwarded-{name}" for name in names), values, strict=True)
        return {"pairs": [("Host", "akm:5000"), *pairs]}
    below = "/v1/authorize" if profile == "envoy" else ""
    path, _, query = f"{below}{uri}".partition("?")
    return {
        "method": method, "path": path, "query": query,
        "pairs": [("Host", host), ("X-Forwarded-Proto", scheme)],
    }  # fmt: skip


PROFILES = ["nginx", "traefik", "caddy", "envoy"]


class Asker:
    """Asks a handler on keys in memory; answers `(status, headers, document)`."""

    def __init__(self, manager: KeyManager, **settings: Any) -> None:
        self.manager = manager
        self.handler = Authorize(Settings.load(**settings), lambda presented, verdict: 0)

    async def __call__(
        self, *credentials: Any, method: str = "GET", path: str = "/v1/authorize",
        query: str = "", pairs: Pairs = (), peer: Any = ("127.0.0.1", 4000), more: Pairs = (),
    ) -> tuple[int, dict[str, str], Any]:  # fmt: skip
        headers = [
            (name.lower().encode(), value.encode("latin-1"))
            for name, value in [*pairs, *credentials, *more]
        ]
        head: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            head.setdefault(name, []).append(value)
        request = Request(method, path, query.encode(), headers, head, peer, "r-1")
        try:
            reply: Reply = await Exchange(self.manager, self.handler(request)).finish(never)
        except Exception as error:
            problem = problem_of(error)
            told = {name.decode(): value.decode() for name, value in problem.headers}
            return problem.status, told, json.loads(problem.body("r-1"))
        assert reply.body == b""
        return reply.status, {n.decode(): v.decode() for n, v in reply.headers}, None


async def never() -> bytes:
    raise AssertionError("the body is not read")


@pytest.fixture
def manager(clock) -> KeyManager:
    return KeyManager(AsyncAPIKeyValidator(clock=clock))


@pytest.fixture
def rules(tmp_path) -> str:
    (tmp_path / "rules.toml").write_text(RULES)
    return str(tmp_path / "rules.toml")


def bearer(key: dict[str, Any]) -> tuple[str, str]:
    return ("Authorization", f"Bearer {key['token']}")


def signature(
    key: dict[str, Any], method: str = "GET", url: str = URL, body: bytes = b""
) -> list[tuple[str, str]]:
    made = sign_request(
        key["secret"], key["key_id"], method, url, body, created=STAMP,
        nonce=f"nonce-{next(NONCES):016}",
    )  # fmt: skip
    return list(made.items())


async def reasons(manager: KeyManager) -> list[str]:
    await manager.recorder.flush(STAMP + 5)
    return [event["reason"] for event in manager.get_audit_log() if event["reason"]]


class TestCredentials:
    async def test_bearer(self, manager):
        """A token in either header is taken, the scheme in any case."""
        app = await manager.create_key("app", kind="bearer", owner="acme")
        ask = Asker(manager)
        for pair in (
            bearer(app),
            ("authorization", f"bEARER  {app['token']}"),
            ("X-Api-Key", app["token"]),
        ):
            status, headers, _ = await ask(pair)
            assert (status, headers) == (200, {"x-key-id": "app", "x-key-owner": "acme"})

    async def test_signed(self, manager):
        """A signature over the question itself, where nobody is in front."""
        key = await manager.create_key("k")
        ask = Asker(manager)
        pairs = signature(key, "POST", "http://akm.test:5000/v1/authorize?a=1", b"{}")
        status, headers, _ = await ask(
            *pairs, method="POST", query="a=1", pairs=[("Host", "akm.test:5000")]
        )
        assert status == 200
        assert headers == {"x-key-id": "k", "x-content-digest": dict(pairs)["Content-Digest"]}

    async def test_two_at_once(self, manager):
        """Two credentials, of one kind or of two, both good: 401, and `malformed` in the log."""
        app = await manager.create_key("app", kind="bearer")
        key = await manager.create_key("k")
        ask = Asker(manager, AUTHORIZE_PROFILE="nginx")
        one, other = bearer(app), ("X-Api-Key", app["token"])
        combinations = [
            [one, one], [other, other], [one, other], [one, *signature(key)],
            [other, *signature(key)], [*signature(key), *signature(key)],
            [one, one, *signature(key)], [other, other, *signature(key)],
            [one, ("Signature-Input", "x")], [one, ("Signature", "x")],
            [("Authorization", "Basic eDp5"), one], [one, ("Authorization", "")],
            *([*pairs, pair] for pairs in [signature(key)] for pair in pairs),
        ]  # fmt: skip
        for pairs in combinations:
            status, _, document = await ask(*pairs, **asked("nginx"))
            assert (status, document["reason"]) == (401, "unauthorized"), pairs
        assert set(await reasons(manager)) == {"malformed"}
        for pairs in ([one], [other], signature(key), [other, ("Authorization", "Basic eDp5")]):
            assert (await ask(*pairs, **asked("nginx")))[0] == 200, pairs

    @pytest.mark.parametrize("kept", [0, 1, 2])
    async def test_half_a_signature(self, manager, kept: int):
        """A signature with one of its three headers, or without one: 401."""
        pairs = signature(await manager.create_key("k"))
        ask = Asker(manager, AUTHORIZE_PROFILE="nginx")
        for some in (pairs[kept : kept + 1], pairs[:kept] + pairs[kept + 1 :]):
            assert (await ask(*some, **asked("nginx")))[0] == 401

    async def test_all_401_are_one(self, manager, clock):
        """Whatever is wrong with a credential, status, body and headers are the same."""
        app = await manager.create_key("app", kind="bearer")
        gone = await manager.create_key("gone", kind="bearer")
        await manager.revoke_key("gone")
        key = await manager.create_key("k")
        used, stale = signature(key), signature(key)
        ask = Asker(manager, AUTHORIZE_PROFILE="nginx")
        assert (await ask(*used, **asked("nginx")))[0] == 200
        wrong = [(name, value.replace('keyid="k"', 'keyid="x"')) for name, value in stale]
        admin = await manager.create_key("admin", kind="bearer", realm="admin", prefix="akm_admin")
        answers = [
            await ask(*pairs, **asked("nginx", uri=uri))
            for pairs, uri in (
                ([], "/"), ([("Authorization", "Bearer")], "/"), ([("X-Api-Key", "")], "/"),
                ([("X-Api-Key", app["token"][:-1] + "é")], "/"), ([bearer(gone)], "/"),
                ([bearer({"token": app["token"].replace("app", "abb")})], "/"),
                ([bearer(admin)], "/"), (used, "/orders/7?limit=10"), (stale, "/orders/8"),
                (wrong, "/orders/7?limit=10"), ([("Authorization", "Basic eDp5")], "/"),
            )
        ]  # fmt: skip
        assert all(answer == answers[0] for answer in answers)
        assert answers[0][0] == 401
        assert answers[0][1] == {"www-authenticate": "Bearer"}

    async def test_weak_schemes(self, manager):
        """What is good at `/v1/validate` without covering the request is no credential here."""
        from api_key_manager.core import sign

        key = await manager.create_key("k")
        ask = Asker(manager)
        for pairs in (
            [("X-Api-Key", sign(key["secret"], "k"))],
            [("Authorization", f"Bearer {sign(key['secret'], 'k', STAMP)}")],
            [("X-Key-Id", "k"), ("Signature", sign(key["secret"], "k"))],
        ):
            assert (await ask(*pairs))[0] == 401

    async def test_every_reason_has_its_status(self):
        """The table of reasons is that of this face."""
        from api_key_manager.server.authorize import _refusal

        for reason in Reason:
            if reason is not Reason.VALID:
                assert _refusal(Verdict(reason)).status == OUTCOMES[reason].status


class TestProfiles:
    @pytest.mark.parametrize("profile", PROFILES)
    @pytest.mark.parametrize(
        ("method", "url"),
        [
            ("GET", URL), ("DELETE", "http://shop.example:8080/"), ("POST", "https://[::1]/a%2Fb?"),
            ("OPTIONS", "https://shop.example:443/a//b/../c;d=1?x=%20&y"), ("GET", "http://h/?"),
        ],
    )  # fmt: skip
    async def test_signed(self, manager, profile: str, method: str, url: str):
        """What each gateway says of a request is what its sender signed, undecoded."""
        key = await manager.create_key("k")
        scheme, _, rest = url.partition("://")
        host, _, uri = rest.partition("/")
        ask = Asker(manager, AUTHORIZE_PROFILE=profile)
        question = asked(profile, method, scheme, host, f"/{uri}")
        assert (await ask(*signature(key, method, url), **question))[0] == 200

    @pytest.mark.parametrize("profile", PROFILES)
    async def test_tampering(self, manager, profile: str):
        """Another method, host, path or query than was signed: 401."""
        key = await manager.create_key("k")
        ask = Asker(manager, AUTHORIZE_PROFILE=profile)
        for change in (
            {"method": "HEAD"}, {"method": "get"}, {"host": "bank.example"},
            {"uri": "/orders/8?limit=10"},
            {"uri": "/orders/7?limit=11"}, {"uri": "/orders/7"}, {"uri": "//orders/7?limit=10"},
            {"uri": "/./orders/7?limit=10"}, {"uri": "/%6Frders/7?limit=10"},
            {"host": "shop.example/orders", "uri": "/7?limit=10"}, {"scheme": "ftp"},
            {"scheme": ""},
            {"host": "shop.example@evil.example"}, {"uri": "orders/7?limit=10"}, {"uri": "/é"},
            {"uri": f"{URL}"}, {"uri": "*"}, {"uri": "/orders/7?limit=10#x"}, {"host": ""},
        ):  # fmt: skip
            status, _, _ = await ask(*signature(key), **asked(profile, **change))
            assert status == 401, change
        assert (await ask(*signature(key), **asked(profile)))[0] == 200

    @pytest.mark.parametrize("profile", PROFILES)
    async def test_each_exactly_once(self, manager, profile: str):
        """A header of the profile that is missing, empty or there twice: 401."""
        key = await manager.create_key("k")
        ask = Asker(manager, AUTHORIZE_PROFILE=profile)
        question = asked(profile)
        counted = [pair for pair in question["pairs"] if pair[0] != "Host" or profile == "envoy"]
        for pair in counted:
            others = [other for other in question["pairs"] if other is not pair]
            for pairs in (others, [*others, (pair[0], "")], [*others, pair, pair]):
                assert (await ask(*signature(key), **{**question, "pairs": pairs}))[0] == 401, pairs

    @pytest.mark.parametrize("profile", ["", *PROFILES])
    async def test_other_headers_say_nothing(self, manager, profile: str):
        """What other gateways would say is not looked at, whatever a client puts there."""
        key = await manager.create_key("k")
        ask = Asker(manager, AUTHORIZE_PROFILE=profile)
        question = asked(profile)
        known = {name.lower() for name, _ in question["pairs"]} if profile else {"host"}
        smuggled = [
            (name, value)
            for other in ("nginx", "traefik", "envoy")
            for name, value in asked(other, "DELETE", "http", "evil.example", "/x")["pairs"]
            if name.lower() not in known
        ]
        smuggled += [("X-Original-URL", "/x"), ("X-Rewrite-URL", "/x"), ("X_Original_URI", "/x"),
                     ("X-Forwarded-Prefix", "/x"), ("Forwarded", "host=evil"),
                     ("X-HTTP-Method-Override", "PUT"),
                     ("X-Key-Id", "root"), ("X-Content-Digest", "sha-256=:x:")]  # fmt: skip
        url = URL if profile else "http://shop.example/orders/7?limit=10"
        pairs = signature(key, url=url)
        status, headers, _ = await ask(*pairs, **question, more=smuggled)
        assert (status, headers["x-key-id"]) == (200, "k")
        assert headers["x-content-digest"] == dict(pairs)["Content-Digest"]

    @pytest.mark.parametrize("profile", PROFILES)
    async def test_untrusted_peer(self, manager, profile: str, caplog):
        """Who is no trusted proxy is not believed: signed requests are refused, and the log says
        whom to trust. A token needs nobody's word."""
        key = await manager.create_key("k")
        app = await manager.create_key("app", kind="bearer")
        ask = Asker(manager, AUTHORIZE_PROFILE=profile, TRUSTED_PROXIES="10.0.0.0/8")
        for peer in (("192.0.2.1", 1), ("127.0.0.1", 1), None, ("unix:", 0)):
            assert (await ask(*signature(key), **asked(profile), peer=peer))[0] == 401
            assert (await ask(bearer(app), **asked(profile), peer=peer))[0] == 200
        assert (await ask(*signature(key), **asked(profile), peer=("10.1.2.3", 1)))[0] == 200
        (said,) = [record.getMessage() for record in caplog.records]
        assert said.startswith("192.0.2.1 asks at /v1/authorize and is not in TRUSTED_PROXIES")

    @pytest.mark.parametrize("profile", PROFILES)
    async def test_loopback_is_trusted_by_default(self, manager, profile: str):
        """Without TRUSTED_PROXIES the gateway is on this machine, and nowhere else."""
        key = await manager.create_key("k")
        ask = Asker(manager, AUTHORIZE_PROFILE=profile)
        for peer, status in (
            ("127.0.0.9", 200),
            ("::1", 200),
            ("::ffff:127.0.0.1", 200),
            ("10.0.0.1", 401),
        ):
            assert (await ask(*signature(key), **asked(profile), peer=(peer, 1)))[0] == status

    async def test_direct_is_no_gateway(self, manager):
        """Without a profile a signature over another URL is refused, whatever headers claim."""
        key = await manager.create_key("k")
        ask = Asker(manager)
        for profile in PROFILES[:3]:
            assert (await ask(*signature(key), **asked(profile)))[0] == 401


class TestAddress:
    async def test_rightmost_untrusted_hop(self, manager):
        """The address that an allowlist sees is the last one that no trusted proxy has."""
        app = await manager.create_key("app", kind="bearer", ip_allowlist=["203.0.113.0/24"])
        ask = Asker(manager, AUTHORIZE_PROFILE="nginx", TRUSTED_PROXIES="10.0.0.0/8")
        for peer, forwarded, status in (
            ("10.0.0.1", ["203.0.113.9"], 200),
            ("10.0.0.1", ["198.51.100.1, 203.0.113.9, 10.0.0.2"], 200),
            ("10.0.0.1", ["198.51.100.1", "203.0.113.9"], 200),
            ("10.0.0.1", ["203.0.113.9, 198.51.100.1"], 403),
            ("10.0.0.1", ["203.0.113.9, rubbish"], 403),
            ("10.0.0.1", [], 403),
            ("198.51.100.1", ["203.0.113.9"], 403),
            ("203.0.113.7", ["198.51.100.1"], 200),
            (None, ["203.0.113.9"], 403),
        ):
            more = [("X-Forwarded-For", value) for value in forwarded]
            peers = (peer, 1) if peer else None
            status_now, _, document = await ask(
                bearer(app), **asked("nginx"), peer=peers, more=more
            )
            assert status_now == status, (peer, forwarded)
            assert status == 200 or document["reason"] == "ip_denied"

    async def test_audit(self, manager):
        """An event has the address, the request's id and who asked; no path, no query."""
        app = await manager.create_key("app", kind="bearer")
        ask = Asker(manager, AUTHORIZE_PROFILE="nginx")
        await ask(bearer(app), **asked("nginx"), more=[("X-Forwarded-For", "203.0.113.9")])
        await manager.recorder.flush(STAMP + 5)
        event = next(e for e in manager.get_audit_log() if e["action"] == "key_validated")
        assert (event["ip"], event["request_id"], event["actor"]) == (
            "203.0.113.9",
            "r-1",
            "authorize",
        )
        assert "orders" not in json.dumps(event)
        assert "limit" not in json.dumps(event)


class TestPermissions:
    @pytest.mark.parametrize("profile", PROFILES)
    async def test_rules(self, manager, rules: str, profile: str):
        """What a rule asks for is needed, by everyone of that profile."""
        reader = await manager.create_key("r", kind="bearer", permissions=["orders.read"])
        ask = Asker(manager, AUTHORIZE_PROFILE=profile, AUTHORIZE_RULES=rules)
        for method, uri, status in (
            ("GET", "/orders/7?x=1", 200), ("HEAD", "/orders/7", 200), ("GET", "/admin", 403),
            ("GET", "/admin/", 403), ("POST", "/admin/x/y", 403), ("POST", "/else", 200),
            ("GET", "/a/../admin", 403), ("GET", "//admin", 403), ("GET", "/%61dmin", 403),
            ("GET", "/admin;x", 403), ("GET", "/Admin", 403), ("GET", "/admin%2Fx", 403),
        ):  # fmt: skip
            got, _, document = await ask(bearer(reader), **asked(profile, method, uri=uri))
            assert got == status, uri
            assert status == 200 or document["reason"] == "forbidden"

    async def test_rules_need_the_original(self, manager, rules: str):
        """When the gateway's words cannot be read, no rule can be kept: refused, token or not."""
        root = await manager.create_key("root", kind="bearer", permissions=["*"])
        ask = Asker(manager, AUTHORIZE_PROFILE="nginx", AUTHORIZE_RULES=rules)
        assert (await ask(bearer(root), **asked("nginx", uri="/admin")))[0] == 200
        assert (await ask(bearer(root)))[0] == 401
        assert (await ask(bearer(root), **asked("nginx"), peer=("192.0.2.1", 1)))[0] == 401

    @pytest.mark.parametrize("profile", ["", "nginx", "traefik", "caddy"])
    async def test_gateway_path(self, manager, profile: str):
        """The gateway's own path says what is needed; an expression that cannot be read refuses."""
        app = await manager.create_key("app", kind="bearer", permissions=["documents.read"])
        ask = Asker(manager, AUTHORIZE_PROFILE=profile)
        for below, status in (
            ("documents.read", 200), ("documents.write", 403), ("documents.read%20or%20x", 200),
            ("not%20documents.read", 403), ("", 401), ("a/b", 401), ("documents.read)or(x", 401),
            ("%ff", 401), ("documents.read%2520", 401),
        ):  # fmt: skip
            question = {**asked(profile), "path": f"/v1/authorize/{below}", "query": ""}
            assert (await ask(bearer(app), **question))[0] == status, below

    async def test_gateway_path_and_rules(self, manager, rules: str):
        """Both are needed."""
        ask = Asker(manager, AUTHORIZE_PROFILE="nginx", AUTHORIZE_RULES=rules)
        for grants, status in (
            (["orders.read"], 403), (["shop"], 403), (["shop.x"], 403),
            (["shop", "orders.read"], 200), (["*"], 200),
        ):  # fmt: skip
            app = await manager.create_key(kind="bearer", permissions=grants)
            question = {**asked("nginx"), "path": "/v1/authorize/shop%20or%20shop.x"}
            assert (await ask(bearer(app), **question))[0] == status

    async def test_gateway_path_and_ambiguous_paths(self, manager):
        """A gateway that chose by a path which the service may read otherwise is not followed."""
        app = await manager.create_key("app", kind="bearer", permissions=["p"])
        ask = Asker(manager, AUTHORIZE_PROFILE="nginx")
        for uri, status in (
            ("/public/x", 200),
            ("/public/..%2fadmin", 403),
            ("/public/..;/admin", 403),
        ):
            question = {**asked("nginx", uri=uri), "path": "/v1/authorize/p"}
            assert (await ask(bearer(app), **question))[0] == status
        # Where nothing depends on the path, any will do.
        assert (await ask(bearer(app), **asked("nginx", uri="/public/..%2fadmin")))[0] == 200

    @pytest.mark.parametrize("profile", ["", *PROFILES])
    async def test_query_is_no_way_in(self, manager, profile: str):
        """What a client can write into the question neither asks for less nor for more."""
        app = await manager.create_key("app", kind="bearer")
        ask = Asker(manager, AUTHORIZE_PROFILE=profile)
        for query in ("permissions=root", "permissions=", "permissions=a&permissions=b", "%"):
            assert (await ask(bearer(app), **{**asked(profile), "query": query}))[0] == 200

    async def test_envoy_path_is_the_clients(self, manager):
        """With Envoy what follows is the original path and never a permission."""
        app = await manager.create_key("app", kind="bearer")
        ask = Asker(manager, AUTHORIZE_PROFILE="envoy")
        assert (await ask(bearer(app), **asked("envoy", uri="/documents.read")))[0] == 200

    async def test_nonce_outlives_a_refusal(self, manager, rules: str):
        """A request that lacked a permission may be sent again once the key has it."""
        await manager.create_key("k", secret="s" * 20)
        pairs = signature({"key_id": "k", "secret": "s" * 20})
        ask = Asker(manager, AUTHORIZE_PROFILE="nginx", AUTHORIZE_RULES=rules)
        assert (await ask(*pairs, **asked("nginx")))[0] == 403
        await manager.update_key("k", permissions=["orders.read"])
        assert (await ask(*pairs, **asked("nginx")))[0] == 200
        assert (await ask(*pairs, **asked("nginx")))[0] == 401


class TestWhatTheServiceLearns:
    async def test_metadata(self, manager):
        """The chosen fields and no others, as base64url of JSON; none unless chosen."""
        app = await manager.create_key(
            "app", kind="bearer", metadata={"plan": "prö", "internal": 1, "team": ["a"]}
        )
        for chosen, told in (
            ("", None), ("plan", {"plan": "prö"}), ("team, plan", {"plan": "prö", "team": ["a"]}),
            ("absent", {}),
        ):  # fmt: skip
            _, headers, _ = await Asker(manager, AUTHORIZE_METADATA=chosen)(bearer(app))
            if told is None:
                assert "x-key-metadata" not in headers
            else:
                assert json.loads(base64.urlsafe_b64decode(headers["x-key-metadata"])) == told

    async def test_metadata_too_long(self, manager, caplog):
        """Over 2 KiB the header is left out whole, and the log says of which key."""
        ask = Asker(manager, AUTHORIZE_METADATA="a")
        room = MAX_METADATA_HEADER * 3 // 4 - len('{"a":""}')
        for length, sent in ((room, True), (room + 1, False)):
            app = await manager.create_key(kind="bearer", metadata={"a": "x" * length})
            status, headers, _ = await ask(bearer(app))
            assert (status, "x-key-metadata" in headers) == (200, sent)
        assert app["key_id"] in caplog.text

    @pytest.mark.parametrize(
        ("owner", "told"),
        [("acme", "acme"), ("Acme Inc.", "Acme Inc."), ("100%", "100%25"),
         ("Zoë", "Zo%C3%AB"), ("a,b:c", "a,b:c")],
    )  # fmt: skip
    async def test_owner(self, manager, owner: str, told: str):
        """An owner is told in visible ASCII, from which it can be read back."""
        from urllib.parse import unquote

        app = await manager.create_key("app", kind="bearer", owner=owner)
        _, headers, _ = await Asker(manager)(bearer(app))
        assert headers["x-key-owner"] == told
        assert unquote(told) == owner

    async def test_refusals_tell_nothing(self, manager, rules: str):
        """No header of an accepted key goes with a refusal."""
        app = await manager.create_key("app", kind="bearer", owner="o", metadata={"a": 1})
        ask = Asker(
            manager, AUTHORIZE_PROFILE="nginx", AUTHORIZE_RULES=rules, AUTHORIZE_METADATA="a"
        )
        status, headers, document = await ask(bearer(app), **asked("nginx"))
        assert (status, headers) == (403, {})
        assert set(document) == {"type", "title", "status", "detail", "reason", "request_id"}

    async def test_unavailable(self, manager):
        """A server that cannot tell: 503 with Retry-After."""
        app = await manager.create_key("app", kind="bearer")
        manager.close()
        status, headers, _ = await Asker(manager)(bearer(app))
        assert (status, headers) == (503, {"retry-after": "1"})


class TestRateLimits:
    async def test_headers(self, manager):
        """What is left is told with each answer, and with a refusal when to come again."""
        limits = [{"name": "burst", "limit": 2, "window_seconds": 10}]
        app = await manager.create_key("app", kind="bearer", rate_limits=limits)
        ask = Asker(manager, AUTHORIZE_PROFILE="nginx")
        told = [await ask(bearer(app), **asked("nginx")) for _ in range(3)]
        assert [status for status, _, _ in told] == [200, 200, 429]
        assert [headers["ratelimit"] for _, headers, _ in told] == [
            '"burst";r=1;t=5', '"burst";r=0;t=10', '"burst";r=0;t=10',
        ]  # fmt: skip
        assert all(h["ratelimit-policy"] == '"burst";q=2;w=10' for _, h, _ in told)
        assert ["retry-after" in headers for _, headers, _ in told] == [False, False, True]
        _, headers, document = told[2]
        assert (headers["retry-after"], document["reason"]) == ("5", "rate_limited")
        assert "x-key-id" not in headers

    async def test_cost(self, manager, tmp_path):
        """A rule's cost is what its requests take; more than a limit ever holds never passes."""
        (tmp_path / "rules.toml").write_text(
            'default = "allow"\n[[rules]]\npath = "/export"\ncost = 8\n'
            '[[rules]]\npath = "/all"\ncost = 11\n'
        )
        limits = [{"name": "l", "limit": 10, "window_seconds": 10}]
        app = await manager.create_key("app", kind="bearer", rate_limits=limits)
        ask = Asker(
            manager, AUTHORIZE_PROFILE="nginx", AUTHORIZE_RULES=str(tmp_path / "rules.toml")
        )
        for uri, status, left in (
            ("/all", 429, 10), ("/export", 200, 2), ("/export", 429, 2), ("/x", 200, 1),
        ):  # fmt: skip
            got, headers, _ = await ask(bearer(app), **asked("nginx", uri=uri))
            assert (got, headers["ratelimit"].split(";")[1]) == (status, f"r={left}"), uri
            assert ("retry-after" in headers) is ((uri, status) == ("/export", 429))

    async def test_refusals_take_nothing(self, manager, rules: str):
        """Who may not, or has not proved the secret, takes nothing from the key's limits."""
        limits = [{"name": "l", "limit": 1, "window_seconds": 3600}]
        app = await manager.create_key(
            "app", kind="bearer", rate_limits=limits, permissions=["orders.read"]
        )
        ask = Asker(manager, AUTHORIZE_PROFILE="nginx", AUTHORIZE_RULES=rules)
        forged = {"token": app["token"].replace("app", "abb")}
        for key, uri in ((app, "/admin"), (forged, "/orders/7"), (app, "/a/../orders/7")):
            status, headers, _ = await ask(bearer(key), **asked("nginx", uri=uri))
            assert status in (401, 403)
            assert "ratelimit" not in headers
        assert [(await ask(bearer(app), **asked("nginx")))[0] for _ in range(2)] == [200, 429]
