"""What every request signature of this room does: take a request apart as it is sent, and sign it
anew for each send.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Final

from api_key_manager.core.exceptions import ValidationError
from api_key_manager.core.http_signatures import read_target, sign_request
from api_key_manager.core.tokens import check_key_id, secret_bytes

__all__ = ["SIGNED_HEADERS", "Signer", "same_origin"]

SIGNED_HEADERS: Final = ("Content-Digest", "Signature-Input", "Signature")


def _random_nonce() -> str:
    return secrets.token_urlsafe(16)


class Signer:
    """A key's id and secret, a clock and a source of nonces.

    Args:
        key_id: the key's id.
        secret: its secret as it was shown at creation.
        clock: gives Unix seconds.
        nonce: gives 16 to 128 of ``A-Z a-z 0-9 _ -``, never the same twice.

    Raises:
        ValidationError: an id or a secret that no key has.
    """

    def __init__(
        self,
        key_id: str,
        secret: str,
        clock: Callable[[], float] = time.time,
        nonce: Callable[[], str] | None = None,
    ) -> None:
        self.key_id = check_key_id(key_id)
        if secret_bytes(secret) is None:
            raise ValidationError("secret: text of 1 to 1024 bytes is allowed")
        self._secret = secret
        self._clock = clock
        self._nonce = nonce or _random_nonce

    def __repr__(self) -> str:
        return f"Signer({self.key_id!r})"

    def headers(self, method: str, url: str, host: str | None, body: bytes) -> dict[str, str]:
        """The three headers of one send.

        Args:
            method: as it is sent.
            url: absolute, with the path and the query as they are sent.
            host: the ``Host`` header that will be sent; ``None`` when the URL makes it.
            body: the content as it is sent.

        Raises:
            ValidationError: something that cannot be signed; the message names it.
        """
        if host is not None and not _agrees(host, url):
            # Only one of them can be what the receiver goes by, and it must be the signed one.
            raise ValidationError("Host: it names another authority than the URL, send it there")
        return sign_request(
            self._secret, self.key_id, method, url, body,
            created=int(self._clock()), nonce=self._nonce(),
        )  # fmt: skip


def _agrees(host: str, url: str) -> bool:
    scheme = url.partition("://")[0]
    given, sent = read_target(f"{scheme}://{host}/"), read_target(url)
    # A path inside the header would make a URL too.
    return sent is None or (given is not None and given == (sent.authority, "/", "?"))


def same_origin(one: str, other: str) -> bool:
    """Whether two URLs have one scheme, host and port: what a signature of one may go to."""
    mine, theirs = read_target(one), read_target(other)
    return (
        mine is not None
        and theirs is not None
        and mine.authority == theirs.authority
        and one.partition("://")[0].lower() == other.partition("://")[0].lower()
    )
