"""The address of a server, as people name it."""

from __future__ import annotations

from api_key_manager.cli.errors import MISUSE, Failure
from api_key_manager.core import urls
from api_key_manager.core.exceptions import ValidationError

__all__ = ["check_url"]


def check_url(url: str) -> str:
    """The URL of a server without a slash at its end.

    Raises:
        Failure: no URL of a server; one with a password too, which does not belong there.
    """
    try:
        return urls.check_url(url)
    except ValidationError as error:
        raise Failure(f"--{error}", MISUSE) from None
