"""Signed requests for requests, which need not be installed until this is used.

requests copies the headers of a request to where a redirect leads. They lose the signature as soon
as a redirect is seen; if the same origin then asks who is there (401), the request that it refused
is signed anew. Another origin never gets a signature, nor does it get to choose what is signed by
sending the client back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

try:
    from requests import PreparedRequest, Response
    from requests.adapters import HTTPAdapter
    from requests.auth import AuthBase
except ImportError as error:
    raise ImportError("RequestsSignature needs requests: pip install requests") from error

from api_key_manager.client.signer import SIGNED_HEADERS, Signer, same_origin
from api_key_manager.core.exceptions import ValidationError

__all__ = ["RequestsSignature"]

_UNAUTHORIZED = 401
# Not to send by, only to ask what would be sent.
_adapter = HTTPAdapter()


class RequestsSignature(AuthBase):
    """Signs requests by RFC 9421: ``requests.get(url, auth=RequestsSignature(key_id, secret))``.

    Method, URL, ``Host`` and body are signed as they are sent, with a time and a nonce of their
    own. What is sent twice without requests being asked again, by ``max_retries`` of an adapter,
    carries the same nonce and is refused the second time it arrives.

    Args:
        key_id: the key's id.
        secret: its secret as it was shown at creation.
        clock: gives Unix seconds; for tests.
        nonce: gives 16 to 128 of ``A-Z a-z 0-9 _ -``, never the same twice; for tests.

    Raises:
        ValidationError: here, an id or a secret that no key has; when a request is made, one that
            cannot be signed, such as one whose body is a stream.
    """

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
        return f"RequestsSignature({self._signer.key_id!r})"

    def __call__(self, r: PreparedRequest) -> PreparedRequest:
        """Sign a prepared request, and watch what becomes of it."""
        self.sign(r)
        others = [hook for hook in r.hooks["response"] if not isinstance(hook, _Watch)]
        r.hooks["response"] = [*others, _Watch(self)]
        return r

    def sign(self, request: PreparedRequest) -> None:
        """Put a new signature into a request."""
        if isinstance(request.body, str):
            # What is sent is then certain; requests reckons the length again after this.
            request.body = request.body.encode()
        body = b"" if request.body is None else request.body
        if not isinstance(body, bytes):
            raise ValidationError(
                "data: a file or generator cannot be signed before it is read: pass bytes or text"
            )
        host = request.headers.get("Host")
        signature = self._signer.headers(
            request.method or "", _url(request), _text(host) if host is not None else None, body
        )
        _strip(request)
        request.headers.update(signature)


class _Watch:
    """Sees every answer on the way of one request, before requests follows it."""

    def __init__(self, auth: RequestsSignature) -> None:
        self._auth = auth
        self._way: list[str] = []

    def __call__(self, response: Response, **how: Any) -> Response:
        request = response.request
        signed = "Signature" in request.headers
        if signed:
            self._way = []  # sent by the caller, perhaps once more
        self._way.append(_url(request))
        if response.is_redirect:
            _strip(request)  # before requests copies it
        elif response.status_code == _UNAUTHORIZED and not signed and self._one_origin():
            _ = response.content  # read, so that the connection can be used again
            response.close()
            again = request.copy()
            self._auth.sign(again)
            answer: Response = response.connection.send(again, **how)
            answer.history.append(response)
            answer.request = again
            return answer
        return response

    def _one_origin(self) -> bool:
        return all(same_origin(self._way[0], passed) for passed in self._way)


def _strip(request: PreparedRequest) -> None:
    for name in SIGNED_HEADERS:
        request.headers.pop(name, None)


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _url(request: PreparedRequest) -> str:
    """The URL as it goes over the wire: without user, and with the target that is sent."""
    parts = urlsplit(request.url or "")
    target = _text(_adapter.request_url(request, {}))
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{target}"
