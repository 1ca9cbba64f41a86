"""What a key must hold for which request: ``AUTHORIZE_RULES``, a TOML file.

::

    default = "deny"                  # or "allow": any valid key may do what no rule names

    [[rules]]
    methods = ["GET"]                 # left out: every method; GET takes HEAD along
    path = "/documents/**"
    permissions = "documents.read"    # left out: any valid key
    cost = 1

The first rule that fits counts. In a path ``*`` is one segment, ``**`` at the end the path before
it and all below; a slash at the end makes no difference.

Services read paths differently. One decodes twice, another merges slashes, a third drops what
follows a semicolon. So a path with more than one reading fits nothing and is refused
(:func:`plain_path`), and so is one for which it makes a difference whether upper and lower case do.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from api_key_manager.core.exceptions import ConfigurationError, ValidationError
from api_key_manager.core.limits import MAX_COST
from api_key_manager.core.permissions import compile_expression

__all__ = ["NEVER", "Rules", "Wanted", "load_rules", "plain_path"]

MAX_FILE: Final = 256 * 1024
MAX_RULES: Final = 500
MAX_PERMISSIONS: Final = 480
NEVER: Final = "never and not never"
"""An expression that no key meets."""

# RFC 3986's pchar without ";", which some services take for the start of a parameter.
_is_path = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,=:@-]|%[0-9A-Fa-f]{2})*)+").fullmatch
_unescape = re.compile(r"(?:%[0-9A-Fa-f]{2})+").sub
_is_plain_method = re.compile(r"[A-Z][A-Z_-]{0,31}").fullmatch
# Never needs an escape, or means something else without one.
_NOT_ESCAPED: Final = frozenset(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/\\;%?#"
)


class Wanted(NamedTuple):
    """What one request takes: permissions as an expression (``None``: any valid key), a cost."""

    permissions: str | None
    cost: int


class _Rule(NamedTuple):
    methods: frozenset[str] | None
    exact: re.Pattern[str]
    folded: re.Pattern[str]
    wanted: Wanted


_DENIED: Final = Wanted(NEVER, 1)
_ALLOWED: Final = Wanted(None, 1)


class Rules:
    """Ordered rules, and what holds where none fits."""

    def __init__(self, rules: Sequence[_Rule], otherwise: Wanted) -> None:
        self._rules = tuple(rules)
        self._otherwise = otherwise

    def wanted(self, method: str, path: str) -> Wanted:
        """What a request takes.

        Args:
            method: as it was sent.
            path: as it was sent, undecoded, without the query.
        """
        plain = plain_path(path)
        if plain is None or not _is_plain_method(method):
            return _DENIED
        folded = _fold(plain)
        exact = loose = self._otherwise
        for rule in reversed(self._rules):
            if rule.methods is None or method in rule.methods:
                if rule.exact.fullmatch(plain):
                    exact = rule.wanted
                if rule.folded.fullmatch(folded):
                    loose = rule.wanted
        return exact if exact == loose else _DENIED


def plain_path(path: str) -> str | None:
    """A path decoded, without the slash at its end; ``None`` when it could be read in two ways.

    That is one with an empty segment, one that ends in a dot or a space (``.`` and ``..`` too),
    a semicolon or backslash, an escape of what needs none (RFC 3986 section 6.2.2.2) or of a
    delimiter or control character, with octets that are no UTF-8, or with characters that only
    look like others.
    """
    if not _is_path(path):
        return None
    try:
        plain = _unescape(_decode, path)
    except ValueError:
        return None
    if "//" in plain or not (plain.isascii() or _is_one_text(plain)):
        return None
    if len(plain) > 1:
        plain = plain.removesuffix("/")
    if any(part[-1:] in (".", " ") or part[:1] == " " for part in plain.split("/")):
        return None
    return plain


def _decode(found: re.Match[str]) -> str:
    octets = bytes.fromhex(found[0].replace("%", ""))
    if not _NOT_ESCAPED.isdisjoint(octets) or not (text := octets.decode()).isprintable():
        raise ValueError
    return text


def _is_one_text(text: str) -> bool:
    """Whether no character stands for others, as a full-width letter does for the usual one."""
    return unicodedata.normalize("NFKC", text) == unicodedata.normalize("NFC", text)


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def load_rules(file: str) -> Rules:
    """Read the rules.

    Raises:
        ConfigurationError: one line that names the file, the rule and what is allowed.
    """
    try:
        with Path(file).open("rb") as stream:
            raw = stream.read(MAX_FILE + 1)
        if len(raw) > MAX_FILE:
            raise ValidationError(f"at most {MAX_FILE} bytes are allowed")
        return _read(tomllib.loads(raw.decode()))
    except OSError as error:
        told = error.strerror or "it cannot be read"
    except UnicodeDecodeError:
        told = "it is not UTF-8 text"
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        told = str(error)
    raise ConfigurationError(f"AUTHORIZE_RULES={file} cannot be used: {told}")


def _read(document: Mapping[str, Any]) -> Rules:
    _check_names("the file", document, {"default", "rules"})
    default = document.get("default")
    if default not in ("deny", "allow"):
        raise ValidationError('default: "deny" or "allow" is allowed, and one is needed')
    listed = document.get("rules", [])
    if not isinstance(listed, list) or len(listed) > MAX_RULES:
        raise ValidationError(f"rules: at most {MAX_RULES} tables, each [[rules]], are allowed")
    rules = [_read_rule(f"rule {number}", rule) for number, rule in enumerate(listed, 1)]
    return Rules(rules, _DENIED if default == "deny" else _ALLOWED)


def _read_rule(where: str, rule: Any) -> _Rule:
    if not isinstance(rule, dict):
        raise ValidationError(f"{where}: a table, [[rules]], is allowed")
    _check_names(where, rule, {"methods", "path", "permissions", "cost"})
    cost = rule.get("cost", 1)
    if type(cost) is not int or not 1 <= cost <= MAX_COST:
        raise ValidationError(f"{where}: cost: a whole number from 1 to {MAX_COST} is allowed")
    exact, folded = _read_path(where, rule.get("path"))
    wanted = Wanted(_read_permissions(where, rule.get("permissions")), cost)
    return _Rule(_read_methods(where, rule.get("methods")), exact, folded, wanted)


def _check_names(where: str, table: Mapping[str, Any], known: set[str]) -> None:
    for name in table:
        if name not in known:
            allowed = ", ".join(sorted(known))
            raise ValidationError(f"{where}: there is no {name[:64]!r}, only {allowed}")


def _read_methods(where: str, value: Any) -> frozenset[str] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(_is_method(item) for item in value):
        raise ValidationError(
            f'{where}: methods: a list like ["GET", "POST"], in upper case, is allowed'
        )
    # Services answer HEAD as they answer GET.
    return frozenset([*value, "HEAD"] if "GET" in value else value)


def _is_method(value: object) -> bool:
    return isinstance(value, str) and _is_plain_method(value) is not None


def _read_path(where: str, value: Any) -> tuple[re.Pattern[str], re.Pattern[str]]:
    plain = plain_path(value) if isinstance(value, str) else None
    if plain is None:
        raise ValidationError(
            f"{where}: path: a path like /documents/*/pages or /documents/** is allowed, without"
            " empty segments, query, semicolon, and escapes that are not needed"
        )
    below = plain.endswith("/**")
    segments = plain.removesuffix("/**").removeprefix("/").split("/") if plain != "/**" else []
    if any("*" in segment and segment != "*" for segment in segments):
        raise ValidationError(
            f"{where}: path: * stands for one whole segment, ** for the rest at the end"
        )
    tail = "(?:/.*)?" if below else ""

    def pattern(parts: list[str]) -> re.Pattern[str]:
        head = "".join("/[^/]+" if part == "*" else f"/{re.escape(part)}" for part in parts)
        return re.compile((head + tail) if segments != [""] else "/", re.DOTALL)

    return pattern(segments), pattern([_fold(segment) for segment in segments])


def _read_permissions(where: str, value: Any) -> str | None:
    if value is None:
        return None
    text = " and ".join(value) if _is_list_of_texts(value) else value
    try:
        compile_expression(value)
        if not isinstance(text, str) or not text or len(text) > MAX_PERMISSIONS:
            raise ValidationError(
                f"permissions: 1 to {MAX_PERMISSIONS} characters are allowed; leave it out for"
                " any valid key"
            )
    except ValidationError as error:
        raise ValidationError(f"{where}: {error}") from None
    return text


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
