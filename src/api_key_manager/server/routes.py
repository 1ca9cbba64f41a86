"""Which routes there are, what each needs, and what it is called in metrics and traces."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from api_key_manager.server.exchange import Reply, Request, Steps
from api_key_manager.server.principal import Principal

__all__ = ["OTHER", "HotHandler", "OpenHandler", "Routes"]

OTHER: Final = "other"
"""Stands in metrics for every path that there is not, and for methods that no route takes: what
strangers type must not make new time series."""

HotHandler = Callable[[bytes, Principal], Steps[Reply]]
OpenHandler = Callable[[Request], Steps[Reply]]

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Routes:
    """Which paths and methods there are, and the scope that each needs.

    ``None`` as a scope means that everybody may.
    """

    def __init__(self) -> None:
        self.table: dict[str, dict[str, str | None]] = {}
        self.hot: dict[str, HotHandler] = {}
        self.open: dict[str, OpenHandler] = {}
        """Hot too, by every method; they let in for themselves. A path that ends in a slash stands
        for all below it."""
        self._patterns: list[tuple[re.Pattern[str], str, dict[str, str | None]]] = []

    def add(self, method: str, path: str, scope: str | None) -> None:
        """Note a route. ``{name}`` in a path stands for one segment."""
        known = self.table.get(path)
        if known is None:
            known = self.table[path] = {}
            if "{" in path:
                segments = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))
                self._patterns.append((re.compile(segments), path, known))
        known[method] = scope

    def find_open(self, path: str) -> OpenHandler | None:
        """The handler of a path that lets in for itself."""
        return self.open.get(path) or self.open.get(self._above(path))

    def _above(self, path: str) -> str:
        """The open route that stands for all below it, if that takes this path in; else nothing."""
        for route in self.open:
            if route[-1] == "/" and path.startswith(route):
                return route
        return ""

    def find(self, method: str, path: str) -> Mapping[str, str | None]:
        """The methods of a path with their scopes; empty when there is no such path."""
        known = self.table.get(path, {})
        if method in known:
            return known
        # A path may be both: POST /v1/keys/revoke, and GET of a key that is called "revoke".
        for pattern, _, methods in self._patterns:
            if pattern.fullmatch(path):
                known = {**methods, **known}
        return known

    def name(self, method: str, path: str) -> tuple[str, str]:
        """The method and the route as they were added, ``{name}`` and all; else :data:`OTHER`."""
        known = self.table.get(path)
        if known is not None and method in known:
            return method, path
        opened = path if path in self.open else self._above(path)
        if opened:
            return (method if method in _METHODS else OTHER), opened
        routes = [] if known is None else [path]
        for pattern, route, methods in self._patterns:
            if pattern.fullmatch(path):
                if method in methods:
                    return method, route
                routes.append(route)
        return OTHER, routes[0] if routes else OTHER

    def template(self, method: str, path: str) -> str | None:
        """The route alone; ``None`` when there is no such path."""
        route = self.name(method, path)[1]
        return None if route == OTHER else route
