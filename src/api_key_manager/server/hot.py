"""The hot path: bytes in, bytes out, and nothing in between that is not needed.

Wrong types are a problem that names the field; well-typed
values that cannot be used are a verdict, ``malformed``, like any other refusal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from msgspec import Raw
from msgspec.structs import asdict

from api_key_manager.core.limits import Decision, whole_seconds
from api_key_manager.core.models import Verdict, rfc3339
from api_key_manager.core.policy import OpenKey
from api_key_manager.core.presented import Presented, present
from api_key_manager.core.quotas import QuotaState
from api_key_manager.core.tokens import holds_a_secret
from api_key_manager.server.exchange import Need, Reply, Steps, judged
from api_key_manager.server.misfits import misfit, unusable
from api_key_manager.server.principal import Principal
from api_key_manager.server.shapes import (
    Answer,
    Answers,
    QuotaAnswer,
    RateLimitAnswer,
    Validation,
    Validations,
)

if TYPE_CHECKING:
    from api_key_manager.core.manager import KeyManager

__all__ = ["decode", "validate", "validate_batch", "validate_now", "validate_read"]

# Between so many of a batch others get their turn. The store and the nonces are asked once for
# those that are judged at once.
_AT_ONCE = 128

_decode_one = msgspec.json.Decoder(Validation).decode
_decode_many = msgspec.json.Decoder(Validations).decode
_encode = msgspec.json.Encoder().encode


def validate(body: bytes, principal: Principal) -> Steps[Reply]:
    """One credential: from the body to the answer. A body that misfits is a ``ProblemError``."""
    return (yield from validate_read(decode(body, principal)))


def validate_read(presented: Presented) -> Steps[Reply]:
    """The same, of a credential that was read."""
    verdict = yield from judged(presented)
    return Reply(_encode(_answer(verdict)))


def validate_now(
    manager: KeyManager, body: bytes, principal: Principal, request_id: str, now: float
) -> bytes | Presented:
    """The body of what :func:`validate` answers to a principal who asks once more, if it is the
    usual one; else the credential, read and nothing more, for :func:`validate_read`.

    Raises:
        ProblemError: as :func:`validate`.
    """
    item = _read(body)
    key, signature, timestamp = item.key, item.signature, item.timestamp
    if (
        key is not None
        and signature is not None
        and timestamp is not None
        and item.nonce is None
        and item.token is None
        and item.request is None
        and item.permissions is None
        and item.ip is None
        and item.tags is None
        and principal.environment is None
    ):
        accepted = manager.accept_now(
            key, signature, timestamp, item.cost or 1, now,
            actor=principal.id, request_id=request_id,
        )  # fmt: skip
        if accepted is not None:
            return _write_accepted(*accepted)
    return _present(item, principal.anew(request_id), "")


def validate_batch(body: bytes, principal: Principal) -> Steps[Reply]:
    """Many credentials, judged together. A body that misfits is a ``ProblemError``."""
    try:
        items = _decode_many(body).validations
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise misfit(error, body, Validations) from None
    # All are read before any is judged: a body that misfits must not use up a nonce.
    batch: list[Presented] = []
    for i, item in enumerate(items):
        if i % _AT_ONCE == 0 < i:
            yield Need.PAUSE
        batch.append(_present(item, principal, f"validations[{i}]."))
    answers: list[Answer] = []
    for i in range(0, len(batch), _AT_ONCE):
        if i:
            yield Need.PAUSE
        verdicts: list[Verdict] = yield batch[i : i + _AT_ONCE]
        answers.extend(map(_answer, verdicts))
    return Reply(_encode(Answers(answers)))


def decode(body: bytes, principal: Principal) -> Presented:
    """Read one credential.

    Raises:
        ProblemError: no JSON (400), or a field that is missing, unknown or of a wrong type (422).
    """
    return _present(_read(body), principal, "")


def _read(body: bytes) -> Validation:
    try:
        return _decode_one(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise misfit(error, body, Validation) from None


def _present(item: Validation, principal: Principal, where: str) -> Presented:
    if item.token is None and item.request is None:
        if item.key is None:
            raise unusable(f"{where}key", "it is missing (or send a token or request instead)")
        if item.signature is None:
            raise unusable(f"{where}signature", "it is missing")
    tags: tuple[str, ...] = ()
    if item.tags:
        tags = tuple(item.tags)
        if not "".join(tags).isprintable():
            raise unusable(f"{where}tags", "printable characters are allowed")
        if any(map(holds_a_secret, tags)):
            raise unusable(f"{where}tags", "a secret or token must not stand in them")
    return present(
        item.key, item.signature, item.timestamp, item.nonce,
        token=item.token, request=None if item.request is None else asdict(item.request),
        ip=item.ip, permissions=item.permissions, cost=item.cost,
        request_id=principal.request_id, tags=tags, actor=principal.id,
        within=principal.environment,
    )  # fmt: skip


def _answer(verdict: Verdict) -> Answer:
    key = verdict.key
    reason = verdict.reason
    if key is None:
        return Answer(False, verdict.cached, reason, verdict.key_id, None, None, None, None, None)
    return Answer(
        verdict.valid,
        verdict.cached,
        reason,
        verdict.key_id,
        verdict.version,
        verdict.scheme,
        # As it is stored: canonical JSON, checked when it was written.
        Raw(key.metadata_json.encode()),
        key.permissions,
        verdict.expires_at,
        None if verdict.rate_limit is None else _rate_limit(verdict.rate_limit),
        verdict.body_verified,
        None if verdict.quota is None else _quota(verdict.quota),
    )


def _quota(state: QuotaState) -> QuotaAnswer:
    resets_at = None if state.resets_at is None else rfc3339(state.resets_at)
    return QuotaAnswer(state.limit, state.remaining, resets_at)


def _rate_limit(decision: Decision) -> RateLimitAnswer:
    name, limit, window, remaining, reset = decision.deciding
    wait = decision.retry_after
    return RateLimitAnswer(
        name, limit, window, remaining, whole_seconds(reset), whole_seconds(wait) if wait else None
    )


class _Written(NamedTuple):
    """An acceptance as it was written, for the next one of the same record and version."""

    whole: bytes
    """Without limits."""
    before: bytes
    """With one limit: up to what is left of it."""
    behind: bytes


_NO_LIMIT: Final = b'"rate_limit":null'


def _write_accepted(key: OpenKey, verdict: Verdict) -> bytes:
    """An acceptance. All but what is left of its limits stays as long as its record does."""
    version, decision = verdict.version, verdict.rate_limit
    known: _Written | None = key.written.get(version)
    if known is None:
        known = key.written[version] = _write_first(verdict)
    if decision is None:
        return known.whole
    if len(decision.limits) > 1:
        return _encode(_answer(verdict))
    return b'%b%d,"reset_seconds":%d%b' % (known.before, *decision.left_of_only(), known.behind)


def _write_first(verdict: Verdict) -> _Written:
    whole = _encode(_answer(verdict._replace(rate_limit=None)))
    if verdict.rate_limit is None:
        return _Written(whole, b"", b"")
    name, limit, window_seconds = verdict.rate_limit.limits[0]
    head, _, tail = whole.rpartition(_NO_LIMIT)
    empty = _encode(RateLimitAnswer(name, limit, window_seconds, 0, 0, None))
    start, _, end = empty.partition(b'0,"reset_seconds":0')
    return _Written(whole, head + b'"rate_limit":' + start, end + tail)
