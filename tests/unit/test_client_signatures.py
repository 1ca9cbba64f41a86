"""Request signatures for httpx and requests: what is signed, and where a signature never goes."""

from __future__ import annotations

import builtins
import importlib
import io
import itertools
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
import requests

from api_key_manager.client import HttpxSignature, RequestsSignature
from api_key_manager.client.requests_auth import _url as url_of_requests
from api_key_manager.core import ValidationError, sign_request
from tests import signed_vectors

KEY, SECRET, AT = "client-123", "super-secret-key-of-a-client", 1_767_225_600
NAMES = ("content-digest", "signature-input", "signature")


def counted() -> Callable[[], str]:
    """Nonces that can be foretold."""
    numbers = itertools.count(1)
    return lambda: f"nonce-{next(numbers):0>16}"


def httpx_auth() -> HttpxSignature:
    return HttpxSignature(KEY, SECRET, clock=lambda: AT + 0.9, nonce=counted())


def requests_auth() -> RequestsSignature:
    return RequestsSignature(KEY, SECRET, clock=lambda: AT + 0.9, nonce=counted())


def expected(method: str, url: str, body: bytes = b"", number: int = 1) -> dict[str, str]:
    made = sign_request(
        SECRET, KEY, method, url, body, created=AT, nonce=f"nonce-{number:0>16}"
    )  # fmt: skip
    return {name.lower(): value for name, value in made.items()}


def signature_of(headers: Any) -> dict[str, str]:
    return {name: headers[name] for name in NAMES if name in headers}


def test_vectors_are_current():
    """The vectors that other languages test against are what the library signs."""
    assert signed_vectors.FILE.read_text(encoding="utf-8") == signed_vectors.text()


class TestBoth:
    @pytest.mark.parametrize("make", [HttpxSignature, RequestsSignature])
    def test_unusable_credentials(self, make: Any):
        """An id or a secret that no key has is refused at once, without the secret in the text."""
        for key_id, secret in (("", SECRET), ('a"b', SECRET), (KEY, ""), (KEY, SECRET * 50)):
            with pytest.raises(ValidationError) as raised:
                make(key_id, secret)
            assert SECRET not in str(raised.value)
        for secret in (None, b"bytes", "\ud800"):
            with pytest.raises(ValidationError, match=r"^secret: "):
                make(KEY, secret)

    @pytest.mark.parametrize("make", [HttpxSignature, RequestsSignature])
    def test_repr(self, make: Any):
        """The id shows, the secret doesn't, neither in what it holds."""
        auth = make(KEY, SECRET)
        assert repr(auth) == f"{make.__name__}('{KEY}')"
        assert SECRET not in f"{vars(auth)}"

    def test_nonces_are_random(self):
        """By default no two are the same, and all are long enough."""
        seen = []
        with httpx.Client(
            auth=HttpxSignature(KEY, SECRET),
            transport=httpx.MockTransport(
                lambda r: seen.append(r.headers["signature-input"]) or httpx.Response(200)
            ),
        ) as client:
            for _ in range(20):
                client.get("https://a.example/")
        nonces = {value.split('nonce="')[1].split('"')[0] for value in seen}
        assert len(nonces) == 20
        assert all(len(nonce) >= 22 for nonce in nonces)


@contextmanager
def mocked(
    answer: Callable[[httpx.Request], httpx.Response], **more: Any
) -> Iterator[tuple[httpx.Client, list[httpx.Request]]]:
    """A signing client, and what its transport was given."""
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        # As it goes over the wire: what becomes of the object later does not count.
        seen.append(
            httpx.Request(
                request.method, request.url, headers=request.headers.raw, content=request.read()
            )
        )
        return answer(request)

    with httpx.Client(auth=httpx_auth(), transport=httpx.MockTransport(handle), **more) as client:
        yield client, seen


def ok(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200)


class TestHttpx:
    @pytest.mark.parametrize(
        ("given", "sent"),
        [
            ("https://shop.example/a b?q=ü#part", "https://shop.example/a%20b?q=%C3%BC"),
            ("https://Shop.Example:443", "https://shop.example/"),
            ("http://shop.example:8080/?", "http://shop.example:8080/?"),
            ("https://user:pass@shop.example/x", "https://shop.example/x"),
            ("https://bücher.example/", "https://xn--bcher-kva.example/"),
            ("http://[::1]:5000/%2fa//b/../c", "http://[::1]:5000/%2fa//c"),
        ],
    )
    def test_url_as_sent(self, given: str, sent: str):
        """What httpx makes of a URL is what is signed."""
        with mocked(ok) as (client, seen):
            client.get(given)
        assert signature_of(seen[0].headers) == expected("GET", sent)

    def test_target_extension(self):
        """A target that is sent in the URL's place is signed in its place."""
        with mocked(ok) as (client, seen):
            client.get("https://shop.example/a", extensions={"target": b"/b/../c?x"})
        assert signature_of(seen[0].headers) == expected("GET", "https://shop.example/b/../c?x")

    @pytest.mark.parametrize("target", [b"*", b"https://evil.example/", b"/a b"])
    def test_strange_targets(self, target: bytes):
        """A target that is no path cannot be signed, and is not sent."""
        with mocked(ok) as (client, seen), pytest.raises(ValidationError, match=r"^url: "):
            client.get("https://shop.example", extensions={"target": target})
        assert seen == []

    def test_bodies(self):
        """Every body that httpx takes is signed as it is sent; one that streams is read first."""
        url = "https://shop.example/orders"
        with mocked(ok) as (client, seen):
            for more in (
                {"content": b"x"}, {"json": {"a": "ü"}}, {"data": {"a": "ü"}}, {},
                {"content": iter([b"a", b"b"])}, {"files": {"f": io.BytesIO(b"content")}},
            ):  # fmt: skip
                client.post(url, **more)
        for number, request in enumerate(seen, 1):
            assert signature_of(request.headers) == expected("POST", url, request.content, number)
        assert seen[4].content == b"ab"
        assert b"content" in seen[5].content

    async def test_async(self):
        """The asynchronous client signs alike, an asynchronous stream too."""

        async def parts() -> AsyncIterator[bytes]:
            yield b"a"
            yield b"b"

        seen: list[httpx.Request] = []
        transport = httpx.MockTransport(lambda r: seen.append(r) or ok(r))
        async with httpx.AsyncClient(auth=httpx_auth(), transport=transport) as client:
            await client.post("https://shop.example/", content=parts())
        assert signature_of(seen[0].headers) == expected("POST", "https://shop.example/", b"ab")

    @pytest.mark.parametrize("host", ["shop.example", "SHOP.example", "shop.example:443"])
    def test_host_that_agrees(self, host: str):
        """A Host header that means the URL's authority is signed as such."""
        with mocked(ok) as (client, seen):
            client.get("https://shop.example/", headers={"Host": host})
        assert signature_of(seen[0].headers) == expected("GET", "https://shop.example/")

    @pytest.mark.parametrize(
        "host", ["evil.example", "shop.example:80", "shop.example/", "", "shop.example, evil"]
    )
    def test_host_that_disagrees(self, host: str):
        """Another Host would be what the receiver goes by: nothing is sent."""
        with mocked(ok) as (client, seen), pytest.raises(ValidationError, match=r"^Host: "):
            client.get("https://shop.example/", headers={"Host": host})
        assert seen == []

    def test_two_hosts(self):
        """Nor are two of them."""
        request = httpx.Request(
            "GET", "https://shop.example/", headers=[("Host", "shop.example"), ("Host", "evil")]
        )
        with mocked(ok) as (client, seen), pytest.raises(ValidationError, match=r"^Host: "):
            client.send(request)
        assert seen == []

    def test_replaces_old_signatures(self):
        """One signature goes out, also of a request that had one before."""
        with mocked(ok) as (client, seen):
            request = client.build_request(
                "GET", "https://shop.example/", headers={"SIGNATURE": "old", "Content-Digest": "x"}
            )
            client.send(request)
            client.send(request)
        for number, sent in enumerate(seen, 1):
            names = [name.lower() for name, _ in sent.headers.raw]
            assert all(names.count(name.encode()) == 1 for name in NAMES)
            assert signature_of(sent.headers) == expected(
                "GET", "https://shop.example/", number=number
            )

    def test_headers_read_as_any(self):
        """Whoever reads the headers of a signed request, in whatever way, finds the signature."""
        with mocked(ok) as (client, seen):
            headers = client.get("https://a.example/", headers={"X-A": "b"}).request.headers
        signed = expected("GET", "https://a.example/")
        assert signature_of(dict(headers)) == signed == signature_of(dict(headers.items()))
        assert signature_of(dict(headers.multi_items())) == signed
        assert [headers.get_list(name) for name in NAMES] == [[signed[name]] for name in NAMES]
        assert set(NAMES) < set(headers) == set(headers.keys())
        assert len(headers) == len(list(headers.values())) == len(seen[0].headers)
        assert headers["x-a"] == "b"
        assert signed["signature"] not in repr(headers)


REDIRECTS = [301, 302, 303, 307, 308]


class TestHttpxRedirects:
    @pytest.mark.parametrize("status", REDIRECTS)
    @pytest.mark.parametrize(
        "elsewhere",
        [
            "https://evil.example/", "http://shop.example/", "https://shop.example:8443/",
            "https://shop.example.evil.example/", "https://api.shop.example/",
        ],
    )  # fmt: skip
    def test_other_origin(self, status: int, elsewhere: str):
        """Another origin sees no signature, also when it asks for one."""

        def answer(request: httpx.Request) -> httpx.Response:
            if str(request.url) == "https://shop.example/":
                return httpx.Response(status, headers={"Location": elsewhere})
            return httpx.Response(401)

        with mocked(answer, follow_redirects=True) as (client, seen):
            assert client.post("https://shop.example/", content=b"x").status_code == 401
        assert len(seen) == 2
        assert signature_of(seen[0].headers)
        assert not signature_of(seen[1].headers)

    @pytest.mark.parametrize("status", REDIRECTS)
    def test_same_origin(self, status: int):
        """Within the origin the next request is signed anew when it is asked for."""

        def answer(request: httpx.Request) -> httpx.Response:
            if request.url.path == "/old":
                return httpx.Response(status, headers={"Location": "/new?a=b"})
            return httpx.Response(200 if "signature" in request.headers else 401)

        with mocked(answer, follow_redirects=True) as (client, seen):
            response = client.post("https://shop.example/old", content=b"x")
        assert response.status_code == 200
        last = seen[-1]
        assert last.content == (b"x" if status in (307, 308) else b"")
        assert [bool(signature_of(request.headers)) for request in seen] == [True, False, True]
        assert signature_of(last.headers) == expected(
            last.method, "https://shop.example/new?a=b", last.content, 2
        )

    async def test_same_origin_async(self):
        """The same with the asynchronous client."""

        def answer(request: httpx.Request) -> httpx.Response:
            if request.url.path == "/old":
                return httpx.Response(308, headers={"Location": "/new"})
            return httpx.Response(200 if "signature" in request.headers else 401)

        async with httpx.AsyncClient(
            auth=httpx_auth(), transport=httpx.MockTransport(answer), follow_redirects=True
        ) as client:
            assert (await client.post("https://shop.example/old", content=b"x")).is_success

    def test_refused_for_good(self):
        """A signed request that is refused is not sent again."""
        with mocked(lambda _: httpx.Response(401), follow_redirects=True) as (client, seen):
            assert client.get("https://shop.example/").status_code == 401
        assert len(seen) == 1

    def test_endless(self):
        """Redirects that never end end as httpx says."""

        def answer(request: httpx.Request) -> httpx.Response:
            if "signature" in request.headers:
                return httpx.Response(302, headers={"Location": "/again"})
            return httpx.Response(401)

        with (
            mocked(answer, follow_redirects=True) as (client, seen),
            pytest.raises(httpx.TooManyRedirects),
        ):
            client.get("https://shop.example/")
        assert len(seen) < 100

    def test_there_and_back(self):
        """Another origin that sends the client back does not choose what is signed."""

        def answer(request: httpx.Request) -> httpx.Response:
            url = str(request.url)
            if url == "https://shop.example/out":
                return httpx.Response(307, headers={"Location": "https://evil.example/"})
            if url == "https://evil.example/":
                return httpx.Response(307, headers={"Location": "https://shop.example/back"})
            return httpx.Response(200 if "signature" in request.headers else 401)

        with mocked(answer, follow_redirects=True) as (client, seen):
            client.post("https://shop.example/out", content=b"x")
        signed = {str(r.url) for r in seen if signature_of(r.headers)}
        assert signed == {"https://shop.example/out"}
        assert len(seen) == 3

    def test_not_followed(self):
        """The next request that httpx offers instead of following is not signed either."""
        with mocked(
            lambda _: httpx.Response(307, headers={"Location": "https://evil.example/"})
        ) as (client, _):
            offered = client.get("https://shop.example/").next_request
        assert offered is not None
        assert not signature_of(offered.headers)
        assert not signature_of(dict(offered.headers.multi_items()))


def prepared(method: str, url: str, **more: Any) -> requests.PreparedRequest:
    return requests.Request(method, url, auth=requests_auth(), **more).prepare()


class TestRequests:
    @pytest.mark.parametrize(
        ("given", "sent"),
        [
            ("https://shop.example/a b?q=ü#part", "https://shop.example/a%20b?q=%C3%BC"),
            ("https://Shop.Example:443", "https://shop.example/"),
            ("http://shop.example:8080/?", "http://shop.example:8080/"),
            ("https://user:pass@shop.example/x", "https://shop.example/x"),
            ("https://bücher.example/", "https://xn--bcher-kva.example/"),
            ("https://shop.example//a/%2f", "https://shop.example//a/%2F"),
        ],
    )
    def test_url_as_sent(self, given: str, sent: str):
        """What requests makes of a URL is what is signed."""
        request = prepared("GET", given)
        assert signature_of(request.headers) == expected("GET", sent)

    @pytest.mark.parametrize(
        "more",
        [
            {}, {"data": b"x"}, {"data": "grüße"}, {"data": {"a": "ü"}}, {"json": {"a": "ü"}},
            {"files": {"f": b"content"}},
        ],
        ids=str,
    )  # fmt: skip
    def test_bodies(self, more: dict[str, Any]):
        """Every body but a stream is signed as it is sent, and its length is right."""
        request = prepared("POST", "https://shop.example/", **more)
        body = request.body or b""
        assert isinstance(body, bytes)
        assert signature_of(request.headers) == expected("POST", "https://shop.example/", body)
        assert request.headers["Content-Length"] == str(len(body))

    def test_streams(self):
        """A generator or a file is refused with what to do instead."""
        for data in ((part for part in [b"a"]), io.BytesIO(b"a")):
            with pytest.raises(ValidationError, match=r"^data: .*pass bytes or text"):
                prepared("POST", "https://shop.example/", data=data)

    def test_host(self):
        """A Host header must mean the URL's authority."""
        for host in ("shop.example", b"SHOP.example:443"):
            prepared("GET", "https://shop.example/", headers={"Host": host})
        for host in ("evil.example", b"evil.example", "shop.example:80", ""):
            with pytest.raises(ValidationError, match=r"^Host: "):
                prepared("GET", "https://shop.example/", headers={"Host": host})

    def test_signed_again(self):
        """Signing a prepared request once more replaces the signature."""
        request = prepared("GET", "https://shop.example/", headers={"SIGNATURE": "old"})
        again = requests_auth()(request)
        assert [name.lower() for name in again.headers if name.lower() in NAMES] == list(NAMES)

    def test_url_without_its_user(self):
        """User name and password of a URL are not signed, and not sent in it either."""
        request = requests.Request("GET", "https://u:p@shop.example:8443/a").prepare()
        assert url_of_requests(request) == "https://shop.example:8443/a"

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch):
        """Without requests the package works, and the name says what it needs."""
        real = builtins.__import__

        def fail(name: str, *more: Any, **kwargs: Any) -> Any:
            if name.partition(".")[0] == "requests":
                raise ImportError(name)
            return real(name, *more, **kwargs)

        client = importlib.import_module("api_key_manager.client")
        monkeypatch.delitem(sys.modules, "api_key_manager.client.requests_auth")
        monkeypatch.setattr(builtins, "__import__", fail)
        with pytest.raises(ImportError, match=r"pip install requests"):
            _ = client.RequestsSignature


class Site:
    """A server whose answers are told by a function of host, path and whether it was signed."""

    def __init__(self, answer: Callable[[str, bool], tuple[int, str]]) -> None:
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def respond(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                signed = signature_of(self.headers)
                site.seen.append((self.command, self.path, signed, body))
                status, location = answer(self.path, bool(signed))
                self.send_response(status)
                if location:
                    self.send_header("Location", location)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST = respond  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))

    def __enter__(self) -> Site:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@contextmanager
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        session.auth = requests_auth()
        yield session


class TestRequestsRedirects:
    @pytest.mark.parametrize("status", REDIRECTS)
    def test_other_origin(self, status: int):
        """Another origin sees no signature, also when it asks for one."""
        with Site(lambda path, signed: (401, "")) as evil:
            elsewhere = evil.url + "/"
            with Site(lambda path, signed: (status, elsewhere)) as site, session() as client:
                assert client.post(site.url, data=b"x").status_code == 401
        assert [signed for _, _, signed, _ in evil.seen] == [{}]
        assert site.seen[0][2] == expected("POST", f"{site.url}/", b"x")

    @pytest.mark.parametrize("status", REDIRECTS)
    def test_same_origin(self, status: int):
        """Within the origin the next request is signed anew when it is asked for."""

        def answer(path: str, signed: bool) -> tuple[int, str]:
            return (status, "/new?a=b") if path == "/old" else (200 if signed else 401, "")

        with Site(answer) as site, session() as client:
            response = client.post(f"{site.url}/old", data=b"x")
        assert response.status_code == 200
        assert [bool(signed) for _, _, signed, _ in site.seen] == [True, False, True]
        method, path, signed, body = site.seen[-1]
        assert body == (b"x" if status in (307, 308) else b"")
        assert signed == expected(method, site.url + path, body, 2)

    def test_refused_for_good(self):
        """A signed request that is refused is not sent again."""
        with Site(lambda path, signed: (401, "")) as site, session() as client:
            assert client.get(site.url).status_code == 401
        assert len(site.seen) == 1

    def test_two_steps_and_out(self):
        """A redirect of a request that was signed anew leads no signature out either."""
        with Site(lambda path, signed: (401, "")) as evil:
            out = evil.url + "/"

            def answer(path: str, signed: bool) -> tuple[int, str]:
                if path == "/old":
                    return 307, "/new"
                return (307, out) if signed else (401, "")

            with Site(answer) as site, session() as client:
                client.post(f"{site.url}/old", data=b"x")
        assert [bool(signed) for _, _, signed, _ in site.seen] == [True, False, True]
        assert [signed for _, _, signed, _ in evil.seen] == [{}]

    def test_not_followed(self):
        """The next request that requests offers instead of following is not signed either."""
        with Site(lambda path, signed: (307, "http://evil.example/")) as site, session() as client:
            response = client.get(site.url, allow_redirects=False)
        assert response.next is not None
        assert signature_of(response.next.headers) == {}

    def test_there_and_back(self):
        """Another origin that sends the client back does not choose what is signed."""
        with Site(lambda path, signed: (307, back)) as evil:
            out = evil.url + "/"

            def answer(path: str, signed: bool) -> tuple[int, str]:
                return (307, out) if path == "/out" else (200 if signed else 401, "")

            with Site(answer) as site, session() as client:
                back = f"{site.url}/back"
                request = client.prepare_request(requests.Request("POST", f"{site.url}/out"))
                for _ in range(2):
                    assert client.send(request).status_code == 401
                    client.auth(request)  # type: ignore[operator]  # it is ours
        assert [path for _, path, signed, _ in site.seen if signed] == ["/out", "/out"]
        assert not any(signed for _, _, signed, _ in evil.seen)
