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
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote, unquote

from api_key_manager.config import Settings
from api_key_manager.core.addresses import client_address
from api_key_manager.core.credentials import CREDENTIAL_HEADERS, Fields, credential, is_signed
from api_key_manager.core.exceptions import OUTCOMES, ValidationError
from api_key_manager.core.limits import ratelimit_headers, whole_seconds
from api_key_manager.core.models import ApiKey, Reason, Verdict, canonical_json
from api_key_manager.core.permissions import compile_expression
from api_key_manager.core.presented import Presented, present
from api_key_manager.server.errors import ProblemError, too_many_failures, unavailable
from api_key_manager.server.exchange import Reply, Request, Steps, judged
from api_key_manager.server.gateways import BELOW, Gateway, Original
from api_key_manager.server.rules import NEVER, Rules, Wanted, load_rules, plain_path

__all__ = ["MAX_METADATA_HEADER", "Authorize"]

MAX_METADATA_HEADER: Final = 2048

_ACTOR: Final = "authorize"
_DIGEST: Final = b"content-digest"
_WARN_SECONDS: Final = 60
# Visible ASCII but "%", so that what is escaped can be told from what is not.
_VISIBLE: Final = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")

_log = logging.getLogger(__name__)


class Authorize:
    """The handler.

    Args:
        settings: the profile, whom to believe, the rules, and which metadata is passed on.
        wait_after: :meth:`.KeyManager.wait_after`.

    Raises:
        ConfigurationError: the rules cannot be used.
    """

    def __init__(self, settings: Settings, wait_after: Callable[[Presented, Verdict], int]) -> None:
        self._wait_after = wait_after
        self._gateway = Gateway(
            settings.AUTHORIZE_PROFILE, settings.trusted_proxies, tls=bool(settings.TLS_CERT)
        )
        rules = settings.AUTHORIZE_RULES
        self._rules: Rules | None = load_rules(rules) if rules else None
        self._metadata = settings.authorize_metadata
        self._fields = CREDENTIAL_HEADERS | self._gateway.profile.headers
        self._silent_until: dict[str, float] = {}

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
        presented = self._present(request, fields)
        verdict = yield from judged(presented)
        if verdict.reason is not Reason.VALID or verdict.key is None:
            if wait := self._wait_after(presented, verdict):
                raise too_many_failures(wait)
            raise _refusal(verdict)
        headers = self._told(verdict.key)
        if verdict.rate_limit is not None:
            headers += ratelimit_headers(verdict.rate_limit.states)
        if verdict.scheme == "request":
            # What the signature is over; only the service sees the body that it must fit.
            headers.append((b"x-content-digest", fields[_DIGEST][0]))
        return Reply(b"", 200, b"text/plain", headers)

    def _present(self, request: Request, fields: Fields) -> Presented:
        gateway = self._gateway
        below = gateway.sets_path and request.path.startswith(BELOW)
        original = None
        # A token alone says nothing of the request, and needs nobody's word on it.
        if below or self._rules is not None or is_signed(fields):
            original = self._original(request, fields)
        ip = client_address(
            request.client, request.head.get(b"x-forwarded-for", ()), gateway.proxies
        )
        known: dict[str, Any] = {"ip": ip, "request_id": request.id, "actor": _ACTOR}
        shown = (
            credential(fields)
            if original is None
            else credential(fields, original.method, original.url)
        )
        try:
            permissions, cost = self._needed(request, original, below=below)
        except ValidationError:
            return present(**_without_token(shown), **known)
        return present(**shown, permissions=permissions, cost=cost, **known)

    def _original(self, request: Request, fields: Fields) -> Original | None:
        """What is asked about; ``None`` when that cannot be told or is not believed."""
        if self._gateway.trusts(request):
            return self._gateway.original(request, fields)
        if self._may_warn("peer"):
            _log.warning(
                "%s asks at /v1/authorize and is not in TRUSTED_PROXIES: what it says of the"
                " original request is ignored",
                request.client[0] if request.client else "an unknown peer",
            )
        return None

    def _needed(self, request: Request, original: Original | None, *, below: bool) -> Wanted:
        """What the key must hold, from the rules and the gateway's path, all of it; and the cost.

        Raises:
            ValidationError: it cannot be told, since the gateway's words cannot be read.
        """
        needed, cost = [], 1
        if self._rules is not None:
            if original is None:
                raise ValidationError
            by_rule, cost = self._rules.wanted(original.method, original.path)
            if by_rule is not None:
                needed.append(by_rule)
        if below:
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
        return Wanted(" and ".join(f"({each})" for each in needed) or None, cost)

    def _told(self, key: ApiKey) -> list[tuple[bytes, bytes]]:
        """What the service learns of an accepted key."""
        told, whole = _headers(key.key_id, key.owner, key.metadata_json, self._metadata)
        if not whole and self._may_warn("size"):
            _log.warning(
                "X-Key-Metadata of key %s is left out: it would be longer than %d bytes",
                key.key_id, MAX_METADATA_HEADER,
            )  # fmt: skip
        return [*told]

    def _may_warn(self, of: str) -> bool:
        """Once a minute: anybody can be the cause."""
        now = time.monotonic()
        if now < self._silent_until.get(of, 0):
            return False
        self._silent_until[of] = now + _WARN_SECONDS
        return True


def _without_token(shown: Mapping[str, Any]) -> dict[str, Any]:
    """The same made malformed; a signed request still says whose it would be, and nothing stays
    nothing."""
    return {**shown, "token": ""} if shown else {}


def _refusal(verdict: Verdict) -> ProblemError:
    reason, limit = verdict.reason, verdict.rate_limit
    status = OUTCOMES[reason].status
    if reason is Reason.QUOTA_EXCEEDED and verdict.quota is not None:
        wait = whole_seconds(verdict.quota.retry_after)
        return ProblemError(
            status, reason.value, f"Refused: {OUTCOMES[reason].message}.",
            headers=[(b"retry-after", b"%d" % wait)] if wait else (),
        )  # fmt: skip
    if status in (403, 429):
        return ProblemError(
            status, reason.value, f"Refused: {OUTCOMES[reason].message}.",
            headers=() if limit is None else ratelimit_headers(limit.states, limit.retry_after),
        )  # fmt: skip
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
def _headers(
    key_id: str, owner: str | None, metadata_json: str, names: tuple[str, ...]
) -> tuple[tuple[tuple[bytes, bytes], ...], bool]:
    """What the service learns of a key, and whether that is all of it."""
    headers = [(b"x-key-id", key_id.encode())]
    if owner is not None:
        headers.append((b"x-key-owner", _visible(owner)))
    if not names:
        return tuple(headers), True
    metadata = json.loads(metadata_json)
    chosen = canonical_json({name: metadata[name] for name in names if name in metadata})
    told = base64.urlsafe_b64encode(chosen.encode("utf-8", "surrogatepass"))
    if len(told) > MAX_METADATA_HEADER:
        return tuple(headers), False
    return (*headers, (b"x-key-metadata", told)), True
