"""What the core asks of the world. Each protocol has at least two implementations.

Implementations raise ``StorageError`` when they cannot answer, ``ConflictError`` and
``KeyExistsError`` when a change came too late, and nothing else on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Final, Literal, NamedTuple, Protocol, TypeGuard

from api_key_manager.core.limits import Decision, RateLimit
from api_key_manager.core.models import (
    ApiKey,
    AuditEvent,
    AuditQuery,
    Change,
    KeyQuery,
    KeyVersion,
    Page,
    Use,
)
from api_key_manager.core.signing import MacState

__all__ = [
    "BEGUN_SECONDS",
    "MOST_COUNTED",
    "NONCE_LEASE_SECONDS",
    "RESTORED",
    "Ask",
    "Begun",
    "Changed",
    "Claim",
    "ClaimResult",
    "EmbeddedStore",
    "Feed",
    "GivenBack",
    "IdempotencyStore",
    "KeyStore",
    "NonceRegister",
    "NonceStanding",
    "NonceStore",
    "QuotaStore",
    "RateLimiter",
    "Reading",
    "Receipt",
    "Seal",
    "SecretBox",
    "SharedLimit",
    "Spend",
    "Spent",
    "is_embedded",
]

BEGUN_SECONDS = 60
MOST_COUNTED = 1000

Seal = Callable[[ApiKey], bytes]
"""Makes the record MAC, once the store has given the record its revision."""


class Receipt(NamedTuple):
    """A sealed answer, kept so that a retry of the same request gets it again."""

    scope: str
    key: str
    fingerprint: bytes
    """Of the request that was begun: another one may have the key by now."""
    answer: bytes
    expires_at: int
    """In microseconds, like every instant of the store."""

    def __repr__(self) -> str:
        return f"Receipt({self.scope!r})"


class KeyStore(Protocol):
    """Keys with their live versions, the revision, the change feed and the audit log."""

    async def load(self, key_ids: Sequence[str]) -> list[ApiKey | None]:
        """The records as stored, in order; ``None`` for an unknown or deleted id."""
        ...

    async def apply(
        self, changes: Sequence[Change], seal: Seal, receipt: Receipt | None = None
    ) -> list[ApiKey]:
        """Make all changes in one transaction, or none, durable before it returns.

        Each record gets the next revision, its MAC, a row of the change feed and its events.
        The receipt of a begun request is written with them.

        Raises:
            KeyExistsError: a new id is taken, also by a deleted key.
            ConflictError: a record's revision is not the expected one, or the receipt's request is
                not, or no longer, the one that was begun.
        """
        ...

    async def find(self, query: KeyQuery) -> Page[ApiKey]:
        """Keys in the order of their ids. Deleted ones never show."""
        ...

    async def versions(self, key_id: str) -> list[KeyVersion]:
        """Every version of a key that ever was, newest first, without secrets."""
        ...

    async def marked(self, mark: bytes) -> list[str]:
        """The ids of keys with a live version of this mark; a hundred at most."""
        ...

    async def ending(self, before: int, limit: int) -> list[ApiKey]:
        """Keys with an end at or before ``before`` (µs) that is not yet made permanent."""
        ...

    async def count(self, realm: str, now: int) -> dict[str, int]:
        """How many keys are in each state at ``now`` (µs); states that none is in may be missing.

        Looks at every key, without making other callers wait.
        """
        ...

    async def census(
        self, realm: str, now: int, environment: str | None = None
    ) -> dict[str | None, dict[str, int]]:
        """The same by environment, in the order of their names, ``None`` first; at most
        :data:`MOST_COUNTED` of them, or only the named one."""
        ...

    async def record(self, events: Sequence[AuditEvent], used: Mapping[str, Use]) -> None:
        """Append events and note last uses. Bumps no revision."""
        ...

    async def find_audit(self, query: AuditQuery) -> Page[AuditEvent]:
        """Events by index."""
        ...

    async def close(self) -> None:
        """Finish what was begun and let go of everything."""
        ...


class EmbeddedStore(KeyStore, Protocol):
    """A store in this process, which can also answer plain calls."""

    def find_now(self, query: KeyQuery) -> Page[ApiKey]: ...

    def record_now(self, events: Sequence[AuditEvent], used: Mapping[str, Use]) -> None: ...

    def find_audit_now(self, query: AuditQuery) -> Page[AuditEvent]: ...


def is_embedded(store: KeyStore) -> TypeGuard[EmbeddedStore]:
    """Whether a store answers plain calls too."""
    # Not isinstance(): since Python 3.12 that does not see what `__getattr__` hands on, so a store
    # around another one would count as one on a network.
    return all(
        callable(getattr(store, name, None))
        for name in ("find_now", "record_now", "find_audit_now")
    )


class Changed(NamedTuple):
    """One entry of the change feed. Two with the same revision are the same change only if all of
    it is equal: a store that lost commits gives their revisions again."""

    revision: int
    key_id: str
    at: int
    """In microseconds, by the clock of whoever made the change."""


RESTORED: Final = ""
"""In the feed in the place of a key's id: here the store was restored from a backup."""


class Reading(NamedTuple):
    """What a reading of the change feed found.

    ``complete``: ``changes`` are all that came after the one that was asked for. Otherwise anything
    may have changed, and they are some of the last, without a gap, up to ``revision``. ``lost``:
    what was read before is not in the store's past any more.
    """

    revision: int
    changes: list[Changed]
    complete: bool
    lost: bool = False


class Feed(Protocol):
    """Where changes are announced, in the order of their revisions."""

    problem: str | None
    """Why what is read here should not be relied on; ``None`` when it should."""

    async def changed(self) -> bool:
        """Whether anything may have been written since the last call; cheap."""
        ...

    async def read(self, after: Changed | None, limit: int) -> Reading:
        """What came after a change; ``None`` to start with the last ones."""
        ...

    async def wait(self) -> None:
        """Return when it is time to look again."""
        ...


class Begun(NamedTuple):
    """What is known of a request by its idempotency key."""

    state: Literal["new", "in_progress", "mismatch", "answered"]
    answer: bytes | None = None

    def __repr__(self) -> str:
        return f"Begun({self.state!r})"


class IdempotencyStore(Protocol):
    """Requests that may be sent again.

    A begun request that has no receipt after :data:`BEGUN_SECONDS` has changed nothing, since
    receipt and change commit together: it may be begun anew.
    """

    async def begin(self, scope: str, key: str, fingerprint: bytes, now: int) -> Begun:
        """Begin, or say what became of it. ``mismatch``: another request had this key. ``now``
        in microseconds."""
        ...

    async def abandon(self, scope: str, key: str) -> None:
        """Forget a begun request that changed nothing."""
        ...


class Claim(NamedTuple):
    """A nonce that shall be taken. Instants in Unix seconds."""

    key_id: str
    nonce: str
    timestamp: int
    expires_at: int
    key_since: float
    """When the key version was made: no claim of it can be older."""


class ClaimResult(Enum):
    """``TAKEN``: now this caller's. ``REPLAYED``: it was somebody's. ``REFUSED``: cannot tell
    (claims may have been lost), or this key holds too many."""

    TAKEN = "taken"
    REPLAYED = "replayed"
    REFUSED = "refused"


NONCE_LEASE_SECONDS: Final = 2.0
"""How long a node may believe what it read of where nonces are claimed."""


class NonceStanding(NamedTuple):
    """Where the nonces of a deployment are claimed, and what is known of the past there.

    ``place``: ``None`` beside the keys, else the id of another place. ``birth``: since when (µs) no
    claim was lost. ``revision``: the store's, 0 before the first key.
    """

    place: str | None
    birth: int
    revision: int


class NonceRegister(Protocol):
    """Says for all nodes which place of nonces is in force. Raises ``StorageError`` when it
    cannot."""

    async def standing(self) -> NonceStanding:
        """What holds now."""
        ...

    async def move(self, expected: str | None, place: str | None) -> NonceStanding:
        """Put another place in force if ``expected`` still is; what holds then."""
        ...


class NonceStore(Protocol):
    """Nonces that were used, each held until it can no longer be presented."""

    async def claim(self, claims: Sequence[Claim], now: float, skew: int) -> list[ClaimResult]:
        """Take each nonce that is free, durably before it returns; results in order."""
        ...


class SharedLimit(NamedTuple):
    """A limit of several keys, and the name under which they are counted together; it is no id."""

    bucket: str
    limit: RateLimit


class Ask(NamedTuple):
    """What a request takes from limits, and whose they are. A cost of 0 takes nothing and is always
    allowed: it tells how the limits stand."""

    key: str
    limits: tuple[RateLimit, ...]
    cost: int = 1
    shared: tuple[SharedLimit, ...] = ()

    @property
    def every(self) -> tuple[RateLimit, ...]:
        """All limits, in the order of a decision's."""
        return (*self.limits, *(s.limit for s in self.shared)) if self.shared else self.limits


class RateLimiter(Protocol):
    """How much each key has taken. One key has one set of limits: ask for another set, and what
    is only in the old one is forgotten. Each shared limit is counted by itself under its name."""

    def take_now(
        self,
        key: str,
        limits: tuple[RateLimit, ...],
        cost: int,
        shared: tuple[SharedLimit, ...] = (),
    ) -> Decision | None:
        """Take ``cost`` from every limit, the shared ones too, or nothing from any.

        Returns:
            The decision on the key's limits and then the shared ones; ``None`` when that needs
            I/O, and then nothing was taken.
        """
        ...

    async def take(self, asked: Sequence[Ask]) -> list[Decision]:
        """The same for many, as if in order, with whatever I/O that takes.

        Raises:
            StorageError: it cannot be told.
        """
        ...


class Spend(NamedTuple):
    """Credits that shall be taken from an account in a period (``period_start`` in µs).

    ``block`` is taken where at least ``blocks`` such blocks are left; else what is ``needed`` or,
    where less is left, that, but never less than ``cost``; else nothing.
    """

    bucket: str
    period_start: int
    limit: int
    cost: int
    needed: int
    block: int = 0
    blocks: int = 1


class Spent(NamedTuple):
    """What was taken, and what all have taken in the period by then."""

    taken: int
    spent: int


class GivenBack(NamedTuple):
    """Credits that were taken and not used."""

    bucket: str
    period_start: int
    amount: int


class QuotaStore(Protocol):
    """What was taken from quotas, for all processes. Outlives them wherever the keys do."""

    async def spend(self, asked: Sequence[Spend]) -> list[Spent]:
        """Take credits, durably before it returns; no two ask for the same account at once.

        Raises:
            StorageError: it cannot be told. What was taken then counts as spent, if it was.
        """
        ...

    async def give_back(self, returned: Sequence[GivenBack]) -> None:
        """Return credits. Raises ``StorageError``."""
        ...

    async def spent(self, accounts: Sequence[tuple[str, int]]) -> list[int]:
        """What was taken from each account in a period. Raises ``StorageError``."""
        ...


class SecretBox(Protocol):
    """Seals what is kept, opens it again, and knows the keys that nobody else sees."""

    def seal(self, purpose: str, name: str, version: int, plaintext: bytes) -> bytes:
        """Encrypt, bound to what it is and whose: it opens under the same three only."""
        ...

    def open(self, purpose: str, name: str, version: int, sealed: bytes) -> bytes:
        """Raises ``EncryptionError`` when the bytes or what they are bound to were changed."""
        ...

    async def keep(self, name: str, version: int, secret: bytes) -> bytes:
        """Put the secret of a new version where secrets are kept.

        Returns:
            What the record holds of it: :meth:`open` gives the secret for it.

        Raises:
            StorageError: it cannot be kept now.
        """
        ...

    def drop(self, name: str, version: int, sealed: bytes | None = None) -> None:
        """Erase, in time, what was kept outside of the record: of a version that has ended, or
        only what ``sealed`` stands for, which no record came to hold."""
        ...

    async def fetch(self, records: Sequence[ApiKey]) -> None:
        """Bring what these records need to be opened from where it is kept. What cannot be had
        does not open, and the log says why."""
        ...

    def lasts_until(self, record: ApiKey) -> float:
        """Until when, on the boot clock, what is opened of this record may be used."""
        ...

    def mac_state(self, key: bytes) -> MacState:
        """HMAC-SHA256 under a key, as fast as this box can."""
        ...

    def digest(self, token: bytes) -> tuple[int, bytes]:
        """The newest pepper's number, and the token's digest under it."""
        ...

    def pepper(self, number: int) -> MacState:
        """Raises ``EncryptionError`` for a pepper that is not there."""
        ...

    def is_newest(self, pepper: int) -> bool:
        """Whether no pepper is newer than this one, as far as is known here."""
        ...

    def knows(self, version: KeyVersion) -> bool:
        """Whether the key that this version is sealed or digested under is here."""
        ...

    async def learn(self) -> None:
        """Look for keys that others minted; when that is not possible, it says so in the log."""
        ...

    def mark(self, secret: bytes) -> bytes:
        """A digest of a secret under a key of its own, the same for ever."""
        ...

    def record_mac(self, record: ApiKey) -> bytes:
        """The MAC over the record's security columns and revision."""
        ...
