"""Permission names, what a grant meets, and expressions over them.

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
from collections.abc import Callable, Iterable
from functools import lru_cache

from api_key_manager.core.exceptions import ValidationError

__all__ = ["Expression", "check_grants", "compile_expression", "meets"]

MAX_EXPRESSION = 1024
MAX_DEPTH = 16
MAX_NAMES = 64
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


class _Held:
    """A key's grants, made ready to be asked many times.

    An exact name is looked up in a set. Where a star is in play, a wish meets all grants at once:
    each grant is one bit, and each segment of the wish leaves the bits of those that it fits.
    """

    __slots__ = ("_any", "_ends", "_exact", "_grants", "_named", "_reach", "_stars")

    def __init__(self, grants: tuple[str, ...]) -> None:
        self._grants = grants
        self._exact = frozenset(grant for grant in grants if "*" not in grant)
        self._stars = any("*" in grant for grant in grants)
        # By position, made when first needed: who has a segment there; who takes any; who takes
        # which; and, by number of segments, who can be that long.
        self._reach: list[int] = []
        self._any: list[int] = []
        self._named: list[dict[str, int]] = []
        self._ends: list[int] = []

    def meets(self, wanted: str) -> bool:
        """Whether some permission is matched by ``wanted`` and by a grant."""
        if "*" not in wanted:
            if wanted in self._exact:
                return True
            if not self._stars:
                return False
        if not self._reach:
            self._spread()
        asked = wanted.split(".")
        # Past the longest grant only those with an open end are left.
        deepest = len(self._reach) - 1
        left = -1
        for i, segment in enumerate(asked):
            at = min(i, deepest)
            if segment == "*":
                left &= self._reach[at]
            else:
                left &= self._named[at].get(segment, self._any[at])
            if not left:
                return False
        return asked[-1] == "*" or bool(left & self._ends[min(len(asked), deepest + 1)])

    def _spread(self) -> None:
        split = [grant.split(".") for grant in self._grants]
        depth = max(map(len, split), default=0) + 1
        opened = [0] * (depth + 1)
        self._any, self._reach, self._ends = [0] * depth, [0] * depth, [0] * (depth + 1)
        self._named = [{} for _ in range(depth)]
        for number, held in enumerate(split):
            bit = 1 << number
            (opened if held[-1] == "*" else self._ends)[len(held)] |= bit
            for i, segment in enumerate(held):
                self._reach[i] |= bit
                if segment == "*":
                    self._any[i] |= bit
                else:
                    self._named[i][segment] = self._named[i].get(segment, 0) | bit
        still_open = 0
        for i in range(depth):
            self._any[i] |= still_open
            self._reach[i] |= still_open
            for segment in self._named[i]:
                self._named[i][segment] |= self._any[i]
            still_open |= opened[i + 1]
            self._ends[i + 1] |= still_open


_held = lru_cache(maxsize=256)(_Held)


def meets(grant: str, wanted: str) -> bool:
    """Whether some permission is matched by both patterns."""
    return _Held((grant,)).meets(wanted)


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


_Test = Callable[[_Held], bool]


@lru_cache(maxsize=1024)
def _all_of(wanted: tuple[str, ...]) -> Expression:
    return _over(lambda held: all(map(held.meets, wanted)))


def _over(test: _Test) -> Expression:
    # The grants are made ready once for the whole expression.
    return lambda grants: test(_held(grants))


@lru_cache(maxsize=1024)
def _compile(text: str) -> Expression:
    if len(text) > MAX_EXPRESSION:
        raise ValidationError(f"permissions: an expression has at most {MAX_EXPRESSION} characters")
    return _over(_Parser(text).parse())


class _Parser:
    """Recursive descent: ``or`` over ``and`` over ``not`` over a permission or parentheses."""

    def __init__(self, text: str) -> None:
        self._tokens = list(self._split(text))
        self._at = 0

    @staticmethod
    def _split(text: str) -> Iterable[str]:
        at, end, names = 0, len(text.rstrip()), 0
        while at < end:
            found = _tokenize(text, at, end)
            if found is None:
                raise ValidationError(f"permissions: the expression cannot be read at column {at}")
            word = found["word"]
            if word is not None and word.lower() in _OPERATORS:
                yield word.lower()
            elif word is None:
                yield found["paren"]
            else:
                names += 1
                if names > MAX_NAMES:
                    raise ValidationError(
                        f"permissions: an expression names at most {MAX_NAMES} permissions"
                    )
                yield _check_permission(word, "permissions")
            at = found.end()

    def parse(self) -> _Test:
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

    def _or(self, depth: int) -> _Test:
        parts = [self._and(depth)]
        while self._take("or"):
            parts.append(self._and(depth))
        return parts[0] if len(parts) == 1 else lambda held: any(p(held) for p in parts)

    def _and(self, depth: int) -> _Test:
        parts = [self._not(depth)]
        while self._take("and"):
            parts.append(self._not(depth))
        return parts[0] if len(parts) == 1 else lambda held: all(p(held) for p in parts)

    def _not(self, depth: int) -> _Test:
        if depth > MAX_DEPTH:
            raise ValidationError(f"permissions: an expression nests at most {MAX_DEPTH} deep")
        if self._take("not"):
            inner = self._not(depth + 1)
            return lambda held: not inner(held)
        if self._take("("):
            inner = self._or(depth + 1)
            if not self._take(")"):
                raise ValidationError("permissions: a closing parenthesis is missing")
            return inner
        if self._at >= len(self._tokens) or self._tokens[self._at] in _OPERATORS | {")"}:
            raise ValidationError("permissions: the expression ends where a permission is expected")
        wanted = self._tokens[self._at]
        self._at += 1
        return lambda held: held.meets(wanted)
