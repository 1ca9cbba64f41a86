"""Requests that may be sent again, as scripts."""

from __future__ import annotations

from sqlalchemy import bindparam, select

from api_key_manager.connections import Script, Statement
from api_key_manager.connections.tables import idempotency
from api_key_manager.core.models import MICROSECONDS
from api_key_manager.core.ports import BEGUN_SECONDS, Begun

_c = idempotency.c
_THIS = (_c.scope == bindparam("b_scope"), _c.key == bindparam("b_key"))
_PRUNE = Statement(idempotency.delete().where(_c.expires_at <= bindparam("b_now")))
_KNOWN = Statement(select(_c.fingerprint, _c.answer).where(*_THIS))
_INSERT = Statement(idempotency.insert())
_ABANDON = Statement(idempotency.delete().where(*_THIS, _c.answer.is_(None)))


def begin(scope: str, key: str, fingerprint: bytes, now: int) -> Script[Begun]:
    """Begin a request, or say what became of it."""
    yield _PRUNE(b_now=now)
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
