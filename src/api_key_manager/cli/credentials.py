"""``akm validate`` and ``akm sign``."""

from __future__ import annotations

import json as jsonlib
import os
import secrets
import shlex
import sys
import time
from typing import Annotated, Any

import typer

from api_key_manager.cli.errors import MISUSE, REFUSED, Failure
from api_key_manager.cli.inputs import read_secret
from api_key_manager.cli.options import Json, KeyId, Url
from api_key_manager.cli.output import details, document
from api_key_manager.core.exceptions import OUTCOMES, Reason
from api_key_manager.core.signing import MAX_TIMESTAMP, is_nonce
from api_key_manager.core.signing import sign as make_signature
from api_key_manager.core.tokens import check_key_id, secret_bytes

__all__ = ["sign", "validate"]

_LOCAL_SERVER = "http://127.0.0.1:5000"


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
    optional = {"timestamp": timestamp, "nonce": nonce, "permissions": permissions, "ip": ip}
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
        return
    sys.stdout.write("valid\n")
    shown = ("key_id", "version", "scheme", "metadata", "permissions", "expires_at")
    details({name: verdict.get(name) for name in shown})
    if verdict.get("scheme") == "static":
        sys.stderr.write("A static signature can be replayed, and its timestamp proves nothing.\n")


def sign(
    key_id: KeyId,
    timestamp: Annotated[
        str, typer.Option("--timestamp", metavar="N", help="now, Unix seconds, or none.")
    ] = "now",
    nonce: Annotated[
        str | None,
        typer.Option("--nonce", metavar="N", help="auto, or 16 to 128 of A-Z a-z 0-9 _ -."),
    ] = None,
    url: Annotated[
        str,
        typer.Option("--url", envvar="AKM_URL", metavar="URL", help="The server in the curl line."),
    ] = _LOCAL_SERVER,
    json: Json = False,
) -> None:
    """Sign as a caller does, and print a curl line.

    The secret comes from AKM_SECRET, from standard input, or from a hidden prompt. No database
    and no server is needed. The curl line has the signature validated, and takes an admin token
    from the variable AKM_TOKEN.
    """
    check_key_id(key_id)
    instant = _instant(timestamp)
    used = secrets.token_urlsafe(16) if nonce == "auto" else nonce
    if used is not None:
        if instant is None:
            raise Failure("--nonce: a nonce needs a timestamp", MISUSE)
        if not is_nonce(used):
            raise Failure("--nonce: auto, or 16 to 128 of A-Z a-z 0-9 _ -", MISUSE)
    target = _checked(url)
    secret = os.environ.get("AKM_SECRET") or read_secret(
        "Secret", hint="put it into AKM_SECRET or on standard input"
    )
    if secret_bytes(secret) is None:
        raise Failure("secret: text of 1 to 1024 bytes is allowed", MISUSE)
    body: dict[str, Any] = {"key": key_id, "signature": make_signature(secret, key_id, instant,
                                                                       used)}  # fmt: skip
    if instant is not None:
        body["timestamp"] = instant
    if used is not None:
        body["nonce"] = used
    line = _curl(target, body)
    if json:
        document({"key_id": key_id, "signature": body["signature"], "timestamp": instant,
                  "nonce": used, "curl": line})  # fmt: skip
        return
    details({"signature": body["signature"], "timestamp": instant, "nonce": used})
    # Not wrapped, so that it is pasted as one line.
    sys.stdout.write(f"\n{line}\n")


def _instant(text: str) -> int | None:
    if text == "now":
        return int(time.time())
    if text == "none":
        return None
    if text.isascii() and text.isdecimal() and len(text) <= 12 and int(text) <= MAX_TIMESTAMP:
        return int(text)
    raise Failure("--timestamp: now, none, or Unix seconds up to the year 9999", MISUSE)


def _checked(url: str) -> str:
    from api_key_manager.cli.urls import check_url

    return check_url(url)


def _curl(url: str, body: dict[str, Any]) -> str:
    """A line for any POSIX shell. The admin token stays a variable, so it can be shown around."""
    words = ["curl", "-sS", "-g", "-w", r"\n", f"{url}/v1/validate",
             "-H", "Content-Type: application/json", "-d", jsonlib.dumps(body)]  # fmt: skip
    # Double quotes for this one: the shell shall put the token in.
    return f'{shlex.join(words)} -H "Authorization: Bearer $AKM_TOKEN"'
