"""A service behind a gateway that asks API Key Manager Pro: it answers with what it was told.

    python service.py 8000

It listens on this machine only. A service that clients can reach past the gateway must not believe
these headers.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import sys
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def body_is_signed(headers: Message, body: bytes) -> bool:
    """Whether the body is the one that the caller signed. The gateway did not look at it.

    Without the header the caller showed a bearer token, which says nothing of a body.
    """
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    return all(
        hmac.compare_digest(signed.encode(), f"sha-256=:{digest}:".encode())
        for signed in headers.get_all("X-Content-Digest", [])
    )


def caller(headers: Message) -> dict[str, Any]:
    """Who calls, as the gateway says."""
    metadata = headers.get("X-Key-Metadata")
    return {
        "key_id": headers.get("X-Key-Id"),
        "owner": headers.get("X-Key-Owner"),
        "metadata": None if metadata is None else json.loads(base64.urlsafe_b64decode(metadata)),
    }


class Service(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if body_is_signed(self.headers, body):
            self.say(200, {
                "method": self.command,
                "uri": self.requestline.split(" ")[1],
                "caller": caller(self.headers),
                "headers": self.headers.items(),
                "body": body.decode("latin-1"),
            })  # fmt: skip
        else:
            self.say(400, {"error": "the body is not the one that was signed"})

    def say(self, status: int, document: dict[str, Any]) -> None:
        text = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Nothing: a query may hold what no log should."""


for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
    setattr(Service, f"do_{method}", Service.answer)

if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Service).serve_forever()
