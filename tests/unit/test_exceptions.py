"""The error tree and the table: complete, consistent, and what the documentation says."""

from __future__ import annotations

import pickle
import re

import pytest

from api_key_manager.core import APIKeyManagerException, Reason, Verdict
from api_key_manager.core import exceptions as module
from api_key_manager.core.exceptions import OUTCOMES

CLASSES = {
    name: value
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, APIKeyManagerException)
}
# The public contract: reason -> exception, answer of /v1/authorize.
CONTRACT = {
    "malformed": ("ValidationError", 401),
    "not_found": ("KeyNotFoundError", 401),
    "bad_signature": ("InvalidSignatureError", 401),
    "weak_scheme": ("InvalidSignatureError", 401),
    "replayed": ("InvalidSignatureError", 401),
    "revoked": ("KeyRevokedError", 401),
    "disabled": ("KeyRevokedError", 401),
    "expired": ("KeyExpiredError", 401),
    "stale_timestamp": ("KeyExpiredError", 401),
    "future_timestamp": ("KeyExpiredError", 401),
    "ip_denied": ("PermissionDeniedError", 403),
    "forbidden": ("PermissionDeniedError", 403),
    "rate_limited": ("RateLimitExceededError", 429),
    "quota_exceeded": ("RateLimitExceededError", 429),
    "unavailable": ("StorageError", 503),
}


def test_table_is_the_contract():
    """Every reason has its exception and status, and only `valid` has none."""
    table = {str(reason): (o.exception.__name__, o.status) for reason, o in OUTCOMES.items()}
    assert table == CONTRACT
    assert {str(reason) for reason in Reason} - table.keys() == {"valid"}


@pytest.mark.parametrize("reason", OUTCOMES)
def test_verdict_gives_the_exception(reason: Reason):
    """A refusal's exception carries the slug, and a message fit to be shown."""
    error = Verdict(reason, "some-key").error()
    assert type(error) is OUTCOMES[reason].exception
    assert error.reason == reason.value
    assert type(error.reason) is str
    assert str(error) == OUTCOMES[reason].message
    assert "some-key" not in str(error)


def test_a_valid_verdict_has_no_error():
    """Asking an acceptance for its error is a mistake of the caller."""
    with pytest.raises(ValueError, match="valid"):
        Verdict(Reason.VALID).error()


def drawn_tree() -> dict[str, tuple[str, set[str]]]:
    """Class -> (parent, reasons), as drawn in the module's docstring."""
    tree, stack = {}, []
    for line in (module.__doc__ or "").splitlines():
        found = re.fullmatch(r" {4}([ │├└─]*)(\w+)(?: {2,}(.+))?", line)
        if found and found[2] in CLASSES:
            depth = len(found[1]) // 4
            del stack[depth:]
            reasons = set(found[3].split(", ")) if found[3] else set()
            tree[found[2]] = (stack[-1] if stack else "Exception", reasons)
            stack.append(found[2])
    return tree


def test_drawn_tree_is_the_real_one():
    """The docstring draws every class, under its parent, with its default reason."""
    tree = drawn_tree()
    assert tree.keys() == CLASSES.keys()
    for name, (parent, reasons) in tree.items():
        assert CLASSES[name].__bases__[0].__name__ == parent
        if reasons:
            assert CLASSES[name].default_reason in reasons


def test_drawn_reasons_are_the_tables():
    """The reasons beside each class are those that the table gives it."""
    tree = drawn_tree()
    for reason, outcome in OUTCOMES.items():
        assert reason in tree[outcome.exception.__name__][1]
    drawn = [reason for _, reasons in tree.values() for reason in reasons]
    assert len(drawn) == len(set(drawn))


@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
def test_exceptions(cls: type[APIKeyManagerException]):
    """Each is exported, has a slug, a message of its own, and survives pickling."""
    assert cls.__name__ in module.__all__
    plain = cls()
    assert re.fullmatch("[a-z_]+", plain.reason)
    assert str(plain)
    full = cls("something happened", reason="replayed")
    copy = pickle.loads(pickle.dumps(full))
    assert (type(copy), str(copy), copy.reason) == (cls, "something happened", "replayed")


def test_revoked_is_caught_as_not_found():
    """Code that handles a missing key handles a revoked one."""
    assert issubclass(CLASSES["KeyRevokedError"], CLASSES["KeyNotFoundError"])
