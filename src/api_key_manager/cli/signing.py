"""``akm sign``: sign as a caller does."""

from __future__ import annotations

import json as jsonlib
import os
import secrets
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from api_key_manager.cli.errors import MISUSE, Failure
from api_key_manager.cli.inputs import read_secret
from api_key_manager.cli.options import Json, KeyId
from api_key_manager.cli.output import details, document
from api_key_manager.core.http_signatures import read_target, sign_request
from api_key_manager.core.signing import MAX_TIMESTAMP, is_nonce
from api_key_manager.core.signing import sign as make_signature
from api_key_manager.core.tokens import check_key_id, secret_bytes

__all__ = ["sign"]

_LOCAL_SERVER = "http://127.0.0.1:5000"


def sign(
    key_id: KeyId,
    timestamp: Annotated[
        str, typer.Option("--timestamp", metavar="N", help="now, Unix seconds, or none.")
    ] = "now",
    nonce: Annotated[
        str | None,
        typer.Option("--nonce", metavar="N", help="auto, or 16 to 128 of A-Z a-z 0-9 _ -."),
    ] = None,
    request: Annotated[
        str | None,
        typer.Option("--request", metavar="URL", help="Sign a whole HTTP request to this URL."),
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", metavar="M", help="Of --request.  [default: GET]")
    ] = None,
    body: Annotated[
        Path | None, typer.Option("--body", metavar="FILE", help="The body of --request.")
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
    from the variable AKM_TOKEN; with --request it sends the signed request.
    """
    check_key_id(key_id)
    instant = _instant(timestamp)
    if request is None and (method is not None or body is not None):
        raise Failure("--method and --body go with --request", MISUSE)
    if request is not None and read_target(request) is None:
        raise Failure(
            "--request: an absolute http or https URL as it is sent, without user or fragment",
            MISUSE,
        )
    wants_nonce = nonce == "auto" or (nonce is None and request is not None)
    used = secrets.token_urlsafe(16) if wants_nonce else nonce
    if used is not None:
        if instant is None:
            raise Failure("--timestamp: a nonce, and --request, need a timestamp", MISUSE)
        if not is_nonce(used):
            raise Failure("--nonce: auto, or 16 to 128 of A-Z a-z 0-9 _ -", MISUSE)
    target = _checked(url)
    content = b"" if body is None else _read(body)
    secret = os.environ.get("AKM_SECRET") or read_secret(
        "Secret", hint="put it into AKM_SECRET or on standard input"
    )
    if secret_bytes(secret) is None:
        raise Failure("secret: text of 1 to 1024 bytes is allowed", MISUSE)
    signed: dict[str, Any]
    if request is not None and instant is not None and used is not None:
        sent = method or "GET"
        signed = dict(
            sign_request(secret, key_id, sent, request, content, created=instant, nonce=used)
        )
        line = _sending(sent, request, body, signed)
        members = {"headers": signed}
    else:
        signature = make_signature(secret, key_id, instant, used)
        signed = {"signature": signature, "timestamp": instant, "nonce": used}
        line = _asking(target, key_id, signed)
        members = signed
    if json:
        document({"key_id": key_id, **members, "curl": line})
        return
    details(signed)
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


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise Failure(f"--body: {file}: {error.strerror}", MISUSE) from None


def _asking(url: str, key_id: str, signed: dict[str, Any]) -> str:
    """A line for any POSIX shell. The admin token stays a variable, so it can be shown around."""
    body = {"key": key_id, **{name: value for name, value in signed.items() if value is not None}}
    words = ["curl", "-sS", "-g", "-w", r"\n", f"{url}/v1/validate",
             "-H", "Content-Type: application/json", "-d", jsonlib.dumps(body)]  # fmt: skip
    # Double quotes for this one: the shell shall put the token in.
    return f'{shlex.join(words)} -H "Authorization: Bearer $AKM_TOKEN"'


def _sending(method: str, url: str, body: Path | None, headers: dict[str, Any]) -> str:
    """A line that sends what was signed, and nothing that would change it on the way."""
    words = ["curl", "-sS", "-g", "--path-as-is"]
    # With -X HEAD curl would wait for a body.
    words += ["--head"] if method == "HEAD" else ["-X", method]
    if body is not None:
        words += ["--data-binary", f"@{body}"]
    for name, value in headers.items():
        words += ["-H", f"{name}: {value}"]
    return shlex.join([*words, url])
