"""How anything is asked of a server: one call, one that is run once, one page of a list."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Final, Generic, NamedTuple, TypeVar

from api_key_manager.client.exchange import Call, Operation, Repeat, Retries, call, strange
from api_key_manager.client.paths import members

__all__ = ["Asking", "Listing", "Page"]

T = TypeVar("T")

PAGE: Final = 500


class Listing(NamedTuple, Generic[T]):
    """A list that is read page by page."""

    path: str
    query: Mapping[str, Any]


class Page(NamedTuple, Generic[T]):
    """Some items, and where the next ones begin."""

    items: list[T]
    next_cursor: str | None


class Asking:
    """What every call is made from.

    Args:
        retries: how often and how long to try.
        where: the server's URL, for messages.
    """

    def __init__(self, retries: Retries, where: str) -> None:
        self._retries = retries
        self._where = where

    def _call(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: Mapping[str, Any] | None = None,
        repeat: Repeat = Repeat.ANY,
        idempotency_key: str | None = None,
    ) -> Operation[Any]:
        asked = Call(method, path, body, query, repeat, idempotency_key)
        return call(asked, self._retries, self._where)

    def _once(
        self, path: str, body: Mapping[str, Any], idempotency_key: str | None
    ) -> Operation[Any]:
        """A POST that the server runs once, however often it arrives."""
        key = uuid.uuid4().hex if idempotency_key is None else idempotency_key
        return self._call("POST", path, members(body), idempotency_key=key)

    def page(self, listing: Listing[T], cursor: str | None) -> Operation[Page[T]]:
        """One page of a list."""
        query = {**members(listing.query), "limit": PAGE, "cursor": cursor}
        answer = yield from self._call("GET", listing.path, query=query)
        return Page(self._items(answer), answer.get("next_cursor"))

    def _items(self, answer: Any, name: str = "items") -> list[Any]:
        items = (answer or {}).get(name)
        if not isinstance(items, list):
            raise strange(self._where)
        return items

    def _count(self, answer: Any, name: str) -> int:
        count = (answer or {}).get(name)
        if type(count) is not int:
            raise strange(self._where)
        return count
