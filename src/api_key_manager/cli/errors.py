"""What goes wrong, as one line for people and one code for scripts.

====  ==============================================================================
0     done
1     refused: an invalid key, a failed check, not found, a conflict; an internal error
2     usage or configuration: also a server that cannot be reached or takes no AKM_TOKEN
130   interrupted
141   nobody reads the output any more, as after SIGPIPE
====  ==============================================================================
"""

from __future__ import annotations

import os
import re
import traceback
from typing import Final

from api_key_manager.core.exceptions import (
    APIKeyManagerException,
    ConfigurationError,
    EncryptionError,
    ValidationError,
    VaultError,
)

__all__ = [
    "INTERRUPTED",
    "MISUSE",
    "NOBODY_READS",
    "REFUSED",
    "Failure",
    "debugging",
    "expected",
    "explain",
    "one_line",
    "redact",
    "trace",
]

REFUSED: Final = 1
MISUSE: Final = 2
INTERRUPTED: Final = 130
NOBODY_READS: Final = 141

_SECRET_VARIABLES: Final = (
    "AKM_TOKEN", "AKM_SECRET", "AKM_ADMIN_TOKEN", "AKM_MASTER_KEY", "VAULT_TOKEN",
)  # fmt: skip
_OUR_TOKENS: Final = re.compile(r"[a-z][a-z0-9_]*_[A-Za-z0-9.:-]{1,128}_[0-9A-Za-z]{36}")
_SHORTEST_SECRET: Final = 4
_HIDDEN: Final = "***REDACTED***"


class Failure(Exception):  # noqa: N818 - not every one is an error
    """The command ends here, with one line and an exit code.

    ``status`` is that of HTTP, when a server refused.
    """

    def __init__(self, message: str, code: int = REFUSED, *, status: int | None = None) -> None:
        self.code = code
        self.status = status
        super().__init__(message)


def redact(text: str, *secrets: str) -> str:
    """Take known secrets, and whatever looks like one of our tokens, out of a text."""
    known = [*secrets, *(os.environ.get(name, "") for name in _SECRET_VARIABLES)]
    for secret in known:
        # A secret of a letter or two would only punch holes into the words.
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, _HIDDEN)
    return _OUR_TOKENS.sub(_HIDDEN, text)


def one_line(text: str) -> str:
    """One line without control characters, which a terminal would obey."""
    joined = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in joined)


def explain(error: Exception) -> tuple[str, int]:
    """Say what happened, and the exit code.

    Args:
        error: anything that a command raised.

    Returns:
        The line without ``akm:`` in front, and the code.
    """
    message, code = _explain(error)
    return one_line(redact(message)), code


def _explain(error: Exception) -> tuple[str, int]:
    if isinstance(error, Failure):
        return str(error), error.code
    if isinstance(error, (ConfigurationError, EncryptionError, VaultError, ValidationError)):
        return str(error), MISUSE
    if isinstance(error, APIKeyManagerException):
        return str(error), REFUSED
    # Usage errors: their class is Typer's or Click's, depending on the version.
    format_message = getattr(error, "format_message", None)
    if callable(format_message):
        context = getattr(error, "ctx", None)
        path = getattr(context, "command_path", None)
        hint = f" ({path} --help)" if path else ""
        return f"{str(format_message()).rstrip('.')}{hint}", MISUSE
    if isinstance(error, OSError) and error.strerror:
        what = f"{error.filename}: " if error.filename else ""
        return f"{what}{error.strerror}", MISUSE
    # Its text is not shown: that of a database error, for one, holds the parameters.
    return f"internal error ({_place(error)}); DEBUG=true shows the traceback", REFUSED


def _place(error: Exception) -> str:
    name = type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return name
    last = frames[-1]
    return f"{name} in {last.name}, {os.path.basename(last.filename)}:{last.lineno}"  # noqa: PTH119 - a name, not a path


def expected(error: Exception) -> bool:
    """Whether the line says it all, so that a traceback would add nothing."""
    return isinstance(error, Failure) or hasattr(error, "format_message")


def trace(error: Exception) -> str:
    """The traceback, without known secrets."""
    return redact("".join(traceback.format_exception(error)))


def debugging() -> bool:
    """Whether ``DEBUG`` is on, also when other settings are wrong."""
    try:
        from api_key_manager.config import Settings

        return Settings.load().DEBUG
    except Exception:  # the reason we are here may be the settings
        return os.environ.get("DEBUG", "").lower() in ("1", "true", "yes", "on")
