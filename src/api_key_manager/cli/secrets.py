"""``akm secrets``: the keys that everything else is kept under, on the local database only."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api_key_manager.cli.errors import MISUSE, Failure
from api_key_manager.cli.inputs import ask
from api_key_manager.cli.options import Json, Url, Yes
from api_key_manager.cli.output import document, note, progress

if TYPE_CHECKING:
    from api_key_manager.wiring import Deployment
    from api_key_manager.wiring.keyring import StoredKeyring
    from api_key_manager.wiring.retiring import Survey

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, help="Change the keys that secrets and digests are kept under."
)
_ACTOR = "cli"
_SHOWN = 10


@app.command("rotate-kek")
def rotate_kek(url: Url = None, json: Json = False) -> None:
    """Wrap every key of the keyring under the current key-encryption key.

    Online; can be cut off at any point and run again.
    """
    from api_key_manager.cli.client import run

    async def job() -> dict[str, Any]:
        async with _opened(url) as (_, keys):
            with progress("keys") as bar:
                count = await keys.rewrap(_ACTOR, bar)
            return {"rewrapped": count, "key_encryption_key": keys.providers.current.name}

    done = run(job())
    if json:
        document(done)
        return
    name, count = done["key_encryption_key"], done["rewrapped"]
    sys.stdout.write(f"{count} keys were wrapped anew; all are under {name}\n")


@app.command("rotate-pepper")
def rotate_pepper(
    retire: Annotated[
        int | None,
        typer.Option(
            "--retire",
            min=1,
            metavar="N",
            help="Mint none: revoke what is still under pepper N or an older one, and remove them.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --retire: only say what would be revoked.")
    ] = False,
    yes: Yes = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Mint a new pepper. The digest of each token moves to it when the token is next used."""
    from api_key_manager.cli.client import run

    if retire is not None:
        _retire(retire, dry_run, yes, url, json)
        return
    if dry_run:
        raise Failure("--dry-run goes with --retire", MISUSE)

    async def job() -> dict[str, Any]:
        async with _opened(url) as (_, keys):
            number = await keys.rotate_pepper(_ACTOR)
            counted = await keys.digests()
            return {"pepper": number, "digests": {str(n): counted[n] for n in sorted(counted)}}

    done = run(job())
    if json:
        document(done)
        return
    older = sum(count for n, count in done["digests"].items() if n != str(done["pepper"]))
    sys.stdout.write(
        f"pepper {done['pepper']} is in use; {older} digests move to it as their tokens are used\n"
    )


def _retire(number: int, dry_run: bool, yes: bool, url: str | None, json: bool) -> None:
    from api_key_manager.cli.client import run
    from api_key_manager.core.changing import Origin
    from api_key_manager.wiring.retiring import retire, survey

    async def job() -> dict[str, Any]:
        async with _opened(url) as (deployment, keys):
            newest = max(await keys.digests())
            if number >= newest:
                raise Failure(
                    f"--retire: pepper {newest} is in use, so at most {newest - 1} can be retired"
                    " (`akm secrets rotate-pepper` mints the next one)",
                    MISUSE,
                )
            found = await survey(deployment, keys, number + 1)
            told = _told(number, found)
            if dry_run:
                return {**told, "retired": False}
            if not yes:
                _warn(found)
                ask(f"Retire pepper {number} and revoke {found.revoked} keys for good?")
            with progress("keys") as bar:
                await retire(deployment, keys, number + 1, Origin(_ACTOR), bar)
            return {**told, "retired": True}

    done = run(job())
    if json:
        document(done)
        return
    for key_id in done["tokens"]:
        sys.stdout.write(f"token {key_id}\n")
    for key_id in done["keys"]:
        sys.stdout.write(f"key {key_id}\n")
    count = len(done["tokens"]) + len(done["keys"])
    if done["retired"]:
        sys.stdout.write(f"pepper {number} is retired; {count} keys were revoked\n")
    else:
        note(f"{count} keys would be revoked")


def _told(number: int, found: Survey) -> dict[str, Any]:
    return {
        "pepper": number,
        "keys": found.keys,
        "tokens": found.tokens,
        "versions": found.versions,
        "damaged": found.damaged,
    }


def _warn(found: Survey) -> None:
    """Before the question: who would be locked out."""
    if found.keys:
        note(f"keys: {_some(found.keys)}")
    if found.tokens:
        note(
            f"admin tokens: {', '.join(found.tokens)}: use each once to keep it, or make others"
            " first (`akm tokens create`)"
        )


def _some(key_ids: list[str]) -> str:
    more = len(key_ids) - _SHOWN
    return ", ".join(key_ids[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


@asynccontextmanager
async def _opened(url: str | None) -> AsyncIterator[tuple[Deployment, StoredKeyring]]:
    if url is not None:
        raise Failure(
            "`akm secrets` works on the database itself, with its key-encryption key: run it where"
            " both are, without --url and AKM_URL",
            MISUSE,
        )
    from api_key_manager.cli.local import load_settings
    from api_key_manager.wiring import open_deployment

    async with open_deployment(load_settings(), create=False, background=False) as deployment:
        keys = deployment.backend.keys
        if keys is None:
            raise Failure("DATABASE_URL=memory:// keeps no keys to change", MISUSE)
        yield deployment, keys
