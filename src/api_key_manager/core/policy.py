"""The judge: what a credential is worth, decided without I/O, clock or framework.

Rules, in this order; the first that fails names the reason:

1.  malformed: the presented values can be what they claim to be (:mod:`.presented`);
2.  found: there is such a key, in the asked realm;
3.  MAC or digest, over every version that has not ended; the body of a signed request, if given;
4.  revoked, 5. disabled, 6. expired;
7.  scheme: at least the key's ``min_scheme``, ``static`` only where allowed;
8.  window: ``-skew <= age <= window + skew``;
9.  the caller's address, 10. permissions.

Nonce, rate limits and quotas are effects: they come after, and belong to the caller of
:func:`judge`. Until the secret is proved, a credential costs what its own kind costs: an unknown
key is judged against a decoy, a key of the other kind against a stand-in, and of a record only what
the proof needs is made ready.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from api_key_manager.core.addresses import Network, allowed, networks
from api_key_manager.core.exceptions import EncryptionError, Reason
from api_key_manager.core.http_signatures import SignedRequest
from api_key_manager.core.models import (
    MICROSECONDS,
    MIN_SCHEMES,
    ApiKey,
    Kind,
    Scheme,
    Verdict,
)
from api_key_manager.core.presented import Presented
from api_key_manager.core.signing import (
    MAX_TIMESTAMP,
    MacState,
    matches,
    static_message,
    timestamped_message,
)

__all__ = ["OpenKey", "OpenVersion", "Rules", "accept", "judge", "window_reason"]

_FOREVER = float("inf")
_STRENGTH = {name: i for i, name in enumerate(MIN_SCHEMES)}


@dataclass(frozen=True, slots=True)
class Rules:
    """The deployment's part of the policy, all in seconds."""

    window: int = 360 * 60
    skew: int = 60
    nonce_window: int = 300
    allow_static: bool = True


class OpenVersion(NamedTuple):
    """One version ready to be checked: its own MAC state, or the pepper's and the digest."""

    version: int
    created_at: int
    ends_at: float
    state: MacState
    digest: bytes | None

    def __repr__(self) -> str:
        return f"OpenVersion({self.version})"


class OpenKey:
    """A key whose secrets are ready to be used. Lives in memory only; its ``repr`` shows none.

    Args:
        record: as it is stored, known to be intact.
        make_ready: gives the versions for a credential of a kind, when the first one comes: the
            key's own, or those of a stand-in that cost as much and prove nothing.
        decoy: whether it stands for a key that is not there.
        stale: whether a digest is to be moved to a newer pepper when its token is seen.
        until: when, on the boot clock, its secrets must be opened anew.
    """

    __slots__ = (
        "_address_rules", "_make_ready", "_ready", "_valid", "decoy", "next_end", "plain",
        "record", "stale", "strength", "until", "written",
    )  # fmt: skip

    def __init__(
        self,
        record: ApiKey,
        make_ready: Callable[[Kind], tuple[OpenVersion, ...]],
        *,
        decoy: bool = False,
        stale: bool = False,
        until: float = _FOREVER,
    ) -> None:
        self.record = record
        self.until = until
        self.stale = stale
        self.decoy = decoy
        self.strength = _STRENGTH[record.min_scheme]
        # Whether nothing of the record but its scheme can be a reason to refuse.
        self.plain = not (
            record.revoked
            or record.disabled
            or record.expired
            or record.revoked_at is not None
            or record.expires_at is not None
            or record.ip_allowlist
            or record.quota is not None
            or record.shared_limits
        )
        end = record.next_end
        self.next_end: float = _FOREVER if end is None else end / MICROSECONDS
        self._make_ready = make_ready
        self._ready: dict[Kind, tuple[OpenVersion, ...]] = {}
        self._address_rules: tuple[Network, ...] | None = None
        self._valid: dict[tuple[int, Scheme], Verdict] = {}
        # By version, how a face wrote an acceptance: gone with the record that it tells of.
        self.written: dict[int | None, Any] = {}

    def __repr__(self) -> str:
        return f"OpenKey({self.record.key_id!r})"

    @property
    def versions(self) -> tuple[OpenVersion, ...]:
        """The key's own versions.

        Raises:
            EncryptionError: a secret cannot be opened.
        """
        return self.ready(self.record.kind)

    def ready(self, kind: Kind) -> tuple[OpenVersion, ...]:
        """What a credential of this kind is checked against.

        Raises:
            EncryptionError: a secret cannot be opened.
        """
        versions = self._ready.get(kind)
        if versions is None:
            versions = self._ready[kind] = self._make_ready(kind)
        return versions

    @property
    def address_rules(self) -> tuple[Network, ...]:
        """The allowlist, read when first needed: 256 networks cost more than all the rest."""
        if self._address_rules is None:
            self._address_rules = networks(self.record.ip_allowlist)
        return self._address_rules

    def is_hidden(self, within: str | None) -> bool:
        """Whether there is no such key for who is confined to this environment."""
        return within is not None and self.record.environment != within

    def accepted(self, version: int, scheme: Scheme) -> Verdict:
        """The one verdict of every acceptance of this record by this version and scheme."""
        verdict = self._valid.get((version, scheme))
        if verdict is None:
            verdict = Verdict(
                Reason.VALID, self.record.key_id, self.record, version, scheme, cached=True
            )
            self._valid[version, scheme] = verdict
        return verdict


def window_reason(timestamp: int, now: float, window: float, skew: float) -> Reason | None:
    """Why a timestamp is refused at ``now`` (both Unix seconds), or ``None``."""
    age = now - timestamp
    if age > window + skew:
        return Reason.STALE_TIMESTAMP
    if age < -skew:
        return Reason.FUTURE_TIMESTAMP
    return None


def judge(key: OpenKey, presented: Presented, now: float, rules: Rules) -> Verdict:
    """Decide rules 2 to 10 for a well-formed credential.

    Args:
        key: the key that was found, or a decoy.
        presented: what :func:`~.presented.present` made of the caller's values, not malformed.
        now: Unix seconds.
        rules: the deployment's windows.

    Returns:
        The verdict; ``cached`` as if no I/O had been needed. ``unavailable`` when the key's
        secret cannot be opened.
    """
    record = key.record
    # Whoever is confined to another environment is told, at the same price, what is told of a key
    # that does not exist; not even that its record was in memory.
    hidden = presented.within is not None and key.is_hidden(presented.within)
    try:
        if presented.token is None:
            version, scheme = _match_signature(key.ready("signed"), presented, now)
        else:
            version, scheme = _match_token(key, presented, now)
    except EncryptionError:
        unread = Reason.NOT_FOUND if hidden else Reason.UNAVAILABLE
        return Verdict(unread, presented.key_id)
    if (record.kind == "bearer") is (presented.token is None):
        version = 0
    if key.decoy or record.realm != presented.realm or hidden:
        return Verdict(Reason.NOT_FOUND, presented.key_id, cached=not hidden)
    if version == 0:
        return Verdict(Reason.BAD_SIGNATURE, presented.key_id, cached=True)
    reason = _refusal(key, presented, scheme, now, rules)
    if scheme == "request":
        verified = presented.request is not None and presented.request.body_matches is True
        return Verdict(
            reason or Reason.VALID, record.key_id, record, version, scheme, True, verified
        )
    if reason is None:
        return key.accepted(version, scheme)
    return Verdict(reason, record.key_id, record, version, scheme, cached=True)


def accept(
    key: OpenKey, signature: bytes, timestamp: int, now: float, rules: Rules
) -> Verdict | None:
    """What :func:`judge` says of a timestamped signature with nothing else to it, if it is good.

    Nearly all credentials are such, and this takes half of the time. A test holds it to the judge.

    Args:
        key: a :attr:`~OpenKey.plain` one.
        signature: 32 bytes.
        timestamp: Unix seconds, as signed; any whole number, as nobody has looked at it yet.
        now: Unix seconds.
        rules: the deployment's windows.

    Returns:
        The verdict; ``None`` for whatever is not surely good, of which the judge says why.
    """
    if not 0 <= timestamp <= MAX_TIMESTAMP:
        return None  # there are numbers that no float holds
    age = now - timestamp
    if not -rules.skew <= age <= rules.window + rules.skew or key.strength > 1:
        return None
    record = key.record
    message = timestamped_message(record.key_id, timestamp)
    for version in key.ready("signed"):
        if now < version.ends_at and matches(version.state.digest(message), signature):
            return key.accepted(version.version, "timestamped")
    return None


def _match_signature(
    versions: tuple[OpenVersion, ...], presented: Presented, now: float
) -> tuple[int, Scheme]:
    """The version and scheme that made the signature, ``(0, …)`` when none did."""
    given = presented.signature
    if given is None:
        return 0, "static"
    if presented.request is not None:
        return _match_request(versions, presented.request, now), "request"
    timestamp, nonce = presented.timestamp, presented.nonce
    if timestamp is not None:
        message = timestamped_message(presented.key_id, timestamp, nonce or "")
        for version in versions:
            if now < version.ends_at and matches(version.state.digest(message), given):
                return version.version, "timestamped"
        if nonce is not None:
            return 0, "timestamped"
    message = static_message(presented.key_id)
    for version in versions:
        if now < version.ends_at and matches(version.state.digest(message), given):
            return version.version, "static"
    return 0, "static"


def _match_request(versions: tuple[OpenVersion, ...], request: SignedRequest, now: float) -> int:
    """The version that signed a request, 0 when none did or its body is another one.

    A signature over the key id alone, or over the nonce, is never taken in its place.
    """
    for version in versions:
        if now < version.ends_at and matches(
            version.state.digest(request.message), request.signature
        ):
            return 0 if request.body_matches is False else version.version
    return 0


def _match_token(key: OpenKey, presented: Presented, now: float) -> tuple[int, Scheme]:
    given = presented.token or b""
    for version in key.ready("bearer"):
        if (
            now < version.ends_at
            and matches(version.state.digest(given), version.digest or b"")
            and presented.prefix == key.record.prefix
        ):
            return version.version, "bearer"
    return 0, "bearer"


def _refusal(
    key: OpenKey, presented: Presented, scheme: Scheme, now: float, rules: Rules
) -> Reason | None:
    record = key.record
    if key.plain and presented.wanted is None:
        if scheme == "bearer":
            return None
        return _weak_or_outside(key, presented, scheme, now, rules)
    micros = now * MICROSECONDS
    if record.revoked or (record.revoked_at is not None and micros >= record.revoked_at):
        return Reason.REVOKED
    if record.disabled:
        return Reason.DISABLED
    if record.expired or (record.expires_at is not None and micros >= record.expires_at):
        return Reason.EXPIRED
    if scheme != "bearer":
        reason = _weak_or_outside(key, presented, scheme, now, rules)
        if reason is not None:
            return reason
    if record.ip_allowlist and not allowed(presented.address, key.address_rules):
        return Reason.IP_DENIED
    if presented.wanted is not None and not presented.wanted(record.permissions):
        return Reason.FORBIDDEN
    return None


def _weak_or_outside(
    key: OpenKey, presented: Presented, scheme: Scheme, now: float, rules: Rules
) -> Reason | None:
    if scheme == "static":
        if key.strength > 0 or not rules.allow_static:
            return Reason.WEAK_SCHEME
    elif scheme == "timestamped" and key.strength > (1 if presented.nonce is None else 2):
        return Reason.WEAK_SCHEME
    if presented.timestamp is None:
        return None
    window = rules.window if presented.nonce is None else rules.nonce_window
    return window_reason(presented.timestamp, now, window, rules.skew)
