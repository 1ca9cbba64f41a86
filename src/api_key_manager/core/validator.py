"""Signature validation for callers who hold the secret themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from api_key_manager.core.cache import BoundedTTLMap
from api_key_manager.core.exceptions import OUTCOMES, ConfigurationError, Reason
from api_key_manager.core.memory import MemoryNonceStore
from api_key_manager.core.policy import Rules, window_reason
from api_key_manager.core.ports import Claim, ClaimResult
from api_key_manager.core.signing import (
    is_nonce,
    is_timestamp,
    mac,
    matches,
    parse_signature,
    static_message,
    timestamped_message,
)
from api_key_manager.core.tokens import is_key_id, secret_bytes

__all__ = ["AsyncAPIKeyValidator"]


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
        self._cache: BoundedTTLMap[tuple[str, int | None], tuple[bytes, bytes]] = BoundedTTLMap(
            cache_max_entries if cache_ttl_seconds else 0
        )
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
        reason = self._judge(key, signature, secret, timestamp, None, use_cache, self.clock())
        if reason is Reason.VALID:
            return True
        outcome = OUTCOMES[reason]
        raise outcome.exception(outcome.message, reason=reason)

    async def batch_validate(self, validations: Sequence[dict[str, Any]]) -> list[bool]:
        """Check many. Items are dicts with ``key``, ``signature``, ``secret`` and, if signed,
        ``timestamp`` and ``nonce``.

        Returns:
            One result per item, in order. An item that cannot be used is ``False``. A nonce is
            accepted once in the life of this validator.
        """
        now = self.clock()
        judge, valid = self._judge, Reason.VALID
        results = []
        for item in validations:
            try:
                get = item.get
                nonce = get("nonce")
                result = (
                    judge(
                        item["key"], item["signature"], item["secret"],
                        get("timestamp"), nonce, True, now,
                    )
                    is valid
                )  # fmt: skip
            except (AttributeError, KeyError, TypeError):
                result = False
            else:
                if result and nonce is not None:
                    result = self._claim(item["key"], nonce, item["timestamp"], now)
            results.append(result)
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
        use_cache: Any, now: float,
    ) -> Reason:  # fmt: skip
        given = parse_signature(signature)
        raw = secret_bytes(secret)
        if given is None or raw is None or type(key) is not str:
            return Reason.MALFORMED
        if timestamp is not None and not is_timestamp(timestamp):
            return Reason.MALFORMED
        cacheable = nonce is None and use_cache
        if cacheable:
            known = self._cache.get((key, timestamp), now)
            # Both compared whole and in constant time, so that nothing can be guessed from here.
            if known is not None and matches(known[0], given) & matches(known[1], raw):
                return self._outside(timestamp, None, now) or Reason.VALID
        if not is_key_id(key):
            return Reason.MALFORMED
        if nonce is not None and not (
            timestamp is not None and type(nonce) is str and is_nonce(nonce)
        ):
            return Reason.MALFORMED
        reason = self._match(key, given, raw, timestamp, nonce)
        reason = reason or self._outside(timestamp, nonce, now)
        if reason is not None:
            return reason
        if cacheable:
            expires = now + self._ttl
            if timestamp is not None:
                expires = min(expires, timestamp + self._window + self._skew)
            self._cache.put((key, timestamp), (given, raw), expires)
        return Reason.VALID

    def _match(
        self, key: str, given: bytes, raw: bytes, timestamp: int | None, nonce: str | None
    ) -> Reason | None:
        if timestamp is not None:
            expected = mac(raw, timestamped_message(key, timestamp, nonce), "sha256")
            if matches(expected, given):
                return None
            if nonce is not None:
                return Reason.BAD_SIGNATURE
        if not matches(mac(raw, static_message(key), "sha256"), given):
            return Reason.BAD_SIGNATURE
        return None if self.rules.allow_static else Reason.WEAK_SCHEME

    def _outside(self, timestamp: int | None, nonce: str | None, now: float) -> Reason | None:
        if timestamp is None:
            return None
        window = self._window if nonce is None else self.rules.nonce_window
        return window_reason(timestamp, now, window, self._skew)


def _check(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
        raise ConfigurationError(f"{name}: a number of at least {least} is allowed, not {value!r}")
    if value == float("inf"):
        raise ConfigurationError(f"{name}: a finite number is allowed")
