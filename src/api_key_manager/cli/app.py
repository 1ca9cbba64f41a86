"""The root of the command line: groups, version, and the one place where errors end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from api_key_manager import __version__
from api_key_manager.cli import (
    audit,
    credentials,
    database,
    keys,
    secrets,
    serving,
    signing,
    tokens,
    webhooks,
)
from api_key_manager.cli.errors import (
    INTERRUPTED,
    MISUSE,
    NOBODY_READS,
    debugging,
    expected,
    explain,
    trace,
)
from api_key_manager.cli.options import Json
from api_key_manager.cli.output import document

__all__ = ["app", "run"]


class _Group(TyperGroup):
    """Ends every error in one line, also in tests that call the group itself."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Before the library answers it with exit code 1, which here means a refusal.
            _let_go_of_stdout()
            raise typer.Exit(NOBODY_READS) from None

    def main(  # type: ignore[override]  # the rest of the options passes through
        self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        extra["prog_name"] = "akm"
        call = super().main
        code = _guarded(lambda: call(args, standalone_mode=False, **extra))
        if standalone_mode:
            sys.exit(code)
        return code


def _guarded(call: Callable[[], object]) -> int:
    try:
        try:
            result = call()
            return result if isinstance(result, int) else 0
        finally:
            # Here, not at the exit of the interpreter, where nobody can catch a broken pipe.
            sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except typer.Exit as end:
        return end.exit_code
    except BrokenPipeError:
        _let_go_of_stdout()
        return NOBODY_READS
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help itself, no error
            sys.stderr.write(f"{error}\n" if str(error) else "")
            return MISUSE
        message, code = explain(error)
        if not expected(error) and debugging():
            sys.stderr.write(trace(error))
        sys.stderr.write(f"akm: {message}\n")
        return code


def _let_go_of_stdout() -> None:
    """Nobody reads it: what is still buffered goes nowhere, silently."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())


app = typer.Typer(
    name="akm",
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Boxes are for eyes; a pipe gets plain help.
    rich_markup_mode="rich" if sys.stdout.isatty() else None,
    epilog="Exit codes: 0 done, 1 refused, 2 usage or configuration.",
)
app.add_typer(keys.app, name="keys")
app.add_typer(tokens.app, name="tokens")
app.add_typer(audit.app, name="audit")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(database.app, name="db")
app.add_typer(secrets.app, name="secrets")
app.command("serve")(serving.serve)
app.command("validate")(credentials.validate)
app.command("sign")(signing.sign)
app.command("doctor")(database.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"akm {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Issue, validate, rotate, revoke and audit API keys.

    Works on the local database (DATABASE_URL), or on a server: --url or AKM_URL, with an admin
    token in AKM_TOKEN.
    """


@app.command("version")
def version(json: Json = False) -> None:
    """Print the version."""
    if json:
        document({"version": __version__})
    else:
        sys.stdout.write(f"akm {__version__}\n")


def run() -> int:
    """Run on the arguments of this process; returns the exit code."""
    # A name in Thai on a terminal that speaks only Latin-1 is no reason to stop.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:
            reconfigure(errors="backslashreplace")
    code = app(standalone_mode=False)
    return code if isinstance(code, int) else 0
