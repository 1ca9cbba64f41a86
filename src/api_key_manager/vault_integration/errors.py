"""What Vault's answers mean: one table for all requests.

========================== ====================================================================
``vault_sealed``           sealed, or not initialised
``vault_standby``          a standby node that does not pass requests on
``vault_unavailable``      no answer in time, or an error of its own
``vault_rate_limited``     it asks for fewer requests
``vault_permission_denied``  the token's policies, or the token itself, do not allow it
``vault_not_found``        no such path
``vault_field_not_found``  the path has no such field, or no text in it
``vault_deleted``          that version was deleted, and can be brought back
``vault_destroyed``        that version was destroyed
``vault_conflict``         check-and-set: somebody else wrote meanwhile
``vault_refused``          anything else that it refuses
========================== ====================================================================
"""

from __future__ import annotations

from typing import Any, Final

from api_key_manager.core.exceptions import VaultError

__all__ = [
    "CONFLICT",
    "DELETED",
    "DESTROYED",
    "FIELD_NOT_FOUND",
    "NOT_FOUND",
    "PERMISSION_DENIED",
    "RATE_LIMITED",
    "REFUSED",
    "SEALED",
    "STANDBY",
    "UNAVAILABLE",
    "error_of",
]

SEALED: Final = "vault_sealed"
STANDBY: Final = "vault_standby"
UNAVAILABLE: Final = "vault_unavailable"
RATE_LIMITED: Final = "vault_rate_limited"
PERMISSION_DENIED: Final = "vault_permission_denied"
NOT_FOUND: Final = "vault_not_found"
FIELD_NOT_FOUND: Final = "vault_field_not_found"
DELETED: Final = "vault_deleted"
DESTROYED: Final = "vault_destroyed"
CONFLICT: Final = "vault_conflict"
REFUSED: Final = "vault_refused"

_SHOWN: Final = 200
_BY_STATUS: Final = {
    401: (PERMISSION_DENIED, "permission denied"),
    403: (PERMISSION_DENIED, "permission denied, or the token has ended"),
    404: (NOT_FOUND, "there is nothing at that path"),
    412: (UNAVAILABLE, "not yet up to date"),
    429: (RATE_LIMITED, "too many requests"),
    472: (STANDBY, "a disaster recovery secondary"),
    473: (STANDBY, "a performance standby"),
    501: (SEALED, "not initialised"),
}
# What Vault says in words only.
_BY_WORDS: Final = (
    ("is sealed", SEALED, "sealed"),
    ("not initialized", SEALED, "not initialised"),
    ("node not active", STANDBY, "a standby node that finds no active one"),
    ("standby", STANDBY, "a standby node"),
    ("check-and-set", CONFLICT, "the secret was changed meanwhile"),
    ("missing client token", PERMISSION_DENIED, "it was given no token"),
    ("invalid role", PERMISSION_DENIED, "the role or its secret id is not accepted"),
    ("invalid secret id", PERMISSION_DENIED, "the role or its secret id is not accepted"),
)


def error_of(status: int, body: dict[str, Any], what: str, hidden: str = "") -> VaultError:
    """The error that an answer is.

    Args:
        status: the HTTP status, not a good one.
        body: the JSON object of the answer, empty when it was none.
        what: what was asked for, in words without secrets.
        hidden: a token, in case that the answer repeats it.
    """
    if 300 <= status < 400:
        # Followed, it would take the token to wherever the answer says.
        return VaultError(f"{what}: Vault answers with a redirect, as a standby node does;"
                          " it is not followed", reason=STANDBY)  # fmt: skip
    said = _words(body, hidden)
    ended = _ended(body) if status == 404 else None
    if ended is not None:
        return VaultError(f"{what}: that version was {ended[1]}", reason=ended[0])
    for words, reason, meaning in _BY_WORDS:
        if words in said.lower() and status not in (403, 404):
            return VaultError(f"{what}: Vault says: {meaning}", reason=reason)
    default = (UNAVAILABLE, "an error of its own") if status >= 500 else (REFUSED, "it refuses")
    reason, meaning = _BY_STATUS.get(status, default)
    tail = f" ({said})" if said and reason in (REFUSED, UNAVAILABLE) else ""
    return VaultError(f"{what}: Vault says {status}: {meaning}{tail}", reason=reason)


def _words(body: dict[str, Any], hidden: str) -> str:
    errors = body.get("errors")
    text = "; ".join(str(e) for e in errors) if isinstance(errors, list) else ""
    if hidden:
        text = text.replace(hidden, "***")
    return "".join(c if c.isprintable() else " " for c in text)[:_SHOWN].strip()


def _ended(body: dict[str, Any]) -> tuple[str, str] | None:
    data = body.get("data")
    metadata = data.get("metadata") if isinstance(data, dict) else None
    if not isinstance(metadata, dict):
        return None
    if metadata.get("destroyed") is True:
        return DESTROYED, "destroyed"
    return (DELETED, "deleted") if metadata.get("deletion_time") else None
