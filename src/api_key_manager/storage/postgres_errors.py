"""What can go wrong with a PostgreSQL, what that means, and what there is to say of it."""

from __future__ import annotations

import re
import socket
from typing import Any, Final

import asyncpg

from api_key_manager.core.exceptions import StorageError

__all__ = [
    "AWAY",
    "ERRORS",
    "OPEN",
    "PASSING",
    "SPOILING",
    "check_server",
    "is_lost",
    "only_primary",
    "storage_error",
]

LEAST_VERSION: Final = 14
# Of asyncpg, of the network, and of values that cannot be sent. A time-out is an OSError.
ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    ValueError,
)
# Nothing was committed, and the same again may well succeed: another transaction was in the way,
# or the connection turned out to be gone. Not a statement that took too long.
PASSING = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.UniqueViolationError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    ConnectionResetError,
)
# The server is there, or was a moment ago, and takes nobody: starting, stopping, or silent.
AWAY = (OSError, asyncpg.CannotConnectNowError, asyncpg.InternalClientError)
# After these a connection is of no use: it waits for an answer, or its server has become a standby.
SPOILING = (
    TimeoutError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InternalClientError,
)
# What leaves open whether a commit that was sent was done. After any other answer it was not: so
# says the server. One that crashes says so to everybody, also to whom it owes a "done".
OPEN = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.StatementCompletionUnknownError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)
# What operators meet most, in words that say what to do.
_PLAIN: Final = {
    "28P01": "it refuses the user or the password of its URL",
    "28000": "it refuses the user of its URL, or a connection without TLS",
    "3D000": "the server has no database of the name in its URL",
    "42501": "the user lacks a privilege",
    "57014": "a statement took too long",
    "53300": "it has no connection left",
}


def is_lost(connection: Any) -> bool:
    """Whether an error that says nothing is because of a connection that ended."""
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:  # it even left the pool for that
        return True


def only_primary(url: str) -> dict[str, str]:
    """Options that refuse a standby, unless the URL chooses for itself: what a standby says of the
    change feed may be old, and the revocation bound rests on that."""
    return {} if "target_session_attrs" in url else {"target_session_attrs": "primary"}


def check_server(connection: Any) -> None:
    """Refuse what is too old.

    Raises:
        StorageError: it is older than 14.
    """
    version = connection.get_server_version().major
    if version < LEAST_VERSION:
        raise StorageError(f"PostgreSQL {version} is too old: {LEAST_VERSION} is needed")


def storage_error(error: BaseException) -> StorageError:
    """What there is to say of an error, without an address, a value or a password: PostgreSQL's
    own messages may quote what they were given."""
    if isinstance(error, asyncpg.PostgresError) and error.sqlstate:
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__.removesuffix("Error"))
        what = f"{_PLAIN.get(error.sqlstate, words.lower())} ({error.sqlstate})"
    elif isinstance(error, TimeoutError):
        what = "it did not answer in time; are host and port of its URL right?"
    elif isinstance(error, ConnectionRefusedError):
        what = "nobody listens at the host and port of its URL"
    elif isinstance(error, socket.gaierror):
        what = f"the host of its URL is unknown ({error.strerror or 'it cannot be looked up'})"
    elif isinstance(error, FileNotFoundError):
        what = "a file that its URL names is not there"
    elif isinstance(error, OSError) and "rejected SSL" in str(error):
        what = "it takes no connection with TLS"
    elif isinstance(error, OSError):
        # What stands behind it in parentheses is an address, or a place in OpenSSL.
        what = (error.strerror or "it cannot be reached").partition(" (")[0]
    elif isinstance(error, asyncpg.ClientConfigurationError):
        what = "a parameter of its URL, or what it names, is not usable"
    elif isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        what = "no server there takes changes, only a standby"
    else:
        what = "the connection failed"
    return StorageError(f"the database cannot be used: {what}")
