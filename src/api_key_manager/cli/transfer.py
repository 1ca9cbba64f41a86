"""``akm keys export`` and ``akm keys import``: JSON Lines, one key a line."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Final, NamedTuple

import typer

from api_key_manager.cli.errors import REFUSED, Failure, redact
from api_key_manager.cli.inputs import parse_json_object, read_when
from api_key_manager.cli.options import Json, Output, Url
from api_key_manager.cli.output import json_line, note, printer, progress

if TYPE_CHECKING:
    from api_key_manager.cli.client import Api

__all__ = ["export", "import_"]

_REDACTED: Final = "***REDACTED***"
# What an export says of a key that a new one finds out for itself.
_DERIVED: Final = frozenset({"active", "state", "version", "created_at", "updated_at", "last_used"})
_MOST_LINE: Final = 1024 * 1024
# After these the next line may do better; after any other there is no use in going on.
_OF_THE_LINE: Final = frozenset({400, 404, 409, 413, 422, 500})


def export(output: Output = None, url: Url = None, json: Json = False) -> None:
    """Write every key as JSON Lines, without secrets."""
    from api_key_manager.cli.client import connect, run

    async def job() -> int:
        count = 0
        async with connect(url) as api:
            with printer(output, keep=False) as write, progress("keys", beside=output) as advance:
                async for page in api.pages("/v1/keys", {}):
                    write("".join(map(json_line, page)))
                    count += len(page)
                    advance(count, None)
        return count

    count = run(job())
    if output is not None:
        note(f"{count} keys are in {output}, without their secrets")


def import_(
    source: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON Lines; - for standard input.")
    ],
    output: Output = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Create a key from each line: the fields of `keys create`, with or without a secret.

    Lines of `keys export` fit: they hold no secret, so a new one is minted, and a key that was
    revoked stays revoked. Prints a line for each new secret or token, shown this once; with --json
    a line for each line read. What does not fit is reported on standard error and skipped.
    """
    from api_key_manager.cli.client import connect, run

    async def job() -> dict[str, int]:
        async with connect(url) as api:
            with (
                _opened(source) as (stream, size),
                printer(output, keep=True) as write,
                progress("bytes", size, beside=output) as advance,
            ):
                importer = _Importer(api, write, everything=json)
                done = 0
                for number, line in _lines(stream):
                    await importer.take(number, line)
                    done += len(line)
                    advance(done, size)
                return importer.counts

    counts = run(job())
    note(
        f"{counts['imported']} imported ({counts['minted']} with a new secret or token,"
        f" shown this once), {counts['failed']} failed"
    )
    if counts["failed"]:
        raise typer.Exit(REFUSED)


@contextmanager
def _opened(source: Path) -> Iterator[tuple[BinaryIO, int | None]]:
    if str(source) == "-":
        # A test's standard input may have no bytes below its text.
        yield getattr(sys.stdin, "buffer", io.BytesIO()), None
    else:
        with source.open("rb") as stream:
            yield stream, source.stat().st_size


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers; of one that is too long only its beginning, so memory is safe."""
    number = 0
    while line := stream.readline(_MOST_LINE + 1):
        number += 1
        rest = line
        while len(rest) > _MOST_LINE and not rest.endswith(b"\n"):
            rest = stream.readline(_MOST_LINE + 1)
        yield number, line


class _Line(NamedTuple):
    """A key as a line has it: what creates it, and how it was ended, if it was."""

    body: dict[str, Any]
    revocation: dict[str, Any] | None
    dead: bool


def _read(raw: bytes) -> _Line:
    """What a line means.

    Raises:
        ValueError, Failure: it is no key; the message repeats nothing of it.
    """
    if len(raw) > _MOST_LINE:
        raise ValueError(f"longer than {_MOST_LINE} bytes")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    body = parse_json_object(text)
    for name in ("secret", "token"):
        if body.get(name, "") in (None, _REDACTED):
            body.pop(name, None)
    derived = {name: body.pop(name, None) for name in _DERIVED}
    if isinstance(body.get("quota"), dict):
        body["quota"].pop("spent", None)
    reason, at = body.pop("revoke_reason", None), body.pop("revoked_at", None)
    state = derived["state"]
    # What did not work where it comes from must not begin to work here.
    if derived["active"] is False or state not in (None, "active"):
        body["disabled"] = True
    if at is None and state != "revoked":
        return _Line(body, None, dead=False)
    revocation = {} if reason is None else {"reason": reason}
    instant = None if at is None else read_when(str(at), "revoked_at")
    dead = instant is None or datetime.fromisoformat(instant) <= datetime.now(UTC)
    if dead:
        # Never alive, not even until it is revoked; and then no expiry is needed either.
        body["disabled"] = True
        body.pop("expires_at", None)
    else:
        revocation["at"] = instant
    return _Line(body, revocation, dead)


class _Importer:
    """Takes lines in order, and counts and reports what became of them."""

    def __init__(self, api: Api, write: Callable[[str], None], *, everything: bool) -> None:
        self._api = api
        self._write = write
        self._everything = everything
        self.counts = {"imported": 0, "minted": 0, "failed": 0}

    async def take(self, number: int, raw: bytes) -> None:
        """Import one line.

        Raises:
            Failure: the server is gone or takes no line at all; the message says where it stopped.
        """
        if not raw.strip(b" \t\r\n\xef\xbb\xbf"):
            return
        try:
            line = _read(raw)
        except (ValueError, Failure) as error:
            self._report(number, None, str(error))
            return
        key_id, secret = line.body.get("key_id"), line.body.get("secret")
        hidden = (secret,) if isinstance(secret, str) else ()
        try:
            answer = await self._api.call("POST", "/v1/keys", body=line.body, once=True)
        except Failure as error:
            message = redact(str(error), *hidden)
            if error.status not in _OF_THE_LINE:
                raise Failure(f"stopped at line {number}: {message}", error.code) from None
            self._report(number, key_id, message)
            return
        self._done(number, answer, minted="secret" not in line.body and not line.dead)
        if line.revocation is not None:
            await self._revoke(number, answer["key_id"], line.revocation)

    async def _revoke(self, number: int, key_id: str, revocation: dict[str, Any]) -> None:
        from api_key_manager.cli.client import key_path

        try:
            await self._api.call("POST", key_path(key_id, "/revoke"), body=revocation)
        except Failure as error:
            self.counts["imported"] -= 1
            self._report(number, key_id, f"it was created, but not revoked: {error}")
            if error.status not in _OF_THE_LINE:
                raise

    def _done(self, number: int, answer: Mapping[str, Any], *, minted: bool) -> None:
        self.counts["imported"] += 1
        said: dict[str, Any] = {"line": number, "key_id": answer["key_id"]}
        if minted:
            self.counts["minted"] += 1
            name = "token" if "token" in answer else "secret"
            said[name] = answer[name]
        if self._everything:
            self._write(json_line({**said, "imported": True}))
        elif minted:
            self._write(json_line(said))

    def _report(self, number: int, key_id: Any, message: str) -> None:
        self.counts["failed"] += 1
        named = f" ({key_id})" if isinstance(key_id, str) else ""
        note(f"akm: line {number}{named}: {message}")
        if self._everything:
            said = {"line": number, "key_id": key_id, "imported": False, "error": message}
            self._write(json_line(said))
