"""What is particular to the memory backends: their bounds, and what a restart forgets."""

from __future__ import annotations

import pytest

from api_key_manager.core import (
    AsyncAPIKeyValidator,
    AuditEvent,
    ConfigurationError,
    KeyManager,
    StorageError,
    sign,
)
from api_key_manager.core.memory import MemoryBox, MemoryNonceStore, MemoryStore
from api_key_manager.core.models import AuditQuery
from api_key_manager.core.ports import (
    Claim,
    ClaimResult,
    IdempotencyStore,
    KeyStore,
    NonceStore,
    SecretBox,
    is_embedded,
)


def test_protocols():
    """The memory backends have every method of their protocols."""
    manager = KeyManager()
    assert is_embedded(manager.store)
    for protocol, backend in (
        (KeyStore, manager.store),
        (SecretBox, manager.box),
        (NonceStore, MemoryNonceStore(0)),
        (IdempotencyStore, manager.store._receipts),
    ):
        for name in (n for n in vars(protocol) if not n.startswith("_")):
            assert callable(getattr(backend, name))


async def test_events_are_bounded():
    """The oldest events go first, and indexes go on: a cursor never points at another event."""
    store = MemoryStore(max_events=10)
    await store.record([AuditEvent(i, f"a{i}") for i in range(25)], {})
    page = await store.find_audit(AuditQuery(ascending=True, limit=4))
    assert [event.action for event in page.items] == ["a15", "a16", "a17", "a18"]
    assert page.next_cursor == "19"


async def test_nonces_are_swept():
    """Nonces that can no longer be presented give their memory back."""
    store = MemoryNonceStore(1000.0)
    claims = [Claim(f"k{i % 7}", f"nonce-{i:011d}", 1000, 1420, 1000.0) for i in range(1000)]
    await store.claim(claims, 1000.0, 60)
    assert sum(map(len, store._held.values())) == 1000
    last = Claim("other", "n" * 16, 1480, 1900, 1000.0)
    assert await store.claim([last], 1480.0, 60) == [ClaimResult.TAKEN]
    assert store._held == {"other": {"n" * 16: 1900}}


async def test_nonces_die_with_the_process(clock):
    """After a restart, what may have been accepted before is refused, not accepted again."""
    birth = clock.now
    store = MemoryNonceStore(birth)
    before = Claim("k", "n" * 16, clock.seconds + 60, clock.seconds + 480, birth - 1)
    assert await store.claim([before], birth, 60) == [ClaimResult.REFUSED]
    after = before._replace(timestamp=clock.seconds + 61)
    assert await store.claim([after], birth + 1, 60) == [ClaimResult.TAKEN]


class Elsewhere:
    """A store that is not the memory store, as far as a manager can tell."""

    def __init__(self) -> None:
        self._inner = MemoryStore()

    def __getattr__(self, name: str):
        return getattr(self._inner, name)


async def test_another_store_needs_nonces_of_its_own(clock):
    """Where keys outlive the process and no nonce store is given, no nonce is accepted."""
    manager = KeyManager(AsyncAPIKeyValidator(clock=clock), store=Elsewhere(), box=MemoryBox())
    secret = (await manager.create_key("k"))["secret"]
    clock.advance(1000)
    stamp, nonce = clock.seconds, "n" * 16
    with pytest.raises(StorageError):
        await manager.validate_key("k", sign(secret, "k", stamp, nonce), stamp, nonce)
    assert await manager.validate_key("k", sign(secret, "k", stamp), stamp)


def test_another_store_needs_a_box():
    """Secrets that outlive the process are never kept without a box of their own."""
    with pytest.raises(ConfigurationError, match="box"):
        KeyManager(store=Elsewhere())
