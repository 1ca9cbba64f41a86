"""``akm keys leaked``: report a secret or token that was found where it must not be."""

from __future__ import annotations

from typing import Annotated

import typer

from api_key_manager.cli.errors import REFUSED
from api_key_manager.cli.inputs import read_secret
from api_key_manager.cli.options import Json, Url
from api_key_manager.cli.output import details, document, note

__all__ = ["leaked"]


def leaked(
    where: Annotated[
        str | None, typer.Option("--where", metavar="URL", help="Where it was found.")
    ] = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Report a leaked secret or token, from standard input or a hidden prompt.

    The key that it opens is revoked, or flagged, as ON_LEAK says. Exits 1 when it opens none.
    """
    from api_key_manager.cli.client import single

    token = read_secret("Secret or token", hint="put it on standard input")
    body = {"token": token, "url": where, "source": "akm"}
    answer = single(url, "POST", "/v1/leaks", body=body)
    if json:
        document(answer)
    elif answer["key_id"] is not None:
        details({name: answer[name] for name in ("key_id", "realm", "version", "action")})
    if not answer["matched"]:
        note("It opens no key of this deployment.")
        raise typer.Exit(REFUSED)
