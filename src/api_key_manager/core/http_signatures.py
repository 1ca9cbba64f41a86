"""Signed HTTP requests (RFC 9421) in one narrow profile, read and written without I/O or clock.

The rules, all of them needed:

- covered, each once, in any order, without component parameters: ``@method``, ``@authority``,
  ``@path``, ``@query``, ``content-digest``;
- signature parameters, each once, in any order, and no others: ``created``, ``nonce``, ``keyid``,
  ``alg="hmac-sha256"``, ``tag="akm"``;
- one signature, its label the same in ``Signature-Input`` and ``Signature``, each header once;
- canonical serialisation (RFC 8941 section 4.1) only. What follows ``label=`` is then byte for
  byte the value of ``@signature-params``, and nothing has to be written anew to be checked;
- ``Content-Digest`` (RFC 9530) is one ``sha-256``, also for an empty body. RFC 9530 lets a
  recipient choose among digests; a second one would let two readers check two different things.

What was signed is what was sent: no percent-encoding is decoded and no dot segment removed. Only
what RFC 9421 section 2.2 says is brought into one form: the authority is lower-cased and loses the
default port of its scheme, an empty path is ``/``, and no query is ``?``.

Left to others: whether the MAC is right, the window, the nonce (:mod:`.policy` and the caller).
"""

from __future__ import annotations

import hashlib
import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from api_key_manager.core.exceptions import ValidationError
from api_key_manager.core.signing import is_nonce, is_timestamp, mac, matches, parse_signature
from api_key_manager.core.tokens import check_key_id, secret_bytes

__all__ = [
    "COVERED",
    "MAX_URL",
    "SignedRequest",
    "named_key",
    "read_request",
    "read_target",
    "sign_request",
    "signature_base",
]

COVERED = ("@method", "@authority", "@path", "@query", "content-digest")
"""The covered components, in the order in which :func:`sign_request` writes them."""

MAX_URL = 8192

# More than the longest that the grammar below can take, so that nothing longer is even looked at.
_LONGEST = {"signature-input": 640, "signature": 128, "content-digest": 64}
_FIELDS = {"method", "url", "headers", "body_sha256"}

_LABEL = r"[a-z*][a-z0-9_.*-]{0,63}"
# 32 bytes in base64: the last digit before the padding carries two bits that must be zero.
_BYTES = r":([A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=):"
_COMPONENT = r'"[@a-z-]{5,14}"'
_KEYID = r'keyid="([A-Za-z0-9._:-]{1,128})"'
_PARAMETER = (
    r";(?:created=(?:0|[1-9][0-9]{0,11})"
    r'|nonce="[A-Za-z0-9_-]{16,128}"'
    r'|keyid="[A-Za-z0-9._:-]{1,128}"'
    r'|alg="hmac-sha256"'
    r'|tag="akm")'
)
_read_input = re.compile(
    rf"({_LABEL})=(\(({_COMPONENT}(?: {_COMPONENT}){{4}})\)((?:{_PARAMETER}){{5}}))"
).fullmatch
_read_signature = re.compile(rf"({_LABEL})={_BYTES}").fullmatch
_read_digest = re.compile(rf"sha-256={_BYTES}").fullmatch
_find_keyid = re.compile(rf";{_KEYID}(?![^;])").findall
_breaks = re.compile(r"[\r\n\0]").search
_is_method = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,32}").fullmatch
# Path and query: any visible ASCII but what ends them. A fragment is never sent, user information
# never signed: both are refused rather than dropped.
_read_url = re.compile(
    r"(?P<scheme>[Hh][Tt][Tt][Pp][Ss]?)://"
    r"(?P<host>[A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::(?P<port>[1-9][0-9]{0,4}))?"
    r"(?P<path>/[!-\"$->@-~]*)?(?P<query>\?[!-\"$-~]*)?"
).fullmatch
_DEFAULT_PORTS = {"http": "80", "https": "443"}


class SignedRequest(NamedTuple):
    """What a well-formed signed request says. Nothing of it is proved yet.

    ``body_matches``: whether the body's hash is that of ``content-digest``; ``None`` when no hash
    was given. Its ``repr`` shows the id only.
    """

    key_id: str
    created: int
    nonce: str
    signature: bytes
    message: bytes
    body_matches: bool | None

    def __repr__(self) -> str:
        return f"SignedRequest({self.key_id!r})"


class Target(NamedTuple):
    """The three components that a URL gives."""

    authority: str
    path: str
    query: str


def read_target(url: object) -> Target | None:
    """The components of an absolute ``http`` or ``https`` URL (RFC 9421 sections 2.2.3, 2.2.6 and
    2.2.7), or ``None``."""
    if type(url) is not str or len(url) > MAX_URL:
        return None
    found = _read_url(url)
    if found is None:
        return None
    scheme, host, port, path, query = found.groups()
    if port is not None and int(port) > 65535:
        return None
    authority = host.lower()
    if port is not None and port != _DEFAULT_PORTS[scheme.lower()]:
        authority = f"{authority}:{port}"
    return Target(authority, path or "/", query or "?")


def signature_base(components: Iterable[tuple[str, str]], parameters: str) -> bytes:
    """The bytes that are signed (RFC 9421 section 2.5).

    Args:
        components: names and values in the order of the signature; values without line ends.
        parameters: the value of ``@signature-params``.
    """
    lines = [f'"{name}": {value}' for name, value in components]
    return "\n".join([*lines, f'"@signature-params": {parameters}']).encode("ascii")


def read_request(request: Any) -> SignedRequest | None:
    """Read a signed request; ``None`` when anything of it is not as the profile has it.

    Args:
        request: a mapping of ``method``, ``url`` (absolute, as the client sent it), ``headers``
            (a mapping of names to a text or a list of texts, or pairs) and, where the body is
            known, ``body_sha256`` (64 hex digits).
    """
    if not isinstance(request, Mapping) or not request.keys() <= _FIELDS:
        return None
    method, target = request.get("method"), read_target(request.get("url"))
    fields = _fields(request.get("headers"))
    if fields is None or target is None or type(method) is not str or not _is_method(method):
        return None
    digest = _read_digest(fields["content-digest"])
    signature = _read_signature(fields["signature"])
    given = _read_input(fields["signature-input"])
    if digest is None or signature is None or given is None or given[1] != signature[1]:
        return None
    covered = given[3].replace('"', "").split(" ")
    # No value holds a ";" or a "=": the patterns see to that.
    parameters = dict(part.split("=") for part in given[4][1:].split(";"))
    created = int(parameters.get("created", -1))
    # Five parts of five allowed names: five different ones are all of them, each once.
    if sorted(covered) != sorted(COVERED) or len(parameters) != 5 or not is_timestamp(created):
        return None
    body_matches = None
    if request.get("body_sha256") is not None:
        body = parse_signature(request["body_sha256"])
        if body is None:
            return None
        body_matches = matches(body, a2b_base64(digest[1]))
    values = dict(zip(COVERED, (method, *target, fields["content-digest"]), strict=True))
    return SignedRequest(
        parameters["keyid"].strip('"'),
        created,
        parameters["nonce"].strip('"'),
        a2b_base64(signature[2]),
        signature_base([(name, values[name]) for name in covered], given[2]),
        body_matches,
    )


def named_key(request: Any) -> str | None:
    """The key id that an unreadable request names, if it names exactly one; for the audit log."""
    headers = request.get("headers") if isinstance(request, Mapping) else None
    named = {
        key_id
        for name, value in _lines(headers)
        if name.lower() == "signature-input" and len(value) <= _LONGEST["signature-input"]
        for key_id in _find_keyid(value)
    }
    return named.pop() if len(named) == 1 else None


def _fields(headers: Any) -> dict[str, str] | None:
    """The three headers that count, by lower-case name; ``None`` unless each is there once."""
    found: dict[str, str] = {}
    for name, value in _lines(headers):
        # In any header: a folded line, or what somebody got past a reader of lines before us.
        if _breaks(name) or _breaks(value):
            return None
        known = name.strip().lower()
        if known not in _LONGEST:
            continue
        # "Signature " is one header to some readers and another one to others.
        if known in found or len(name) != len(known) or len(value) > _LONGEST[known]:
            return None
        found[known] = value
    return found if len(found) == len(_LONGEST) else None


def _lines(headers: Any) -> list[tuple[str, str]]:
    """Every header line as a pair; none at all when something is neither text nor a list of it."""
    lines: list[tuple[str, str]] = []
    try:
        for name, value in headers.items() if isinstance(headers, Mapping) else headers:
            for text in value if isinstance(value, (list, tuple)) else (value,):
                if type(name) is not str or type(text) is not str:
                    return []
                lines.append((name, text))
    except (TypeError, ValueError):  # no pairs, or nothing to go through
        return []
    return lines


def sign_request(
    secret: str,
    key_id: str,
    method: str,
    url: str,
    body: bytes = b"",
    *,
    created: int,
    nonce: str,
) -> dict[str, str]:
    """Sign an HTTP request as a client does.

    Args:
        secret: the secret as it was shown at creation.
        key_id: the key's id.
        method: as it is sent; upper and lower case differ.
        url: absolute, ``http`` or ``https``, exactly as it is sent, without user or fragment.
        body: the content as it is sent, after any compression.
        created: Unix seconds.
        nonce: 16 to 128 of ``A-Z a-z 0-9 _ -``, used once.

    Returns:
        ``Content-Digest``, ``Signature-Input`` and ``Signature``: the headers to send, in place of
        any of these names.

    Raises:
        ValidationError: an argument that cannot be signed; the message names it.
    """
    key = secret_bytes(secret)
    target = read_target(url)
    check_key_id(key_id)
    if key is None:
        raise ValidationError("secret: text of 1 to 1024 bytes is allowed")
    if type(method) is not str or not _is_method(method):
        raise ValidationError("method: 1 to 32 characters of an HTTP method are allowed")
    if target is None:
        raise ValidationError(
            f"url: an absolute http or https URL of at most {MAX_URL} visible ASCII characters,"
            " without user or fragment, is allowed"
        )
    if not is_timestamp(created):
        raise ValidationError("created: whole Unix seconds up to the year 9999 are allowed")
    if type(nonce) is not str or not is_nonce(nonce):
        raise ValidationError("nonce: 16 to 128 characters of A-Z a-z 0-9 _ - are allowed")
    digest = f"sha-256={_byte_sequence(hashlib.sha256(body).digest())}"
    covered = " ".join(f'"{name}"' for name in COVERED)
    parameters = (
        f'({covered});created={created};nonce="{nonce}";keyid="{key_id}"'
        ';alg="hmac-sha256";tag="akm"'
    )
    values = zip(COVERED, (method, *target, digest), strict=True)
    signature = mac(key, signature_base(values, parameters), "sha256")
    return {
        "Content-Digest": digest,
        "Signature-Input": f"akm={parameters}",
        "Signature": f"akm={_byte_sequence(signature)}",
    }


def _byte_sequence(value: bytes) -> str:
    return f":{b2a_base64(value, newline=False).decode()}:"
