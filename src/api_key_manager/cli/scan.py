"""``akm keys scan``: finds our secrets and tokens where they must not be."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from api_key_manager.cli import contents
from api_key_manager.cli.contents import Content
from api_key_manager.cli.errors import MISUSE, REFUSED, Failure, one_line, redact
from api_key_manager.cli.options import Json
from api_key_manager.cli.output import document, note, progress
from api_key_manager.core.scanning import Hit, Scanner

__all__ = ["scan"]


def scan(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH...", help="Files and folders, - for standard input; or repositories."
        ),
    ] = None,
    prefix: Annotated[
        list[str] | None,
        typer.Option("--prefix", metavar="PREFIX", help="Also of this prefix; repeatable."),
    ] = None,
    any_prefix: Annotated[
        bool, typer.Option("--any-prefix", help="Whatever the prefix, if the checksum fits.")
    ] = False,
    history: Annotated[
        bool, typer.Option("--history", help="All that the git repositories ever held.")
    ] = False,
    staged: Annotated[
        bool, typer.Option("--staged", help="What the next commit would add or change.")
    ] = False,
    json: Json = False,
) -> None:
    """Find secrets and tokens in files, git history or standard input.

    Offline: no server, database or settings are needed. Prints where and what, never the secret.
    Exits 1 when something is found, 2 when something could not be read. A line that says akm:allow
    is passed over. The prefix is TOKEN_PREFIX of the environment, or akm.
    """
    if history and staged:
        raise Failure("--history and --staged do not go together", MISUSE)
    if any_prefix and prefix:
        raise Failure("--prefix and --any-prefix do not go together", MISUSE)
    own = os.environ.get("TOKEN_PREFIX") or "akm"
    scanner = Scanner(None if any_prefix else [own, *(prefix or [])])
    in_git = history or staged
    if not paths and not in_git:
        raise Failure("name files or folders, or - for standard input", MISUSE)
    found: list[dict[str, Any]] = []
    problems = 0
    with progress("bytes") as bar:
        done = 0
        for place in paths or ["."]:
            for content in _contents(place, history=history, staged=staged):
                if content.problem is not None:
                    problems += 1
                    note(f"akm: {_shown(content.name)}: {content.problem}")
                    continue
                try:
                    for hit in scanner.scan(content.read):
                        if isinstance(hit, int):
                            done += hit
                            bar(done, None)
                            continue
                        item = _item(content, hit, place if history else None)
                        found.append(item)
                        if not json:
                            sys.stdout.write(f"{_line(item)}\n")
                except OSError as error:
                    problems += 1
                    note(f"akm: {_shown(content.name)}: {error.strerror}")
    if json:
        document({"found": found, "unreadable": problems, "bytes": done})
    if found:
        raise typer.Exit(REFUSED)
    if problems:
        raise typer.Exit(MISUSE)


def _contents(place: str, *, history: bool, staged: bool) -> Iterator[Content]:
    if history:
        return contents.history(place)
    if staged:
        return contents.staged(place)
    return contents.standard_input() if place == "-" else contents.files(place)


def _shown(name: str) -> str:
    """A name that no terminal obeys, without the token that it may hold itself."""
    return one_line(redact(name)) if " " not in name else redact(name)


def _item(content: Content, hit: Hit, repository: str | None) -> dict[str, Any]:
    item: dict[str, Any] = {"path": _shown(content.name), **hit._asdict()}
    if content.blob is not None:
        item["blob"] = content.blob
    if repository is not None and content.blob is not None:
        item["commit"] = contents.introduced(repository, content.blob)
    return item


def _line(item: dict[str, Any]) -> str:
    what = {
        "bearer": "token of the key {key_id}",
        "admin": "admin token {key_id}",
        "secret": "secret of a signed key",
    }[item["kind"]].format(**item)
    masked = f"{item['prefix']}_{item['key_id'] or 'secret'}_***"
    where = f"{item['path']}:{item['line']}:{item['column']}"
    commit = f" (commit {item['commit'][:12]})" if item.get("commit") else ""
    return f"{where}: {what}, {masked}{commit}"
