"""Signature validation for callers who hold the secret themselves."""

from __future__ import annotations

import time
from binascii import unhexlify
from collections.abc import Callable, Sequence
from typing import Any, Literal

from api_key_manager.core.cache import BoundedTTLMap
from api_key_manager.core.exceptions import OUTCOMES, ConfigurationError, Reason
from api_key_manager.core.memory import MemoryNonceStore
from api_key_manager.core.policy import Rules
from api_key_manager.core.ports import Claim, ClaimResult
from api_key_manager.core.signing import (
    MAX_TIMESTAMP,
    is_nonce,
    mac,
    matches,
    static_message,
    timestamped_message,
)
from api_key_manager.core.tokens import MAX_SECRET_BYTES, is_key_id

__all__ = ["AsyncAPIKeyValidator"]

_VALID, _MALFORMED = Reason.VALID, Reason.MALFORMED

Cache = BoundedTTLMap[tuple[str, int | None], tuple[bytes, float]]
"""By key and timestamp: signature and secret in one, and from when on they count."""


class AsyncAPIKeyValidator:
    """Checks HMAC-SHA256 signatures against a secret that the caller passes in.

    A signature with a timestamp is tried as ``timestamped`` first, then as ``static`` if that is
    allowed; without a timestamp only ``static`` remains. Successes are cached, refusals never: a
    hit needs the same key, signature, secret and timestamp, and the window is checked each time.

    Args:
        validation_window_minutes: how old a timestamp may be; from 5 minutes up.
        clock_skew_tolerance_seconds: how far clocks may differ, either way.
        cache_ttl_seconds: how long a success is remembered; 0 turns the cache off.
        cache_max_entries: how many successes are remembered.
        allow_static_signatures: whether a signature over the key alone is accepted.
        clock: Unix seconds.

    Raises:
        ConfigurationError: an argument outside its range.
    """

    def __init__(
        self,
        validation_window_minutes: int = 360,
        clock_skew_tolerance_seconds: int = 60,
        cache_ttl_seconds: float = 300,
        cache_max_entries: int = 10_000,
        allow_static_signatures: bool = True,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        _check("validation_window_minutes", validation_window_minutes, 5)
        _check("clock_skew_tolerance_seconds", clock_skew_tolerance_seconds, 0)
        _check("cache_ttl_seconds", cache_ttl_seconds, 0)
        _check("cache_max_entries", cache_max_entries, 0)
        self.rules = Rules(
            window=validation_window_minutes * 60,
            skew=clock_skew_tolerance_seconds,
            allow_static=bool(allow_static_signatures),
        )
        self.clock = clock
        self._window = self.rules.window
        self._skew = self.rules.skew
        self._ttl = cache_ttl_seconds
        self._cache: Cache = BoundedTTLMap(cache_max_entries if cache_ttl_seconds else 0)
        self._nonces = MemoryNonceStore(clock())

    async def validate(
        self,
        key: str,
        signature: str,
        secret: str,
        timestamp: int | None = None,
        use_cache: bool = True,
    ) -> Literal[True]:
        """Check one signature.

        Args:
            key: the key id that was signed.
            signature: 64 hex digits.
            secret: the key's secret.
            timestamp: Unix seconds, as signed.
            use_cache: whether a remembered success will do.

        Returns:
            ``True``. A refusal raises, so that a forgotten ``if`` lets nobody in.

        Raises:
            InvalidSignatureError: the signature is not that of this key, secret and timestamp.
            KeyExpiredError: the timestamp is outside the window, on either side.
            ValidationError: an argument is unusable.
        """
        cache = self._cache if use_cache else None
        reason = self._judge(key, signature, secret, timestamp, None, cache, True, self.clock())
        if reason is _VALID:
            return True
        outcome = OUTCOMES[reason]
        raise outcome.exception(outcome.message, reason=reason)

    async def batch_validate(self, validations: Sequence[dict[str, Any]]) -> list[bool]:
        """Check many. Items are dicts with ``key``, ``signature``, ``secret`` and, if signed,
        ``timestamp`` and ``nonce``.

        Returns:
            One result per item, in order. An item that cannot be used is ``False``. A nonce is
            accepted once in the life of this validator. Remembered successes serve a batch, and
            a batch adds none.
        """
        now, judge = self.clock(), self._judge
        # Remembering costs a third of a check, and a batch is seldom sent twice.
        cache = self._cache if len(self._cache) else None
        results = []
        for item in validations:
            try:
                nonce = item["nonce"] if "nonce" in item else None  # noqa: SIM401 - half of get()'s time
                reason = judge(
                    item["key"], item["signature"], item["secret"],
                    item["timestamp"] if "timestamp" in item else None,  # noqa: SIM401
                    nonce, cache, False, now,
                )  # fmt: skip
                if reason is _VALID and nonce is not None:
                    results.append(self._claim(item["key"], nonce, item["timestamp"], now))
                else:
                    results.append(reason is _VALID)
            except (KeyError, TypeError):  # a field is missing, or this is no dict
                results.append(False)
        return results

    def clear_cache(self) -> None:
        """Forget every remembered success."""
        self._cache.clear()

    def get_cache_stats(self) -> dict[str, int]:
        """``cache_size``, ``hits``, ``misses``, ``evictions``, ``max_entries``."""
        return self._cache.stats()

    def _claim(self, key: str, nonce: str, timestamp: int, now: float) -> bool:
        rules = self.rules
        held_until = timestamp + rules.nonce_window + 2 * rules.skew
        # The store and its claims are as old as this validator: nothing was lost before.
        claim = Claim(key, nonce, timestamp, held_until, self._nonces.birth)
        return self._nonces.claim_now(claim, now, rules.skew) is ClaimResult.TAKEN

    def _judge(
        self, key: Any, signature: Any, secret: Any, timestamp: Any, nonce: Any,
        cache: Cache | None, remember: bool, now: float,
    ) -> Reason:  # fmt: skip
        # One flat function: on this path the call of a helper costs as much as what it does.
        if type(key) is not str or type(signature) is not str or type(secret) is not str:
            return _MALFORMED
        if len(signature) != 64 or (timestamp is not None and type(timestamp) is not int):
            return _MALFORMED
        try:
            if cache is not None and nonce is None:
                known = cache.get((key, timestamp), now)
                # A signature of 64 characters ends where the secret begins. Compared whole and
                # in constant time, so that nothing can be guessed from here.
                if (
                    known is not None
                    and now >= known[1]
                    and matches(known[0], (signature + secret).encode())
                ):
                    return _VALID
            given, raw = unhexlify(signature), secret.encode()
        except ValueError:  # also what binascii and the codecs raise
            return _MALFORMED
        if not 0 < len(raw) <= MAX_SECRET_BYTES or not is_key_id(key):
            return _MALFORMED
        if timestamp is None:
            if nonce is not None:
                return _MALFORMED
            begins, ends = 0.0, now + self._ttl
        else:
            if not 0 <= timestamp <= MAX_TIMESTAMP:
                return _MALFORMED
            if nonce is not None and (type(nonce) is not str or not is_nonce(nonce)):
                return _MALFORMED
            begins = timestamp - self._skew
            window = self._window if nonce is None else self.rules.nonce_window
            ends = timestamp + window + self._skew
        if timestamp is None or not matches(
            mac(raw, timestamped_message(key, timestamp, nonce), "sha256"), given
        ):
            if nonce is not None or not matches(mac(raw, static_message(key), "sha256"), given):
                return Reason.BAD_SIGNATURE
            if not self.rules.allow_static:
                return Reason.WEAK_SCHEME
        if not begins <= now <= ends:
            return Reason.STALE_TIMESTAMP if now > ends else Reason.FUTURE_TIMESTAMP
        if remember and cache is not None:
            remembered = (signature + secret).encode(), begins
            ttl_ends = now + self._ttl
            cache.put((key, timestamp), remembered, ends if ends < ttl_ends else ttl_ends)
        return _VALID


def _check(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
        raise ConfigurationError(f"{name}: a number of at least {least} is allowed, not {value!r}")
    if value == float("inf"):
        raise ConfigurationError(f"{name}: a finite number is allowed")
