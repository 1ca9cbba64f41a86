"""``/v1/leaks``: reports of secrets and tokens that were found where they must not be."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from api_key_manager.core.addresses import client_address
from api_key_manager.core.changing import Origin
from api_key_manager.core.leaks import Leak, LeakReport
from api_key_manager.core.signing import matches
from api_key_manager.server.bodies import read_body
from api_key_manager.server.errors import ProblemError
from api_key_manager.server.github_keys import GitHubKeys, is_signed
from api_key_manager.server.idempotency import reply
from api_key_manager.server.keys import origin
from api_key_manager.server.principal import reach
from api_key_manager.server.schemas import ReportLeak

if TYPE_CHECKING:
    from api_key_manager.wiring import Deployment

__all__ = ["GITHUB", "LeakEndpoints", "describe_leaks"]

_log = logging.getLogger(__name__)
GITHUB: Final = "/v1/leaks/github"
_MOST: Final = 5000
_IDENTIFIER: Final = "github-public-key-identifier"
_SIGNATURE: Final = "github-public-key-signature"
_BOUND_HEADERS: Final = (b"content-length", b"transfer-encoding")

_REPORTED: Final = {
    "token": "akm_...", "type": "akm", "url": "https://github.com/o/r", "source": "content",
}  # fmt: skip
_ANSWERED: Final = {"token_hash": "0" * 64, "token_type": "akm", "label": "false_positive"}


class _Item(msgspec.Struct):
    """One match. What GitHub adds some day is passed over."""

    token: str
    type: str
    url: str | None = None
    source: str | None = None


_decode = msgspec.json.Decoder(list[_Item]).decode


class LeakEndpoints:
    """The handlers."""

    def __init__(self, deployment: Deployment) -> None:
        self._manager = deployment.manager
        self._keys = GitHubKeys(deployment.github_keys)
        self._proxies = deployment.settings.trusted_proxies
        token = deployment.settings.AKM_ADMIN_TOKEN
        self._env = hashlib.sha256(token.encode()).digest() if token else None

    async def report_leak(self, request: Request, body: ReportLeak) -> Response:
        """Report a secret or token that was found where it must not be, as GitHub would."""
        report = LeakReport(body.token, body.url, body.source)
        (leak,) = await reach(self._manager, request).report_leaks([report], by=origin(request))
        ours = self._is_ours(leak, body.token)
        told = leak._asdict() if leak is not None else dict.fromkeys(Leak._fields)
        return reply({"matched": ours, **told})

    async def report_github_leaks(self, request: Request) -> Response:
        """Matches that GitHub's secret scanning has found; each is answered with its label."""
        body = await self._signed_body(request)
        try:
            items = _decode(body)
        except msgspec.ValidationError as error:
            raise ProblemError(422, "malformed", f"body: {error}", field="body") from None
        except msgspec.DecodeError:
            raise ProblemError(400, "malformed", "The body is not JSON.") from None
        if len(items) > _MOST:
            raise ProblemError(422, "malformed", f"body: at most {_MOST} items", field="body")
        forwarded = [v.encode("latin-1") for v in request.headers.getlist("x-forwarded-for")]
        ip = client_address(request.scope.get("client"), forwarded, self._proxies)
        by = Origin("github", ip, request.scope.get("akm.request_id"))
        reports = [LeakReport(item.token, item.url, item.source) for item in items]
        leaks = await self._manager.report_leaks(reports, by=by)
        answer: list[dict[str, Any]] = [
            {
                # A digest, so that no answer ever holds a token.
                "token_hash": hashlib.sha256(_raw(item.token)).hexdigest(),
                "token_type": item.type,
                "label": f"{str(self._is_ours(leak, item.token)).lower()}_positive",
            }
            for item, leak in zip(items, leaks, strict=True)
        ]
        return Response(msgspec.json.encode(answer), media_type="application/json")

    async def _signed_body(self, request: Request) -> bytes:
        """The body, once it is known to be GitHub's; nothing is parsed before."""
        identifiers = request.headers.getlist(_IDENTIFIER)
        signatures = request.headers.getlist(_SIGNATURE)
        if len(identifiers) != 1 or len(signatures) != 1:
            raise _not_githubs()
        key = await self._keys.key(identifiers[0])
        if key is None:
            raise _not_githubs()
        head = {n: [v for k, v in request.headers.raw if k == n] for n in _BOUND_HEADERS}
        body = await read_body({n: v for n, v in head.items() if v}, request.receive)
        if not is_signed(key, signatures[0], body):
            raise _not_githubs()
        return body

    def _is_ours(self, leak: Leak | None, token: str) -> bool:
        """Whether it is one of ours; says so where nothing but a person can end it."""
        if self._env is not None and matches(hashlib.sha256(_raw(token)).digest(), self._env):
            _log.error(
                "AKM_ADMIN_TOKEN was found in public and opens everything: set another one and"
                " restart every node now"
            )
            return True
        return leak is not None


def _raw(token: str) -> bytes:
    return token.encode("utf-8", "surrogatepass")


def _not_githubs() -> ProblemError:
    return ProblemError(403, "forbidden", "This needs the signature of GitHub's secret scanning.")


def describe_leaks(document: dict[str, Any]) -> dict[str, Any]:
    """Add to the OpenAPI document what FastAPI cannot see, since the body is read by hand."""
    text = {"type": "string"}
    place = {"type": ["string", "null"]}
    item = {
        "type": "object",
        "required": ["token", "type"],
        "properties": {"token": text, "type": text, "url": place, "source": place},
    }
    operation = document["paths"][GITHUB]["post"]
    operation["parameters"] = [
        {"name": name, "in": "header", "required": True, "schema": text, "description": told}
        for name, told in (
            ("Github-Public-Key-Identifier", "Which of GitHub's keys."),
            ("Github-Public-Key-Signature", "Base64 of DER: ECDSA P-256, SHA-256, raw body."),
        )
    ]
    operation["requestBody"] = {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "array", "items": item, "maxItems": _MOST},
                "example": [_REPORTED],
            }
        },
    }
    label = {"enum": ["true_positive", "false_positive"]}
    operation["responses"]["200"]["content"] = {
        "application/json": {
            "schema": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["token_hash", "token_type", "label"],
                    "properties": {"token_hash": text, "token_type": text, "label": label},
                },
            },
            "example": [_ANSWERED],
        }
    }
    return document
