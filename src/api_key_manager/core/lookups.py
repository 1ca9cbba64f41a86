"""Filters and cursors as users write them, turned into queries."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from api_key_manager.core.exceptions import ValidationError
from api_key_manager.core.inputs import check_instant, check_limit, check_text
from api_key_manager.core.models import AuditQuery, KeyQuery
from api_key_manager.core.tokens import check_key_id, check_prefix, is_key_id

__all__ = ["PAGE_LIMIT", "STATES", "audit_query", "key_query", "write_cursor"]

PAGE_LIMIT = 1000
STATES = ("active", "disabled", "expired", "revoked")


def key_query(
    filters: Mapping[str, Any],
    *,
    realm: str,
    cursor: str | None,
    limit: int,
    now: int,
    within: str | None = None,
) -> KeyQuery:
    """A query for keys, of one environment only when ``within`` names it.

    Raises:
        ValidationError: a filter, limit or cursor that is not allowed.
    """
    rest = dict(filters)
    state, kind, prefix = rest.pop("state", None), rest.pop("kind", None), rest.pop("prefix", None)
    if state not in (None, *STATES):
        raise ValidationError(f"state: {', '.join(STATES)} are allowed")
    if kind not in (None, "signed", "bearer"):
        raise ValidationError("kind: signed or bearer is allowed")
    after = _read_cursor(cursor)
    if after is not None and not is_key_id(after):
        raise _no_cursor()
    query = KeyQuery(
        realm=realm,
        state=state,
        kind=kind,
        owner=check_text("owner", rest.pop("owner", None)),
        environment=check_text("environment", rest.pop("environment", None)),
        prefix=None if prefix is None else check_prefix(prefix),
        created_before=check_instant("created_before", rest.pop("created_before", None)),
        within=within,
        now=now,
        after=after,
        limit=check_limit(limit, PAGE_LIMIT),
    )
    _refuse_unknown(rest)
    return query


def audit_query(
    filters: Mapping[str, Any], *, cursor: str | None, limit: int, within: str | None = None
) -> AuditQuery:
    """A query for audit events, of one environment only when ``within`` names it.

    Raises:
        ValidationError: a filter, limit or cursor that is not allowed.
    """
    rest = dict(filters)
    after = _read_cursor(cursor)
    # An index fits in 63 bits, which is 19 digits.
    if after is not None and not (after.isdecimal() and len(after) < 19):
        raise _no_cursor()
    key_id = rest.pop("key_id", None)
    query = AuditQuery(
        key_id=None if key_id is None else check_key_id(key_id),
        action=check_text("action", rest.pop("action", None), 64),
        since=check_instant("since", rest.pop("since", None)),
        until=check_instant("until", rest.pop("until", None)),
        within=within,
        ascending=bool(rest.pop("ascending", False)),
        after=None if after is None else int(after),
        limit=check_limit(limit, PAGE_LIMIT),
    )
    _refuse_unknown(rest)
    return query


def _refuse_unknown(filters: Mapping[str, Any]) -> None:
    for name in filters:
        raise ValidationError(f"{name}: there is no such filter")


def write_cursor(after: str | None) -> str | None:
    """Where the next page begins, as opaque text."""
    return None if after is None else base64.urlsafe_b64encode(after.encode()).decode().rstrip("=")


def _read_cursor(cursor: object) -> str | None:
    if cursor is None:
        return None
    try:
        if type(cursor) is not str or len(cursor) > 256:
            raise ValueError
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        return raw.decode("ascii")
    except (ValueError, binascii.Error):
        raise _no_cursor() from None


def _no_cursor() -> ValidationError:
    return ValidationError("cursor: it is not one that was given out")
