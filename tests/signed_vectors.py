"""Signed requests that every client must make byte for byte: ``python -m tests.signed_vectors``
writes them for the ones that are not Python.
"""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

from api_key_manager.core import sign_request

FILE = Path(__file__).resolve().parents[1] / "clients" / "javascript" / "test" / "vectors.json"

CREATED = 1767225600
NONCE = "q1w2e3r4t5y6u7i8o9p0aA"
SECRET = "super-secret-key"
_ALL = bytes(range(256))

# What the URL standard leaves as it stands, so that every client sends it like this.
_REQUESTS: list[tuple[str, str, bytes]] = [
    ("GET", "https://shop.example/", b""),
    ("GET", "https://shop.example", b""),
    ("GET", "https://shop.example/?", b""),
    ("GET", "HTTPS://Shop.Example:443/Orders", b""),
    ("GET", "http://127.0.0.1:5000/orders?limit=10&after=a%2Fb", b""),
    ("GET", "http://[::1]:8080/a//b/;c=d,e/@:!$&'()*+~", b""),
    ("GET", "http://a.example:80/%e4%BD%a0/%2e%2E%2f", b""),
    ("GET", "https://a.example:8443/p?a=1?b=2&&c=/:@[]{}|^`", b""),
    ("HEAD", "https://shop.example/orders", b""),
    ("POST", "https://shop.example/orders", b'{"item": 7}'),
    ("POST", "https://shop.example/orders", b""),
    ("PUT", "https://shop.example/bytes", _ALL),
    ("PATCH", "https://shop.example/text", "Grüße, 世界 😀\r\n".encode()),
    ("patch", "https://shop.example/text", b"x"),
    ("DELETE", f"https://shop.example/{'a' * 500}?{'b' * 500}", b""),
    ("PURGE", "https://shop.example/cache", b"x" * 10_000),
]
_KEYS = [("client-123", SECRET), ("a.b_c:d-E", "s"), ("k" * 128, "Schlüssel 鍵 " * 20)]


def vectors() -> list[dict[str, Any]]:
    """Each request with its three headers."""
    made = []
    for i, (method, url, body) in enumerate(_REQUESTS):
        key_id, secret = _KEYS[i % len(_KEYS)]
        nonce = NONCE if i % 2 else f"{NONCE}_-{i:0>100}"
        headers = sign_request(secret, key_id, method, url, body, created=CREATED + i, nonce=nonce)
        made.append(
            {
                "keyId": key_id, "secret": secret, "method": method, "url": url,
                "body": b64encode(body).decode(), "created": CREATED + i, "nonce": nonce,
                "headers": {name.lower(): value for name, value in headers.items()},
            }
        )  # fmt: skip
    return made


def text() -> str:
    return json.dumps(vectors(), indent=1, ensure_ascii=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
