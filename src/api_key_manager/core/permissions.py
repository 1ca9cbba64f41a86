"""Permission names, what a grant covers, and expressions over them.

A permission is dot-separated: ``documents.read``. In a grant or in an expression a segment may be
``*``: at the end it stands for one or more segments, elsewhere for exactly one. A lone ``*``
stands for everything.

An expression joins permissions by ``and``, ``or``, ``not`` (any case) and parentheses; ``not``
binds tightest, then ``and``. A permission in an expression is true when the key holds a grant
that meets it: ``documents.read`` is met by the grants ``documents.read`` and ``documents.*``, and
``documents.*`` by any grant below ``documents``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from api_key_manager.core.exceptions import ValidationError

__all__ = ["Expression", "check_grants", "compile_expression", "covers", "meets"]

MAX_EXPRESSION = 1024
MAX_DEPTH = 16
MAX_GRANTS = 256

Expression = Callable[[tuple[str, ...]], bool]
"""Takes a key's grants, says whether they suffice."""

_SEGMENT = r"(?:\*|[A-Za-z0-9_:-]+)"
_PERMISSION = rf"{_SEGMENT}(?:\.{_SEGMENT})*"
_is_permission = re.compile(_PERMISSION).fullmatch
_tokenize = re.compile(rf"\s*(?:(?P<paren>[()])|(?P<word>{_PERMISSION}))").match
_MAX_PERMISSION = 128
_OPERATORS = {"and", "or", "not"}


def check_grants(grants: object, field: str = "permissions") -> tuple[str, ...]:
    """A clean, ordered tuple of grants.

    Raises:
        ValidationError: no list, too many, or one that is no permission.
    """
    if not isinstance(grants, (list, tuple)) or len(grants) > MAX_GRANTS:
        raise ValidationError(f"{field}: a list of at most {MAX_GRANTS} permissions is allowed")
    for grant in grants:
        _check_permission(grant, field)
    return tuple(dict.fromkeys(grants))


def _check_permission(text: object, field: str) -> str:
    if (
        type(text) is not str
        or len(text) > _MAX_PERMISSION
        or not _is_permission(text)
        or text.lower() in _OPERATORS
    ):
        raise ValidationError(
            f"{field}: a permission is at most {_MAX_PERMISSION} of A-Z a-z 0-9 _ : - in"
            " segments joined by dots, a segment may be *; and, or, not are taken"
        )
    return text


@lru_cache(maxsize=4096)
def meets(grant: str, wanted: str) -> bool:
    """Whether some permission is matched by both patterns."""
    held, asked = grant.split("."), wanted.split(".")
    for i, (a, b) in enumerate(zip(held, asked, strict=False)):
        # A final * takes all that is left, at least one segment, of the other side.
        if (a == "*" and i == len(held) - 1) or (b == "*" and i == len(asked) - 1):
            return True
        if a != b and a != "*" and b != "*":
            return False
    return len(held) == len(asked)


def covers(grants: Sequence[str], wanted: str) -> bool:
    """Whether one grant alone allows everything that ``wanted`` stands for."""
    return any(_covers(grant.split("."), wanted.split(".")) for grant in grants)


def _covers(held: list[str], asked: list[str]) -> bool:
    for i, a in enumerate(held):
        if i >= len(asked):
            return False
        if a == "*" and i == len(held) - 1:
            return True
        open_end = asked[i] == "*" and i == len(asked) - 1
        if (a != "*" and a != asked[i]) or open_end:
            return False
    return len(held) == len(asked)


def compile_expression(wanted: object) -> Expression:
    """Make the test that a key's grants must pass.

    Args:
        wanted: an expression, or a list of permissions that are all needed.

    Raises:
        ValidationError: it cannot be read, or is longer or deeper than allowed.
    """
    if type(wanted) is str:
        return _compile(wanted)
    if isinstance(wanted, (list, tuple)):
        return _all_of(check_grants(wanted))
    raise ValidationError("permissions: an expression or a list of permissions is allowed")


@lru_cache(maxsize=1024)
def _all_of(wanted: tuple[str, ...]) -> Expression:
    return lambda grants: all(_any_meets(grants, one) for one in wanted)


def _any_meets(grants: Iterable[str], wanted: str) -> bool:
    return any(meets(grant, wanted) for grant in grants)


@lru_cache(maxsize=1024)
def _compile(text: str) -> Expression:
    if len(text) > MAX_EXPRESSION:
        raise ValidationError(f"permissions: an expression has at most {MAX_EXPRESSION} characters")
    return _Parser(text).parse()


class _Parser:
    """Recursive descent: ``or`` over ``and`` over ``not`` over a permission or parentheses."""

    def __init__(self, text: str) -> None:
        self._tokens = list(self._split(text))
        self._at = 0

    @staticmethod
    def _split(text: str) -> Iterable[str]:
        at, end = 0, len(text.rstrip())
        while at < end:
            found = _tokenize(text, at, end)
            if found is None:
                raise ValidationError(f"permissions: the expression cannot be read at column {at}")
            word = found["word"]
            if word is not None and word.lower() in _OPERATORS:
                yield word.lower()
            else:
                yield found["paren"] or _check_permission(word, "permissions")
            at = found.end()

    def parse(self) -> Expression:
        whole = self._or(0)
        if self._at < len(self._tokens):
            raise ValidationError(
                f"permissions: {self._tokens[self._at]!r} is not expected where it stands"
            )
        return whole

    def _take(self, token: str) -> bool:
        found = self._at < len(self._tokens) and self._tokens[self._at] == token
        self._at += found
        return found

    def _or(self, depth: int) -> Expression:
        parts = [self._and(depth)]
        while self._take("or"):
            parts.append(self._and(depth))
        return parts[0] if len(parts) == 1 else lambda grants: any(p(grants) for p in parts)

    def _and(self, depth: int) -> Expression:
        parts = [self._not(depth)]
        while self._take("and"):
            parts.append(self._not(depth))
        return parts[0] if len(parts) == 1 else lambda grants: all(p(grants) for p in parts)

    def _not(self, depth: int) -> Expression:
        if depth > MAX_DEPTH:
            raise ValidationError(f"permissions: an expression nests at most {MAX_DEPTH} deep")
        if self._take("not"):
            inner = self._not(depth + 1)
            return lambda grants: not inner(grants)
        if self._take("("):
            inner = self._or(depth + 1)
            if not self._take(")"):
                raise ValidationError("permissions: a closing parenthesis is missing")
            return inner
        if self._at >= len(self._tokens) or self._tokens[self._at] in _OPERATORS | {")"}:
            raise ValidationError("permissions: the expression ends where a permission is expected")
        wanted = self._tokens[self._at]
        self._at += 1
        return lambda grants: _any_meets(grants, wanted)
