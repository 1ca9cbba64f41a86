"""``akm keys``: create, list, show, update, rotate; the other commands are in their own modules."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from api_key_manager.cli import endings, leaking, transfer
from api_key_manager.cli import scan as scanning
from api_key_manager.cli.errors import MISUSE, Failure
from api_key_manager.cli.inputs import (
    parse_json_object,
    present_values,
    read_duration,
    read_quota,
    read_rate_limit,
    read_secret,
    read_when,
    write_quota,
    write_rate_limit,
)
from api_key_manager.cli.options import Json, KeyId, Url
from api_key_manager.cli.output import details, document, note, short_time, table

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Create, look at, change and end keys.")

Metadata = Annotated[str | None, typer.Option("--metadata", metavar="JSON", help="A JSON object.")]
Permissions = Annotated[
    list[str] | None,
    typer.Option("--permission", metavar="P", help="Such as documents.read; repeatable."),
]
Addresses = Annotated[
    list[str] | None,
    typer.Option("--ip", metavar="CIDR", help="Who may use the key; repeatable."),
]
Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--rate-limit",
        metavar="[NAME=]N/TIME",
        help="So many requests per time, such as burst=10/1s or 1000/1h; repeatable.",
    ),
]
QuotaText = Annotated[
    str | None,
    typer.Option("--quota", metavar="N/PERIOD", help="Credits: 1000/month, 100/day, 50/never."),
]
QuotaHour = Annotated[
    int | None, typer.Option("--quota-hour", metavar="HOUR", help="When it is refilled: 0 to 23.")
]
QuotaZone = Annotated[
    str | None,
    typer.Option("--quota-zone", metavar="ZONE", help="Whose hour, such as Europe/Berlin; or UTC."),
]
QuotaShared = Annotated[
    bool, typer.Option("--quota-shared", help="One account for all keys of the owner.")
]
Expires = Annotated[
    str | None,
    typer.Option("--expires", metavar="WHEN", help="RFC 3339, or from now: 12h, 30d."),
]
MinScheme = Annotated[
    str | None,
    typer.Option(
        "--min-scheme", metavar="SCHEME", help="static, timestamped, timestamped-nonce or request."
    ),
]
Owner = Annotated[str | None, typer.Option("--owner", metavar="NAME")]
Environment = Annotated[str | None, typer.Option("--environment", metavar="NAME")]
SecretStdin = Annotated[
    bool,
    typer.Option(
        "--secret-stdin", help="Read the secret from standard input, or from a hidden prompt."
    ),
]


def _fields(
    metadata: str | None,
    permissions: list[str] | None,
    addresses: list[str] | None,
    limits: list[str] | None,
    expires: str | None,
    min_scheme: str | None,
    owner: str | None,
    environment: str | None,
    quota: dict[str, Any] | None,
) -> dict[str, Any]:
    """What was named, as the fields of a key. An empty text stands for none."""
    body: dict[str, Any] = {}
    if metadata is not None:
        try:
            body["metadata"] = parse_json_object(metadata)
        except ValueError as error:
            raise Failure(f"--metadata: {error}; a JSON object is expected", MISUSE) from None
    if permissions is not None:
        body["permissions"] = present_values(permissions)
    if addresses is not None:
        body["ip_allowlist"] = present_values(addresses)
    if limits is not None:
        body["rate_limits"] = [
            read_rate_limit(limit, "--rate-limit") for limit in present_values(limits)
        ]
    if quota is not None:
        body["quota"] = quota
    if expires is not None:
        body["expires_at"] = read_when(expires, "--expires")
    if min_scheme is not None:
        body["min_scheme"] = min_scheme
    if owner is not None:
        body["owner"] = owner or None
    if environment is not None:
        body["environment"] = environment or None
    return body


def _quota(
    text: str | None, hour: int | None, zone: str | None, shared: bool
) -> dict[str, Any] | None:
    if text is not None:
        return read_quota(text, hour, zone, shared, "--quota")
    if shared or hour is not None or zone is not None:
        raise Failure("--quota-hour, --quota-zone and --quota-shared go with --quota", MISUSE)
    return None


def _given_secret() -> str:
    return read_secret("Secret", hint="--secret-stdin reads it from standard input")


def _show_secret(answer: dict[str, Any], json: bool) -> None:
    """A new secret, at the end where it is seen, and that it is shown this once."""
    if json:
        document(answer)
        return
    name = "token" if "token" in answer else "secret"
    details({**_described(answer), name: answer[name]})
    note(f"The {name} is shown this once: store it now.")


def _described(key: dict[str, Any]) -> dict[str, Any]:
    described = {name: value for name, value in key.items() if name not in ("secret", "token")}
    if described.get("rate_limits"):
        described["rate_limits"] = [write_rate_limit(item) for item in described["rate_limits"]]
    if described.get("quota"):
        described["quota"] = write_quota(described["quota"])
    return described


@app.command("create")
def create(
    key_id: Annotated[
        str | None, typer.Argument(metavar="KEY_ID", help="Minted when left out.")
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", metavar="KIND", help="signed or bearer.")
    ] = "signed",
    metadata: Metadata = None,
    permission: Permissions = None,
    ip: Addresses = None,
    rate_limit: Limits = None,
    quota: QuotaText = None,
    quota_hour: QuotaHour = None,
    quota_zone: QuotaZone = None,
    quota_shared: QuotaShared = False,
    expires: Expires = None,
    min_scheme: MinScheme = None,
    owner: Owner = None,
    environment: Environment = None,
    prefix: Annotated[
        str | None, typer.Option("--prefix", help="What the secret or token starts with.")
    ] = None,
    secret_stdin: SecretStdin = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Make a key, and show its secret or token this once."""
    from api_key_manager.cli.client import single

    credits = _quota(quota, quota_hour, quota_zone, quota_shared)
    body = {"kind": kind, **_fields(metadata, permission, ip, rate_limit, expires, min_scheme,
                                    owner, environment, credits)}  # fmt: skip
    if key_id is not None:
        body["key_id"] = key_id
    if prefix is not None:
        body["prefix"] = prefix
    if secret_stdin:
        body["secret"] = _given_secret()
    _show_secret(single(url, "POST", "/v1/keys", body=body, once=True), json)


@app.command("list")
def list_(
    state: Annotated[
        str | None, typer.Option("--state", help="active, disabled, expired or revoked.")
    ] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="signed or bearer.")] = None,
    owner: Owner = None,
    environment: Environment = None,
    prefix: Annotated[str | None, typer.Option("--prefix")] = None,
    created_before: Annotated[
        str | None,
        typer.Option("--created-before", metavar="WHEN", help="RFC 3339, or ago: 30d."),
    ] = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """List keys; with --json as one array."""
    from api_key_manager.cli.client import connect, run

    query = {"state": state, "kind": kind, "owner": owner, "environment": environment,
             "prefix": prefix}  # fmt: skip
    if created_before is not None:
        query["created_before"] = read_when(created_before, "--created-before", ago=True)

    async def job() -> list[dict[str, Any]]:
        async with connect(url) as api:
            return await api.all("/v1/keys", query)

    found = run(job())
    if json:
        document(found)
        return
    columns = ("key_id", "kind", "state", "owner", "environment", "expires_at", "last_used")
    rows = [
        [*(key[name] for name in columns[:5]), *(short_time(key[name]) for name in columns[5:])]
        for key in found
    ]
    table(columns, rows, nothing="No keys.")


@app.command("show")
def show(key_id: KeyId, url: Url = None, json: Json = False) -> None:
    """Show one key, without its secret."""
    from api_key_manager.cli.client import key_path, single

    key = single(url, "GET", key_path(key_id))
    if json:
        document(key)
    else:
        details(_described(key))


@app.command("versions")
def versions(key_id: KeyId, url: Url = None, json: Json = False) -> None:
    """List every version that a key ever had, newest first; with --json as one array."""
    from api_key_manager.cli.client import key_path, single

    found = single(url, "GET", key_path(key_id, "/versions"))["items"]
    if json:
        document(found)
        return
    rows = [
        [item["version"], short_time(item["created_at"]), short_time(item["ends_at"]),
         item["ended"], short_time(item["leaked_at"])]
        for item in found
    ]  # fmt: skip
    table(("version", "created_at", "ends_at", "ended", "leaked_at"), rows, nothing="No versions.")


@app.command("update")
def update(
    key_id: KeyId,
    metadata: Metadata = None,
    permission: Permissions = None,
    ip: Addresses = None,
    rate_limit: Limits = None,
    no_rate_limits: Annotated[
        bool, typer.Option("--no-rate-limits", help="Take all its own rate limits away.")
    ] = False,
    quota: QuotaText = None,
    quota_hour: QuotaHour = None,
    quota_zone: QuotaZone = None,
    quota_shared: QuotaShared = False,
    no_quota: Annotated[bool, typer.Option("--no-quota", help="Take its quota away.")] = False,
    expires: Expires = None,
    no_expiry: Annotated[bool, typer.Option("--no-expiry", help="Let it never expire.")] = False,
    min_scheme: MinScheme = None,
    owner: Owner = None,
    environment: Environment = None,
    disable: Annotated[
        bool | None, typer.Option("--disable/--enable", help="Refuse it for now, or no longer.")
    ] = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Change what is named, leave the rest. An empty text removes: --owner '' --ip ''."""
    from api_key_manager.cli.client import key_path, single

    if no_expiry and expires is not None:
        raise Failure("--expires and --no-expiry: name one of them", MISUSE)
    if no_rate_limits and rate_limit is not None:
        raise Failure("--rate-limit and --no-rate-limits: name one of them", MISUSE)
    credits = _quota(quota, quota_hour, quota_zone, quota_shared)
    if no_quota and credits is not None:
        raise Failure("--quota and --no-quota: name one of them", MISUSE)
    body = _fields(
        metadata, permission, ip, rate_limit, expires, min_scheme, owner, environment, credits
    )
    if no_rate_limits:
        body["rate_limits"] = []
    if no_quota:
        body["quota"] = None
    if no_expiry:
        body["expires_at"] = None
    if disable is not None:
        body["disabled"] = disable
    if not body:
        raise Failure("nothing to change: name at least one option", MISUSE)
    key = single(url, "PATCH", key_path(key_id), body=body)
    if json:
        document(key)
    else:
        details(_described(key))


@app.command("rotate")
def rotate(
    key_id: KeyId,
    overlap: Annotated[
        str,
        typer.Option(
            "--overlap", metavar="DURATION", help="How long the old secret works on: 15m, 1h."
        ),
    ] = "0",
    url: Url = None,
    json: Json = False,
) -> None:
    """Give a key a new secret or token, and show it this once."""
    from api_key_manager.cli.client import key_path, single

    body = {"overlap_seconds": read_duration(overlap, "--overlap")}
    answer = single(url, "POST", key_path(key_id, "/rotate"), body=body, once=True)
    _show_secret(answer, json)


app.command("scan")(scanning.scan)
app.command("leaked")(leaking.leaked)
app.command("revoke")(endings.revoke)
app.command("delete")(endings.delete)
app.command("import")(transfer.import_)
app.command("export")(transfer.export)
