"""What is timed: refusals that an outsider must not be able to tell apart, and code that leaks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from api_key_manager.core import KeyManager, policy
from api_key_manager.core.models import ApiKey, KeyVersion, Kind
from api_key_manager.core.policy import OpenKey, OpenVersion, Rules, judge
from api_key_manager.core.presented import present
from api_key_manager.core.signing import MacState, matches, parse_signature
from api_key_manager.core.tokens import mint_id, mint_token
from benchmarks.security.sampling import Call, Slow

__all__ = ["COMPARISONS", "comparing", "comparing_by", "judging", "refusing", "unproved"]

VARIANTS = 16
KEYS = 64
Compare = Callable[[bytes, bytes], bool]


def byte_loop(first: bytes, second: bytes) -> bool:
    """Stops at the first byte that differs: what must be found out."""
    if len(first) != len(second):
        return False
    for one, other in zip(first, second, strict=True):  # noqa: SIM110 - it is to be plain
        if one != other:
            return False
    return True


COMPARISONS: dict[str, Compare] = {
    "ours": matches, "control: byte loop": byte_loop, "control: ==": bytes.__eq__,
}  # fmt: skip


def _wrong(right: bytes, at: int) -> bytes:
    """The same with another byte in one place."""
    changed = bytearray(right)
    changed[at] ^= 1 + secrets.randbelow(255)
    return bytes(changed)


def comparing(compare: Compare) -> list[list[Call]]:
    """The comparison alone: MACs that differ in the first byte, and in the last."""

    def variant(at: int) -> Call:
        right = secrets.token_bytes(32)
        wrong = _wrong(right, at)
        return lambda: compare(right, wrong)

    return _first_and_last(variant)


def _first_and_last(variant: Callable[[int], Call]) -> list[list[Call]]:
    """Variants of both classes, made in turn: none has the better places in memory."""
    made: dict[int, list[Call]] = {0: [], 31: []}
    for _ in range(VARIANTS):
        for at in secrets.SystemRandom().sample([0, 31], 2):
            made[at].append(variant(at))
    return [made[0], made[31]]


def judging(kind: Kind) -> list[list[Call]]:
    """A whole judgement of an open key: a MAC or digest wrong in the first byte, and in the last.

    An outsider who sends tokens cannot choose where a digest differs, so that there the stored one
    is what varies.
    """
    now, rules = time.time(), Rules(allow_static=False)

    def variant(at: int) -> Call:
        state, key_id = MacState(secrets.token_bytes(32)), mint_id()
        if kind == "signed":
            stamp = int(now)
            right = state.digest(f"AKM1\n{key_id}\n{stamp}\n".encode())
            presented = present(key_id, _wrong(right, at).hex(), stamp)
            digest = None
        else:
            token = mint_token("akm", key_id)
            presented = present(token=token)
            digest = _wrong(state.digest(token.encode()), at)
        version = OpenVersion(1, 0, float("inf"), state, digest)
        key = OpenKey(ApiKey(key_id, kind, 0, 0, (KeyVersion(1, 0),)), lambda _: (version,))
        return lambda: judge(key, presented, now, rules)

    return _first_and_last(variant)


@contextmanager
def comparing_by(compare: Compare) -> Iterator[None]:
    """The judge with another comparison."""
    ours = policy.matches
    policy.matches = compare
    try:
        yield
    finally:
        policy.matches = ours


async def refusing(manager: KeyManager, kind: Kind) -> list[list[Slow]]:
    """A whole validation that must read the store: ids that nobody has, in two series of which
    nothing can be told, then known ones with a wrong secret."""
    stamp = int(time.time())

    def attempt(key_id: str) -> Slow:
        if kind == "bearer":
            token = mint_token("akm", key_id)
            return lambda: manager.verify(token=token)
        signature = secrets.token_hex(32)
        assert parse_signature(signature) is not None
        return lambda: manager.verify(key_id, signature, stamp)

    known = [
        await manager.create_key(
            kind=kind, owner=f"team-{i % 7}", permissions=["documents.read"],
            metadata={"plan": "basic", "region": "eu"},
        )
        for i in range(KEYS)
    ]  # fmt: skip
    unknown = [[attempt(mint_id()) for _ in range(KEYS)] for _ in range(2)]
    return [*unknown, [attempt(key["key_id"]) for key in known]]


@contextmanager
def unproved(manager: KeyManager) -> Iterator[None]:
    """A manager that knows at once that there is no such key, as one without a decoy would."""
    records: Any = manager._verifier._records
    ready = {kind: records.decoy(kind) for kind in ("signed", "bearer")}
    for kind, decoy in ready.items():
        decoy.ready(kind)
    records.decoy = ready.__getitem__
    try:
        yield
    finally:
        del records.decoy
