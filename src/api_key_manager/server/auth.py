"""Who calls, from where, and whether a scope covers what they want.

An admin token is a bearer key of the realm ``admin``: it goes through the same judge, cache and
change feed as any other key, so that its revocation is seen as fast.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from api_key_manager.core.addresses import Network, client_address
from api_key_manager.core.exceptions import OUTCOMES
from api_key_manager.core.models import ADMIN_REALM, Reason, Verdict
from api_key_manager.core.presented import Presented, present
from api_key_manager.core.signing import matches
from api_key_manager.server.errors import (
    ProblemError,
    forbidden,
    too_many_failures,
    unauthorized,
    unavailable,
)
from api_key_manager.server.exchange import Errand, Request, Steps, judged
from api_key_manager.server.oidc import Oidc, is_jwt
from api_key_manager.server.oidc_claims import Identity
from api_key_manager.server.principal import Principal

if TYPE_CHECKING:
    from api_key_manager.core.manager import KeyManager

__all__ = ["Admission", "Door"]


class Admission(NamedTuple):
    """Who was let in, and by what token."""

    principal: Principal
    presented: Presented | None = None
    verdict: Verdict | None = None
    until: float = inf
    """Unix seconds; for whoever has no verdict."""

    def again(self, manager: KeyManager, now: float) -> bool:
        """Whether the same caller is let in by the same head on the same connection once more."""
        if self.presented is None or self.verdict is None:
            return now < self.until
        return manager.repeat_now(self.presented, self.verdict, now)


class Door:
    """Lets in who shows an admin token with the scope that is needed.

    Args:
        admin_token: ``AKM_ADMIN_TOKEN``, or an empty text.
        proxies: whose ``X-Forwarded-For`` is believed.
        wait_after: :meth:`.KeyManager.wait_after`.
        refuse: :meth:`.KeyManager.refuse_login`.
        oidc: tells who shows a token of an OIDC issuer, where there is one.
    """

    def __init__(
        self,
        admin_token: str,
        proxies: Sequence[Network],
        wait_after: Callable[[Presented, Verdict], int],
        refuse: Callable[[Presented, Reason], Verdict],
        oidc: Oidc | None = None,
    ) -> None:
        self._wait_after = wait_after
        self._refuse = refuse
        self._oidc = oidc
        self._proxies = tuple(proxies)
        # Digests are compared, so that not even the length of the token shows in the timing.
        self._env = hashlib.sha256(admin_token.encode()).digest() if admin_token else None

    def admit(self, request: Request, needed: str | None) -> Steps[Admission]:
        """Who calls.

        Args:
            request: shows a token, unless it comes from this very process.
            needed: the scope of the route; ``None`` where there is no route.

        Raises:
            ProblemError: 401, 403, 429 or 503.
        """
        forwarded = request.head.get(b"x-forwarded-for", ())
        ip = client_address(request.client, forwarded, self._proxies)
        if request.ready is not None:
            principal = request.ready._replace(ip=ip, request_id=request.id)
        else:
            token = _bearer(request.head.get(b"authorization", ()))
            if token is None:
                raise unauthorized()
            if self._env is None or not matches(hashlib.sha256(token).digest(), self._env):
                if self._oidc is not None and is_jwt(token):
                    return (yield from self._identify(self._oidc, token, needed, ip, request.id))
                return (yield from self._judge(token, needed, ip, request.id))
            principal = Principal("env", ("admin",), ip, request.id)
        if needed is not None and not principal.may(needed):
            raise forbidden(needed)
        return Admission(principal)

    def _identify(
        self, oidc: Oidc, token: bytes, needed: str | None, ip: str | None, request_id: str
    ) -> Steps[Admission]:
        found: Identity | Reason | None = oidc.known(token)
        if found is None:
            found = yield Errand(lambda: oidc.identify(token))
        presented = Presented("", realm=ADMIN_REALM, ip=ip, request_id=request_id, malformed=True)
        if isinstance(found, Identity):
            principal = Principal(found.id, found.scopes, ip, request_id, found.environment)
            if needed is None or principal.may(needed):
                return Admission(principal, until=found.until)
            presented, found = presented._replace(actor=found.id), Reason.FORBIDDEN
        verdict = self._refuse(presented, found or Reason.UNAVAILABLE)
        if wait := self._wait_after(presented, verdict):
            raise too_many_failures(wait)
        raise _refusal(verdict.reason, needed)

    def _judge(
        self, token: bytes, needed: str | None, ip: str | None, request_id: str
    ) -> Steps[Admission]:
        presented = present(
            token=token.decode("latin-1"),
            ip=ip,
            permissions=None if needed is None else f"{needed} or admin",
            realm=ADMIN_REALM,
            request_id=request_id,
        )
        verdict = yield from judged(presented)
        if verdict.valid and verdict.key is not None:
            key = verdict.key
            principal = Principal(key.key_id, key.permissions, ip, request_id, key.environment, key)
            return Admission(principal, presented, verdict)
        if wait := self._wait_after(presented, verdict):
            raise too_many_failures(wait)
        raise _refusal(verdict.reason, needed)


def _refusal(reason: Reason, needed: str | None) -> ProblemError:
    status = OUTCOMES[reason].status
    if reason is Reason.FORBIDDEN and needed is not None:
        return forbidden(needed)
    # A token that is good elsewhere is no better than a wrong one: whoever stole it learns nothing.
    return unavailable() if status == 503 else unauthorized()


def _bearer(authorization: Sequence[bytes]) -> bytes | None:
    # Of two headers nobody can say which one a proxy has checked.
    if len(authorization) != 1:
        return None
    kind, _, token = authorization[0].partition(b" ")
    return token.strip() or None if kind.lower() == b"bearer" else None
