"""``akm serve``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

__all__ = ["serve"]


def serve(
    host: Annotated[
        str | None, typer.Option("--host", help="The address to listen on, instead of HOST.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", help="The port, instead of PORT; 0 for a free one.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", help="How many processes, instead of WORKERS.")
    ] = None,
) -> None:
    """Run the server.

    Settings come from the environment or .env. The first start makes the database.
    """
    from api_key_manager.config import Settings

    given: dict[str, Any] = {"HOST": host, "PORT": port, "WORKERS": workers}
    settings = Settings.load(**{name: value for name, value in given.items() if value is not None})
    from api_key_manager.server.serve import serve as run_server

    raise typer.Exit(run_server(settings))
