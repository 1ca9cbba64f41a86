"""Signed requests for httpx, sync and async from one flow.

httpx follows redirects below its auth classes, and copies all headers but ``Authorization`` to
wherever they lead. So the signature is kept where a copy does not find it: a redirect that is
followed goes out unsigned. If the same origin then asks who is there (401), the request that it
refused is signed anew; another origin never gets a signature, nor does it get to choose what is
signed by sending the client back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any

import httpx

from api_key_manager.client.signer import SIGNED_HEADERS, Signer, same_origin
from api_key_manager.core.exceptions import ValidationError

__all__ = ["HttpxSignature"]


class HttpxSignature(httpx.Auth):
    """Signs requests by RFC 9421: ``httpx.Client(auth=HttpxSignature(key_id, secret))``.

    The same for ``httpx.AsyncClient``. Method, URL, ``Host`` and body are signed as they are sent,
    each send with a time and a nonce of its own. A body that is streamed is read first.

    Args:
        key_id: the key's id.
        secret: its secret as it was shown at creation.
        clock: gives Unix seconds; for tests.
        nonce: gives 16 to 128 of ``A-Z a-z 0-9 _ -``, never the same twice; for tests.

    Raises:
        ValidationError: here, an id or a secret that no key has; when a request is sent, one that
            cannot be signed, such as one whose ``Host`` header is not that of its URL.
    """

    requires_request_body = True

    def __init__(
        self,
        key_id: str,
        secret: str,
        *,
        clock: Callable[[], float] = time.time,
        nonce: Callable[[], str] | None = None,
    ) -> None:
        self._signer = Signer(key_id, secret, clock, nonce)

    def __repr__(self) -> str:
        return f"HttpxSignature({self._signer.key_id!r})"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Sign the request, and once more what a redirect within the origin made of it."""
        self._sign(request)
        response = yield request
        while response.status_code == httpx.codes.UNAUTHORIZED:
            again = response.request
            if isinstance(again.headers, _Signed):
                return
            way = [earlier.request for earlier in response.history]
            if not all(same_origin(_url(passed), _url(request)) for passed in (*way, again)):
                return
            again.read()  # at hand, whatever the client: the first request's body was read
            self._sign(again)
            response = yield again

    def _sign(self, request: httpx.Request) -> None:
        hosts = request.headers.get_list("host")
        if len(hosts) > 1:
            raise ValidationError("Host: one is allowed")
        host = hosts[0] if hosts else None
        signature = self._signer.headers(request.method, _url(request), host, request.content)
        request.headers = _Signed(request.headers, signature)


def _url(request: httpx.Request) -> str:
    """The URL as it goes over the wire: what ``str(request.url)`` shows is not always that."""
    url = request.url
    # An extension of httpx by which a caller sends another target than the URL's.
    target = request.extensions.get("target", url.raw_path)
    return f"{url.scheme}://{url.netloc.decode('ascii')}{bytes(target).decode('latin-1')}"


class _Signed(httpx.Headers):
    """Headers with a signature, whose copies have none.

    httpx makes the headers of a redirect by ``Headers(request.headers)``, which takes what the
    base class holds. Whoever sends or reads these finds all of them.
    """

    def __init__(self, headers: httpx.Headers, signature: Mapping[str, str]) -> None:
        plain = httpx.Headers(headers)
        for name in SIGNED_HEADERS:
            plain.pop(name, None)
        self._signature = httpx.Headers(signature)
        super().__init__(plain)

    def __repr__(self) -> str:
        return repr(httpx.Headers(self))

    @property
    def raw(self) -> list[tuple[bytes, bytes]]:
        return [*super().raw, *self._signature.raw]

    def _all(self) -> httpx.Headers:
        return httpx.Headers(self.raw)

    def keys(self) -> KeysView[str]:
        return self._all().keys()

    def values(self) -> ValuesView[str]:
        return self._all().values()

    def items(self) -> ItemsView[str, str]:
        return self._all().items()

    def multi_items(self) -> list[tuple[str, str]]:
        return self._all().multi_items()

    def get_list(self, key: str, split_commas: bool = False) -> list[str]:
        return self._all().get_list(key, split_commas)

    def __getitem__(self, key: str) -> str:
        return self._all()[key]

    def __contains__(self, key: Any) -> bool:
        return key in self._all()

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())
