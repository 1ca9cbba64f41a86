"""The public face: its names, its signatures, and that no object of it shows a secret."""

from __future__ import annotations

import base64
import inspect
from typing import Any

import pytest

import api_key_manager
from api_key_manager import core
from api_key_manager.core import AsyncAPIKeyValidator, KeyManager, Reason, sign, sign_request
from api_key_manager.core.memory import MemoryBox, MemoryStore
from api_key_manager.core.ports import Begun, Receipt
from api_key_manager.core.presented import present
from api_key_manager.core.records import open_record
from api_key_manager.core.signing import MacState
from api_key_manager.core.validator import AsyncAPIKeyValidator as Inner

CORE = {
    "APIKeyManagerException", "ApiKey", "AsyncAPIKeyValidator", "AuditEvent", "ConfigurationError",
    "ConflictError", "EncryptionError", "InvalidSignatureError", "KeyExistsError",
    "KeyExpiredError", "KeyManager", "KeyNotFoundError", "KeyRevokedError", "KeyVersion",
    "MemoryLimiter", "PermissionDeniedError", "RateLimit", "RateLimitExceededError", "Reason",
    "StorageError",
    "ValidationError", "VaultError", "Verdict", "sign", "sign_request",
}  # fmt: skip
PACKAGE = CORE | {"Settings", "VaultClient", "open_manager"}


@pytest.mark.parametrize(("module", "names"), [(core, CORE), (api_key_manager, PACKAGE)])
def test_names(module: Any, names: set[str]):
    """Exactly these names are public; each is there, and the list is sorted and without doubles."""
    assert set(module.__all__) == names
    assert module.__all__ == sorted(set(module.__all__))
    for name in names:
        assert getattr(module, name) is not None


def test_one_object_per_name():
    """A name means one object, wherever it is imported from."""
    assert api_key_manager.AsyncAPIKeyValidator is core.AsyncAPIKeyValidator is Inner
    for name in CORE:
        assert getattr(api_key_manager, name) is getattr(core, name)


def test_unknown_name():
    """A name that does not exist is an AttributeError, as for any module."""
    with pytest.raises(AttributeError, match="nonsense"):
        _ = api_key_manager.nonsense


def test_version_is_the_distributions():
    """`__version__` and the package metadata agree."""
    from importlib.metadata import version

    assert api_key_manager.__version__ == version("api-key-manager-pro")


PUBLISHED = {
    "create_key": ["key_id", "secret", "metadata"],
    "validate_key": ["key_id", "signature", "timestamp", "nonce"],
    "revoke_key": ["key_id"],
    "get_key": ["key_id"],
    "rotate_key": ["key_id", "overlap_seconds"],
    "batch_validate": ["validations"],
    "list_keys": ["active_only"],
    "get_audit_log": [],
}
PLAIN = {"list_keys", "get_audit_log", "get_stats", "verify_now"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_calls(name: str):
    """Published calls keep the names and the order of their arguments, and stay awaitable or
    plain as they were."""
    method = getattr(KeyManager, name)
    arguments = list(inspect.signature(method).parameters)[1:]
    assert arguments[: len(PUBLISHED[name])] == PUBLISHED[name]
    assert inspect.iscoroutinefunction(method) is (name not in PLAIN)


def test_public_calls_are_documented():
    """Every public method of the two classes says what it does."""
    for cls in (KeyManager, AsyncAPIKeyValidator):
        for name, member in inspect.getmembers(cls, callable):
            if not name.startswith("_") and member is not type:
                assert inspect.getdoc(member), f"{cls.__name__}.{name}"


async def test_validator_lends_its_rules(clock):
    """The manager judges by the window, skew, static switch and clock of its validator."""
    validator = AsyncAPIKeyValidator(5, 0, allow_static_signatures=False, clock=clock)
    manager = KeyManager(validator)
    secret = (await manager.create_key("k"))["secret"]
    stamp = clock.seconds
    assert (await manager.verify("k", sign(secret, "k"))).reason is Reason.WEAK_SCHEME
    assert await manager.verify("k", sign(secret, "k", stamp), stamp)
    for offset, reason in ((-1, Reason.FUTURE_TIMESTAMP), (301, Reason.STALE_TIMESTAMP)):
        clock.now = stamp + offset
        assert (await manager.verify("k", sign(secret, "k", stamp), stamp)).reason is reason


SECRET = "the-secret-that-nobody-may-see"
SIGNATURE = sign(SECRET, "client", 1_760_000_000)


async def holders(clock) -> dict[str, Any]:
    """Every kind of object that holds a secret, a token or a signature somewhere inside."""
    manager = KeyManager(AsyncAPIKeyValidator(clock=clock))
    await manager.create_key("client", SECRET)
    bearer = await manager.create_key("app", kind="bearer")
    token = bearer["token"]
    stamp = clock.seconds
    request = present(
        request={
            "method": "GET", "url": "https://a/",
            "headers": sign_request(
                SECRET, "client", "GET", "https://a/", created=stamp, nonce="n" * 16
            ),
        }
    )  # fmt: skip
    assert not request.malformed
    signed = present("client", SIGNATURE, stamp, ip="192.0.2.1")
    verdict = await manager.verify("client", SIGNATURE, stamp)
    await manager.verify(token=token)
    await manager.validator.validate("client", SIGNATURE, SECRET, stamp)
    record, app = await manager.store.load(["client", "app"])
    sealed = manager.box.seal("answer", "client", 1, SECRET.encode())
    opened = open_record(app, manager.box)
    assert verdict
    return {
        "token": token, "digest": app.versions[0].digest, "sealed": sealed,
        "manager": manager, "manager's parts": list(vars(manager).values()),
        "validator": manager.validator, "validator's cache": manager.validator._cache,
        "presented request": request, "its inside": request.request,
        "presented signature": signed, "presented token": present(token=token),
        "record": record, "bearer record": app, "version": record.versions,
        "open key": open_record(record, manager.box), "open bearer key": opened,
        "open version": opened.versions, "verdict": verdict, "verdict's dict": str(verdict),
        "mac state": MacState(SECRET.encode()), "box": MemoryBox(), "store": MemoryStore(),
        "receipt": Receipt("scope", "key", b"print", sealed, 5), "begun": Begun("answered", sealed),
        "cache": manager.cache, "events": await manager.find_audit(),
    }  # fmt: skip


async def test_repr_shows_no_secret(clock):
    """No `repr` of anything that holds a secret, a token or a signature shows a part of it."""
    held = await holders(clock)
    token, digest, sealed = held.pop("token"), held.pop("digest"), held.pop("sealed")
    mac, request = bytes.fromhex(SIGNATURE), held["its inside"].signature
    hidden = [
        SECRET, SIGNATURE, SIGNATURE[:16], token, token[-36:], repr(mac)[2:-1], repr(mac[:8])[2:-1],
        repr(request[:8])[2:-1], base64.b64encode(request).decode()[:16],
        repr(digest[:8])[2:-1], digest.hex(), repr(sealed[:8])[2:-1],
    ]  # fmt: skip
    leaks = [
        name for name, value in held.items() if any(part in f"{value!r} {value}" for part in hidden)
    ]
    assert leaks == []
