"""``Idempotency-Key``: a request that is sent again gets the first answer, and changes nothing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from api_key_manager.core.exceptions import EncryptionError, StorageError
from api_key_manager.core.keeping import ReceiptOf
from api_key_manager.core.models import MICROSECONDS
from api_key_manager.core.ports import BEGUN_SECONDS, Receipt
from api_key_manager.core.tokens import holds_a_secret
from api_key_manager.server.errors import RETRY_SECONDS, ProblemError
from api_key_manager.server.principal import PRINCIPAL

if TYPE_CHECKING:
    from api_key_manager.wiring import Deployment

__all__ = ["Once", "reply"]

_KEPT_SECONDS: Final = 600
_PURPOSE: Final = "idempotency"
_is_key = re.compile(r"[ -~]{1,255}").fullmatch

Answer = dict[str, Any]
Work = Callable[[ReceiptOf | None], Awaitable[Answer]]


def reply(answer: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer; ``bytes`` are taken as they are."""
    body = answer if isinstance(answer, bytes) else msgspec.json.encode(answer)
    return Response(body, status, headers, "application/json")


class Once:
    """Runs a request once per idempotency key.

    The answer is sealed and written in the transaction of the change: there is no moment at which
    one of them exists without the other.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._store = deployment.idempotency
        self._manager = deployment.manager

    async def run(
        self,
        request: Request,
        status: int,
        work: Work,
        shape: Callable[[Answer], Answer] = lambda answer: answer,
    ) -> Response:
        """The answer of ``work``, or of the time before.

        Args:
            request: the request; only its ``Idempotency-Key`` makes anything of this happen.
            status: of the answer.
            work: makes the change; it is given what makes the receipt.
            shape: turns what the manager answers into what the client reads.

        Raises:
            ProblemError: an unusable key, one that belongs to another request (422), or one whose
                request is still running (409).
        """
        keys = request.headers.getlist("idempotency-key")
        if not keys:
            return reply(shape(await work(None)), status)
        key = keys[0]
        if len(keys) > 1 or not _is_key(key):
            raise _misused("one, of 1 to 255 printable ASCII characters, is allowed")
        if holds_a_secret(key):  # it is kept as it is
            raise _misused("a secret or token must not stand in it")
        scope: str = request.scope[PRINCIPAL].id
        now = int(self._manager.clock() * MICROSECONDS)
        fingerprint = await _fingerprint(request)
        # Also of the request: in the database its fingerprint stands in clear.
        name = f"{scope}\n{key}\n{fingerprint.hex()}"
        begun = await self._store.begin(scope, key, fingerprint, now)
        if begun.state == "mismatch":
            raise _misused("another request had it before")
        if begun.state == "in_progress":
            raise ProblemError(
                409, "in_progress", "The first request with this Idempotency-Key is still running.",
                headers=[(b"retry-after", b"%d" % RETRY_SECONDS)],
            )  # fmt: skip
        if begun.answer is not None:
            box = self._manager.box
            try:
                answer = box.open(_PURPOSE, name, 0, begun.answer)
            except EncryptionError:
                # Another node may have sealed it under a key that this one does not know yet.
                await box.learn()
                answer = box.open(_PURPOSE, name, 0, begun.answer)
            return reply(answer, status, {"Idempotency-Replayed": "true"})

        def receipt(answer: Answer) -> Receipt:
            body = msgspec.json.encode(shape(answer))
            sealed = self._manager.box.seal(_PURPOSE, name, 0, body)
            expires_at = now + _KEPT_SECONDS * MICROSECONDS
            return Receipt(scope, key, fingerprint, sealed, expires_at)

        try:
            return reply(shape(await work(receipt)), status)
        except BaseException:
            # Forgets nothing that has a receipt: if the change was made after all, a retry is
            # told so. After its time it has lapsed by itself, and the key may be another request's.
            if self._manager.clock() * MICROSECONDS < now + BEGUN_SECONDS * MICROSECONDS:
                with suppress(StorageError):  # it lapses; the first error is the one to tell
                    await self._store.abandon(scope, key)
            raise


async def _fingerprint(request: Request) -> bytes:
    start = f"{request.method}\n{request.scope['path']}\n".encode()
    return hashlib.sha256(start + await request.body()).digest()


def _misused(told: str) -> ProblemError:
    return ProblemError(422, "idempotency_key", f"Idempotency-Key: {told}", field="Idempotency-Key")
