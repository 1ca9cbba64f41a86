"""A request on its way through the front: its head, its id, and what is known of it by now."""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from api_key_manager.core.tokens import holds_a_secret
from api_key_manager.server.auth import Admission
from api_key_manager.server.exchange import Exchange, Reply, Request
from api_key_manager.server.principal import Principal
from api_key_manager.server.routes import HotHandler, OpenHandler

if TYPE_CHECKING:
    from api_key_manager.telemetry.numbers import Durations

__all__ = ["Outcome", "Pass", "Visit", "new_id", "read_head"]

_LOOKED_AT: Final = frozenset(
    {
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"transfer-encoding",
        b"x-forwarded-for",
        b"x-request-id",
    }
)
_is_request_id = re.compile(rb"[A-Za-z0-9._-]{1,64}").fullmatch
_boot = secrets.token_hex(6)
_count = itertools.count(1)


class Pass(NamedTuple):
    """What the steps say of a request that the app answers."""

    principal: Principal | None
    body: bytes | None = None
    """``None``: not read yet."""

    def __repr__(self) -> str:
        return "Pass()"  # the body may hold a secret


Outcome = Reply | Pass


class Visit:
    """A request on its way, and what is known of it by now."""

    __slots__ = ("admission", "began", "exchange", "hot", "opened", "request", "taken")

    exchange: Exchange[Outcome]

    def __init__(
        self,
        request: Request,
        opened: OpenHandler | None = None,
        hot: HotHandler | None = None,
        admission: Admission | None = None,
    ) -> None:
        self.request = request
        self.opened = opened
        self.hot = hot
        self.admission = admission
        self.began = perf_counter()
        # Where it counts if the answer is a 200.
        self.taken: Durations | None = None


def read_head(
    method: str, path: str, query: bytes, headers: Sequence[tuple[bytes, bytes]],
    client: Any, ready: Principal | None, raw_path: bytes | None = None,
) -> Request:  # fmt: skip
    """A request without its body; of its headers, only those that the front looks at are sorted.

    ``ready`` is who calls, where that is known already.
    """
    head: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name in _LOOKED_AT:
            head.setdefault(name, []).append(value)
    request_id = new_id(head.get(b"x-request-id"))
    undecoded = "" if raw_path is None else raw_path.decode("latin-1")
    return Request(method, path, query, headers, head, client, request_id, ready, undecoded)


def new_id(given: Sequence[bytes] | None) -> str:
    """The id that a caller gave in ``X-Request-Id``, if it is fit for logs; else one of our own."""
    if given is not None and len(given) == 1 and _is_request_id(given[0]):
        text = given[0].decode("ascii")
        if not holds_a_secret(text):  # it is logged
            return text
    return f"{_boot}-{next(_count):x}"
