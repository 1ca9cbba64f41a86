"""When a call is sent again, how long it waits, and what it ends with: driven by hand, no clock
passes and nothing is sent.
"""

from __future__ import annotations

import pickle
import time
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_key_manager.client import (
    ApiError,
    NoAnswerError,
    RemoteVerdict,
    Retries,
    UnauthorizedError,
    exchange,
)
from api_key_manager.client.errors import error_of
from api_key_manager.client.exchange import Answer, Call, Lost, Repeat, Send, call
from api_key_manager.client.operations import Operations
from api_key_manager.client.paths import key_path, members
from api_key_manager.core import exceptions
from api_key_manager.core.exceptions import OUTCOMES, Reason, ValidationError
from api_key_manager.core.urls import check_url

WHERE = "https://keys.example"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return time.time()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(exchange, "time", clock)
    # The longest wait, so that it can be told.
    monkeypatch.setattr(exchange, "_random", SimpleNamespace(uniform=lambda low, high: high))
    return clock


def answer(status: int, problem: str = "{}", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, "Phrase", named, problem.encode())


REFUSED = Lost(OSError("refused"), "cannot be reached", sent=False)
BROKEN = Lost(OSError("reset"), "broke the connection off", sent=True)


def drive(operation: Any, outcomes: list[Any], clock: Clock) -> tuple[Any, list[Send], list[float]]:
    """Run an operation on what comes of each send; its end, what it sent, how long it waited."""
    sent: list[Send] = []
    waits: list[float] = []
    outcome = None
    while True:
        try:
            step = operation.send(outcome)
        except StopIteration as done:
            return done.value, sent, waits
        except Exception as error:
            return error, sent, waits
        if isinstance(step, Send):
            sent.append(step)
            outcome = outcomes[min(len(sent), len(outcomes)) - 1]
        else:
            waits.append(step)
            clock.now += step
            outcome = None


def attempts(asked: Call, outcome: Any, clock: Clock, **policy: Any) -> int:
    return len(drive(call(asked, Retries(**policy), WHERE), [outcome], clock)[1])


@pytest.mark.parametrize(
    ("outcome", "not_done", "refused", "any_"),
    [
        (REFUSED, 4, 4, 4),
        (BROKEN, 1, 1, 4),
        (answer(429), 4, 4, 4),
        (answer(429, retry_after="1"), 4, 4, 4),
        (answer(503, retry_after="1"), 1, 4, 4),
        (answer(503), 1, 1, 4),
        (answer(502), 1, 1, 4),
        (answer(504), 1, 1, 4),
        (answer(500), 1, 1, 1),
        (answer(401), 1, 1, 1),
        (answer(404), 1, 1, 1),
        (answer(409, '{"reason": "in_progress"}', retry_after="1"), 1, 1, 1),
        (answer(307), 1, 1, 1),
        (answer(200), 1, 1, 1),
    ],
    ids=str,
)
def test_what_is_sent_again(outcome: Any, not_done: int, refused: int, any_: int, clock: Clock):
    """Each outcome is tried again up to the doubt that the call bears, and no further."""
    for repeat, times in zip(Repeat, (not_done, refused, any_), strict=True):
        assert attempts(Call("GET", "/", repeat=repeat), outcome, clock) == times, repeat


def test_still_running(clock: Clock):
    """A first attempt that the server is still working on is waited for; other conflicts aren't."""
    asked = Call("POST", "/", {}, idempotency_key="k")
    running = answer(409, '{"reason": "in_progress"}', retry_after="1")
    value, sent, waits = drive(
        call(asked, Retries(), WHERE), [BROKEN, running, answer(201, '{"a": 1}')], clock
    )
    assert value == {"a": 1}
    assert waits == [0.2, 1.4]
    assert [send.headers["Idempotency-Key"] for send in sent] == ["k"] * 3
    assert attempts(asked, answer(409, '{"reason": "key_exists"}'), clock) == 1


def test_backoff(clock: Clock):
    """Waits double up to their bound."""
    policy = Retries(most=6, base_seconds=1, most_seconds=5, deadline_seconds=100)
    _, _, waits = drive(call(Call("GET", "/"), policy, WHERE), [REFUSED], clock)
    assert waits == [1, 2, 4, 5, 5, 5]


@given(st.integers(0, 2000), st.none() | st.floats(0, 100))
def test_jitter(attempt: int, asked: float | None):
    """A wait is never less than what the server asked for, and never endless."""
    policy = Retries(base_seconds=0.5, most_seconds=7)
    assert (asked or 0) <= policy.wait(attempt, asked) <= (asked or 0) + 7


def test_jitter_is_full():
    """Waits spread over the whole of the backoff."""
    waits = [Retries(base_seconds=1).wait(0, None) for _ in range(400)]
    assert min(waits) < 0.1
    assert max(waits) > 0.9


def test_deadline(clock: Clock):
    """No attempt begins after the deadline, and each is told what is left."""
    policy = Retries(most=100, base_seconds=4, most_seconds=4, deadline_seconds=10)
    value, sent, waits = drive(call(Call("GET", "/"), policy, WHERE), [REFUSED], clock)
    assert isinstance(value, NoAnswerError)
    assert [send.seconds for send in sent] == [10, 6, 2]
    assert sum(waits) < 10


@pytest.mark.parametrize("asked", ["11", "86400", "999999999"])
def test_server_that_asks_for_long(asked: str, clock: Clock):
    """Who is asked to wait longer than the bound is told so at once."""
    value, sent, _ = drive(
        call(Call("GET", "/"), Retries(), WHERE), [answer(429, retry_after=asked)], clock
    )
    assert isinstance(value, ApiError)
    assert value.retry_after == float(asked)
    assert len(sent) == 1


def test_retry_after():
    """Seconds or a date of HTTP; anything else is none."""
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    found = answer(503, retry_after=soon).retry_after
    assert found is not None
    assert 25 < found <= 30
    past = format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)
    assert answer(503, retry_after=past).retry_after == 0
    assert answer(503, retry_after="7").retry_after == 7
    for text in ("", "-1", "1.5", "1e3", "inf", "9" * 30, "²", "soon", "Wed, 99 Foo 2026 1:1:1"):
        assert answer(503, retry_after=text).retry_after is None, text


def test_no_answer(clock: Clock):
    """The error says whether the server may have done it: an early doubt is not forgotten."""
    for outcomes, processed in (([REFUSED], False), ([BROKEN], None), ([BROKEN, REFUSED], None)):
        error, _, _ = drive(call(Call("GET", "/"), Retries(), WHERE), outcomes, clock)
        assert isinstance(error, NoAnswerError)
        assert error.processed is processed
        assert error.reason == "no_answer"
        assert isinstance(error.__cause__, OSError)
        assert WHERE in str(error)


class TestErrors:
    @pytest.mark.parametrize("reason", [r for r in Reason if r in OUTCOMES])
    def test_reasons(self, reason: Reason):
        """A reason of the server is the core's exception of that reason, and an ApiError."""
        problem = {"reason": reason, "detail": "D", "field": "f", "request_id": "r"}
        error = error_of(409, problem, 3.0, "phrase")
        assert isinstance(error, OUTCOMES[reason].exception)
        assert isinstance(error, ApiError)
        assert (str(error), error.reason, error.status) == ("D", reason, 409)
        assert (error.field, error.request_id, error.retry_after) == ("f", "r", 3.0)

    @pytest.mark.parametrize(
        ("reason", "kind"),
        [
            ("key_exists", exceptions.KeyExistsError), ("conflict", exceptions.ConflictError),
            ("in_progress", exceptions.ConflictError), ("unauthorized", UnauthorizedError),
            ("idempotency_key", exceptions.ValidationError), ("error", ApiError),
            ("of_a_newer_server", ApiError),
        ],
    )  # fmt: skip
    def test_other_slugs(self, reason: str, kind: type[Exception]):
        """So are the other slugs of the server; one that is not known is an ApiError."""
        error = error_of(400, {"reason": reason}, None, "phrase")
        assert isinstance(error, kind)
        assert isinstance(error, ApiError)
        assert (error.reason, str(error)) == (reason, "phrase")

    def test_pickled(self):
        """Another process gets the same error."""
        problem = {"reason": "not_found", "detail": "D", "field": "f", "request_id": "r"}
        for error in (
            error_of(404, problem, 3.0, "p"), error_of(401, {"reason": "unauthorized"}, None, "p"),
            ApiError("strange"), NoAnswerError("lost", processed=False),
        ):  # fmt: skip
            again = pickle.loads(pickle.dumps(error))
            assert type(again) is type(error)
            assert (str(again), vars(again)) == (str(error), {**vars(again), **vars(error)})

    @pytest.mark.parametrize("body", ["", "<html>", "[]", "null", '{"reason": 5, "detail": {}}'])
    def test_no_document(self, body: str, clock: Clock):
        """An answer without a problem document says its status; a 503 is still unavailable."""
        for status, kind in ((500, ApiError), (503, exceptions.StorageError)):
            operation = call(Call("GET", "/"), Retries(most=0), WHERE)
            error, _, _ = drive(operation, [answer(status, body)], clock)
            assert isinstance(error, kind)
            assert isinstance(error, ApiError)
            assert str(error) == f"{WHERE} answered {status} Phrase"

    def test_redirect(self, clock: Clock):
        """A redirect is not followed with the token; the error says what to do."""
        error, sent, _ = drive(call(Call("GET", "/"), Retries(), WHERE), [answer(308)], clock)
        assert isinstance(error, ApiError)
        assert "redirects elsewhere" in str(error)
        assert len(sent) == 1

    @pytest.mark.parametrize("body", ["<html>", "[]", "7", '"' + "[" * 100_000, "[" * 100_000])
    def test_strange_answers(self, body: str, clock: Clock):
        """A success that no API key manager sends is an error, not a value."""
        for operation in (call(Call("GET", "/"), Retries(), WHERE),
                          Operations(Retries(), WHERE).validate(token="t")):  # fmt: skip
            error, _, _ = drive(operation, [answer(200, body)], clock)
            assert type(error) is ApiError
            assert "does not answer as an API key manager" in str(error)

    @pytest.mark.parametrize("valid", ["1", '"true"', "null"])
    def test_validity_is_a_boolean(self, valid: str, clock: Clock):
        """Only `true` is a yes."""
        operation = Operations(Retries(), WHERE).validate(token="t")
        error, _, _ = drive(operation, [answer(200, f'{{"valid": {valid}}}')], clock)
        assert type(error) is ApiError

    def test_batch_of_another_length(self, clock: Clock):
        """Verdicts that cannot be told apart are no verdicts."""
        operation = Operations(Retries(), WHERE).validate_batch([{"token": "a"}, {"token": "b"}])
        error, _, _ = drive(operation, [answer(200, '{"results": [{"valid": true}]}')], clock)
        assert type(error) is ApiError


NONCE = "n" * 16


@pytest.mark.parametrize(
    ("credential", "times"),
    [
        ({"token": "t"}, 4),
        ({"key_id": "k", "signature": "s"}, 4),
        ({"key_id": "k", "signature": "s", "timestamp": 5}, 4),
        ({"key_id": "k", "signature": "s", "timestamp": 5, "nonce": NONCE}, 1),
        ({"request": {"method": "GET"}}, 1),
    ],
    ids=str,
)
def test_what_is_accepted_once_is_asked_once(credential: dict[str, Any], times: int, clock: Clock):
    """A nonce that may have been claimed is not presented again, alone or in a batch."""
    operations = Operations(Retries(), WHERE)
    item = {"key" if name == "key_id" else name: value for name, value in credential.items()}
    for lost in (BROKEN, answer(502), answer(504), answer(503), answer(503, retry_after="0")):
        for operation in (
            operations.validate(**credential),
            operations.validate_batch([{"token": "t"}, item]),
        ):
            assert len(drive(operation, [lost], clock)[1]) == times
    for early in (REFUSED, answer(429)):
        assert len(drive(operations.validate(**credential), [early], clock)[1]) == 4


def test_creations_carry_a_key(clock: Clock):
    """Each creation and rotation has an idempotency key of its own, the same in all attempts."""
    operations = Operations(Retries(), WHERE)
    seen = set()
    for operation in (
        operations.create_key(), operations.create_key(), operations.rotate_key("k"),
        operations.create_token(["validate"]),
    ):  # fmt: skip
        _, sent, _ = drive(operation, [BROKEN], clock)
        assert len(sent) == 4
        [key] = {send.headers["Idempotency-Key"] for send in sent}
        seen.add(key)
    assert len(seen) == 4
    _, sent, _ = drive(operations.create_key(idempotency_key="mine"), [answer(201)], clock)
    assert sent[0].headers["Idempotency-Key"] == "mine"


def test_other_changes_are_made_once(clock: Clock):
    """Without such a key, a change that may have been made is not made again."""
    operations = Operations(Retries(), WHERE)
    for operation in (
        operations.update_key("k", owner="a"), operations.revoke_key("k"),
        operations.revoke_keys(owner="a"), operations.delete_key("k"),
        operations.revoke_token("k"),
    ):  # fmt: skip
        assert len(drive(operation, [BROKEN], clock)[1]) == 1


def test_bodies_are_json(clock: Clock):
    """What JSON cannot say is refused before anything is sent."""
    for value in (float("nan"), object(), {1, 2}, b"bytes"):
        operation = Operations(Retries(), WHERE).create_key(metadata={"a": value})
        error, sent, _ = drive(operation, [answer(201)], clock)
        assert isinstance(error, ValidationError)
        assert sent == []


def test_repr_shows_no_body():
    """What is on its way shows neither credentials nor answers."""
    hidden = "the-secret"
    for value in (
        Call("POST", "/", {"token": hidden}),
        Send("POST", "/", {}, {"Authorization": hidden}, hidden.encode(), 1.0),
        Answer(200, "OK", {}, hidden.encode()),
    ):
        assert hidden not in repr(value)


def test_instants():
    """A datetime needs a time zone."""
    east = timezone(timedelta(hours=2))
    assert members({"at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=east), "a": 5}) == {
        "at": "2026-01-02T03:04:05+02:00", "a": 5,
    }  # fmt: skip
    with pytest.raises(ValidationError, match=r"^expires_at: "):
        members({"expires_at": datetime(2026, 1, 2)})


def test_paths():
    """Only a key id gets into a path, and as one segment."""
    assert key_path("a.b:c-d_e", "/rotate") == "/v1/keys/a.b:c-d_e/rotate"
    assert key_path("..") == "/v1/keys/%2E%2E"
    for key_id in ("", "a/b", "a?b", "%2e", "a" * 129, None):
        with pytest.raises(ValidationError):
            key_path(key_id)


@pytest.mark.parametrize(
    "url",
    ["", "keys.example", "ftp://a", "http://", "http://u:p@a", "http://a?b", "http://a#b",
     "http://a b", "http://a:port", "http://a\n"],
)  # fmt: skip
def test_wrong_urls(url: str):
    """A URL that names no server, or holds a password, is refused."""
    with pytest.raises(ValidationError, match=r"^url: "):
        check_url(url)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["most", "base_seconds", "most_seconds", "deadline_seconds"])
def test_wrong_retries(name: str, value: float):
    """A policy that would never end is refused by name."""
    with pytest.raises(ValidationError, match=rf"^{name}: "):
        Retries(**{name: value})


def verdict(reason: str) -> RemoteVerdict:
    nothing = dict.fromkeys(
        ("key_id", "version", "scheme", "metadata", "permissions", "expires_at", "rate_limit",
         "body_verified", "quota"),
    )  # fmt: skip
    return RemoteVerdict(valid=reason == "valid", reason=reason, cached=False, **nothing)


def test_verdict():
    """A refusal is false, and raises what belongs to its reason when asked to."""
    assert verdict("valid")
    verdict("valid").raise_unless_valid()
    for reason, outcome in OUTCOMES.items():
        assert not verdict(reason)
        with pytest.raises(outcome.exception) as raised:
            verdict(reason).raise_unless_valid()
        assert raised.value.reason == reason
    with pytest.raises(exceptions.APIKeyManagerException) as newer:
        verdict("of_a_newer_server").raise_unless_valid()
    assert newer.value.reason == "of_a_newer_server"
