"""What a client does to a gateway with keys, and what the service then says."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from api_key_manager.core import sign_request
from tests.integration.gateways import Answer, Gateway, everything
from tests.integration.places import Place

__all__ = ["CLAIMS", "SMUGGLED", "Stack", "make_keys", "seen", "stack"]

Pairs = list[tuple[str, str]]
Keys = dict[str, dict[str, Any]]


LIMITS = [{"name": "hour", "limit": 2, "window_seconds": 3600}]


class Stack(NamedTuple):
    """A gateway before a service, with the keys that the server knows."""

    gateway: Gateway
    keys: Keys
    place: Place

    def signature(
        self, method: str, uri: str, body: bytes = b"", *, host: str | None = None, key: str = "k"
    ) -> Pairs:
        """The headers of a signed request."""
        url = f"http://{host or self.gateway.host}{uri}"
        headers = sign_request(
            self.keys[key]["secret"], key, method, url, body, created=int(time.time()),
            nonce=secrets.token_urlsafe(16),
        )  # fmt: skip
        return list(headers.items())

    def token(self, key: str = "app") -> Pairs:
        """The header of a bearer key."""
        return [("Authorization", f"Bearer {self.keys[key]['token']}")]


def seen(answer: Answer) -> dict[str, Any]:
    """What the service was told, of a request that reached it."""
    assert answer.status == 200, answer
    document: dict[str, Any] = json.loads(answer.body)
    return document


async def make_keys(place: Place) -> Keys:
    async with place.open(background=False) as deployment:
        create = deployment.manager.create_key
        return {
            "k": await create("k", owner="Zoë", metadata={"plan": "pro", "internal": "x"}),
            "app": await create("app", kind="bearer", permissions=["documents.*"]),
            "near": await create("near", kind="bearer", ip_allowlist=["127.0.0.1"]),
            "far": await create("far", kind="bearer", ip_allowlist=["203.0.113.9"]),
            "slow": await create("slow", kind="bearer", rate_limits=LIMITS),
            "edited": await create("edited", kind="bearer"),
            "gone": await create("gone", kind="bearer"),
        }


def stack(folder: Path, profile: str, **settings: str) -> Iterator[Stack]:
    """Everything, on keys of its own; any valid key may do anything unless settings say more."""
    place = Place(folder)
    keys = asyncio.run(make_keys(place))
    with everything(place, profile, AUTHORIZE_METADATA="plan", **settings) as (gateway, _):
        yield Stack(gateway, keys, place)


SMUGGLED = [
    ("X-Key-Id", "root"), ("X-Key-Owner", "root"), ("X-Key-Metadata", "eyJwbGFuIjoicm9vdCJ9"),
    ("X-Content-Digest", "sha-256=:AAAA:"), ("x-key-id", "root"), ("X-KEY-ID", "root"),
    ("X_Key_Id", "root"), ("X-Key-Id ", "root"),
]  # fmt: skip
CLAIMS = [
    ("X-Original-URI", "/signed"), ("X-Original-Method", "PUT"), ("X-Original-Host", "h.example"),
    ("X-Original-Scheme", "https"), ("X-Original-URL", "http://h.example/signed"),
    ("X-Forwarded-Uri", "/signed"), ("X-Forwarded-Method", "PUT"),
    ("X-Forwarded-Host", "h.example"),
    ("X-Forwarded-Proto", "https"), ("X-Rewrite-URL", "/signed"), ("X_Original_URI", "/signed"),
    ("X-HTTP-Method-Override", "PUT"), ("Forwarded", "host=h.example;proto=https"),
]  # fmt: skip
