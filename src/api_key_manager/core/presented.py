"""What a caller presents, read and bounded before anything is looked up.

Whatever the values are, nothing here raises: what cannot be a credential is ``malformed``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from api_key_manager.core.addresses import Address, parse_address
from api_key_manager.core.exceptions import ValidationError
from api_key_manager.core.http_signatures import SignedRequest, named_key, read_request
from api_key_manager.core.limits import MAX_COST
from api_key_manager.core.models import KEY_REALM
from api_key_manager.core.permissions import Expression, compile_expression
from api_key_manager.core.signing import is_nonce, is_timestamp, parse_signature
from api_key_manager.core.tokens import ends_like_a_secret, is_key_id, parse_token

__all__ = ["Presented", "present", "present_item", "why_malformed"]


class Presented(NamedTuple):
    """One credential and its circumstances. Its ``repr`` shows the id only.

    Of a ``malformed`` one only the id, if that can be an id, and what the audit log wants are set.
    """

    key_id: str
    signature: bytes | None = None
    timestamp: int | None = None
    nonce: str | None = None
    token: bytes | None = None
    prefix: str | None = None
    address: Address | None = None
    wanted: Expression | None = None
    realm: str = KEY_REALM
    # For the audit log only.
    ip: str | None = None
    request_id: str | None = None
    tags: tuple[str, ...] = ()
    actor: str | None = None
    malformed: bool = False
    request: SignedRequest | None = None
    cost: int = 1
    shown: bool = True
    """Whether there was anything at all."""
    within: str | None = None
    """The only environment whose keys there are for who asks on the caller's behalf."""

    def __repr__(self) -> str:
        return f"Presented({self.key_id!r})"


def present(
    key_id: Any = None,
    signature: Any = None,
    timestamp: Any = None,
    nonce: Any = None,
    *,
    token: Any = None,
    request: Any = None,
    ip: str | None = None,
    permissions: Any = None,
    realm: str = KEY_REALM,
    request_id: str | None = None,
    tags: tuple[str, ...] = (),
    actor: str | None = None,
    cost: Any = None,
    within: str | None = None,
) -> Presented:
    """Read what a caller presents. What cannot be read is ``malformed``.

    Args:
        key_id, signature: of a signed request, with ``timestamp`` (Unix seconds) and ``nonce``.
        token: a bearer token, instead of all four.
        request: a signed HTTP request, instead of all five: see
            :func:`api_key_manager.core.http_signatures.read_request`.
        ip: the caller's address, as text.
        permissions: an expression or a list, see :mod:`api_key_manager.core.permissions`.
        realm: whose keys are meant.
        cost: how many requests this one counts for in the key's rate limits, 1 to 1,000,000; 1
            when left out.
        within: the only environment whose keys are meant, if there is one.
        request_id, tags, actor: for the audit log; ``actor`` is who asks on the caller's behalf.
    """
    address = wanted = prefix = mac = raw = read = None
    good = shown = True
    if ip is not None:
        address = parse_address(ip) if type(ip) is str and len(ip) <= 45 else None
        if address is None:
            good, ip = False, None
    if permissions is not None:
        try:
            wanted = compile_expression(permissions)
        except ValidationError:
            good = False
    if cost is None:
        cost = 1
    elif type(cost) is not int or not 1 <= cost <= MAX_COST:
        good = False
    if request is not None:
        alone = key_id is signature is timestamp is nonce is token is None
        read = read_request(request) if alone else None
        if read is not None:
            key_id, timestamp, nonce, mac = read.key_id, read.created, read.nonce, read.signature
        else:
            good, key_id = False, named_key(request) if key_id is None else key_id
    elif token is not None:
        parsed = parse_token(token)
        if parsed is None or not key_id is signature is timestamp is nonce is None:
            good = False
        else:
            raw, key_id, prefix = token.encode("ascii"), parsed.key_id, parsed.prefix
    else:
        shown = not key_id is signature is timestamp is nonce is None
        mac = parse_signature(signature)
        if mac is None or not _can_be_signed(timestamp, nonce):
            good = False
    if (
        type(key_id) is not str
        or not is_key_id(key_id)
        or (len(key_id) > 36 and ends_like_a_secret(key_id))
    ):
        good, key_id = False, ""
    if good:
        return Presented(
            key_id, mac, timestamp, nonce, raw, prefix,
            address, wanted, realm, ip, request_id, tags, actor, False, read, cost,
            within=within,
        )  # fmt: skip
    return Presented(
        key_id, realm=realm, ip=ip, request_id=request_id, tags=tags, actor=actor, malformed=True,
        shown=shown, within=within,
    )  # fmt: skip


def _can_be_signed(timestamp: Any, nonce: Any) -> bool:
    if timestamp is None:
        return nonce is None
    if nonce is not None and (type(nonce) is not str or not is_nonce(nonce)):
        return False
    return is_timestamp(timestamp)


def present_item(item: Any, within: str | None = None) -> Presented:
    """Read one item of a library user's batch: a mapping of :func:`present`'s arguments."""
    if not isinstance(item, Mapping):
        return present(actor="library", within=within)
    known = {"key_id", "key", "signature", "timestamp", "nonce", "token", "request", "ip",
             "permissions", "cost"}  # fmt: skip
    key_id = item.get("key_id", item.get("key"))
    if not item.keys() <= known:
        return present(key_id, actor="library", within=within)
    return present(
        key_id, item.get("signature"), item.get("timestamp"), item.get("nonce"),
        token=item.get("token"), request=item.get("request"), ip=item.get("ip"),
        permissions=item.get("permissions"), cost=item.get("cost"), actor="library",
        within=within,
    )  # fmt: skip


def why_malformed(
    key_id: object, signature: object, timestamp: object = None, nonce: object = None
) -> str:
    """Which value of a signed credential cannot be used, and what is allowed; never the value."""
    if type(key_id) is not str or not is_key_id(key_id):
        return "key: 1 to 128 characters of A-Z a-z 0-9 . _ : - are allowed"
    if parse_signature(signature) is None:
        return "signature: 64 hex digits are allowed"
    if timestamp is not None and not is_timestamp(timestamp):
        return "timestamp: whole Unix seconds are allowed"
    if nonce is not None and timestamp is None:
        return "nonce: it needs a timestamp"
    if nonce is not None and (type(nonce) is not str or not is_nonce(nonce)):
        return "nonce: 16 to 128 characters of A-Z a-z 0-9 _ - are allowed"
    return "the credential is malformed"
