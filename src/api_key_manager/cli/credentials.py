"""``akm validate``: have a credential judged."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from api_key_manager.cli.errors import MISUSE, REFUSED, Failure
from api_key_manager.cli.inputs import read_secret
from api_key_manager.cli.options import Json, Url
from api_key_manager.cli.output import details, document
from api_key_manager.core.exceptions import OUTCOMES, Reason

__all__ = ["validate"]


def validate(
    key_id: Annotated[str | None, typer.Argument(metavar="KEY_ID")] = None,
    signature: Annotated[
        str | None, typer.Argument(metavar="SIGNATURE", help="64 hex digits.")
    ] = None,
    timestamp: Annotated[
        int | None, typer.Option("--timestamp", metavar="N", help="Unix seconds, as signed.")
    ] = None,
    nonce: Annotated[str | None, typer.Option("--nonce", metavar="N", help="As signed.")] = None,
    permissions: Annotated[
        str | None,
        typer.Option(
            "--permissions", metavar="EXPR", help="Needed: 'documents.read and not admin'."
        ),
    ] = None,
    ip: Annotated[str | None, typer.Option("--ip", help="The caller's address.")] = None,
    cost: Annotated[
        int | None,
        typer.Option("--cost", metavar="N", help="What it takes from the key's rate limits: 1."),
    ] = None,
    token_stdin: Annotated[
        bool,
        typer.Option(
            "--token-stdin", help="Read a bearer token from standard input or a hidden prompt."
        ),
    ] = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Judge a signature or a bearer token.

    Exit code 0 when it is valid, 1 when it is refused.
    """
    from api_key_manager.cli.client import single

    body: dict[str, Any] = {}
    if token_stdin:
        if key_id is not None or timestamp is not None or nonce is not None:
            raise Failure("--token-stdin goes without KEY_ID, --timestamp and --nonce", MISUSE)
        body["token"] = read_secret("Token", hint="--token-stdin reads it from standard input")
    else:
        if key_id is None or signature is None:
            raise Failure("name KEY_ID and SIGNATURE, or --token-stdin", MISUSE)
        body |= {"key": key_id, "signature": signature}
    optional = {
        "timestamp": timestamp, "nonce": nonce, "permissions": permissions, "ip": ip, "cost": cost,
    }  # fmt: skip
    body |= {name: value for name, value in optional.items() if value is not None}
    verdict = single(url, "POST", "/v1/validate", body=body)
    if json:
        document(verdict)
    else:
        _print_verdict(verdict)
    if not verdict["valid"]:
        raise typer.Exit(REFUSED)


def _print_verdict(verdict: dict[str, Any]) -> None:
    if not verdict["valid"]:
        reason = verdict["reason"]
        known = reason in Reason.__members__.values()
        says = f" ({OUTCOMES[Reason(reason)].message})" if known else ""
        sys.stdout.write(f"refused: {reason}{says}\n")
        if verdict.get("rate_limit"):
            details({"rate_limit": _limit(verdict["rate_limit"])})
        return
    sys.stdout.write("valid\n")
    shown = ("key_id", "version", "scheme", "metadata", "permissions", "expires_at")
    known_of_it = {name: verdict.get(name) for name in shown}
    if verdict.get("rate_limit"):
        known_of_it["rate_limit"] = _limit(verdict["rate_limit"])
    details(known_of_it)
    if verdict.get("scheme") == "static":
        sys.stderr.write("A static signature can be replayed, and its timestamp proves nothing.\n")


def _limit(state: dict[str, Any]) -> str:
    """The limit that decided, in one line."""
    wait = state["retry_after_seconds"]
    says = f"{state['name']}: {state['remaining']} of {state['limit']} left"
    if wait is not None:
        return f"{says}, try again in {wait} s"
    full = state["reset_seconds"]
    return f"{says}, full again in {full} s" if full else says
