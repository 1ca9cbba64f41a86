"""``akm tokens``: admin tokens. On the local database no token is needed to make one."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from api_key_manager.cli.inputs import present_values, read_duration, read_when
from api_key_manager.cli.options import Json, Url
from api_key_manager.cli.output import details, document, note, short_time, table

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Admin tokens, which open the server's paths.")


@app.command("create")
def create(
    scope: Annotated[
        list[str],
        typer.Option(
            "--scope",
            help="keys:read, keys:write, validate, audit:read, metrics or admin; repeatable.",
        ),
    ],
    name: Annotated[str | None, typer.Option("--name", help="What it is for.")] = None,
    environment: Annotated[
        str | None,
        typer.Option(
            "--environment", metavar="NAME", help="Confine it to the keys of one environment."
        ),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(
            "--expires", "--expires-in", metavar="WHEN", help="RFC 3339, or from now: 12h, 30d."
        ),
    ] = None,
    ip: Annotated[
        list[str] | None,
        typer.Option("--ip", "--cidr", metavar="CIDR", help="Who may use the token; repeatable."),
    ] = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Mint an admin token, and show it this once."""
    from api_key_manager.cli.client import single

    body: dict[str, Any] = {"scopes": scope}
    if name is not None:
        body["name"] = name
    if environment is not None:
        body["environment"] = environment
    if expires is not None:
        body["expires_at"] = read_when(expires, "--expires")
    if ip is not None:
        body["ip_allowlist"] = present_values(ip)
    answer = single(url, "POST", "/v1/tokens", body=body, once=True)
    _show(answer, json)


def _show(answer: dict[str, Any], json: bool) -> None:
    """A new token, and that it is shown this once."""
    if json:
        document(answer)
        return
    shown = ("key_id", "name", "scopes", "environment", "ip_allowlist", "expires_at", "token")
    details({field: answer[field] for field in shown})
    note("The token is shown this once: store it now.")


@app.command("rotate")
def rotate(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="Its key_id, not the token.")],
    overlap: Annotated[
        str,
        typer.Option(
            "--overlap", metavar="DURATION", help="How long the old one works on: 15m, 1h."
        ),
    ] = "0",
    url: Url = None,
    json: Json = False,
) -> None:
    """Give an admin token a new text with the same rights, and show it this once."""
    from api_key_manager.cli.client import key_path, single

    body = {"overlap_seconds": read_duration(overlap, "--overlap")}
    path = key_path(token_id, "/rotate", under="tokens")
    _show(single(url, "POST", path, body=body, once=True), json)


@app.command("list")
def list_(
    state: Annotated[
        str | None, typer.Option("--state", help="active, disabled, expired or revoked.")
    ] = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """List admin tokens; with --json as one array."""
    from api_key_manager.cli.client import connect, run

    async def job() -> list[dict[str, Any]]:
        async with connect(url) as api:
            return await api.all("/v1/tokens", {"state": state})

    found = run(job())
    if json:
        document(found)
        return
    rows = [
        [token["key_id"], token["name"], token["scopes"], token["environment"],
         token["ip_allowlist"], token["state"],
         short_time(token["created_at"]), short_time(token["expires_at"]),
         short_time(token["last_used"])]
        for token in found
    ]  # fmt: skip
    columns = ("key_id", "name", "scopes", "environment", "ip_allowlist", "state", "created_at",
               "expires_at", "last_used")  # fmt: skip
    table(columns, rows, nothing="No tokens.")


@app.command("revoke")
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="Its key_id, not the token.")],
    url: Url = None,
    json: Json = False,
) -> None:
    """End an admin token for good."""
    from api_key_manager.cli.client import key_path, single

    single(url, "DELETE", key_path(token_id, under="tokens"))
    if json:
        document({"key_id": token_id, "revoked": True})
    else:
        sys.stdout.write(f"{token_id} is revoked\n")
