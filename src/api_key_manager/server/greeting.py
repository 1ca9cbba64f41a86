"""What ``akm serve`` prints once it listens."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from api_key_manager import __version__

if TYPE_CHECKING:
    from api_key_manager.wiring import Deployment

__all__ = ["greeting"]


def greeting(deployment: Deployment, bound_to: str, url: str, *, terminal: bool) -> str:
    """Where everything is, and what to type first.

    Args:
        deployment: what is served.
        bound_to: what it listens on, as a URL.
        url: where this machine reaches it.
        terminal: whether a person reads this; a token is shown to nobody else.
    """
    lines = [
        f"API Key Manager Pro {__version__}",
        f"  listening on  {bound_to}",
        f"  docs          {url}/docs",
        f"  data          {deployment.database}",
        f"  master key    {deployment.master_key}",
    ]
    if deployment.settings.WORKERS > 1:
        lines.append(f"  workers       {deployment.settings.WORKERS}")
    file = deployment.first_token_file
    if deployment.settings.AKM_ADMIN_TOKEN:
        lines.append("  admin token   AKM_ADMIN_TOKEN, as long as it is set")
        lines += _curl(url, '"Authorization: Bearer $AKM_ADMIN_TOKEN"')
    elif deployment.first_token is not None and terminal:
        lines.append(f"  admin token   {deployment.first_token}")
        lines.append("                shown this once: keep it")
        lines += _curl(url, shlex.quote(f"Authorization: Bearer {deployment.first_token}"))
    elif file is not None:
        lines.append(f"  admin token   in {file} (readable by this user only)")
        lines += _curl(url, f'"Authorization: Bearer $(cat {shlex.quote(str(file))})"')
    else:
        lines.append("  admin token   as before; another one: akm tokens create")
    return "\n".join(lines) + "\n"


def _curl(url: str, header: str) -> list[str]:
    """Lines that work when they are pasted, again and again."""
    start = f"curl -sS -w '\\n' {url}/v1/keys -H {header} -H 'Content-Type: application/json'"
    return [
        "",
        "Create a signed key, and a bearer key:",
        f"""  {start} -d '{{"kind":"signed"}}'""",
        f"""  {start} -d '{{"kind":"bearer"}}'""",
        "",
    ]
