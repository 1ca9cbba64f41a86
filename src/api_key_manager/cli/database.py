"""``akm db`` and ``akm doctor``: the database itself, always the local one."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from api_key_manager.cli.errors import REFUSED, Failure, one_line
from api_key_manager.cli.options import Json
from api_key_manager.cli.output import document, note, progress
from api_key_manager.core.exceptions import APIKeyManagerException

if TYPE_CHECKING:
    from api_key_manager.wiring import Restored
    from api_key_manager.wiring.lost import Lost

__all__ = ["app", "doctor"]

_SHOWN: Final = 20

app = typer.Typer(no_args_is_help=True, help="Make, migrate and back up the local database.")


@app.command("upgrade")
def upgrade(json: Json = False) -> None:
    """Make the database, or bring it to this version's schema."""
    from api_key_manager.cli.client import run
    from api_key_manager.cli.local import load_settings
    from api_key_manager.wiring import upgrade as upgrade_database

    done = run(upgrade_database(load_settings()))
    if json:
        document({"done": done})
    else:
        sys.stdout.write(f"{one_line(done)}\n")


@app.command("backup")
def backup(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.")],
    json: Json = False,
) -> None:
    """Copy the database to a new file, also while a server uses it."""
    from api_key_manager.cli.client import run
    from api_key_manager.cli.local import load_settings
    from api_key_manager.wiring import backup as copy
    from api_key_manager.wiring import open_deployment

    settings = load_settings()

    async def job() -> str | None:
        with progress("copied", beside=target) as bar:
            await copy(settings, target, bar)
        try:
            async with open_deployment(settings, create=False, background=False) as deployment:
                return deployment.master_key
        except APIKeyManagerException as error:
            # A copy must also be had when the key is missing: it may turn up again.
            note(f"akm: the backup is made, but its master key was not found: {error}")
            return None

    where = run(job())
    path = str(target.absolute())
    if json:
        document({"backup": path, "master_key": where})
        return
    sys.stdout.write(f"the backup is in {path}\n")
    if where is not None:
        note(_keep_the_key(where))


@app.command("restore")
def restore(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A backup.")],
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            "--checkpoint", metavar="FILE", help="Checkpoints kept elsewhere, besides AUDIT_SINK's."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="URL", help="The old database, if it can still be read."),
    ] = None,
    audit: Annotated[
        Path | None,
        typer.Option("--audit", metavar="FILE", help="An export of the old database's log."),
    ] = None,
    revoke_lost: Annotated[
        bool,
        typer.Option(
            "--revoke-lost", help="Close again what is known to have been closed after the backup."
        ),
    ] = False,
    accept: Annotated[
        bool,
        typer.Option("--accept-lost-changes", help="Do not ask: what came after it is lost."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Verify the backup, and say what is lost.")
    ] = False,
    json: Json = False,
) -> None:
    """Restore a backup into the local database, which must be empty.

    It is verified first. Exit code 1 when it does not pass, or what is lost is not accepted.
    """
    from api_key_manager.cli.client import run
    from api_key_manager.cli.local import load_settings
    from api_key_manager.wiring import Restore
    from api_key_manager.wiring import restore as restore_from

    def consent(lost: Lost) -> bool:
        _say_lost(lost)
        if accept or (lost.nothing is not None and not lost.closed):
            return True
        return sys.stdin.isatty() and typer.confirm("Restore it all the same?", err=True)

    @contextlib.contextmanager
    def bar(label: str) -> Iterator[Callable[[int, int], None]]:
        with progress(label) as move:
            yield lambda done, total: move(done, total or None)

    wanted = Restore(
        source, consent, tuple(checkpoint or ()), against, audit,
        close_lost=revoke_lost, bar=bar, dry_run=dry_run,
    )  # fmt: skip
    done = run(restore_from(load_settings(), wanted))
    for words in done.noted:
        note(f"noted: {words}")
    if dry_run:
        _say_lost(done.lost)
    elif done.database is None:
        raise Failure(
            "nothing was restored: what was changed after the backup is lost, which needs"
            " --accept-lost-changes"
        )
    if json:
        document(_told(done))
        return
    what = f"the backup of {done.made_at}" if done.made_at else str(source)
    sys.stdout.write(
        one_line(
            f"{what} is sound: {done.keys} keys, {done.events} events"
            if done.database is None
            else f"{what} was restored to {done.database}: {done.keys} keys, {done.events} events"
        )
        + "\n"
    )
    if done.log is not None:
        number = done.log.rpartition("/")[2]
        note(
            f"its log goes on as {done.log}: `akm audit verify --log {number}` checks it from here"
        )
    if done.closed:
        note(f"closed again: {_some(done.closed)}")
    revived = [str(each) for each in done.lost.closed if each.key_id not in done.closed]
    if revived and done.database is not None:
        note(f"these work again: {_some(revived)}")


def _say_lost(lost: Lost) -> None:
    for words in lost.words():
        note(words)


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _told(done: Restored) -> dict[str, Any]:
    lost = done.lost
    return {
        "restored": done.database,
        "backup_made_at": done.made_at,
        "keys": done.keys,
        "events": done.events,
        "log": done.log,
        "lost": list(lost.words()),
        "revived": [
            {"key_id": each.key_id, "how": each.how}
            for each in lost.closed
            if each.key_id not in done.closed
        ],
        "closed": done.closed,
        "noted": done.noted,
    }


def _keep_the_key(where: str) -> str:
    lost = "The master key is not in it, and without the key the backup cannot be read"
    if not Path(where).is_absolute():
        return f"{lost}: save the value of {where} in another place, such as a password manager."
    copy = shlex.join(["cp", "-p", where, "/path/to/a/safe/place/"])
    return f"{lost}. The key is in {where}: save it in another place ({copy})."


def doctor(json: Json = False) -> None:
    """Check files, the master key and every record.

    Exit code 1 when something is wrong.
    """
    from api_key_manager.cli.client import run
    from api_key_manager.cli.local import load_settings

    settings = load_settings()

    async def job() -> list[dict[str, Any]]:
        from api_key_manager.wiring import diagnose

        found = []
        async for finding in diagnose(settings):
            found.append(finding._asdict())
            if not json:
                _print_finding(finding.level, finding.topic, finding.message)
        return found

    found = run(job())
    if json:
        document(found)
    if any(finding["level"] == "error" for finding in found):
        raise typer.Exit(REFUSED)


def _print_finding(level: str, topic: str, message: str) -> None:
    word = level.ljust(7)
    if sys.stdout.isatty():
        from rich.text import Text

        from api_key_manager.cli.output import console

        colour = {"ok": "green", "warning": "yellow", "error": "bold red"}[level]
        line = Text.assemble((word, colour), f"  {one_line(topic)}: {one_line(message)}")
        console(sys.stdout).print(line, soft_wrap=True)
    else:
        sys.stdout.write(f"{word}  {one_line(topic)}: {one_line(message)}\n")
