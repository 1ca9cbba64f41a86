"""What can be asked of a server: every endpoint, once, for the blocking client and the asynchronous
one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Final, Literal, Unpack

from api_key_manager.client.asking import Listing
from api_key_manager.client.exchange import Call, Operation, Repeat, exchange, strange
from api_key_manager.client.paths import key_path, members
from api_key_manager.client.shapes import (
    BulkRevocation,
    CreatedKey,
    CreatedToken,
    Event,
    Instant,
    Key,
    KeyChanges,
    KeyFilters,
    KeyVersion,
    LeakOutcome,
    NewKey,
    RemoteVerdict,
    RevocationFilters,
    State,
    Stats,
    Token,
    ValidationItem,
)
from api_key_manager.client.webhooks import WebhookOperations

__all__ = ["Operations"]

_OK: Final = 200
_ONCE_ONLY: Final = frozenset({"nonce", "request"})
_VERDICT: Final = tuple(field.name for field in fields(RemoteVerdict))


class Operations(WebhookOperations):
    """Every call of the server."""

    def validate(
        self,
        key_id: str | None = None,
        signature: str | None = None,
        timestamp: int | None = None,
        nonce: str | None = None,
        *,
        token: str | None = None,
        request: Mapping[str, Any] | None = None,
        permissions: str | Sequence[str] | None = None,
        ip: str | None = None,
        cost: int | None = None,
        tags: Sequence[str] | None = None,
    ) -> Operation[RemoteVerdict]:
        """Have one credential judged: a signature, a bearer token or a signed HTTP request.

        With a nonce it is not asked again once it may have been judged: the second time the nonce
        would be refused.

        Args:
            key_id: of a signed key.
            signature: 64 hex digits.
            timestamp: Unix seconds, as signed.
            nonce: as signed.
            token: of a bearer key, instead of these four.
            request: a signed HTTP request instead of all these: ``method``, ``url``, ``headers``,
                and ``body_sha256`` where the body is known.
            permissions: what the key must hold: an expression, or a list that is needed whole.
            ip: the address of whoever presented the credential.
            cost: what the request is charged to the key's rate limits and quota.
            tags: for the audit log.

        Returns:
            The verdict, true when the credential is valid. A refusal is no exception.
        """
        item = {
            "key": key_id, "signature": signature, "timestamp": timestamp, "nonce": nonce,
            "token": token, "request": None if request is None else dict(request),
            "permissions": permissions, "ip": ip, "cost": cost, "tags": tags,
        }  # fmt: skip
        body = {name: _plain(value) for name, value in item.items() if value is not None}
        answer = yield from self._call("POST", "/v1/validate", body, repeat=_repeat([body]))
        return self._verdict(answer)

    def validate_batch(
        self, validations: Iterable[ValidationItem | Mapping[str, Any]]
    ) -> Operation[list[RemoteVerdict]]:
        """Have 1 to 1000 credentials judged; one verdict per item, in order.

        Args:
            validations: items in the words of ``/v1/validate``: ``key``, ``signature``,
                ``timestamp``, ``nonce``, or ``token``, or ``request``, and the options.
        """
        items = [dict(item) for item in validations]
        answer = yield from self._call(
            "POST", "/v1/validate/batch", {"validations": items}, repeat=_repeat(items)
        )
        results = self._items(answer, "results")
        if len(results) != len(items):
            raise strange(self._where)
        return [self._verdict(result) for result in results]

    def _verdict(self, answer: Any) -> RemoteVerdict:
        if not isinstance(answer, dict) or type(answer.get("valid")) is not bool:
            raise strange(self._where)
        known: dict[str, Any] = {name: answer.get(name) for name in _VERDICT}
        return RemoteVerdict(**known)

    def create_key(
        self,
        key_id: str | None = None,
        *,
        idempotency_key: str | None = None,
        **described: Unpack[NewKey],
    ) -> Operation[CreatedKey]:
        """Make a key. Its ``secret`` or ``token`` is shown this once.

        Args:
            key_id: minted when left out.
            idempotency_key: of your own, if you may ask again later; else one is made.
            **described: as ``KeyManager.create_key`` takes them.
        """
        named = {} if key_id is None else {"key_id": key_id}
        return self._once("/v1/keys", {**named, **described}, idempotency_key)

    def get_key(self, key_id: str) -> Operation[Key]:
        """One key, its secret redacted."""
        return self._call("GET", key_path(key_id))

    def list_keys(self, **filters: Unpack[KeyFilters]) -> Listing[Key]:
        """Go through the keys that fit, in the order of their ids."""
        return Listing("/v1/keys", filters)

    def update_key(self, key_id: str, **changes: Unpack[KeyChanges]) -> Operation[Key]:
        """Change what is named, and nothing else. ``None`` empties."""
        # A change of somebody else may lie between a lost answer and a second attempt.
        return self._call("PATCH", key_path(key_id), members(changes), repeat=Repeat.REFUSED)

    def rotate_key(
        self, key_id: str, overlap_seconds: int = 0, *, idempotency_key: str | None = None
    ) -> Operation[CreatedKey]:
        """Give a key a new secret or token, shown this once.

        Args:
            key_id: the key.
            overlap_seconds: how long the old one works on.
            idempotency_key: of your own, if you may ask again later; else one is made.
        """
        body = {"overlap_seconds": overlap_seconds}
        return self._once(key_path(key_id, "/rotate"), body, idempotency_key)

    def revoke_key(
        self, key_id: str, reason: str | None = None, at: Instant | None = None
    ) -> Operation[Key]:
        """End a key for good, at once or at an instant to come."""
        body = {"reason": reason, "at": at}
        sent = members({name: value for name, value in body.items() if value is not None})
        return self._call("POST", key_path(key_id, "/revoke"), sent, repeat=Repeat.REFUSED)

    def revoke_keys(
        self,
        *,
        reason: str | None = None,
        dry_run: bool = False,
        **filters: Unpack[RevocationFilters],
    ) -> Operation[BulkRevocation]:
        """End every key that fits all filters, or say which it would be."""
        body = {**members(filters), "dry_run": dry_run}
        if reason is not None:
            body["reason"] = reason
        return self._call("POST", "/v1/keys/revoke", body, repeat=Repeat.REFUSED)

    def delete_key(self, key_id: str) -> Operation[None]:
        """Erase a key and its secrets. Its id never returns."""
        return self._call("DELETE", key_path(key_id), repeat=Repeat.REFUSED)

    def key_versions(self, key_id: str) -> Operation[list[KeyVersion]]:
        """Every version of a key that ever was, newest first."""
        answer = yield from self._call("GET", key_path(key_id, "/versions"))
        return self._items(answer)

    def report_leak(
        self, token: str, *, url: str | None = None, source: str | None = None
    ) -> Operation[LeakOutcome]:
        """Report a secret or token that was found where it must not be; what it opens is ended, or
        flagged.

        Args:
            token: what was found.
            url: where.
            source: what kind of place that is, or who found it.
        """
        body = {"token": token, "url": url, "source": source}
        given = {name: value for name, value in body.items() if value is not None}
        # What is reported again has been done, and is said to be.
        return self._call("POST", "/v1/leaks", given)

    def create_token(
        self,
        scopes: Sequence[str],
        *,
        name: str | None = None,
        environment: str | None = None,
        expires_at: Instant | None = None,
        expires_in: int | None = None,
        ip_allowlist: Sequence[str] | None = None,
        idempotency_key: str | None = None,
    ) -> Operation[CreatedToken]:
        """Mint an admin token, shown this once; ``environment`` confines it to the keys of one."""
        more = {"name": name, "environment": environment, "expires_at": expires_at,
                "expires_in": expires_in, "ip_allowlist": _plain(ip_allowlist)}  # fmt: skip
        given = {key: value for key, value in more.items() if value is not None}
        return self._once("/v1/tokens", {"scopes": _plain(scopes), **given}, idempotency_key)

    def rotate_token(
        self, key_id: str, overlap_seconds: int = 0, *, idempotency_key: str | None = None
    ) -> Operation[CreatedToken]:
        """Give an admin token a new text, shown this once; the old one works on for a while."""
        path = key_path(key_id, "/rotate", under="tokens")
        return self._once(path, {"overlap_seconds": overlap_seconds}, idempotency_key)

    def list_tokens(self, *, state: State | None = None) -> Listing[Token]:
        """Go through the admin tokens, in the order of their ids."""
        return Listing("/v1/tokens", {"state": state})

    def revoke_token(self, key_id: str) -> Operation[None]:
        """End an admin token for good."""
        return self._call("DELETE", key_path(key_id, under="tokens"), repeat=Repeat.REFUSED)

    def list_audit(
        self,
        *,
        key_id: str | None = None,
        action: str | None = None,
        since: Instant | None = None,
        until: Instant | None = None,
        order: Literal["asc", "desc"] = "desc",
    ) -> Listing[Event]:
        """Go through what happened, newest first unless asked otherwise."""
        query = {"key_id": key_id, "action": action, "since": since, "until": until, "order": order}
        return Listing("/v1/audit", query)

    def audit_proof(
        self,
        *,
        index: int | None = None,
        id: int | None = None,
        older: int | None = None,
        log: int | None = None,
        size: int | None = None,
    ) -> Operation[dict[str, Any]]:
        """Prove that an event is in the transparency log, or that an older checkpoint of so many
        leaves still holds; ``index``, ``id`` or ``older``."""
        query = {"index": index, "id": id, "from": older, "log": log, "size": size}
        return self._call("GET", "/v1/audit/proof", query=query)

    def get_stats(
        self, *, environment: str | None = None, by_environment: bool = False
    ) -> Operation[Stats]:
        """Counters of the process that answers and, if asked for, of the keys of one environment
        or of each."""
        query = {"environment": environment, "by_environment": "true" if by_environment else None}
        return self._call("GET", "/v1/stats", query=query)

    def is_healthy(self) -> Operation[bool]:
        """Whether the server's process answers."""
        return self._probe("/healthz")

    def is_ready(self) -> Operation[bool]:
        """Whether the server can serve requests."""
        return self._probe("/readyz")

    def _probe(self, path: str) -> Operation[bool]:
        asked = Call("GET", path, repeat=Repeat.NOT_DONE)
        answer = yield from exchange(asked, self._retries, self._where)
        return answer.status == _OK


def _plain(value: Any) -> Any:
    """A sequence as JSON has it; text stays whole."""
    return list(value) if isinstance(value, (tuple, set, frozenset)) else value


def _repeat(items: Iterable[Mapping[str, Any]]) -> Repeat:
    """A nonce is accepted once: whoever asks twice would read ``replayed``."""
    once = any(item.get(name) is not None for item in items for name in _ONCE_ONLY)
    return Repeat.NOT_DONE if once else Repeat.ANY
