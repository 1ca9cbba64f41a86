"""``akm db`` and ``akm doctor``: the database itself, always the local one."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from api_key_manager.cli.errors import REFUSED, one_line
from api_key_manager.cli.options import Json
from api_key_manager.cli.output import document, note, progress
from api_key_manager.core.exceptions import APIKeyManagerException

__all__ = ["app", "doctor"]

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
