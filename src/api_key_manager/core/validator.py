"""Signature validation for callers who hold the secret themselves."""

from __future__ import annotations

import time
from binascii import unhexlify
from collections.abc import Callable, Sequence
from typing import Any, Literal

from api_key_manager.core.cache import BoundedTTLMap
from api_key_manager.core.exceptions import OUTCOMES, ConfigurationError, Reason, ValidationError
from api_key_manager.core.memory import MemoryNonceStore
from api_key_manager.core.policy import Rules, window_reason
from api_key_manager.core.ports import Claim, ClaimResult
from api_key_manager.core.presented import why_malformed
from api_key_manager.core.signing import (
    MAX_TIMESTAMP,
    is_nonce,
    mac,
    matches,
    static_message,
    timestamped_message,
)
from api_key_manager.core.tokens import MAX_SECRET_BYTES, is_key_id, secret_bytes

__all__ = ["AsyncAPIKeyValidator"]

_MAX_KNOWN_IDS = 10_000
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
        if type(allow_static_signatures) is not bool:
            raise ConfigurationError("allow_static_signatures: True or False is allowed")
        self.rules = Rules(
            window=validation_window_minutes * 60,
            skew=clock_skew_tolerance_seconds,
            allow_static=allow_static_signatures,
        )
        self.clock = clock
        self._skew = self.rules.skew
        self._oldest = self.rules.window + self.rules.skew
        self._ttl = cache_ttl_seconds
        self._cache: Cache = BoundedTTLMap(cache_max_entries if cache_ttl_seconds else 0)
        self._known_ids: set[str] = set()
        self._last_batch: tuple[Any, ...] | None = None
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
        now = self.clock()
        if use_cache and self._remembers(key, signature, secret, timestamp, now):
            return True
        reason = self._judge(key, signature, secret, timestamp, now)
        if reason is _VALID:
            if use_cache:
                self._remember(key, signature, secret, timestamp, now)
            return True
        if reason is _MALFORMED:
            told = why_malformed(key, signature, timestamp)
            if secret_bytes(secret) is None:
                told = f"secret: text of 1 to {MAX_SECRET_BYTES} bytes is allowed"
            raise ValidationError(told)
        outcome = OUTCOMES[reason]
        raise outcome.exception(outcome.message, reason=reason)

    async def batch_validate(self, validations: Sequence[dict[str, Any]]) -> list[bool]:
        """Check many. Items are dicts with ``key``, ``signature``, ``secret`` and, if signed,
        ``timestamp`` and ``nonce``.

        Returns:
            One result per item, in order. An item that cannot be used is ``False``. A nonce is
            accepted once in the life of this validator. Remembered successes serve a batch; its
            own are remembered when the same batch comes again.
        """
        if not isinstance(validations, (list, tuple)):
            raise ValidationError("validations: a list is needed")
        now, judge, results = self.clock(), self._judge, []
        warm, again = len(self._cache) > 0, self._is_sent_again(validations)
        for item in validations:
            try:
                # Subscripts, since get() takes twice as long.
                key, signature, secret = item["key"], item["signature"], item["secret"]
                timestamp = item["timestamp"] if "timestamp" in item else None  # noqa: SIM401
                if "nonce" in item and item["nonce"] is not None:
                    valid = self._is_first(key, signature, secret, timestamp, now, item["nonce"])
                elif warm and self._remembers(key, signature, secret, timestamp, now):
                    valid = True
                else:
                    valid = judge(key, signature, secret, timestamp, now) is _VALID
                    if valid and again:
                        self._remember(key, signature, secret, timestamp, now)
            except (KeyError, TypeError):  # a field is missing, or this is no dict
                valid = False
            results.append(valid)
        if not warm:
            self._cache.misses += len(results)
        return results

    def clear_cache(self) -> None:
        """Forget every remembered success."""
        self._cache.clear()

    def get_cache_stats(self) -> dict[str, int]:
        """``cache_size``, ``hits``, ``misses``, ``evictions``, ``max_entries``."""
        return self._cache.stats()

    def _is_first(
        self, key: Any, signature: Any, secret: Any, timestamp: Any, now: float, nonce: Any
    ) -> bool:
        """Whether a signature with a nonce is good, and the nonce was not used before."""
        if timestamp is None or type(nonce) is not str or not is_nonce(nonce):
            return False
        if self._judge(key, signature, secret, timestamp, now, nonce) is not _VALID:
            return False
        rules = self.rules
        held_until = timestamp + rules.nonce_window + 2 * rules.skew
        # The store and its claims are as old as this validator: nothing was lost before.
        claim = Claim(key, nonce, timestamp, held_until, self._nonces.birth)
        return self._nonces.claim_now(claim, now, rules.skew) is ClaimResult.TAKEN

    def _is_sent_again(self, validations: Sequence[dict[str, Any]]) -> bool:
        """Whether a batch looks like the last one. To remember a success costs a third of a
        check, which only a batch that comes again is worth."""
        try:
            first = validations[0]
            mark = (first["key"], first.get("timestamp"), len(validations))
        except (AttributeError, IndexError, KeyError, TypeError):
            return False
        again, self._last_batch = mark == self._last_batch, mark
        return again

    def _remembers(self, key: Any, signature: Any, secret: Any, timestamp: Any, now: float) -> bool:
        # True and 1.0 would find what was remembered for 1.
        if timestamp is not None and type(timestamp) is not int:
            return False
        try:
            known = self._cache.get((key, timestamp), now)
            # A signature of 64 characters ends where the secret begins. Compared whole and in
            # constant time, so that nothing can be guessed from here.
            if known is None:
                return False
            if (
                len(signature) == 64
                and now >= known[1]
                and matches(known[0], (signature + secret).encode())
            ):
                return True
            # The map found an entry, but not for this signature and secret.
            self._cache.hits -= 1
            self._cache.misses += 1
        except (TypeError, ValueError):  # unusable values: the judge has the word for them
            pass
        return False

    def _remember(
        self, key: str, signature: str, secret: str, timestamp: int | None, now: float
    ) -> None:
        begins, ends = 0.0, now + self._ttl
        if timestamp is not None:
            begins, ends = timestamp - self._skew, min(ends, timestamp + self._oldest)
        self._cache.put((key, timestamp), ((signature + secret).encode(), begins), ends)

    def _judge(
        self, key: Any, signature: Any, secret: Any, timestamp: Any, now: float, nonce: str = ""
    ) -> Reason:
        # One flat function: on this path the call of a helper costs as much as what it does.
        if type(key) is not str or type(signature) is not str or type(secret) is not str:
            return _MALFORMED
        if key not in self._known_ids:
            if not is_key_id(key):
                return _MALFORMED
            # A look-up costs a sixth of the pattern. Full, the set is no worse than none.
            if len(self._known_ids) < _MAX_KNOWN_IDS:
                self._known_ids.add(key)
        try:
            given, raw = unhexlify(signature), secret.encode()
        except ValueError:  # also what binascii and the codecs raise
            return _MALFORMED
        if len(given) != 32 or not 0 < len(raw) <= MAX_SECRET_BYTES:
            return _MALFORMED
        if timestamp is not None:
            if type(timestamp) is not int or not 0 <= timestamp <= MAX_TIMESTAMP:
                return _MALFORMED
            message = timestamped_message(key, timestamp, nonce)
            if matches(mac(raw, message, "sha256"), given):
                # The usual case of what _in_window says, without its calls.
                if -self._skew <= now - timestamp <= self._oldest and not nonce:
                    return _VALID
                return self._in_window(timestamp, now, nonce)
        if nonce or not matches(mac(raw, static_message(key), "sha256"), given):
            return Reason.BAD_SIGNATURE
        if not self.rules.allow_static:
            return Reason.WEAK_SCHEME
        return _VALID if timestamp is None else self._in_window(timestamp, now, nonce)

    def _in_window(self, timestamp: int, now: float, nonce: str) -> Reason:
        window = self.rules.nonce_window if nonce else self.rules.window
        return window_reason(timestamp, now, window, self._skew) or _VALID


def _check(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
        raise ConfigurationError(f"{name}: a number of at least {least} is allowed, not {value!r}")
    if value == float("inf"):
        raise ConfigurationError(f"{name}: a finite number is allowed")
