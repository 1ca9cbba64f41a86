"""``akm keys revoke`` and ``akm keys delete``."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from api_key_manager.cli.errors import MISUSE, Failure
from api_key_manager.cli.inputs import ask, read_when
from api_key_manager.cli.options import Json, KeyId, Url, Yes
from api_key_manager.cli.output import document, note

__all__ = ["delete", "revoke"]

_SHOWN = 10


def revoke(
    key_id: Annotated[
        str | None, typer.Argument(metavar="KEY_ID", help="The key; or name filters.")
    ] = None,
    reason: Annotated[
        str | None, typer.Option("--reason", help="For the record and the audit log.")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="WHEN", help="Later: RFC 3339, or from now: 12h, 30d."),
    ] = None,
    created_before: Annotated[
        str | None,
        typer.Option("--created-before", metavar="WHEN", help="Many: RFC 3339, or ago: 30d."),
    ] = None,
    owner: Annotated[str | None, typer.Option("--owner", help="Many: of this owner.")] = None,
    environment: Annotated[
        str | None, typer.Option("--environment", help="Many: of this environment.")
    ] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Many: signed or bearer.")] = None,
    prefix: Annotated[str | None, typer.Option("--prefix", help="Many: with this prefix.")] = None,
    state: Annotated[
        str | None, typer.Option("--state", help="Many: active, disabled or expired.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Many: only say which keys it would be.")
    ] = False,
    yes: Yes = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """End a key for good, or every key that fits all filters."""
    before = None
    if created_before is not None:
        before = read_when(created_before, "--created-before", ago=True)
    given = {"created_before": before, "owner": owner, "environment": environment, "kind": kind,
             "prefix": prefix, "state": state}  # fmt: skip
    filters = {name: value for name, value in given.items() if value is not None}
    if (key_id is None) == (not filters):
        raise Failure("name one KEY_ID, or filters such as --owner or --created-before", MISUSE)
    if key_id is not None:
        if dry_run:
            raise Failure("--dry-run goes with filters, not with a KEY_ID", MISUSE)
        _revoke_one(key_id, reason, at, url, json)
        return
    if at is not None:
        raise Failure("--at goes with a KEY_ID, not with filters", MISUSE)
    if reason is not None:
        filters["reason"] = reason
    _revoke_many(filters, dry_run, yes, url, json)


def _revoke_one(
    key_id: str, reason: str | None, at: str | None, url: str | None, json: bool
) -> None:
    from api_key_manager.cli.client import key_path, single

    body = {} if reason is None else {"reason": reason}
    if at is not None:
        body["at"] = read_when(at, "--at")
    answer = single(url, "POST", key_path(key_id, "/revoke"), body=body)
    if json:
        document(answer)
    elif at is not None:
        sys.stdout.write(f"{key_id} will be revoked at {body['at']}\n")
    else:
        sys.stdout.write(f"{key_id} is revoked\n")


def _revoke_many(
    body: dict[str, Any], dry_run: bool, yes: bool, url: str | None, json: bool
) -> None:
    from api_key_manager.cli.client import connect, run

    async def job() -> dict[str, Any]:
        async with connect(url) as api:
            answer: dict[str, Any] = {}
            if dry_run or not yes:
                answer = await api.call("POST", "/v1/keys/revoke", body={**body, "dry_run": True})
            if dry_run or answer.get("matched") == 0:
                return answer
            if not yes:
                note(_named(answer))
                ask(f"Revoke {_count(answer['matched'])} for good?")
            revoked: dict[str, Any] = await api.call(
                "POST", "/v1/keys/revoke", body={**body, "dry_run": False}
            )
            return revoked

    answer = run(job())
    if json:
        document(answer)
    elif dry_run:
        for key_id in answer["key_ids"]:
            sys.stdout.write(f"{key_id}\n")
        note(f"{_count(answer['matched'])} would be revoked")
    else:
        sys.stdout.write(f"{_count(answer['revoked'])} revoked\n")


def _count(number: int) -> str:
    return f"{number} key" if number == 1 else f"{number} keys"


def _named(answer: dict[str, Any]) -> str:
    shown = ", ".join(answer["key_ids"][:_SHOWN])
    more = answer["matched"] - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def delete(key_id: KeyId, yes: Yes = False, url: Url = None, json: Json = False) -> None:
    """Erase a key and its secrets. Its id never returns."""
    from api_key_manager.cli.client import key_path, single

    path = key_path(key_id)
    if not yes:
        ask(f"Delete {key_id} for good?")
    single(url, "DELETE", path)
    if json:
        document({"key_id": key_id, "deleted": True})
    else:
        sys.stdout.write(f"{key_id} is deleted\n")
