"""The hot path: bytes in, bytes out, and nothing in between that is not needed.

Wrong types are a problem that names the field; well-typed
values that cannot be used are a verdict, ``malformed``, like any other refusal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta, Raw, Struct
from msgspec.structs import asdict

from api_key_manager.core.limits import Decision, whole_seconds
from api_key_manager.core.models import ApiKey, Reason, Verdict
from api_key_manager.core.presented import Presented, present
from api_key_manager.core.tokens import holds_a_secret
from api_key_manager.server.errors import ProblemError
from api_key_manager.server.exchange import Need, Reply, Steps
from api_key_manager.server.principal import Principal

if TYPE_CHECKING:
    from api_key_manager.core.manager import KeyManager

__all__ = [
    "Answer",
    "Answers",
    "HttpRequest",
    "RateLimitAnswer",
    "Validation",
    "Validations",
    "decode",
    "validate",
    "validate_batch",
    "validate_now",
]

Tag = Annotated[str, Meta(min_length=1, max_length=64, description="Printable characters.")]


class HttpRequest(Struct, forbid_unknown_fields=True, gc=False):
    """A request signed by RFC 9421, as whoever received it saw it."""

    method: str
    url: Annotated[str, Meta(description="Absolute, undecoded: as the client sent it.")]
    headers: Annotated[
        dict[str, str | list[str]] | list[tuple[str, str]],
        Meta(description="Names with a value or all their values, or pairs of name and value."),
    ]
    body_sha256: Annotated[
        str | None, Meta(description="SHA-256 of the content as sent, 64 hex digits.")
    ] = None

    def __repr__(self) -> str:
        return f"HttpRequest({self.method!r})"


class Validation(Struct, forbid_unknown_fields=True, gc=False):
    """A credential: `key` and `signature`, or the `token` of a bearer key, or a `request`."""

    key: Annotated[str | None, Meta(description="The id of a signed key.")] = None
    signature: Annotated[str | None, Meta(description="64 hex digits.")] = None
    timestamp: Annotated[int | None, Meta(description="Unix seconds, as signed.")] = None
    nonce: Annotated[
        str | None, Meta(description="16 to 128 of A-Z a-z 0-9 _ -, accepted once.")
    ] = None
    token: Annotated[str | None, Meta(description="A bearer token, instead of the four.")] = None
    request: Annotated[
        HttpRequest | None, Meta(description="A signed HTTP request, instead of the five.")
    ] = None
    permissions: Annotated[
        str | list[str] | None,
        Meta(description="What the key must hold: an expression, or a list that is needed whole."),
    ] = None
    ip: Annotated[str | None, Meta(description="The address of whoever presented it.")] = None
    cost: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000)] | None,
        Meta(
            description="How many requests it counts for in the key's rate limits; 1 if left out."
        ),
    ] = None
    tags: Annotated[
        Annotated[list[Tag], Meta(max_length=10)] | None, Meta(description="For the audit log.")
    ] = None

    def __repr__(self) -> str:
        return f"Validation({self.key!r})"


class Validations(Struct, forbid_unknown_fields=True):
    """Many credentials."""

    validations: Annotated[list[Validation], Meta(min_length=1, max_length=1000)]


class RateLimitAnswer(Struct, gc=False):
    """Of the key's limits the one that refused, else the one with the smallest share left."""

    name: str
    limit: int
    window_seconds: int
    remaining: Annotated[int, Meta(description="What could be taken right now.")]
    reset_seconds: Annotated[int, Meta(description="Until it is full again, rounded up.")]
    retry_after_seconds: Annotated[
        int | None,
        Meta(
            description=(
                "When to try again; null when it was allowed, or costs more than the limit ever"
                " holds."
            )
        ),
    ]


class Answer(Struct, gc=False):
    """What became of one credential. What is known of a key shows once its secret was proved."""

    valid: bool
    cached: Annotated[bool, Meta(description="Answered without I/O for the record.")]
    reason: Annotated[Reason, Meta(description="`valid`, or why it was refused.")]
    key_id: str | None
    version: int | None
    scheme: Annotated[
        str | None,
        Meta(
            description=(
                "`static` (its timestamp is not authenticated), `timestamped`, `request`, `bearer`."
            )
        ),
    ]
    metadata: Any
    permissions: Sequence[str] | None
    expires_at: str | None
    rate_limit: Annotated[
        RateLimitAnswer | None, Meta(description="Null when the key has no limits.")
    ] = None
    body_verified: Annotated[
        bool | None,
        Meta(description="Of a `request`: whether its body was compared with what was signed."),
    ] = None


class Answers(Struct):
    """One answer per credential, in order."""

    results: list[Answer]


# Between so many of a batch others get their turn. The store and the nonces are asked once for
# those that are judged at once.
_AT_ONCE = 128

_decode_one = msgspec.json.Decoder(Validation).decode
_decode_many = msgspec.json.Decoder(Validations).decode
_encode = msgspec.json.Encoder().encode


def validate(body: bytes, principal: Principal) -> Steps[Reply]:
    """One credential: from the body to the answer. A body that misfits is a ``ProblemError``."""
    verdicts: list[Verdict] = yield (decode(body, principal),)
    return Reply(_encode(_answer(verdicts[0])))


def validate_now(
    manager: KeyManager, body: bytes, principal: Principal, now: float
) -> bytes | None:
    """What :func:`validate` answers, if that needs no I/O; else nothing has been done.

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
    ):
        accepted = manager.accept_now(
            key, signature, timestamp, item.cost or 1, now,
            actor=principal.id, request_id=principal.request_id,
        )  # fmt: skip
        if accepted is not None:
            return _write_accepted(accepted)
    verdict = manager.verify_now(_present(item, principal, ""), now)
    return None if verdict is None else _encode(_answer(verdict))


def validate_batch(body: bytes, principal: Principal) -> Steps[Reply]:
    """Many credentials, judged together. A body that misfits is a ``ProblemError``."""
    try:
        items = _decode_many(body).validations
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _misfit(error, body, Validations) from None
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
        raise _misfit(error, body, Validation) from None


def _present(item: Validation, principal: Principal, where: str) -> Presented:
    if item.token is None and item.request is None:
        if item.key is None:
            raise _problem(f"{where}key", "it is missing (or send a token or request instead)")
        if item.signature is None:
            raise _problem(f"{where}signature", "it is missing")
    tags: tuple[str, ...] = ()
    if item.tags:
        tags = tuple(item.tags)
        if not "".join(tags).isprintable():
            raise _problem(f"{where}tags", "printable characters are allowed")
        if any(map(holds_a_secret, tags)):
            raise _problem(f"{where}tags", "a secret or token must not stand in them")
    return present(
        item.key, item.signature, item.timestamp, item.nonce,
        token=item.token, request=None if item.request is None else asdict(item.request),
        ip=item.ip, permissions=item.permissions, cost=item.cost,
        request_id=principal.request_id, tags=tags, actor=principal.id,
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
    )


def _rate_limit(decision: Decision) -> RateLimitAnswer:
    name, limit, window, remaining, reset = decision.deciding
    wait = decision.retry_after
    return RateLimitAnswer(
        name, limit, window, remaining, whole_seconds(reset), whole_seconds(wait) if wait else None
    )


_NO_LIMIT: Final = b'"rate_limit":null'
_LIMIT: Final = b'"rate_limit":'
_MOST_WRITTEN: Final = 4096
_written: Final[dict[int, tuple[ApiKey | None, int | None, bytes, bytes, bytes]]] = {}


def _write_accepted(verdict: Verdict) -> bytes:
    """An acceptance whose record was most likely written before.

    All but the rate limit stays the same as long as the record does, and is kept with it.
    """
    key, version = verdict.key, verdict.version
    known = _written.get(id(key))
    # A record that is kept here keeps its identity for itself.
    if known is None or known[0] is not key or known[1] != version:
        if len(_written) >= _MOST_WRITTEN:
            _written.clear()
        whole = _encode(_answer(verdict._replace(rate_limit=None)))
        head, _, tail = whole.rpartition(_NO_LIMIT)
        known = _written[id(key)] = (key, version, whole, head + _LIMIT, tail)
    if verdict.rate_limit is None:
        return known[2]
    return b"%b%b%b" % (known[3], _encode(_rate_limit(verdict.rate_limit)), known[4])


_read_misfit: Final = re.compile(
    r"(?P<told>.*?)(?: - at `\$\.?(?P<place>.*)`)?", re.DOTALL
).fullmatch
_read_name: Final = re.compile(
    r"Object (?:contains unknown|missing required) field `(.*)`", re.DOTALL
).fullmatch


def _misfit(error: Exception, body: bytes, shape: type[Struct]) -> ProblemError:
    """Say what is wrong with a body that could not be decoded."""
    if not isinstance(error, msgspec.ValidationError):
        again = _misfit_of_constants(body, shape)
        if again is None:
            return ProblemError(400, "malformed", "The body is not JSON.")
        error = again
    found = _read_misfit(str(error))
    told, place = (found["told"], found["place"] or "") if found else (str(error), "")
    named = _read_name(told)
    if named is not None:
        place = f"{place}.{named[1][:64]}".lstrip(".")
        told = "it is missing" if "missing" in told else "there is no such field"
    return _problem(place or "body", told.replace("`", "").lower())


def _misfit_of_constants(body: bytes, shape: type[Struct]) -> msgspec.ValidationError | None:
    """``NaN`` and ``Infinity`` are no JSON, but many writers take them for numbers; whoever sends
    one is told where it stands."""
    met = []

    def constant(name: str) -> float:
        met.append(name)
        return float(name)

    try:
        value = json.loads(body, parse_constant=constant)
        if met:
            msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        return error
    except (ValueError, RecursionError):
        return None
    return None


def _problem(field: str, told: str) -> ProblemError:
    return ProblemError(422, Reason.MALFORMED.value, f"{field}: {told}", field=field)
