"""The token of a client: got by a login, renewed before its end, got anew when it has ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from api_key_manager.core.exceptions import VaultError
from api_key_manager.vault_integration.auth import AppRole, Auth, Kubernetes
from api_key_manager.vault_integration.errors import PERMISSION_DENIED, UNAVAILABLE

if TYPE_CHECKING:
    from api_key_manager.vault_integration.transport import Transport

__all__ = ["Session"]

T = TypeVar("T")
# Renewed when less than this part of its life is left.
_RENEW_PART: Final = 1 / 2
_LOGIN_SECONDS: Final = 1.0
_MOST_TOKEN_BYTES: Final = 64 * 1024


class Session:
    """Keeps the token of one transport good. Used by several threads.

    Args:
        hvac: hvac's client, over that transport.
        transport: sends with the token.
        auth: how to log in; ``None`` where the token was given.
        clock: seconds that never step.
    """

    def __init__(
        self,
        hvac: Any,
        transport: Transport,
        auth: Auth | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hvac, self._transport, self._auth, self._clock = hvac, transport, auth, clock
        self._lock = threading.RLock()
        self._looked_up = False
        self._life = 0.0
        self._ends = float("inf")
        self._renewable = False
        self._logged_in = float("-inf")

    def call(self, ask: Callable[[], T]) -> T:
        """Ask with a good token; once more with a new one, when the one in use had ended.

        Raises:
            VaultError: what was asked for, or the login, fails.
        """
        self.keep()
        used = self._transport.token
        try:
            return ask()
        except VaultError as error:
            if error.reason != PERMISSION_DENIED or self._auth is None:
                raise
            if not self._replace(used):
                raise
        return ask()

    def keep(self) -> None:
        """Log in, or renew the token, if it is time to.

        Raises:
            VaultError: there is no token to go on with.
        """
        with self._lock:
            if self._auth is not None and not self._transport.token:
                self._login()
            elif not self._looked_up:
                self._look_up()
            left = self._ends - self._clock()
            if left > self._life * _RENEW_PART:
                return
            try:
                self._renew()
            except VaultError:
                if self._auth is not None:
                    self._login()
                elif left <= 0:
                    raise

    def _look_up(self) -> None:
        """Learn when a token that was given ends. One that may not ask for it is used as it is."""
        self._looked_up = True
        try:
            data = self._hvac.auth.token.lookup_self().get("data") or {}
        except VaultError as error:
            if error.reason == UNAVAILABLE:
                self._looked_up = False
            return
        self._note(data.get("ttl"), data.get("renewable"))

    def _renew(self) -> None:
        if not self._renewable:
            if self._auth is not None:
                self._login()
            return
        self._believe(self._hvac.auth.token.renew_self())
        if self._auth is not None and self._ends - self._clock() <= self._life * _RENEW_PART:
            self._login()  # it comes to the end of what renewing can do

    def _login(self) -> None:
        self._transport.token = ""
        auth, methods = self._auth, self._hvac.auth
        if isinstance(auth, AppRole):
            answer = methods.approle.login(auth.role_id, auth.secret_id, mount_point=auth.mount)
        elif auth is not None:
            answer = methods.kubernetes.login(auth.role, _jwt(auth), mount_point=auth.mount)
        else:
            answer = {}
        token = (answer.get("auth") or {}).get("client_token")
        if not isinstance(token, str) or not token:
            raise VaultError("the login gave no token", reason=PERMISSION_DENIED)
        self._transport.token = token
        self._logged_in = self._clock()
        self._looked_up = True
        self._life = 0.0
        self._believe(answer)

    def _believe(self, answer: dict[str, Any]) -> None:
        auth = answer.get("auth") or {}
        self._note(auth.get("lease_duration"), auth.get("renewable"))

    def _note(self, seconds: Any, renewable: Any) -> None:
        """``seconds``: the rest of its life; 0 is without end."""
        left = float(seconds) if isinstance(seconds, int | float) and seconds > 0 else 0.0
        self._ends = self._clock() + left if left else float("inf")
        self._life = max(self._life, left)
        self._renewable = renewable is True

    def _replace(self, used: str) -> bool:
        """A new token in place of one that was refused; whether there is one."""
        with self._lock:
            if self._transport.token != used:
                return True  # another thread was faster
            if self._clock() - self._logged_in < _LOGIN_SECONDS:
                return False  # a new one would be refused just the same
            try:
                self._hvac.auth.token.lookup_self()
            except VaultError as error:
                if error.reason != PERMISSION_DENIED:
                    return False
            else:
                return False  # it is alive: the policies do not allow what was asked for
            self._login()
            return True


def _jwt(auth: Kubernetes) -> str:
    try:
        with auth.token_file.open(encoding="ascii") as file:
            return file.read(_MOST_TOKEN_BYTES).strip()
    except (OSError, UnicodeDecodeError):
        raise VaultError(
            f"the service account's token cannot be read: {auth.token_file}",
            reason=PERMISSION_DENIED,
        ) from None
