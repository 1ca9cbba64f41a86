"""Requests that may be sent again, as scripts."""

from __future__ import annotations

from sqlalchemy import bindparam, select

from api_key_manager.connections import Script, Statement
from api_key_manager.connections.tables import idempotency
from api_key_manager.core.models import MICROSECONDS
from api_key_manager.core.ports import BEGUN_SECONDS, Begun

_PRUNE_ROWS = 1000

_c = idempotency.c
_THIS = (_c.scope == bindparam("b_scope"), _c.key == bindparam("b_key"))
_IS_LAPSED = _c.expires_at <= bindparam("b_now")
_LAPSED = Statement(select(_c.scope, _c.key).where(_IS_LAPSED).limit(bindparam("b_limit")))
_DROP_LAPSED = Statement(idempotency.delete().where(*_THIS, _IS_LAPSED))
_KNOWN = Statement(select(_c.fingerprint, _c.answer).where(*_THIS))
_INSERT = Statement(idempotency.insert())
_ABANDON = Statement(idempotency.delete().where(*_THIS, _c.answer.is_(None)))


def begin(scope: str, key: str, fingerprint: bytes, now: int) -> Script[Begun]:
    """Begin a request, or say what became of it."""
    yield _DROP_LAPSED(b_scope=scope, b_key=key, b_now=now)
    known = yield _KNOWN(b_scope=scope, b_key=key)
    if not known:
        yield _INSERT(
            scope=scope, key=key, fingerprint=fingerprint, answer=None,
            expires_at=now + BEGUN_SECONDS * MICROSECONDS,
        )  # fmt: skip
        return Begun("new")
    stored, answer = known[0]
    if stored != fingerprint:
        return Begun("mismatch")
    return Begun("in_progress") if answer is None else Begun("answered", answer)


def abandon(scope: str, key: str) -> Script[None]:
    """Forget a begun request that changed nothing."""
    yield _ABANDON(b_scope=scope, b_key=key)


def prune(now: int) -> Script[int]:
    """Forget some of the requests whose time (µs) has passed; how many, 0 once none is left."""
    lapsed = yield _LAPSED(b_now=now, b_limit=_PRUNE_ROWS)
    for scope, key in lapsed:
        yield _DROP_LAPSED(b_scope=scope, b_key=key, b_now=now)
    return len(lapsed)
