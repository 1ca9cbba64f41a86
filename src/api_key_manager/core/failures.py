"""Failed authentication, counted per address and in all: who fails too often is told when to go on.

A credential is always judged first, and only a refusal is counted. So a valid one passes from
whatever address, however many others fail there: nobody locks out anybody else, which a lock per
address would let every stranger do behind the same proxy. What is gained is that a guesser learns
next to nothing from most of the guesses, and that operators see the guessing.

Every refusal that is answered 401 counts alike, so that what comes instead of it tells no more than
that does. Whoever shows nothing guesses nothing, and is not counted.

Who has many addresses has many counts, so all failures together have one more, of a size that only
a crowd reaches. What an address is refused by its own count takes nothing from that one: nobody
uses it up alone. While it is used up nothing is noted of single addresses, so that those who still
fail rarely start full when the crowd has gone.

IPv4 addresses are counted one by one, IPv6 by /64, which is what one host gets. Each process counts
for itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from api_key_manager.core.addresses import host_network
from api_key_manager.core.exceptions import OUTCOMES
from api_key_manager.core.limiter import MemoryLimiter
from api_key_manager.core.limits import RateLimit, decide, whole_seconds
from api_key_manager.core.models import ADMIN_REALM, Reason, Verdict
from api_key_manager.core.presented import Presented
from api_key_manager.core.recorder import Recorder
from api_key_manager.core.tally import Tally

__all__ = ["ALL_FAILURES_PER_MINUTE", "FAILED", "FAILURES_PER_MINUTE", "Failures"]

FAILURES_PER_MINUTE: Final = 60
ALL_FAILURES_PER_MINUTE: Final = 6000
FAILED: Final = frozenset(reason for reason, outcome in OUTCOMES.items() if outcome.status == 401)
"""The reasons that count."""

_MAX_ADDRESSES: Final = 50_000
_NOWHERE: Final = "unknown"


class Failures:
    """How often each address has failed. Used from one event loop, like the manager.

    Args:
        recorder, tally: learn of every failure that has to wait.
        per_minute: how many failures an address has, at once and per minute (GCRA, see
            :mod:`api_key_manager.core.limits`); 0 to slow nobody at all.
        all_per_minute: the same of all addresses together; 0 for any number.
        clock: nanoseconds that never go back.
    """

    def __init__(
        self,
        recorder: Recorder,
        tally: Tally,
        *,
        per_minute: int = FAILURES_PER_MINUTE,
        all_per_minute: int = ALL_FAILURES_PER_MINUTE,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._recorder = recorder
        self._tally = tally
        self._clock = clock
        self._limits = (RateLimit("failures", per_minute, 60),) if per_minute else ()
        self._all = (RateLimit("all-failures", all_per_minute, 60),) if all_per_minute else ()
        self._arrivals: Sequence[int] = (0,)
        self._limiter = MemoryLimiter(_MAX_ADDRESSES, clock=clock, whose="addresses")

    def wait(self, presented: Presented, verdict: Verdict, now: float) -> int:
        """Count a verdict, if it is a failure.

        Args:
            presented: the credential, with its sender's address.
            verdict: what became of it.
            now: Unix seconds.

        Returns:
            0 when the verdict may be told as ever; else the whole seconds after which the address
            may fail again, and until then its failures are to be answered by them.
        """
        if not self._limits or not presented.shown or not _is_failure(presented, verdict):
            return 0
        arrivals = self._arrivals
        if self._all:
            together, arrivals = decide(self._all, arrivals, 1, self._clock() // 1000)
            if not together.allowed:
                self._tally.slowed_together += 1
                self._recorder.note_slowed(presented, None, now)
                return whole_seconds(together.retry_after)
        # Senders whose address is not known share one count, as they would behind one proxy.
        network = host_network(presented.ip) or _NOWHERE
        decision = self._limiter.take_now(network, self._limits, 1)
        if decision.allowed:
            self._arrivals = arrivals
            return 0
        self._tally.slowed += 1
        self._recorder.note_slowed(presented, network, now)
        return whole_seconds(decision.retry_after)


def _is_failure(presented: Presented, verdict: Verdict) -> bool:
    reason = verdict.reason
    if reason in FAILED:
        return True
    # The right admin token from a wrong address is answered like a wrong one, so it counts so, too.
    return reason is Reason.IP_DENIED and presented.realm == ADMIN_REALM
