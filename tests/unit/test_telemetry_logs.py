"""Log lines: their form, and that foreign exceptions say nothing in them."""

from __future__ import annotations

import contextvars
import datetime
import json
import logging
import sys
from typing import Any

import pytest

from api_key_manager.core import StorageError
from api_key_manager.core.tokens import checksum, holds_a_secret
from api_key_manager.telemetry.logs import formatter, request_id


def record(message: str = "hello %s", *arguments: Any, **more: Any) -> logging.LogRecord:
    logger = logging.getLogger("akm.test")
    level = more.pop("level", logging.WARNING)
    return logger.makeRecord(
        "akm.test", level, __file__, 1, message, arguments, more.pop("exc_info", None),
        extra=more,
    )  # fmt: skip


def line(made: logging.LogRecord, *, debug: bool = False) -> dict[str, str]:
    text = formatter("json", debug=debug).format(made)
    assert "\n" not in text
    assert text.isascii()
    found: dict[str, str] = json.loads(text)
    return found


def caught(error: BaseException, cause_says: str = "CANARY-IN-CAUSE") -> Any:
    try:
        try:
            raise KeyError(cause_says)
        except KeyError as cause:
            raise error from cause
    except type(error):
        return sys.exc_info()


def test_json():
    """Time with offset, level, logger, message; nothing that is not known."""
    made = record("hello %s", "wörld\n{}")
    told = line(made)
    assert told.keys() == {"time", "level", "logger", "message"}
    at = datetime.datetime.fromisoformat(told["time"])
    assert at.utcoffset() == datetime.timedelta(0)
    assert at.timestamp() == pytest.approx(made.created, abs=1e-5)
    assert (told["level"], told["logger"]) == ("WARNING", "akm.test")
    assert told["message"] == "hello wörld\n{}"


def test_request_id():
    """That of the current task; the record's own goes first."""

    def inside() -> None:
        request_id.set("of-the-task")
        assert line(record("x"))["request_id"] == "of-the-task"
        assert line(record("x", request_id="its-own"))["request_id"] == "its-own"

    contextvars.copy_context().run(inside)
    assert "request_id" not in line(record("x"))


@pytest.mark.parametrize("style", ["text", "json"])
@pytest.mark.parametrize("debug", [False, True])
def test_foreign_exceptions_say_nothing(style, debug):
    """What a foreign exception says may quote a caller: only its type and place are told."""
    made = record("it failed", exc_info=caught(ValueError("CANARY-IN-ERROR")))
    # As another handler's formatter would leave it behind.
    made.exc_text = "CANARY-OF-ANOTHER-HANDLER"
    text = formatter(style, debug=debug).format(made)
    assert "CANARY" not in text
    assert "ValueError" in text
    assert "test_telemetry_logs.py" in text
    assert ("Traceback" in text) is debug
    assert ("KeyError" in text) is debug


def test_own_exceptions_speak():
    """The messages of this package's errors are made to be shown."""
    told = line(record("it failed", exc_info=caught(StorageError("disk full"))))["exception"]
    assert told.startswith("api_key_manager.core.exceptions.StorageError: disk full at ")


def test_no_exception():
    """`exc_info=True` outside a handler is no reason to fail."""
    made = record("x", exc_info=(None, None, None))
    assert line(made).get("exception", "") == ""
    assert formatter("text", debug=True).format(made)


def test_endless_chain():
    """Exceptions that cause each other in a circle end somewhere."""
    one, other = ValueError(), TypeError()
    one.__cause__, other.__cause__ = other, one
    told = line(record("x", exc_info=(ValueError, one, None)), debug=True)["exception"]
    assert told.count("ValueError") == told.count("TypeError") == 1


def test_text():
    """When, how bad, who, what, and for which request; on one line whatever the message holds."""
    made = record("hello %s", "yöu\n2026 ERROR forged", request_id="r-1")
    text = formatter("text", debug=False).format(made)
    assert text.endswith(" WARNING akm.test: hello yöu\\n2026 ERROR forged request_id=r-1")
    assert "request_id" not in formatter("text", debug=False).format(record("x"))


@pytest.mark.parametrize("style", ["text", "json"])
@pytest.mark.parametrize("prefix", ["akm_someid", "akm_admin_x1", "acme_secret"])
def test_no_minted_secret(style, prefix):
    """Not even where another package logs what it was given."""
    body = f"{prefix}_" + "Zk3" * 10
    secret = body + checksum(body)
    assert holds_a_secret(secret)
    text = formatter(style, debug=True).format(record("GET /v1/keys/%s", secret))
    assert body not in text
    assert "withheld" in text
