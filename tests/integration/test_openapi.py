"""The OpenAPI document is one, its examples fit it, and the running server answers as it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate

from api_key_manager.server.refusals import REFUSALS
from tests.integration.conftest import Api, serving
from tests.integration.test_server_serve import started

TOKEN = "t" * 40
PROBLEM = "application/problem+json"
# All that say something of what a document promises. Not: `positive_data_acceptance`, for which a
# schema would have to say what only the core can ("an instant in the future"); nor
# `allow_header_conformance`, since /v1/keys/revoke is also a key of that id, with more methods.
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_headers_conformance", "response_schema_conformance", "negative_data_rejection",
    "missing_required_header", "unsupported_method", "ignored_auth", "use_after_free",
)  # fmt: skip
MAX_EXAMPLES = 40


@pytest.fixture
async def document(api: Api) -> dict[str, Any]:
    answer = await api("GET", "/openapi.json", token=None)
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """All but forward auth, which takes callers' keys by any method and answers without a body."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if operation["tags"] != ["authorize"]:
                yield f"{method.upper()} {path}", operation


def resolved(document: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in part:
        found: Any = document
        for name in part["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        part = found
    return part


def check(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    """Whether a value fits a schema of the document."""
    whole = {**schema, "components": document["components"]}
    OAS31Validator(whole, format_checker=OAS31Validator.FORMAT_CHECKER).validate(value)


def test_is_openapi(document: dict[str, Any]):
    """It is valid; every reference in it leads somewhere, and nothing is idle."""
    validate(document)
    text = json.dumps(document)
    for kind in ("schemas", "responses", "headers"):
        used = set(re.findall(rf'"#/components/{kind}/([^"]+)"', text))
        assert used == set(document["components"][kind]), kind


def test_answers_are_told(document: dict[str, Any]):
    """Each operation names its answers one by one: a `default` would make anything right."""
    for name, operation in operations(document):
        responses = operation["responses"]
        assert "default" not in responses, name
        assert any(status.startswith("2") for status in responses), name
        assert all(resolved(document, r)["description"] for r in responses.values()), name
        for status, response in responses.items():
            headers = resolved(document, response)["headers"]
            assert resolved(document, headers["X-Request-Id"])["required"], name
            content = resolved(document, response).get("content", {})
            if int(status) >= 400:
                assert list(content) == [PROBLEM], (name, status)
            else:
                assert bool(content) == (status != "204"), (name, status)
        if operation.get("security"):
            assert {"401", "403", "413", "415", "500", "503"} <= set(responses), name


async def test_forward_auth(api: Api):
    """Forward auth answers as the document says, with the headers that it names."""
    document = (await api("GET", "/openapi.json")).json()
    limits = [{"name": "l", "limit": 1, "window_seconds": 3600}]
    key = await api.key(kind="bearer", owner="o", permissions=["a"], rate_limits=limits)
    for path, written, token, status in (
        ("/v1/authorize", "/v1/authorize", None, "401"),
        ("/v1/authorize/{permissions}", "/v1/authorize/b", key["token"], "403"),
        ("/v1/authorize/{permissions}", "/v1/authorize/a", key["token"], "200"),
        ("/v1/authorize", "/v1/authorize", key["token"], "429"),
    ):
        answer = await api("GET", written, token=token)
        assert str(answer.status_code) == status
        told = resolved(document, document["paths"][path]["get"]["responses"][status])
        named = {name.lower() for name in told["headers"]}
        common = {"content-type", "content-length", "cache-control", "x-content-type-options"}
        assert set(answer.headers) - common <= named
        assert all(
            name.lower() in answer.headers
            for name, header in told["headers"].items()
            if resolved(document, header).get("required")
        )
        if status != "200":
            check(document, told["content"][PROBLEM]["schema"], answer.json())


def test_headers_of_refusals(document: dict[str, Any]):
    """A 401 says how to authenticate, a 503 when to come back; a 409 may."""
    responses = document["components"]["responses"]
    assert responses["401"]["headers"]["WWW-Authenticate"]["required"]
    assert responses["503"]["headers"]["Retry-After"]["required"]
    assert "Retry-After" in responses["409"]["headers"]
    assert responses["401"]["content"][PROBLEM]["example"]["detail"]


def test_examples_fit(document: dict[str, Any]):
    """Every body, answer and problem has an example, which fits its schema."""
    for name, schema in document["components"]["schemas"].items():
        for example in schema.get("examples", ()):
            check(document, {"$ref": f"#/components/schemas/{name}"}, example)
    for status, response in document["components"]["responses"].items():
        media = response["content"][PROBLEM]
        check(document, media["schema"], media["example"])
        assert media["example"]["status"] == int(status)
    for name, operation in operations(document):
        holders = [operation.get("requestBody", {}), *operation["responses"].values()]
        for holder in holders:
            for media in resolved(document, holder).get("content", {}).values():
                schemas = media["schema"].get("anyOf", [media["schema"]])
                told = [
                    media.get("example"),
                    *(resolved(document, s).get("examples") for s in schemas),
                ]
                assert any(told), name


def test_security(document: dict[str, Any]):
    """What needs a token says so, with the scope; nothing else does."""
    assert document["components"]["securitySchemes"]["admin_token"]["scheme"] == "bearer"
    for name, operation in operations(document):
        needed = operation.get("x-scope")
        assert operation.get("security") == ([{"admin_token": []}] if needed else None), name


def test_idempotent_operations(document: dict[str, Any]):
    """Those that take an Idempotency-Key say what comes back with a replayed answer."""
    found = set()
    for name, operation in operations(document):
        for parameter in operation.get("parameters", ()):
            if parameter["name"] == "Idempotency-Key":
                found.add(name)
                (done,) = [r for s, r in operation["responses"].items() if s < "3"]
                assert "Idempotency-Replayed" in done["headers"]
                assert "409" in operation["responses"]
    assert found == {
        "POST /v1/keys", "POST /v1/tokens", "POST /v1/keys/{key_id}/rotate",
        "POST /v1/tokens/{key_id}/rotate", "POST /v1/webhooks",
        "POST /v1/webhooks/{webhook_id}/rotate-secret",
    }  # fmt: skip


def test_links(document: dict[str, Any]):
    """The answer to a create says what its id is for, which lets a fuzzer go on with it."""
    known = {operation["operationId"]: operation for _, operation in operations(document)}
    links = known["create_key"]["responses"]["201"]["links"]
    assert set(links) == {
        "get_key", "update_key", "delete_key", "revoke_key", "rotate_key", "list_versions",
    }  # fmt: skip
    assert set(known["create_token"]["responses"]["201"]["links"]) == {
        "rotate_token", "revoke_token",
    }  # fmt: skip


async def test_not_ready_is_told():
    """A node that is not ready answers as the document says."""
    async with serving() as api:
        api.deployment.supervisor.problems = lambda: ["a task died"]
        document = (await api("GET", "/openapi.json")).json()
        answer = await api("GET", "/readyz", token=None)
        assert answer.status_code == 503
        told = document["paths"]["/readyz"]["get"]["responses"]["503"]
        check(document, told["content"][PROBLEM]["schema"], answer.json())


@pytest.mark.slow
@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_the_server_answers_as_told(tmp_path: Path, store: str):
    """Random and hostile requests get no 5xx and no answer that the document doesn't know.

    Each operation gets valid and invalid requests from its schema, then whole sequences, where one
    answer's ids are the next request's.
    """
    url = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/data/akm.db"}[store]
    with started(tmp_path, AKM_ADMIN_TOKEN=TOKEN, DATABASE_URL=url) as server:
        done = subprocess.run(
            [
                sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json",
                "--header", f"Authorization: Bearer {TOKEN}", "--checks", ",".join(CHECKS),
                "--phases", "examples,coverage,fuzzing,stateful",
                "--max-examples", str(MAX_EXAMPLES), "--seed", "1",
                "--exclude-tag", "authorize",
                # Nobody but GitHub can sign what it takes.
                "--exclude-operation-id", "report_github_leaks",
                "--generation-database", "none", "--continue-on-failure", "--no-color",
            ],
            cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        cases = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
        assert cases, done.stdout
        assert int(cases[1]) > 1000
        assert server.stop() == 0


def test_a_broken_promise_is_found(document: dict[str, Any]):
    """The reasons of a status are part of its schema: another slug does not fit."""
    media = document["components"]["responses"]["409"]["content"][PROBLEM]
    for reason in REFUSALS[409].reasons:
        check(document, media["schema"], {**media["example"], "reason": reason})
    with pytest.raises(Exception, match="not_found"):
        check(document, media["schema"], {**media["example"], "reason": "not_found"})
