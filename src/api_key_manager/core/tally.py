"""How many verdicts were given: plain numbers, for whoever wants to show them."""

from __future__ import annotations

from collections import defaultdict

from api_key_manager.core.models import ADMIN_REALM, Reason, Verdict
from api_key_manager.core.presented import Presented

__all__ = ["MOST_ENVIRONMENTS", "OTHER_ENVIRONMENTS", "Tally"]

MOST_ENVIRONMENTS = 50
OTHER_ENVIRONMENTS = "other"

# A global is looked up faster than a member of an enumeration.
_VALID = Reason.VALID


class Tally:
    """Counts each verdict once, where it is given.

    No id is kept, so that there are never more numbers than reasons times schemes, and those of
    :data:`MOST_ENVIRONMENTS`; environments that come later count as one. Of admin
    tokens only the refused ones count, and apart: every request shows one.

    Attributes:
        slowed: failures of addresses that had failed too often before.
        slowed_together: failures that came when all addresses together had failed too often.
    """

    __slots__ = (
        "_accepted",
        "_environments",
        "_limits",
        "_nonces",
        "_refused",
        "_refused_admin",
        "slowed",
        "slowed_together",
    )

    def __init__(self) -> None:
        # Two, since one short text as a key costs half of what a pair does.
        self._accepted: defaultdict[str | None, int] = defaultdict(int)
        self._refused: defaultdict[tuple[Reason, str | None], int] = defaultdict(int)
        self._refused_admin: defaultdict[Reason, int] = defaultdict(int)
        self._nonces = {Reason.REPLAYED: 0, Reason.UNAVAILABLE: 0}
        self._limits = {True: 0, False: 0}
        self.slowed = self.slowed_together = 0
        self._environments: dict[str, list[int]] = {}

    def add(self, presented: Presented, verdict: Verdict) -> None:
        """Count a verdict."""
        reason = verdict.reason
        # Verdicts of a deployment without limits have none.
        decision = verdict.rate_limit
        if decision is not None:
            self._limits[decision.allowed] += 1
        if reason is _VALID:
            if presented.realm == ADMIN_REALM:
                return
            self._accepted[verdict.scheme] += 1
        elif presented.realm == ADMIN_REALM:
            self._refused_admin[reason] += 1
            return
        else:
            self._refused[reason, verdict.scheme] += 1
        key = verdict.key
        if key is not None and key.environment is not None:
            self._of_environment(key.environment)[reason is not _VALID] += 1

    def _of_environment(self, environment: str) -> list[int]:
        """The counts of an environment: valid, refused."""
        known = self._environments.get(environment)
        if known is None:
            if len(self._environments) >= MOST_ENVIRONMENTS:
                environment = OTHER_ENVIRONMENTS
            known = self._environments.setdefault(environment, [0, 0])
        return known

    def accept(self, scheme: str, environment: str | None, *, limited: bool) -> None:
        """Count a valid verdict on a key's credential."""
        self._accepted[scheme] += 1
        if environment is not None:
            self._of_environment(environment)[0] += 1
        if limited:
            self._limits[True] += 1

    def refuse_nonce(self, reason: Reason) -> None:
        """Count a nonce that was replayed, or could not be claimed (``unavailable``)."""
        self._nonces[reason] += 1

    def validations(self) -> dict[tuple[str, str | None], int]:
        """By reason and scheme; no scheme where nothing was proved."""
        accepted = {(_VALID.value, scheme): count for scheme, count in self._accepted.items()}
        refused = {(reason.value, s): count for (reason, s), count in self._refused.items()}
        return {**accepted, **refused}

    def environments(self) -> dict[tuple[str, str], int]:
        """By environment and result (``valid`` or ``refused``), of keys that have one and whose
        secret was proved."""
        return {
            (environment, result): count
            for environment, counts in self._environments.items()
            for result, count in zip(("valid", "refused"), counts, strict=True)
        }

    def refused_admin_tokens(self) -> dict[str, int]:
        """By reason."""
        return {reason.value: count for reason, count in self._refused_admin.items()}

    def refused_nonces(self) -> dict[str, int]:
        """By reason."""
        return {reason.value: count for reason, count in self._nonces.items()}

    def limit_decisions(self) -> dict[str, int]:
        """``allowed`` and ``refused``."""
        return {"allowed": self._limits[True], "refused": self._limits[False]}
