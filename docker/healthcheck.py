"""Ends with 0 when the server in this container is ready for requests, else with 1.

Asks by the settings that the server was started with, and needs nothing but the standard library:
it runs every few seconds.
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys

TIMEOUT_SECONDS = 3


def ready(environment: dict[str, str]) -> str | None:
    """Ask for `/readyz`; `None` when all is well, else why not."""
    host = environment.get("HOST") or "127.0.0.1"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - asked, not bound
    port = int(environment.get("PORT") or 5000)
    connection: http.client.HTTPConnection
    if environment.get("TLS_CERT"):
        # The certificate names the address that clients use, and no secret is sent here.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            host, port, timeout=TIMEOUT_SECONDS, context=context
        )
    else:
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        body = answer.read(4096).decode("utf-8", "replace")
        return None if answer.status == 200 else f"{answer.status} {body}"
    except (OSError, http.client.HTTPException) as error:
        return f"no answer from {host}:{port}: {error}"
    finally:
        connection.close()


if __name__ == "__main__":
    problem = ready(dict(os.environ))
    if problem is not None:
        sys.exit(problem)
