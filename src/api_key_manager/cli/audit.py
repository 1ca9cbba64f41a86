"""``akm audit``: follow the log, export it, check and prove it."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from api_key_manager.cli.errors import REFUSED, one_line
from api_key_manager.cli.inputs import read_when
from api_key_manager.cli.options import Json, Output, Url
from api_key_manager.cli.output import (
    cell,
    document,
    json_line,
    note,
    printer,
    progress,
    short_time,
)

if TYPE_CHECKING:
    from api_key_manager.cli.client import Api

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="What happened, and on whose behalf.")

_POLL_SECONDS: Final = 0.5
_FINDINGS: Final = 100
# Validations are written in batches and by several processes, so an event may turn up after a
# later one; further back than this nothing new is looked for.
_LATE: Final = timedelta(seconds=30)

Event = dict[str, Any]
KeyIdFilter = Annotated[str | None, typer.Option("--key-id", help="Of this key only.")]
Action = Annotated[
    str | None, typer.Option("--action", help="Of this kind only, such as key_revoked.")
]


@app.command("tail")
def tail(
    number: Annotated[
        int, typer.Option("-n", "--number", min=0, help="How many of the newest events.")
    ] = 50,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what happens, until Ctrl-C.")
    ] = False,
    key_id: KeyIdFilter = None,
    action: Action = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Show the newest events, the newest last; with --json as JSON Lines."""
    from api_key_manager.cli.client import connect, run

    query = {"key_id": key_id, "action": action}
    show = _show_json if json else _show

    async def job() -> None:
        async with connect(url) as api:
            newest = await api.all("/v1/audit", query, most=max(number, int(follow)))
            for event in reversed(newest[:number]):
                show(event)
            if follow:
                sys.stdout.flush()
                await _follow(api, query, newest[0] if newest else None, show)

    run(job())


async def _follow(
    api: Api, query: dict[str, Any], newest: Event | None, show: Callable[[Event], None]
) -> None:
    """Show what comes after ``newest``, forever.

    The end of the log is read again and compared with what was there; equal events are told apart
    by their number.
    """
    since: str | None = None
    seen: Counter[str] = Counter()
    if newest is not None:
        since = _back(newest["timestamp"])
        end = datetime.fromisoformat(newest["timestamp"])
        seen.update(
            _lasting(event)
            for event in await _stretch(api, query, since)
            if datetime.fromisoformat(event["timestamp"]) <= end
        )
    while True:
        events = await _stretch(api, query, since)
        there: Counter[str] = Counter()
        for event in events:
            line = _lasting(event)
            there[line] += 1
            if there[line] > seen[line]:
                show(event)
        sys.stdout.flush()
        seen = there
        if events:
            since = _back(events[-1]["timestamp"])
        await asyncio.sleep(_POLL_SECONDS)


async def _stretch(api: Api, query: dict[str, Any], since: str | None) -> list[Event]:
    return await api.all("/v1/audit", {**query, "since": since, "order": "asc"})


def _lasting(event: Event) -> str:
    """An event without what is known of it only once it is sealed."""
    return json_line({name: v for name, v in event.items() if name not in ("log", "index")})


def _back(timestamp: str) -> str:
    return (datetime.fromisoformat(timestamp) - _LATE).isoformat()


def _show_json(event: Event) -> None:
    sys.stdout.write(json_line(event))


def _show(event: Event) -> None:
    parts = [short_time(event["timestamp"]), event["action"], cell(event["key_id"])]
    for name in ("actor", "reason", "ip"):
        if event[name] is not None:
            parts.append(f"{name}={cell(event[name])}")
    if event["count"] != 1:
        parts.append(f"count={event['count']}")
    parts.extend(f"{name}={cell(value)}" for name, value in event["detail"].items())
    sys.stdout.write("  ".join(parts) + "\n")


@app.command("verify")
def verify(
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            "--checkpoint", metavar="FILE", help="Checkpoints kept elsewhere, besides AUDIT_SINK's."
        ),
    ] = None,
    log: Annotated[
        int,
        typer.Option(
            "--log", min=1, help="The log to start with, where one was started anew on purpose."
        ),
    ] = 1,
    json: Json = False,
) -> None:
    """Check every event and checkpoint of the local database's log.

    Exit code 1 when something does not fit; each finding names the place.
    """
    from api_key_manager.cli.client import run
    from api_key_manager.cli.local import load_settings
    from api_key_manager.wiring import open_deployment
    from api_key_manager.wiring.auditing import log_of, notes_outside

    settings = load_settings()
    files = checkpoint or []

    async def job() -> tuple[int, list[dict[str, Any]]]:
        found: list[dict[str, Any]] = []
        leaves = 0

        def advance(done: int, total: int) -> None:
            nonlocal leaves
            leaves = done
            move(done, total)

        async with open_deployment(settings, create=False, background=False) as deployment:
            reader = log_of(deployment.backend)
            notes = await notes_outside(deployment, files)
            with progress("leaves") as move:
                async for finding in reader.verify(notes, first_log=log, progress=advance):
                    found.append(finding._asdict())
                    if not json and len(found) <= _FINDINGS:
                        sys.stdout.write(f"{one_line(str(finding))}\n")
        return leaves, found

    leaves, found = run(job())
    if json:
        document({"leaves": leaves, "findings": found})
    elif not found:
        sys.stdout.write(f"leaves checked: {leaves}, and all fit\n")
    else:
        more = len(found) - _FINDINGS
        note(f"{len(found)} findings" + (f", {more} of them not shown" if more > 0 else ""))
    if found:
        raise typer.Exit(REFUSED)


@app.command("prove")
def prove(
    index: Annotated[int | None, typer.Argument(metavar="INDEX", min=0, help="Of a leaf.")] = None,
    event: Annotated[
        int | None, typer.Option("--id", min=0, help="Of an event, instead of its index.")
    ] = None,
    since: Annotated[
        int | None,
        typer.Option("--from", min=1, help="The size of an older checkpoint that still holds."),
    ] = None,
    log: Annotated[
        int | None, typer.Option("--log", min=1, help="Another log than the one that goes on.")
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", min=1, help="Of the checkpoint to prove it against.")
    ] = None,
    output: Output = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Write a proof as JSON, which anybody can verify offline."""
    from api_key_manager.cli.client import single

    query = {"index": index, "id": event, "from": since, "log": log, "size": size}
    proof = single(url, "GET", "/v1/audit/proof", query=query)
    with printer(output, keep=False) as write:
        write(f"{dumps(proof, indent=2)}\n")


@app.command("export")
def export(
    output: Output = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="WHEN", help="RFC 3339, or ago: 30d.")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="WHEN", help="RFC 3339, or ago: 1d.")
    ] = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Write every event as JSON Lines, oldest first."""
    from api_key_manager.cli.client import connect, run

    query: dict[str, Any] = {"order": "asc"}
    if since is not None:
        query["since"] = read_when(since, "--since", ago=True)
    if until is not None:
        query["until"] = read_when(until, "--until", ago=True)

    async def job() -> int:
        count = 0
        async with connect(url) as api:
            with printer(output, keep=False) as write, progress("events", beside=output) as advance:
                async for page in api.pages("/v1/audit", query):
                    write("".join(map(json_line, page)))
                    count += len(page)
                    advance(count, None)
        return count

    count = run(job())
    if output is not None:
        note(f"{count} events are in {output}")
