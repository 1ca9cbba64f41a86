"""``akm webhooks``: who is told of events."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from api_key_manager.cli.options import Json, Url
from api_key_manager.cli.output import details, document, note, short_time, table

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Webhooks: tell other servers what happens to keys.")

Id = Annotated[str, typer.Argument(metavar="ID", help="The webhook's id.")]
Types = Annotated[
    list[str] | None,
    typer.Option(
        "--type", metavar="TYPE", help="An event as key.revoked, or * for all; repeatable."
    ),
]
_SHOWN = ("id", "url", "types", "environment", "description", "disabled", "disabled_reason",
          "previous_secret_until")  # fmt: skip


def _ask(url: str | None, method: str, webhook_id: str, rest: str = "", **more: Any) -> Any:
    from api_key_manager.cli.client import key_path, single

    return single(url, method, key_path(webhook_id, rest, under="webhooks"), **more)


def _show(answer: dict[str, Any], json: bool) -> None:
    if json:
        document(answer)
        return
    details({field: answer[field] for field in (*_SHOWN, "secret") if field in answer})
    if "secret" in answer:
        note("The secret is shown this once: store it now.")


def _show_delivery(answer: dict[str, Any], json: bool) -> None:
    if json:
        document(answer)
    else:
        details(answer)


@app.command("create")
def create(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="The URL that events are sent to.")
    ],
    types: Types = None,
    environment: Annotated[
        str | None, typer.Option("--environment", metavar="NAME", help="Only of keys in it.")
    ] = None,
    description: Annotated[
        str | None, typer.Option("--description", metavar="TEXT", help="What for.")
    ] = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Subscribe to events, and show the secret that signs them this once."""
    from api_key_manager.cli.client import single

    named = {
        "url": target, "types": types, "environment": environment, "description": description,
    }  # fmt: skip
    body = {name: value for name, value in named.items() if value is not None}
    _show(single(url, "POST", "/v1/webhooks", body=body, once=True), json)


@app.command("list")
def list_(url: Url = None, json: Json = False) -> None:
    """List webhooks; with --json as one array."""
    from api_key_manager.cli.client import single

    found = single(url, "GET", "/v1/webhooks")["items"]
    if json:
        document(found)
        return
    columns = ("id", "url", "types", "environment", "disabled")
    table(columns, [[hook[c] for c in columns] for hook in found], nothing="No webhooks.")


@app.command("show")
def show(webhook_id: Id, url: Url = None, json: Json = False) -> None:
    """Show one webhook."""
    _show(_ask(url, "GET", webhook_id), json)


@app.command("update")
def update(
    webhook_id: Id,
    target: Annotated[
        str | None, typer.Option("--target", metavar="URL", help="Where events are sent to.")
    ] = None,
    types: Types = None,
    description: Annotated[
        str | None, typer.Option("--description", metavar="TEXT", help="What for.")
    ] = None,
    disabled: Annotated[
        bool | None, typer.Option("--disable/--enable", help="Stop sending, or send again.")
    ] = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Change what is named, and nothing else."""
    named = {"url": target, "types": types, "description": description, "disabled": disabled}
    body = {name: value for name, value in named.items() if value is not None}
    _show(_ask(url, "PATCH", webhook_id, body=body), json)


@app.command("rotate-secret")
def rotate_secret(
    webhook_id: Id,
    overlap: Annotated[
        int | None, typer.Option("--overlap", metavar="SECONDS", help="Both sign so long.")
    ] = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Give a new secret, and show it this once."""
    body = {} if overlap is None else {"overlap_seconds": overlap}
    _show(_ask(url, "POST", webhook_id, "/rotate-secret", body=body, once=True), json)


@app.command("delete")
def delete(webhook_id: Id, url: Url = None, json: Json = False) -> None:
    """End a webhook, with all that waits."""
    _ask(url, "DELETE", webhook_id)
    if json:
        document({"id": webhook_id, "deleted": True})
    else:
        sys.stdout.write(f"{webhook_id} is deleted\n")


@app.command("test")
def send_test(webhook_id: Id, url: Url = None, json: Json = False) -> None:
    """Send an event now; exits 1 when it is not taken."""
    answer = _ask(url, "POST", webhook_id, "/test")
    _show_delivery(answer, json)
    if answer["outcome"] != "delivered":
        raise typer.Exit(1)


@app.command("deliveries")
def deliveries(
    webhook_id: Id,
    state: Annotated[
        str | None, typer.Option("--state", metavar="STATE", help="pending, done or dead.")
    ] = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """List what was sent, the newest first; with --json as one array."""
    from api_key_manager.cli.client import connect, key_path, run

    path = key_path(webhook_id, "/deliveries", under="webhooks")

    async def job() -> list[dict[str, Any]]:
        async with connect(url) as api:
            return await api.all(path, {"state": state})

    found = run(job())
    if json:
        document(found)
        return
    columns = ("id", "type", "state", "attempts", "outcome", "status", "created_at")
    rows = [[*(each[c] for c in columns[:-1]), short_time(each["created_at"])] for each in found]
    table(columns, rows, nothing="No deliveries.")


@app.command("replay")
def replay(
    webhook_id: Id,
    delivery_id: Annotated[
        str | None, typer.Argument(metavar="DELIVERY", help="One; all dead ones if left out.")
    ] = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Send again what is dead, or one delivery."""
    from api_key_manager.core.tokens import check_key_id

    if delivery_id is not None:
        rest = f"/deliveries/{check_key_id(delivery_id)}/replay"
        _show_delivery(_ask(url, "POST", webhook_id, rest), json)
        return
    answer = _ask(url, "POST", webhook_id, "/replay")
    if json:
        document(answer)
    else:
        sys.stdout.write(f"{answer['replayed']} are sent again\n")
