"""Forward auth: a gateway asks whether a request may pass, and passes on what it is told.

Anybody may ask, so nothing is believed that a client could have said: the original request comes
from the places that the gateway's profile names (:mod:`.gateways`), what a key must hold from the
server's own rules (:mod:`.rules`) or from a path that the gateway's configuration sets,
``/v1/authorize/<permissions>``. The query and the body of the question are not read.

One credential: ``Authorization: Bearer``, ``X-Api-Key`` (a bearer token too), or an RFC 9421
signature over the original request. Two at once are malformed, as one reader could take the first
and another one the second.
"""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote, unquote

from api_key_manager.config import Settings
from api_key_manager.core.exceptions import OUTCOMES, ValidationError
from api_key_manager.core.models import ApiKey, Reason, canonical_json
from api_key_manager.core.permissions import compile_expression
from api_key_manager.core.presented import Presented, present
from api_key_manager.server.auth import client_address
from api_key_manager.server.errors import ProblemError, unavailable
from api_key_manager.server.exchange import Reply, Request, Steps, judged
from api_key_manager.server.gateways import BELOW, Gateway, Original
from api_key_manager.server.rules import NEVER, Rules, load_rules, plain_path

__all__ = ["MAX_METADATA_HEADER", "Authorize"]

MAX_METADATA_HEADER: Final = 2048

_ACTOR: Final = "authorize"
_SIGNATURE: Final = (b"signature-input", b"signature")
_DIGEST: Final = b"content-digest"
_CREDENTIALS: Final = frozenset({b"authorization", b"x-api-key", _DIGEST, *_SIGNATURE})
_WARN_SECONDS: Final = 60
# Visible ASCII but "%", so that what is escaped can be told from what is not.
_VISIBLE: Final = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")

_log = logging.getLogger(__name__)

Fields = Mapping[bytes, Sequence[bytes]]


class Authorize:
    """The handler.

    Args:
        settings: the profile, whom to believe, the rules, and which metadata is passed on.

    Raises:
        ConfigurationError: the rules cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._gateway = Gateway(
            settings.AUTHORIZE_PROFILE, settings.trusted_proxies, tls=bool(settings.TLS_CERT)
        )
        rules = settings.AUTHORIZE_RULES
        self._rules: Rules | None = load_rules(rules) if rules else None
        self._metadata = settings.authorize_metadata
        self._fields = _CREDENTIALS | self._gateway.profile.headers
        self._warned_at = float("-inf")

    def __call__(self, request: Request) -> Steps[Reply]:
        """The answer to one question.

        Raises:
            ProblemError: 401, 403, 429 or 503.
        """
        fields: dict[bytes, list[bytes]] = {}
        wanted = self._fields
        for name, value in request.headers:
            if name in wanted:
                fields.setdefault(name, []).append(value)
        verdict = yield from judged(self._present(request, fields))
        if verdict.reason is not Reason.VALID or verdict.key is None:
            raise _refusal(verdict.reason)
        headers = self._told(verdict.key)
        if verdict.scheme == "request":
            # What the signature is over; only the service sees the body that it must fit.
            headers.append((b"x-content-digest", fields[_DIGEST][0]))
        return Reply(b"", 200, b"text/plain", headers)

    def _present(self, request: Request, fields: Fields) -> Presented:
        gateway = self._gateway
        trusted = gateway.trusts(request)
        original = gateway.original(request, fields) if trusted else None
        if not trusted:
            self._warn(request)
        ip = client_address(
            request.client, request.head.get(b"x-forwarded-for", ()), gateway.proxies
        )
        known: dict[str, Any] = {"ip": ip, "request_id": request.id, "actor": _ACTOR}
        credential = _credential(fields, original)
        try:
            permissions = self._permissions(request, original)
        except ValidationError:
            return present(**_without_token(credential), **known)
        return present(**credential, permissions=permissions, **known)

    def _permissions(self, request: Request, original: Original | None) -> str | None:
        """What the key must hold, from the rules and the gateway's path; all of it.

        Raises:
            ValidationError: it cannot be told, since the gateway's words cannot be read.
        """
        needed = []
        if self._rules is not None:
            if original is None:
                raise ValidationError
            by_rule = self._rules.wanted(original.method, original.path).permissions
            if by_rule is not None:
                needed.append(by_rule)
        if self._gateway.sets_path and request.path.startswith(BELOW):
            written = request.undecoded
            by_path = unquote(written[len(BELOW) :]) if written.startswith(BELOW) else ""
            compile_expression(by_path)
            needed.append(by_path)
            if self._gateway.name:
                # The gateway has chosen it by a path, as the rules do.
                if original is None:
                    raise ValidationError
                if plain_path(original.path) is None:
                    needed.append(NEVER)
        return " and ".join(f"({each})" for each in needed) or None

    def _told(self, key: ApiKey) -> list[tuple[bytes, bytes]]:
        """What the service learns of an accepted key."""
        headers = [(b"x-key-id", key.key_id.encode())]
        if key.owner is not None:
            headers.append((b"x-key-owner", _visible(key.owner)))
        if self._metadata:
            told = _chosen(key.metadata_json, self._metadata)
            if len(told) <= MAX_METADATA_HEADER:
                headers.append((b"x-key-metadata", told))
            else:
                self._warn_of_size(key)
        return headers

    def _warn(self, request: Request) -> None:
        if self._may_warn():
            _log.warning(
                "%s asks at /v1/authorize and is not in TRUSTED_PROXIES: what it says of the"
                " original request is ignored",
                request.client[0] if request.client else "an unknown peer",
            )

    def _warn_of_size(self, key: ApiKey) -> None:
        if self._may_warn():
            _log.warning(
                "X-Key-Metadata of key %s is left out: it would be longer than %d bytes",
                key.key_id, MAX_METADATA_HEADER,
            )  # fmt: skip

    def _may_warn(self) -> bool:
        """Once a minute: anybody can be the cause."""
        now = time.monotonic()
        if now - self._warned_at < _WARN_SECONDS:
            return False
        self._warned_at = now
        return True


def _credential(fields: Fields, original: Original | None) -> dict[str, Any]:
    """The one credential as :func:`present` takes it; what it finds malformed when there is none,
    or more than one."""
    tokens = list(fields.get(b"x-api-key", ()))
    authorization = fields.get(b"authorization", ())
    for value in authorization:
        kind, _, token = value.partition(b" ")
        if kind.lower() == b"bearer":
            tokens.append(token.strip())
    shown: dict[str, Any] = {}
    if any(name in fields for name in _SIGNATURE):
        lines = [
            (name.decode(), value.decode("latin-1"))
            for name in (*_SIGNATURE, _DIGEST)
            for value in fields.get(name, ())
        ]
        shown["request"] = {"headers": lines}
        if original is not None:
            shown["request"].update(method=original.method, url=original.url)
    # Of two headers of one name nobody can say which one a proxy or the service has looked at.
    if len(tokens) == 1 and len(authorization) <= 1:
        shown["token"] = tokens[0].decode("latin-1")
    elif tokens:
        shown["token"] = ""
    return shown


def _without_token(credential: Mapping[str, Any]) -> dict[str, Any]:
    """The same made malformed; a signed request still says whose it would be."""
    return {**credential, "token": ""}


def _refusal(reason: Reason) -> ProblemError:
    status = OUTCOMES[reason].status
    if status in (403, 429):
        return ProblemError(status, reason.value, f"Refused: {OUTCOMES[reason].message}.")
    if status == 503:
        return unavailable()
    return ProblemError(
        401, "unauthorized", "A valid API key is needed.",
        headers=[(b"www-authenticate", b"Bearer")],
    )  # fmt: skip


def _visible(text: str) -> bytes:
    """Text as visible ASCII, the rest as percent-encoded UTF-8. Spaces stay, but for those at the
    ends, which every reader of headers drops."""
    edges = text != text.strip(" ")
    return quote(text, safe=_VISIBLE if edges else _VISIBLE + " ").encode()


@lru_cache(maxsize=1024)
def _chosen(metadata_json: str, names: tuple[str, ...]) -> bytes:
    """Some fields of a key's metadata, as base64url of canonical JSON."""
    metadata = json.loads(metadata_json)
    chosen = {name: metadata[name] for name in names if name in metadata}
    return base64.urlsafe_b64encode(canonical_json(chosen).encode("utf-8", "surrogatepass"))
