"""The options that many commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Json", "KeyId", "Output", "Url", "Yes"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="AKM_URL",
        metavar="URL",
        help="A server, with AKM_TOKEN from the environment; else the local database.",
    ),
]
KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="The id of the key.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", metavar="FILE", help="A new file instead of standard output."),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
